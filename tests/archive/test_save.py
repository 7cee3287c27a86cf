"""pyckpt.save and pyckpt.load in every format; common programs read the files too."""

import bz2
import io
import lzma
import os
import random
import stat
import subprocess
import tarfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

import pyckpt
from pyckpt import _core
from pyckpt.archive import formats
from pyckpt.archive.formats import usual_suffixes
from pyckpt.archive.writer import ArchiveWriter
from pyckpt.options import WriteOptions
from tests import zstd_command
from tests.states import assert_equal, mixed_state

STATES = formats.STATES_MEMBER
TAR_SUFFIXES = formats.tar_suffixes()
ALL_SUFFIXES = [*TAR_SUFFIXES, ".pt", "", *formats.file_suffixes()]
FORMAT_SUFFIXES = usual_suffixes()  # one of each format
COMPRESSED = [row for row in _core.formats() if row.name != "tar"]
DECODERS: dict[str, Callable[[bytes], bytes]] = {
    "tar.gz": lambda data: zlib.decompress(data, 31),
    "tar.bz2": bz2.decompress,
    "tar.xz": lzma.decompress,
    "tar.zst": zstd_command.decompress,
}
# How each program tests a file; "<" gives it the file as its standard input.
TESTERS = {
    "tar.gz": ["gzip -t <", "pigz -t <", "igzip -t <"],
    "tar.bz2": ["bzip2 -t", "lbzip2 -t", "pbzip2 -t"],
    "tar.xz": ["xz -t", "xz -T2 -t"],
    "tar.zst": ["zstd -qt", "zstd -qt <"],
}
BUSYBOX_FLAGS = {"tar": "", "tar.gz": "z", "tar.bz2": "j", "tar.xz": "J"}
PYTHON_MODES = {"tar": "", "tar.gz": "gz", "tar.bz2": "bz2", "tar.xz": "xz"}

FORMATS = pytest.mark.parametrize("row", _core.formats(), ids=lambda row: row.name)
COMPRESSED_FORMATS = pytest.mark.parametrize("row", COMPRESSED, ids=lambda row: row.name)


