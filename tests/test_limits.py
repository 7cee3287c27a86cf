"""What the README guarantees at the limits: large states, little memory, full disks, signals.

Real processes, run to their end or stopped on the way.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import resource
import shutil
import signal
import stat
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import pyckpt
from pyckpt.archive.formats import archive_format
from tests.launch import WORKERS, private_mounts

pytestmark = pytest.mark.timeout(200)

SAVE = [sys.executable, str(WORKERS / "save_worker.py")]
SUFFIXES = ["", ".tar", ".tar.gz", ".tar.bz2", ".tar.lzma", ".tar.zst"]
MIB = 1 << 20
OLD = b"the old file"


def run(command: list[str], **options: Any) -> str:
    """What the command prints; it must succeed."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def outcomes(printed: str) -> list[dict[str, Any]]:
    results: list[dict[str, Any]] = json.loads(printed.splitlines()[-1])
    return results


# Memory

ENCODER_NBYTES = {
    "tar": 0,
    "tar.gz": 1_200_000,
    "tar.bz2": 27_000_000,
    "tar.xz": 20_000_000,
    "tar.zst": 4_000_000,
}
STORED_CHUNK_NBYTES = 4 * MIB
SEGMENTS_NBYTES = 16 * MIB  # of saves that wait for the disk


@pytest.mark.parametrize(
    ("suffix", "nbytes"),
    [
        ("", 1024 * MIB),
        (".tar", 1024 * MIB),
        (".tar.gz", 1024 * MIB),
        (".tar.bz2", 32 * MIB),  # slow formats: still more than the queue holds
        (".tar.lzma", 32 * MIB),
        (".tar.zst", 1024 * MIB),
    ],
)
@pytest.mark.parametrize("fsync", [False, True])
def test_memory_stays_within_the_published_formula(
    tmp_path: Path, suffix: str, nbytes: int, fsync: bool
) -> None:
    path = tmp_path / f"x{suffix}"
    [outcome] = outcomes(run([*SAVE, *["--fsync"] * fsync, str(nbytes), str(path)]))
    size = path.stat().st_size
    path.unlink()
    assert size > 0.5 * nbytes
    row = archive_format(path)
    chunk = STORED_CHUNK_NBYTES if row is None else row.chunk_nbytes
    encoder = 0 if row is None else ENCODER_NBYTES[row.name]
    threads = min(2, len(os.sched_getaffinity(0)))  # the worker limits itself to two CPUs
    formula = threads * (7 * chunk + encoder) + fsync * SEGMENTS_NBYTES
    assert outcome["growth_nbytes"] <= formula
    assert outcome["growth_nbytes"] < 100_000_000


# Sizes beyond 32 bits


