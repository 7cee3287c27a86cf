"""The system calls of a save: which are made, in which order, and what happens when they fail."""

from __future__ import annotations

import ctypes
import errno
import json
import mmap
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

import pyckpt
from tests.launch import WORKERS
from tests.preloads import preload

pytestmark = pytest.mark.timeout(300)

NATIVE = WORKERS.parent / "native"
# Small files go through the page cache. Large ones go past it where the file system lets them.
FILES = ["small .tar", "small .tar.gz", "large .tar"]
SIZES = ["0", "1", "511", "4097", "2097152", "2097153", "9999999", "30000000"]
FULL_DISKS = [*(f"of {nbytes}" for nbytes in SIZES), "one byte too small"]


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("calls")
    (folder / "saves").mkdir()
    done = subprocess.run(
        [sys.executable, WORKERS / "system_calls_worker.py", folder / "saves"],
        cwd=WORKERS.parent.parent,
        env={**os.environ, **preload("system_calls", folder), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def names(report: dict[str, Any]) -> list[str]:
    """The calls without details and repetitions; threads, memory and owners do not count."""
    calls = [call.partition("(")[0] for call in report["calls"]]
    calls = [call for call in calls if call not in ("pthread_create", "fchown", "mmap")]
    return [call for n, call in enumerate(calls) if n == 0 or call != calls[n - 1]]


def takes_direct_writes(folder: Path) -> bool:
    """Asked of the file system in another way than the writer does."""
    if is_in_memory(folder):
        return False
    page = mmap.mmap(-1, 4096)
    try:
        fd = os.open(folder, os.O_TMPFILE | os.O_RDWR | os.O_DIRECT)
        try:
            return os.pwritev(fd, [page], 0) == 4096
        finally:
            os.close(fd)
    except OSError:
        return False


def is_in_memory(folder: Path) -> bool:
    kind = subprocess.run(
        ["stat", "--file-system", "--format=%T", folder], capture_output=True, text=True, check=True
    )
    return kind.stdout.strip() in ("tmpfs", "ramfs")


@pytest.mark.parametrize("file", FILES)
def test_bytes_are_on_disk_before_the_name_and_the_name_after_it(
    reports: dict[str, Any], file: str, tmp_path: Path
) -> None:
    report = reports[f"nothing {file}"]
    called = [call for call in names(report) if call not in ("dontcache", "flock")]
    called = [call for n, call in enumerate(called) if n == 0 or call != called[n - 1]]
    assert called[:2] == ["open-unnamed", "fchmod"]
    before = []
    if file.startswith("large") and not is_in_memory(tmp_path):
        before += ["statx-direct", "fcntl-direct"]
    # A size that only compression tells cannot be reserved.
    if file.endswith(".tar"):
        before += ["fallocate"]
    assert called[2:-7] == [*before, "pwritev"]
    assert called[-7:] == [
        *("ftruncate", "fsync", "fadvise", "linkat"),
        *("open-folder", "rename", "fsync-folder"),
    ]
    reserved = [call for call in report["calls"] if call.startswith("fallocate")]
    assert len(reserved) == before.count("fallocate")
    assert all(int(call[10:-1]) > 12_000_000 for call in reserved), "space for all the bytes"


@pytest.mark.parametrize("file", FILES)
def test_without_fsync_nothing_waits_for_the_disk(reports: dict[str, Any], file: str) -> None:
    called = names(reports[f"no fsync {file}"])
    assert {"pwritev", "rename"} <= set(called)
    past_the_cache = {"fcntl-direct", "dontcache", "fadvise"}
    assert not [call for call in called if "sync" in call or call in past_the_cache]


FAIL = {
    "no space to reserve": errno.ENOSPC,
    "no space to write": errno.ENOSPC,
    "first write": errno.EIO,
    "last write": errno.EIO,
    "never written": errno.EINVAL,
    "flush": errno.EIO,
    "length": errno.EIO,
    "name": errno.EIO,
    "rename": errno.EXDEV,
    "folder cannot be opened": errno.EMFILE,
}


def has_left_the_old_file(report: dict[str, Any], number: int, name: str) -> bool:
    kind, found, message = report["error"]
    assert (kind, found) == ("CheckpointError", number)
    assert os.strerror(number) in message
    assert name in message
    return (report["new"], report["whole"], report["left"]) == (False, True, [])


@pytest.mark.parametrize(
    ("scenario", "file"),
    # Only a size that is known can be reserved.
    [(x, y) for x in FAIL for y in FILES if x != "no space to reserve" or y.endswith(".tar")],
)
def test_a_call_that_fails_leaves_the_old_file(
    reports: dict[str, Any], scenario: str, file: str
) -> None:
    name = f"x{file.partition(' ')[2]}"
    assert has_left_the_old_file(reports[f"{scenario} {file}"], FAIL[scenario], name)


@pytest.mark.parametrize("disk", FULL_DISKS)
def test_a_disk_that_is_full_at_any_byte(reports: dict[str, Any], disk: str) -> None:
    assert has_left_the_old_file(reports[f"disk {disk}"], errno.ENOSPC, "x.tar.gz")


def test_a_disk_that_is_just_large_enough(reports: dict[str, Any]) -> None:
    report = reports["disk just large enough"]
    assert (report["error"], report["new"], report["whole"]) == (None, True, True)


@pytest.mark.parametrize("file", FILES)
def test_a_name_that_cannot_be_flushed_is_told(reports: dict[str, Any], file: str) -> None:
    report = reports[f"flush folder {file}"]
    assert report["error"][:2] == ["CheckpointError", errno.EIO]
    assert "the new file has its name" in report["error"][2]
    assert (report["new"], report["whole"], report["left"]) == (True, True, [])


SUCCEED = [
    *("cannot reserve", "short first write", "short writes", "interrupted", "often interrupted"),
    *("short and interrupted", "folders cannot be flushed", "folder cannot be read"),
    *("no unnamed files", "no modes", "no threads", "two threads", "odd writes", "old system"),
    *("no direct files", "no direct writes", "no alignment told", "pages cannot be dropped"),
    *("no direct write ever", "no memory for segments"),
]


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("scenario", SUCCEED)
def test_what_a_save_can_do_without(reports: dict[str, Any], scenario: str, file: str) -> None:
    report = reports[f"{scenario} {file}"]
    assert report["error"] is None
    assert (report["new"], report["whole"], report["left"]) == (True, True, [])


def count(report: dict[str, Any], start: str) -> int:
    return sum(call.startswith(start) for call in report["calls"])


@pytest.mark.parametrize("size", ["small", "large"])
def test_what_the_scenarios_did(reports: dict[str, Any], size: str) -> None:
    """They would prove nothing if no call had failed."""
    tar = {name: reports[f"{name} {size} .tar"] for name in (*SUCCEED, "nothing")}
    written = {name: count(report, "pwritev") for name, report in tar.items()}
    assert written["short writes"] > 2 * written["nothing"]
    assert written["often interrupted"] == written["nothing"] + 8
    assert count(tar["interrupted"], "fsync(0)") == 2
    assert count(tar["interrupted"], "fallocate") == 2
    assert count(tar["folder cannot be read"], "syncfs(0)") == 1
    assert count(tar["no threads"], "pthread_create(0)") > 0
    assert count(tar["no direct files"], "dontcache") == written["no direct files"] > 0
    # What is refused once is not asked again.
    assert 0 < count(tar["pages cannot be dropped"], "dontcache") <= 3


def test_large_files_go_past_the_page_cache(reports: dict[str, Any], tmp_path: Path) -> None:
    direct = takes_direct_writes(tmp_path)
    for name in ("nothing", "no alignment told", "short writes", "no threads"):
        report = reports[f"{name} large .tar"]
        # Without them, the writes in the cache are told to leave it.
        assert (count(report, "dontcache") == 0) == direct
        if direct and name != "short writes":
            offsets = {int(call[8:-1]) for call in report["calls"] if call[:8] == "pwritev("}
            assert offsets == set(range(0, max(offsets) + 1, 2 << 20))
    for name in (
        "no direct writes",
        "no direct write ever",
        "no memory for segments",
        "odd writes",
    ):
        assert count(reports[f"{name} large .tar"], "dontcache") > 0


def test_the_page_cache_gets_small_pieces(reports: dict[str, Any]) -> None:
    # Larger ones let Linux take pages of 2 MiB.
    report = reports["no fsync large .tar"]
    offsets = sorted(int(call[8:-1]) for call in report["calls"] if call.startswith("pwritev("))
    edges = [*offsets, report["nbytes"]]
    assert max(end - start for start, end in pairwise(edges)) <= 1 << 20


def test_an_asynchronous_save_without_threads(reports: dict[str, Any]) -> None:
    report = reports["asynchronous, no threads"]
    assert (report["error"], report["new"], report["whole"]) == (None, True, True)


@pytest.mark.parametrize("name", ["no threads", "two threads"])
def test_a_file_object_without_threads(reports: dict[str, Any], name: str) -> None:
    report = reports[f"file object, {name}"]
    assert (report["error"], report["new"], report["whole"]) == (None, True, True)


# The page cache


def resident_pages(path: Path) -> int:
    """How many pages of a file are in the page cache."""
    nbytes = path.stat().st_size
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) as pages:
        start = ctypes.c_uint8.from_buffer(pages)
        found = (ctypes.c_uint8 * -(-nbytes // mmap.PAGESIZE))()
        mincore = ctypes.CDLL(None, use_errno=True).mincore
        assert (
            mincore(ctypes.c_void_p(ctypes.addressof(start)), ctypes.c_size_t(nbytes), found) == 0
        )
        del start
    return sum(page & 1 for page in found)


@pytest.mark.parametrize("suffix", ["", ".tar", ".tar.gz"])
@pytest.mark.parametrize("make", [torch.randn, torch.zeros])
@pytest.mark.parametrize("numel", [10, 3_000_000, 20_000_001])
def test_a_checkpoint_does_not_stay_in_the_page_cache(
    tmp_path: Path, make: Callable[[int], torch.Tensor], numel: int, suffix: str
) -> None:
    data = tmp_path / "training-data"
    data.write_bytes(os.urandom(1 << 20) * 32)
    os.sync()
    cached = resident_pages(data)
    assert cached == (32 << 20) // mmap.PAGESIZE
    path = tmp_path / f"x{suffix}"
    weight = make(numel)
    pyckpt.save({"weight": weight}, path)
    found = resident_pages(path)
    assert resident_pages(data) == cached
    if is_in_memory(tmp_path):  # the page cache is all that there is
        assert found == -(-path.stat().st_size // mmap.PAGESIZE)
    else:
        assert found == 0
    assert torch.equal(pyckpt.load(path)["weight"], weight)
    pyckpt.save({"weight": weight}, path, fsync=False)
    assert resident_pages(path) == -(-path.stat().st_size // mmap.PAGESIZE)


def test_a_save_that_is_stopped_while_workers_wait_for_the_disk(tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        if done:
            raise ValueError("enough")

    path = tmp_path / "x.tar"
    path.write_bytes(b"old")
    for threads in (1, 2, 9):
        with pytest.raises(pyckpt.CheckpointError, match="enough"):
            pyckpt.save({"w": torch.zeros(200_000_000)}, path, num_threads=threads, progress=stop)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["x.tar"]


# What a new file takes over from the old one


def save_over(path: Path) -> os.stat_result:
    pyckpt.save({"weight": torch.ones(3)}, path)
    return path.stat()


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o666, 0o444])
def test_the_mode_is_kept(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "x.tar"
    path.touch()
    path.chmod(mode)
    assert stat.S_IMODE(save_over(path).st_mode) == mode


def test_bits_that_lend_rights_are_not_kept(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    path.touch()
    path.chmod(0o6755)
    assert stat.S_IMODE(save_over(path).st_mode) == 0o755


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")


@needs_root
def test_the_owner_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    path.touch()
    path.chmod(0o640)
    os.chown(path, 1000, 1001)
    found = save_over(path)
    assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (1000, 1001, 0o640)


def as_user(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Runs code as user and group 12345, without root's rights, in a folder."""
    lines = [
        "import os, sys, torch, pyckpt",
        "os.chdir(sys.argv[1])",
        "if os.geteuid() == 0: os.setgroups([]); os.setgid(12345); os.setuid(12345)",
        code,
    ]
    return subprocess.run(
        [sys.executable, "-c", "\n".join(lines), folder],
        cwd=WORKERS.parent.parent,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


@pytest.fixture
def shared_folder() -> Any:
    """A folder that another user can reach."""
    folder = Path("/tmp") / f"pyckpt-shared-{os.getpid()}"
    folder.mkdir()
    folder.chmod(0o777)
    yield folder
    folder.chmod(0o777)
    shutil.rmtree(folder)


@needs_root
def test_a_group_that_cannot_be_kept_opens_the_file_to_no_other(shared_folder: Path) -> None:
    path = shared_folder / "x.tar"
    path.touch()
    path.chmod(0o664)
    os.chown(path, 12345, 1)
    done = as_user("pyckpt.save({}, 'x.tar')", shared_folder)
    assert done.returncode == 0, done.stderr
    found = path.stat()
    assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (12345, 12345, 0o644)


def test_user_attributes_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    path.touch()
    try:
        os.setxattr(path, "user.note", b"mine")
    except OSError:
        pytest.skip("this file system has no user attributes")
    save_over(path)
    assert os.getxattr(path, "user.note") == b"mine"


@needs_root
@pytest.mark.parametrize(
    ("mode", "owner", "message"),
    [
        (0o555, 0, "cannot make a new file in its folder (which a save needs, since it never"),
        (0o1777, 0, "cannot replace it (its folder is sticky, and the file is another user's)"),
    ],
)
def test_files_that_cannot_be_replaced(
    shared_folder: Path, mode: int, owner: int, message: str
) -> None:
    path = shared_folder / "x.tar"
    path.write_bytes(b"old")
    path.chmod(0o666)
    os.chown(path, owner, owner)
    shared_folder.chmod(mode)
    done = as_user("pyckpt.save({}, 'x.tar')", shared_folder)
    assert message in done.stderr
    assert "x.tar" in done.stderr
    assert path.read_bytes() == b"old"
    assert os.listdir(shared_folder) == ["x.tar"]


@needs_root
def test_a_folder_that_cannot_be_read(shared_folder: Path) -> None:
    shared_folder.chmod(0o333)
    done = as_user("pyckpt.save({'a': 1}, 'x.tar')", shared_folder)
    assert done.returncode == 0, done.stderr
    assert pyckpt.load(shared_folder / "x.tar") == {"a": 1}