def run(command: str, path: Path, *more: str) -> subprocess.CompletedProcess[bytes]:
    words = command.split()
    if words[-1] == "<":
        with path.open("rb") as file:
            return subprocess.run(words[:-1], stdin=file, capture_output=True, check=True)
    return subprocess.run([*words, str(path), *more], capture_output=True, check=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The mixed state under every suffix: x.tar, x.tar.gz, ..."""
    folder = tmp_path_factory.mktemp("every-suffix")
    for suffix in ALL_SUFFIXES:
        pyckpt.save(mixed_state(), folder / f"x{suffix}", num_threads=3)
    return folder


def file_for(folder: Path, suffix: str) -> tuple[Path, _core.Format]:
    path = folder / f"x{suffix}"
    row = formats.archive_format(path)
    assert row is not None
    return path, row


# Reading with common programs.


@pytest.mark.parametrize("suffix", ALL_SUFFIXES)
def test_load(folder: Path, suffix: str) -> None:
    assert_equal(pyckpt.load(folder / f"x{suffix}"), mixed_state())


@pytest.mark.parametrize("suffix", [".pt", ""])
def test_other_suffixes_are_files_of_torch(folder: Path, suffix: str) -> None:
    assert_equal(torch.load(folder / f"x{suffix}"), mixed_state())


@pytest.mark.parametrize("suffix", FORMAT_SUFFIXES)
def test_gnu_tar_extracts(folder: Path, tmp_path: Path, suffix: str) -> None:
    run(f"tar -C {tmp_path} -xf", folder / f"x{suffix}")
    assert_equal(torch.load(tmp_path / STATES), mixed_state())


@pytest.mark.parametrize("suffix", FORMAT_SUFFIXES)
def test_bsdtar_extracts(folder: Path, tmp_path: Path, suffix: str) -> None:
    assert STATES in run("bsdtar -tf", folder / f"x{suffix}").stdout.decode().split("\n")
    run(f"bsdtar -C {tmp_path} -xf", folder / f"x{suffix}", STATES)
    assert_equal(torch.load(tmp_path / STATES), mixed_state())


@pytest.mark.parametrize("name", BUSYBOX_FLAGS)
def test_busybox_extracts(folder: Path, tmp_path: Path, name: str) -> None:
    run(f"busybox tar -C {tmp_path} -x{BUSYBOX_FLAGS[name]}f", folder / f"x.{name}")
    assert_equal(torch.load(tmp_path / STATES), mixed_state())


@pytest.mark.parametrize("suffix", [*FORMAT_SUFFIXES, ".pt"])
def test_7z_finds_no_fault(folder: Path, suffix: str) -> None:
    assert b"Everything is Ok" in run("7z t", folder / f"x{suffix}").stdout


@pytest.mark.parametrize("suffix", [row.suffixes[0] for row in COMPRESSED])
def test_decompressors_find_no_fault(folder: Path, suffix: str) -> None:
    path, row = file_for(folder, suffix)
    for tester in TESTERS[row.name]:
        done = run(tester, path)
        assert done.stderr == b"", tester


@pytest.mark.parametrize("name", PYTHON_MODES)
def test_python_reads_in_random_and_stream_modes(folder: Path, name: str) -> None:
    for mode in ["r:*", "r|*", f"r|{PYTHON_MODES[name]}"]:
        with tarfile.open(folder / f"x.{name}", mode) as tar:
            found = {
                member.name: b"" if member.isdir() else tar.extractfile(member).read()
                for member in tar
            }
        assert list(found) == ["", STATES]
        assert_equal(torch.load(io.BytesIO(found[STATES])), mixed_state())


def test_torch_loads_out_of_a_tar_that_is_not_compressed(folder: Path) -> None:
    with tarfile.open(folder / "x.tar") as tar:
        assert_equal(torch.load(tar.extractfile(STATES)), mixed_state())


def test_equal_contents_in_all_formats(tmp_path: Path, frozen_time: int) -> None:
    for suffix in FORMAT_SUFFIXES:
        pyckpt.save(mixed_state(), tmp_path / f"x{suffix}")
    plain = (tmp_path / "x.tar").read_bytes()
    assert len(plain) % 10_240 == 0
    for suffix in FORMAT_SUFFIXES[1:]:
        path, row = file_for(tmp_path, suffix)
        decoded = DECODERS[row.name](path.read_bytes())
        assert decoded[: len(plain)] == plain
        assert decoded[len(plain) :][:8] == (b"PYCKPTIX" if row.name == "tar.gz" else b"")


# One stream, and what its headers state.


def test_gzip_is_one_member(folder: Path) -> None:
    decoder = zlib.decompressobj(31)
    decoder.decompress((folder / "x.tar.gz").read_bytes())
    assert decoder.eof
    assert decoder.unused_data == b""


def test_bzip2_is_one_stream(folder: Path) -> None:
    decoder = bz2.BZ2Decompressor()
    decoder.decompress((folder / "x.tar.bz2").read_bytes())
    assert decoder.eof
    assert decoder.unused_data == b""


def test_xz_is_one_stream_whose_block_headers_have_sizes(folder: Path) -> None:
    listing = run("xz --robot -lvv", folder / "x.tar.xz").stdout.decode()
    lines = [line.split("\t") for line in listing.splitlines()]
    (totals,) = [line for line in lines if line[0] == "totals"]
    assert totals[1] == "1"  # streams
    blocks = [line for line in lines if line[0] == "block"]
    assert len(blocks) > 3
    for block in blocks:
        header_flags = block[12]
        assert header_flags == "cu"  # compressed and uncompressed size


# Members.


@pytest.mark.parametrize("suffix", FORMAT_SUFFIXES)
def test_members(tmp_path: Path, frozen_time: int, suffix: str) -> None:
    note = tmp_path / "note.txt"
    note.write_text("hello")
    note.chmod(0o640)
    path = tmp_path / f"x{suffix}"
    with ArchiveWriter(path, WriteOptions()) as writer:
        writer.add_file("latest", note)
        writer.add_object("deepspeed/b.pt", 1)
        writer.add_object("deepspeed/a.pt", 2)
        writer.add_directory("deepspeed/offload")
        writer.add_object(STATES, 3)
        writer.write()
        writer.commit()
    with zstd_command.open_tar(path) as tar:
        members = tar.getmembers()
    assert [(m.name, m.type, m.mode) for m in members] == [
        ("", tarfile.DIRTYPE, 0o700),
        (STATES, tarfile.REGTYPE, 0o644),
        ("deepspeed", tarfile.DIRTYPE, 0o755),
        ("deepspeed/a.pt", tarfile.REGTYPE, 0o644),
        ("deepspeed/b.pt", tarfile.REGTYPE, 0o644),
        ("deepspeed/offload", tarfile.DIRTYPE, 0o755),
        ("latest", tarfile.REGTYPE, 0o640),
    ]
    for member in members:
        assert (member.mtime, member.uid, member.gid) == (frozen_time, os.geteuid(), os.getegid())
    assert pyckpt.load(path, member="deepspeed/a.pt") == 2


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz"])
@pytest.mark.parametrize(
    "member", ["a", "a/b/c.pt", "имя", " ", "n" * 101, "d" * 90 + "/" + "f" * 90, "x" * 5000]
)
def test_member_names(tmp_path: Path, member: str, suffix: str) -> None:
    path = tmp_path / f"x{suffix}"
    pyckpt.save({"a": 1}, path, member=member)
    assert pyckpt.load(path, member=member) == {"a": 1}
    listed = run("tar --quoting-style=literal -tf", path).stdout.decode().split("\n")
    assert member in listed


@pytest.mark.parametrize("member", ["", "/a", "a/", "../a", "a/../b", ".", "a//b", "a\0"])
def test_member_names_that_are_refused(tmp_path: Path, member: str) -> None:
    with pytest.raises(pyckpt.OptionError, match="member"):
        pyckpt.save(1, tmp_path / "x.tar", member=member)
    assert list(tmp_path.iterdir()) == []


# Contents that are hard for a format.


def write_file_member(
    path: Path, contents: Path, *, level: int | None = None, threads: int = 2
) -> bytes:
    """Writes an archive whose member f holds ``contents``; returns the archive's bytes."""
    with ArchiveWriter(path, WriteOptions(level, threads, False)) as writer:
        writer.add_file("f", contents)
        nbytes = writer.write()
        writer.commit()
    data = path.read_bytes()
    assert len(data) == nbytes
    return data


def assert_stands(path: Path, row: _core.Format, contents: bytes, **options: Any) -> bytes:
    """Asserts that Python reads ``contents`` from an archive and that every tester accepts it."""
    source = path.with_name("source")
    source.write_bytes(contents)
    data = write_file_member(path, source, **options)
    raw = data if row.name == "tar" else DECODERS[row.name](data)
    with tarfile.open(fileobj=io.BytesIO(raw)) as tar:
        assert tar.extractfile("f").read() == contents
    for tester in TESTERS.get(row.name, []):
        run(tester, path)
    run("7z t", path)
    return data


HEADERS_NBYTES = 2 * 512  # of the root folder and of the member


@FORMATS
@pytest.mark.parametrize("chunks", [1, 2])
@pytest.mark.parametrize("beyond", [-1, 0, 1])
@pytest.mark.parametrize("end_of", ["member", "data"])
def test_sizes_around_the_chunk(
    tmp_path: Path, row: _core.Format, chunks: int, beyond: int, end_of: str
) -> None:
    """The contents have about the size of the chunks, or end near a chunk's end in the stream."""
    nbytes = chunks * row.chunk_nbytes + beyond - (HEADERS_NBYTES if end_of == "member" else 0)
    assert_stands(tmp_path / f"x{row.suffixes[0]}", row, random.Random(0).randbytes(nbytes))


@FORMATS
@pytest.mark.parametrize("nbytes", [0, 1, 511, 512, 513])
def test_small_sizes(tmp_path: Path, row: _core.Format, nbytes: int) -> None:
    assert_stands(tmp_path / f"x{row.suffixes[0]}", row, b"\xff" * nbytes)


@FORMATS
def test_tensors_of_a_chunk_more_or_less(tmp_path: Path, row: _core.Format) -> None:
    path = tmp_path / f"x{row.suffixes[0]}"
    for nbytes in (0, 1, row.chunk_nbytes - 1, row.chunk_nbytes, row.chunk_nbytes + 1):
        tensor = torch.randint(0, 256, (nbytes,), dtype=torch.uint8)
        pyckpt.save({"t": tensor}, path, fsync=False)
        assert torch.equal(pyckpt.load(path)["t"], tensor)


@FORMATS
def test_many_tiny_tensors(tmp_path: Path, row: _core.Format) -> None:
    """A chunk of thousands of pieces: more than one writev takes."""
    state = [torch.full((i % 7,), float(i)) for i in range(3000)]
    path = tmp_path / f"x{row.suffixes[0]}"
    pyckpt.save(state, path)
    assert all(map(torch.equal, pyckpt.load(path), state))


def equal_bytes(nbytes: int) -> bytes:
    return b"\x55" * nbytes


def runs(lengths: list[int]) -> Callable[[int], bytes]:
    """Runs of these lengths in turn; bzip2's first stage counts runs of 4 to 255."""

    def make(nbytes: int) -> bytes:
        once = b"".join(bytes([i & 0xFF]) * lengths[i % len(lengths)] for i in range(256 * 7))
        return (once * (nbytes // len(once) + 1))[:nbytes]

    return make


def text(nbytes: int) -> bytes:
    words = [b"epoch", b"batch", b"loss", b"rank", b"0.125", b"\n"]
    generator = random.Random(1)
    return b" ".join(generator.choices(words, k=nbytes // 4))[:nbytes]


def floats(nbytes: int) -> bytes:
    return torch.randn(nbytes // 4 + 1).numpy().tobytes()[:nbytes]


def noise_then_zeros(nbytes: int) -> bytes:
    return random.Random(2).randbytes(nbytes // 2) + bytes(nbytes - nbytes // 2)


def few_symbols(nbytes: int) -> bytes:
    """Skewed counts, which give the longest Huffman codes."""
    weights = [2.0**-i for i in range(40)]
    return bytes(random.Random(3).choices(range(40), weights, k=nbytes))


CONTENTS: dict[str, Callable[[int], bytes]] = {
    "zeros": bytes,
    "equal": equal_bytes,
    "runs of 3": runs([3]),
    "runs of 4": runs([4]),
    "runs of 5": runs([5]),
    "runs of 255": runs([255]),
    "runs of 256": runs([256]),
    "runs of 260": runs([260]),
    "runs of 1 and 4": runs([1, 4]),
    "mixed runs": runs([1, 2, 3, 4, 5, 254, 255, 256, 259, 260, 1000]),
    "random": lambda nbytes: random.Random(4).randbytes(nbytes),
    "text": text,
    "floats": floats,
    "noise, then zeros": noise_then_zeros,
    "few symbols": few_symbols,
}


@COMPRESSED_FORMATS
@pytest.mark.parametrize("kind", CONTENTS)
def test_contents(tmp_path: Path, row: _core.Format, kind: str) -> None:
    contents = CONTENTS[kind](2 * row.chunk_nbytes + 12_345)
    assert_stands(tmp_path / f"x{row.suffixes[0]}", row, contents)


@COMPRESSED_FORMATS
def test_incompressible_contents_hardly_grow(tmp_path: Path, row: _core.Format) -> None:
    contents = random.Random(5).randbytes(1 << 20)
    data = assert_stands(tmp_path / f"x{row.suffixes[0]}", row, contents)
    assert len(data) < 1.01 * len(contents)


@COMPRESSED_FORMATS
def test_equal_bytes_almost_vanish(tmp_path: Path, row: _core.Format) -> None:
    data = assert_stands(tmp_path / f"x{row.suffixes[0]}", row, bytes(4 << 20))
    assert len(data) < (4 << 20) / 500


@pytest.mark.parametrize(
    ("row", "level"),
    [
        (row, level)
        for row in COMPRESSED
        if row.levels is not None
        for level in range(row.levels.lowest, row.levels.highest + 1)
    ],
    ids=lambda value: value.name if isinstance(value, _core.Format) else str(value),
)
def test_every_level(tmp_path: Path, row: _core.Format, level: int) -> None:
    contents = b"".join(
        CONTENTS[kind](150_001) for kind in ("random", "mixed runs", "text", "floats", "zeros")
    )
    data = assert_stands(tmp_path / f"x{row.suffixes[0]}", row, contents, level=level)
    if level > 0:
        assert len(data) < len(contents)


@pytest.mark.parametrize("suffix", [*FORMAT_SUFFIXES, ".pt"])
def test_the_number_of_threads_does_not_show(tmp_path: Path, frozen_time: int, suffix: str) -> None:
    files = []
    for threads in range(1, 6):
        path = tmp_path / f"x{suffix}"
        pyckpt.save(mixed_state(), path, num_threads=threads, fsync=False)
        files.append(path.read_bytes())
    assert all(file == files[0] for file in files)


# Options and names.


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("x.tar.gz", {"compression_level": 10}),
        ("x.tar.gz", {"compression_level": -1}),
        ("x.tar.bz2", {"compression_level": 0}),
        ("x.tar.xz", {"compression_level": 10}),
        ("x.tar.xz", {"compression_level": 6.0}),
        ("x.tar.xz", {"compression_level": True}),
        ("x.tar", {"compression_level": 1}),
        ("x.pt", {"compression_level": 10}),
        ("x.pt.gz", {"compression_level": 10}),
        ("x.pt.bz2", {"compression_level": 0}),
        ("x.tar", {"num_threads": 0}),
        ("x.tar", {"num_threads": -3}),
        ("x.tar", {"num_threads": "2"}),
    ],
)
def test_wrong_options(tmp_path: Path, name: str, options: dict[str, Any]) -> None:
    with pytest.raises(pyckpt.OptionError, match=next(iter(options))):
        pyckpt.save(1, tmp_path / name, **options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["x.tar.foo", "x.tar.zstd", "x.y.tar.Z", "x.tar.gzip"])
def test_unknown_compression_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(pyckpt.FilenameError, match="looks like a compressed tar"):
        pyckpt.save(1, tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "x.tar").mkdir()
    with pytest.raises(pyckpt.FilenameError, match="not a regular file") as caught:
        pyckpt.save(1, tmp_path / "x.tar")
    assert caught.value.path == str(tmp_path / "x.tar")
    assert (tmp_path / "x.tar").is_dir()


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: os.symlink("/dev/null", path)])
def test_devices_and_pipes_are_not_replaced(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "x.tar")
    with pytest.raises(pyckpt.FilenameError, match="not a regular file"):
        pyckpt.save(1, tmp_path / "x.tar")


def test_folders_are_created(tmp_path: Path) -> None:
    pyckpt.save(1, tmp_path / "a" / "b" / "x.tar")
    assert pyckpt.load(tmp_path / "a" / "b" / "x.tar") == 1


def test_a_file_in_the_place_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("file")
    with pytest.raises(pyckpt.CheckpointError, match=r"a/x\.tar") as caught:
        pyckpt.save(1, tmp_path / "a" / "x.tar")
    assert isinstance(caught.value.__cause__, OSError)


def test_relative_paths_and_strings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    pyckpt.save(1, "x.tar")
    pyckpt.save(2, Path("y.pt"))
    assert pyckpt.load("x.tar") == 1
    assert pyckpt.load(tmp_path / "y.pt") == 2


@pytest.mark.parametrize(
    "name", ["a b.tar", "ü.tar.gz", "名.pt", "%s{}.tar", "-f.tar", os.fsdecode(b"\xff\xfe.tar")]
)
def test_names_of_files(tmp_path: Path, name: str) -> None:
    pyckpt.save(1, tmp_path / name)
    assert [p.name for p in tmp_path.iterdir()] == [name]
    assert pyckpt.load(tmp_path / name) == 1


def test_the_longest_name_that_a_folder_takes(tmp_path: Path) -> None:
    longest = "n" * (os.pathconf(tmp_path, "PC_NAME_MAX") - 4) + ".tar"
    pyckpt.save(1, tmp_path / longest)
    assert [p.name for p in tmp_path.iterdir()] == [longest]
    with pytest.raises(pyckpt.CheckpointError, match="too long"):
        pyckpt.save(1, tmp_path / ("n" + longest))
    assert [p.name for p in tmp_path.iterdir()] == [longest]


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz", ".pt"])
def test_a_link_stays_a_link(tmp_path: Path, suffix: str) -> None:
    (tmp_path / "real").mkdir()
    real, link = tmp_path / "real" / f"x{suffix}", tmp_path / f"latest{suffix}"
    link.symlink_to(real)
    for value in (1, 2):  # a link to nothing, then to a file
        pyckpt.save(value, link)
        assert link.is_symlink()
        assert not real.is_symlink()
        assert pyckpt.load(real) == pyckpt.load(link) == value
    assert list((tmp_path / "real").iterdir()) == [real]


def test_other_names_of_the_old_file_keep_it(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    pyckpt.save(1, path)
    os.link(path, tmp_path / "backup.tar")
    pyckpt.save(2, path)
    assert pyckpt.load(path) == 2
    assert pyckpt.load(tmp_path / "backup.tar") == 1


@contextmanager
def umask(mask: int) -> Iterator[None]:
    old = os.umask(mask)
    try:
        yield
    finally:
        os.umask(old)


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o000])
def test_a_new_file_has_what_the_umask_leaves(tmp_path: Path, mask: int) -> None:
    with umask(mask):
        pyckpt.save(1, tmp_path / "x.tar")
    assert stat.S_IMODE((tmp_path / "x.tar").stat().st_mode) == 0o666 & ~mask


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o444, 0o666])
def test_an_overwritten_file_keeps_its_mode(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "x.tar"
    pyckpt.save(1, path)
    path.chmod(mode)
    with umask(0o077):
        pyckpt.save(2, path)
    assert stat.S_IMODE(path.stat().st_mode) == mode
    assert pyckpt.load(path) == 2


@pytest.mark.parametrize("suffix", ALL_SUFFIXES)
def test_without_fsync(tmp_path: Path, suffix: str) -> None:
    pyckpt.save([1, 2], tmp_path / f"x{suffix}", fsync=False)
    assert pyckpt.load(tmp_path / f"x{suffix}") == [1, 2]


def test_more_threads_than_chunks(tmp_path: Path) -> None:
    pyckpt.save(1, tmp_path / "x.tar.xz", num_threads=500)
    assert pyckpt.load(tmp_path / "x.tar.xz") == 1


def test_an_archive_that_is_not_committed_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    with ArchiveWriter(path, WriteOptions()) as writer:
        writer.add_object(STATES, 1)
        writer.write()
        assert not path.exists()
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_committed_before_it_is_written(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    path.write_bytes(b"old")
    with ArchiveWriter(path, WriteOptions()) as writer:
        writer.add_object(STATES, 1)
        with pytest.raises(ValueError, match="nothing has been written yet"):
            writer.commit()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("before", [True, False])
def test_a_commit_can_be_taken_back(tmp_path: Path, before: bool) -> None:
    path = tmp_path / "x.tar"
    if before:
        pyckpt.save("old", path)
    for keep in (False, True):
        with ArchiveWriter(path, WriteOptions()) as writer:
            writer.add_object(STATES, "new")
            writer.write()
            writer.commit(keep_previous=True)
            assert pyckpt.load(path) == "new"
            if keep:
                writer.keep()
        if keep:
            assert pyckpt.load(path) == "new"
        elif before:
            assert pyckpt.load(path) == "old"
        else:
            assert not path.exists()
        assert [p for p in tmp_path.iterdir() if p != path] == []


def test_no_file_descriptor_is_left_open(tmp_path: Path) -> None:
    def count() -> int:
        return len(os.listdir("/proc/self/fd"))

    before = count()
    for suffix in ALL_SUFFIXES:
        pyckpt.save(mixed_state(), tmp_path / f"x{suffix}")
        pyckpt.load(tmp_path / f"x{suffix}")
    with pytest.raises(pyckpt.CheckpointError):
        pyckpt.save(lambda: 0, tmp_path / "x.tar")
    assert count() == before