@pytest.fixture(scope="module")
def large_files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The files of large_worker.py: holes except for some KiB."""
    folder = tmp_path_factory.mktemp("large")
    library = folder / "sparse_disk.so"
    source = Path(__file__).parent / "sparse_disk.cc"
    run(["c++", "-std=c++17", "-O2", "-shared", "-fPIC", "-o", str(library), str(source)])
    preload = ":".join(filter(None, [os.environ.get("LD_PRELOAD"), str(library)]))
    worker = [sys.executable, str(WORKERS / "large_worker.py"), str(folder)]
    run(worker, env={**os.environ, "LD_PRELOAD": preload})
    yield folder
    shutil.rmtree(folder)


def test_deflated_records_beyond_32_bits(large_files: Path) -> None:
    path = large_files / "deflated" / "x.pt"
    with zipfile.ZipFile(path) as names:
        large = names.getinfo("archive/data/0")
        assert large.file_size == (4 << 30) + 1
        assert large.compress_size < 16 * MIB
    report = pyckpt.verify(path)
    assert report.ok, report.problems
    assert torch.equal(pyckpt.load(path, keys="1")[0], torch.arange(5))
    run(["7z", "t", str(path)])


def number(data: bytes, at: int, nbytes: int) -> int:
    return int.from_bytes(data[at : at + nbytes], "little")


def zip_layout(path: Path, start: int = 0, end: int | None = None) -> list[tuple[Any, ...]]:
    """Everything in a zip file of torch, except the contents of records and their checksums.

    A record gives its name, the offsets of its header and its data, header, descriptor and
    directory entry. The last item is what follows the directory. Headers lack the sizes that torch
    leaves at 0 and pyckpt fills in for readers that stream: both 32-bit sizes, and the second size
    of the zip64 field.
    """
    with path.open("rb") as file:

        def read(offset: int, nbytes: int) -> bytes:
            return os.pread(file.fileno(), nbytes, start + offset)

        size = (path.stat().st_size if end is None else end) - start
        tail = read(size - 98, 98)  # zip64 end record, its locator, end record
        directory = read(number(tail, 48, 8), number(tail, 40, 8))
        layout: list[tuple[Any, ...]] = []
        at = 0
        while at < len(directory):
            name_nbytes, extra_nbytes = number(directory, at + 28, 2), number(directory, at + 30, 2)
            entry = directory[at : at + 46 + name_nbytes + extra_nbytes]
            wide = iter(range(46 + name_nbytes + 4, len(entry), 8))
            nbytes, header = number(entry, 24, 4), number(entry, 42, 4)
            compressed_nbytes = slice(0, 0)  # in the header
            if nbytes == 0xFFFFFFFF:
                compressed_nbytes = slice(30 + name_nbytes + 12, 30 + name_nbytes + 20)
                nbytes = number(entry, next(wide), 8)
                next(wide)
            if header == 0xFFFFFFFF:
                header = number(entry, next(wide), 8)
            lengths = read(header + 26, 4)  # of name and extra fields
            data = header + 30 + number(lengths, 0, 2) + number(lengths, 2, 2)
            local = bytearray(read(header, data - header))
            del local[compressed_nbytes], local[18:26]
            descriptor = read(data + nbytes, 24 if len(entry) > 46 + name_nbytes else 16)
            layout.append(
                (
                    entry[46 : 46 + name_nbytes],
                    header,
                    data,
                    local,
                    descriptor[:4] + descriptor[8:],
                    entry[:16] + entry[20:],
                )
            )
            at += len(entry)
        return [*layout, (tail,)]


@pytest.mark.parametrize(
    "case",
    [
        "large-and-far",
        "data-just-small",
        "data-just-large",
        "header-just-near",
        "header-just-far",
    ],
)
def test_large_files_are_laid_out_as_by_torch(large_files: Path, case: str) -> None:
    ours = zip_layout(large_files / case / "pyckpt" / "archive")
    theirs = zip_layout(large_files / case / "torch" / "archive")
    assert ours == theirs
    second_header = {"header-just-near": 0xFFFFFFFE, "header-just-far": 0xFFFFFFFF}
    assert ours[5][1] == second_header.get(case, ours[5][1])


def test_large_files_load(large_files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_SERIALIZATION_DEBUG", "1")  # compares computed with real offsets
    path = large_files / "large-and-far" / "pyckpt" / "archive"
    first, second, third, fourth = torch.load(path, mmap=True)
    assert first.nbytes == third.nbytes == 4 << 30
    assert second.tolist() == [0, 1, 2, 3, 4]
    assert fourth.tolist() == [0, 1, 2, 3, 4, 5, 6]


def test_checksums_of_large_records(large_files: Path) -> None:
    listing = run(["7z", "l", "-slt", str(large_files / "large-and-far" / "pyckpt" / "archive")])
    sizes = [line for line in listing.splitlines() if line.startswith("Size = ")]
    checksums = [line for line in listing.splitlines() if line.startswith("CRC = ")]
    of_4_gib_of_zeros = "D202EF8D"
    assert [
        checksum.removeprefix("CRC = ")
        for size, checksum in zip(sizes, checksums, strict=True)
        if size == f"Size = {4 << 30}"
    ] == [of_4_gib_of_zeros] * 2


@pytest.mark.parametrize("tool", [["tar"], ["busybox", "tar"], ["bsdtar"]])
def test_tools_see_the_size_of_a_large_member(large_files: Path, tool: list[str]) -> None:
    folder = large_files / "large-and-far" / "pyckpt"
    printed = run([*tool, "-tvf", str(folder / "archive.tar")])
    assert f" {(folder / 'archive').stat().st_size} " in printed.splitlines()[-1]
    assert printed.splitlines()[-1].endswith("composer_states.pt")


def test_a_large_member_is_laid_out_as_the_file(large_files: Path) -> None:
    folder = large_files / "large-and-far" / "pyckpt"
    with tarfile.open(folder / "archive.tar") as tar:
        member = tar.getmember("composer_states.pt")
    start = member.offset_data
    inside = zip_layout(folder / "archive.tar", start, start + member.size)
    assert inside == zip_layout(folder / "archive")


def test_more_records_than_16_bits_count(tmp_path: Path) -> None:
    obj = [torch.tensor(index) for index in range(66_000)]
    for folder in ("pyckpt", "torch"):
        (tmp_path / folder).mkdir()
    pyckpt.save(obj, tmp_path / "pyckpt" / "archive")
    torch.save(obj, tmp_path / "torch" / "archive")
    ours, theirs = (zip_layout(tmp_path / folder / "archive") for folder in ("pyckpt", "torch"))
    assert len(ours) > 66_000
    assert ours == theirs


# Signals


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder that holds nothing else: its listing shows what a save leaves behind."""
    folder = tmp_path / "folder"
    folder.mkdir()
    return folder


def knows_unnamed_files(folder: Path) -> bool:
    try:
        os.close(os.open(folder, os.O_TMPFILE | os.O_RDWR))
    except OSError:
        return False
    return True


def wait_until_it_writes(process: subprocess.Popen[str], folder: Path) -> None:
    """Waits until the process has an open file in the folder with bytes in it."""
    descriptors = Path(f"/proc/{process.pid}/fd")
    while process.poll() is None:
        for link in descriptors.iterdir():
            with contextlib.suppress(OSError):  # closed meanwhile
                if Path(os.readlink(link)).parent == folder and link.stat().st_size > 0:
                    return
        time.sleep(0.01)
    raise AssertionError(process.communicate())


def stopped_while_writing(path: Path, stop: signal.Signals, *, hide_proc: bool) -> tuple[int, str]:
    """Exit status and output of a process that is stopped early in a save of half a minute.

    ``hide_proc`` hides /proc. Then a file without a name cannot get one later, so the save writes a
    hidden sibling.
    """
    command = [*SAVE, str(1024 * MIB), str(path)]
    if hide_proc:
        command = [*private_mounts('mount -t tmpfs none /proc; exec "$@"'), "sh", *command]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            wait_until_it_writes(process, path.parent)
            process.send_signal(stop)
            printed, _ = process.communicate(timeout=10)
        finally:
            process.kill()
    return process.returncode, printed


@pytest.mark.parametrize("hide_proc", [False, True], ids=["unnamed", "named"])
@pytest.mark.parametrize("suffix", [".tar.bz2", ".tar.lzma"])
def test_control_c_stops_a_save_and_leaves_nothing(
    folder: Path, suffix: str, hide_proc: bool
) -> None:
    path = folder / f"x{suffix}"
    path.write_bytes(OLD)
    status, printed = stopped_while_writing(path, signal.SIGINT, hide_proc=hide_proc)
    assert status == 0
    [outcome] = outcomes(printed)
    assert outcome["interrupted"]
    assert os.listdir(folder) == [path.name]
    assert path.read_bytes() == OLD


@pytest.mark.parametrize("hide_proc", [False, True], ids=["unnamed", "named"])
def test_a_killed_process_leaves_the_old_file(folder: Path, hide_proc: bool) -> None:
    path = folder / "x.tar.lzma"
    pyckpt.save(torch.arange(3), path)
    status, _ = stopped_while_writing(path, signal.SIGKILL, hide_proc=hide_proc)
    assert status == -signal.SIGKILL
    assert pyckpt.load(path).tolist() == [0, 1, 2]
    # A sibling with a name stays until the next save in the folder.
    strays = [name for name in os.listdir(folder) if name != path.name]
    assert len(strays) == (0 if knows_unnamed_files(folder) and not hide_proc else 1)
    assert all(name.startswith(".x.tar.lzma.") and name.endswith(".tmp") for name in strays)
    pyckpt.save(torch.arange(4), path)
    assert pyckpt.load(path).tolist() == [0, 1, 2, 3]
    assert os.listdir(folder) == [path.name]


# Disks and folders that refuse files


def assert_refused(outcome: dict[str, Any], path: str, error_number: int) -> None:
    kind, message = outcome["error"]
    assert kind == "CheckpointError"
    assert os.strerror(error_number) in message
    assert path in message
    assert outcome["fields"] == [error_number, path, 0]


def test_a_full_disk_keeps_the_old_files(folder: Path) -> None:
    paths = [str(folder / f"x{suffix}") for suffix in SUFFIXES]
    script = (
        'disk=$1 old=$2; shift 2; mount -t tmpfs -o size=4m none "$disk"; '
        "for name in x x.tar x.tar.gz x.tar.bz2 x.tar.lzma x.tar.zst; do "
        'printf %s "$old" > "$disk/$name"; done; "$@"; ls -A "$disk"; cat "$disk"/*'
    )
    printed = run(
        [*private_mounts(script), "sh", str(folder), OLD.decode(), *SAVE, str(16 * MIB), *paths]
    )
    saved, *names, contents = printed.splitlines()
    for outcome, path in zip(outcomes(saved), paths, strict=True):
        assert_refused(outcome, path, errno.ENOSPC)
    assert sorted(names) == sorted(Path(path).name for path in paths)
    assert contents == OLD.decode() * len(paths)


def test_a_limit_on_file_size_keeps_the_old_files(folder: Path) -> None:
    paths = [str(folder / f"x{suffix}") for suffix in SUFFIXES]
    for path in paths:
        Path(path).write_bytes(OLD)
    printed = run(["prlimit", f"--fsize={4 * MIB}", *SAVE, str(16 * MIB), *paths])
    for outcome, path in zip(outcomes(printed), paths, strict=True):
        assert_refused(outcome, path, errno.EFBIG)
        assert Path(path).read_bytes() == OLD
    assert len(os.listdir(folder)) == len(paths)


def test_a_folder_without_write_permission(folder: Path) -> None:
    (folder / "old.tar").write_bytes(OLD)
    folder.chmod(0o555)
    # Root may write in spite of the mode, unless it drops these capabilities.
    powers = "-dac_override,-dac_read_search"
    drop = ["setpriv", f"--bounding-set={powers}", f"--inh-caps={powers}"]
    paths = [str(folder / name) for name in ("old.tar", "new.tar.gz", "sub/new.tar")]
    printed = run([*(drop if os.geteuid() == 0 else []), *SAVE, str(MIB), *paths])
    folder.chmod(0o755)
    *direct, below = outcomes(printed)
    for outcome, path in zip(direct, paths, strict=False):
        assert_refused(outcome, path, errno.EACCES)
    assert_refused(below, str(folder / "sub"), errno.EACCES)
    assert os.listdir(folder) == ["old.tar"]
    assert (folder / "old.tar").read_bytes() == OLD


def test_a_read_only_file_system(folder: Path) -> None:
    (folder / "old.tar").write_bytes(OLD)
    script = 'disk=$1; shift; mount --bind -o ro "$disk" "$disk"; exec "$@"'
    paths = [str(folder / name) for name in ("old.tar", "new.tar.gz")]
    printed = run([*private_mounts(script), "sh", str(folder), *SAVE, str(MIB), *paths])
    for outcome, path in zip(outcomes(printed), paths, strict=True):
        assert_refused(outcome, path, errno.EROFS)
    assert os.listdir(folder) == ["old.tar"]
    assert (folder / "old.tar").read_bytes() == OLD


# Names that cannot be written, and what happens to existing files


@pytest.mark.parametrize("kind", ["folder", "pipe", "link to a folder", "device"])
def test_only_files_are_replaced(folder: Path, kind: str) -> None:
    path = folder / "x.tar"
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "link to a folder":
        path.symlink_to(folder)
    else:
        path = Path("/dev/null")
    with pytest.raises(pyckpt.FilenameError, match="is not a regular file") as caught:
        pyckpt.save([1], path)
    assert caught.value.path == str(path)
    assert os.listdir(folder) == ([] if kind == "device" else ["x.tar"])


@pytest.mark.parametrize("below", ["file/x.tar", "file/sub/x.tar"])
def test_a_file_is_no_folder(folder: Path, below: str) -> None:
    (folder / "file").write_bytes(OLD)
    with pytest.raises(pyckpt.CheckpointError, match=f"{folder}/file") as caught:
        pyckpt.save([1], folder / below)
    assert caught.value.errno in (errno.ENOTDIR, errno.EEXIST)
    assert (folder / "file").read_bytes() == OLD


def test_a_name_that_is_too_long(folder: Path) -> None:
    longest = "é" * 124 + "xxx.tar"
    assert len(os.fsencode(longest)) == 255
    pyckpt.save([1], folder / longest)
    assert pyckpt.load(folder / longest) == [1]
    (folder / longest).unlink()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    # No byte may be written: so the name has to be refused before the first one.
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))
    try:
        with pytest.raises(pyckpt.CheckpointError, match="File name too long") as caught:
            pyckpt.save([1], folder / f"x{longest}")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.errno == errno.ENAMETOOLONG
    assert not os.listdir(folder)


def test_links_stay_and_what_they_lead_to_is_replaced(folder: Path) -> None:
    (folder / "there").mkdir()
    link, target = folder / "latest.tar", folder / "there" / "ep1.tar"
    link.symlink_to("there/ep1.tar")
    for value in (1, 2):  # first the link leads to nothing
        pyckpt.save([value], link)
        assert link.is_symlink()
        assert pyckpt.load(target) == [value]
    assert os.listdir(folder / "there") == ["ep1.tar"]
    loop = folder / "loop.tar"
    loop.symlink_to("loop.tar")
    with pytest.raises(pyckpt.CheckpointError) as caught:
        pyckpt.save([1], loop)
    assert caught.value.errno == errno.ELOOP
    assert loop.is_symlink()


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_modes(folder: Path) -> None:
    path = folder / "x.tar"
    before = os.umask(0o027)
    try:
        pyckpt.save([1], path)
        assert mode(path) == 0o640
        path.chmod(0o604)
        pyckpt.save([2], path)
        assert mode(path) == 0o604
    finally:
        os.umask(before)
    assert pyckpt.load(path) == [2]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_fsync_changes_no_byte(folder: Path, frozen_time: int, suffix: str) -> None:
    for fsync in (True, False):
        pyckpt.save(torch.arange(1000), folder / f"{fsync}{suffix}", fsync=fsync)
    assert (folder / f"True{suffix}").read_bytes() == (folder / f"False{suffix}").read_bytes()
