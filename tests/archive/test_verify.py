"""pyckpt.verify: intact files by any writer, and everything that can be wrong with one."""

import bz2
import gzip
import io
import lzma
import pickle
import random
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import pyckpt
from pyckpt.archive.formats import usual_suffixes
from pyckpt.archive.writer import ArchiveWriter
from pyckpt.options import WriteOptions
from tests import zstd_command
from tests.states import assert_equal, mixed_state

FORMAT_SUFFIXES = usual_suffixes()
PLACED = [".tar", ".tar.gz", ".tar.lzma", ".tar.zst"]  # formats that state the place of each block
COMPRESSIONS = {
    ".tar": "",
    ".tar.gz": "gzip",
    ".tar.bz2": "bzip2",
    ".tar.lzma": "xz",
    ".tar.zst": "zstd",
    ".pt": "",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    for suffix in [*FORMAT_SUFFIXES, ".pt"]:
        pyckpt.save(mixed_state(), folder / f"x{suffix}", fsync=False)
    return folder


@pytest.mark.parametrize("suffix", [*FORMAT_SUFFIXES, ".pt"])
@pytest.mark.parametrize("threads", [1, 3])
def test_whole_files(folder: Path, suffix: str, threads: int) -> None:
    report = pyckpt.verify(folder / f"x{suffix}", num_threads=threads)
    assert report.ok, report.problems
    report.raise_if_damaged()
    assert report.compression == COMPRESSIONS.get(suffix, report.compression)
    assert report.members == (1 if suffix == ".pt" else 2)  # with the root folder
    assert report.records == 4 + 6
    assert report.nbytes > 3_000_000
    assert report.unchecked == []


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_files_of_others(folder: Path, tmp_path: Path, mode: str) -> None:
    torch.save(mixed_state(), tmp_path / "x.pt")
    with tarfile.open(tmp_path / "x.tar", mode) as tar:
        tar.add(tmp_path / "x.pt", arcname="folder/composer_states.pt")
    report = pyckpt.verify(tmp_path / "x.tar")
    assert report.ok, report.problems
    assert report.records > 4


@pytest.mark.newest_torch
def test_records_without_checksums_are_named(tmp_path: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"t": torch.arange(9)}, tmp_path / "x.pt")
    finally:
        torch.serialization.set_crc32_options(True)
    report = pyckpt.verify(tmp_path / "x.pt")
    assert report.ok
    assert ":data/0" in report.unchecked
    assert torch.equal(pyckpt.load(tmp_path / "x.pt")["t"], torch.arange(9))


@pytest.mark.parametrize("mode", [None, "w", "w:gz", "w:bz2"])
def test_files_of_before_checksums_are_named(tmp_path: Path, mode: str | None) -> None:
    path = tmp_path / "old.pt"
    torch.save(mixed_state(), path, _use_new_zipfile_serialization=False)
    if mode is not None:
        with tarfile.open(tmp_path / "x", mode) as tar:
            tar.add(path, "old.pt")
        path = tmp_path / "x"
    report = pyckpt.verify(path)
    assert report.ok
    assert (report.members, report.records, report.unchecked) == (1, 0, ["old.pt"])


def flipped(contents: bytes, at: int) -> bytes:
    return contents[:at] + bytes([contents[at] ^ 0x10]) + contents[at + 1 :]


@pytest.mark.parametrize("suffix", PLACED)
def test_the_damaged_tensor_is_named(folder: Path, tmp_path: Path, suffix: str) -> None:
    contents = (folder / f"x{suffix}").read_bytes()
    path = tmp_path / f"x{suffix}"
    path.write_bytes(flipped(contents, len(contents) * 3 // 5))
    report = pyckpt.verify(path)
    assert not report.ok
    named = {
        (problem.record, t.key_path, t.dtype, t.shape)
        for problem in report.problems
        for t in problem.tensors
    }
    floats = ("data/0", "floats", torch.float32, (400_000,))
    doubles = ("data/1", "doubles", torch.float64, (60_000,))
    assert named & {floats, doubles}
    assert any("tensor 'floats'" in str(p) or "tensor 'doubles'" in str(p) for p in report.problems)
    with pytest.raises(pyckpt.CorruptArchiveError, match="tensor '") as caught:
        report.raise_if_damaged()
    assert caught.value.path == str(path)


# Each makes one stream, in which no sizes are stated.
FOREIGN: dict[str, Callable[[bytes], bytes]] = {
    ".tar.gz": lambda raw: gzip.compress(raw, 1),
    ".tar.bz2": bz2.compress,
    ".tar.lzma": lambda raw: lzma.compress(raw, preset=0),
    ".tar.zst": zstd_command.compress,
}


@pytest.mark.parametrize("suffix", [*FOREIGN, "by pyckpt.tar.bz2"])
def test_lost_tensors_are_named_where_decoding_ends(
    folder: Path, tmp_path: Path, suffix: str
) -> None:
    """The stream cannot be decoded beyond the damage, so the zip directory is lost."""
    if suffix in FOREIGN:
        torch.save(mixed_state(), tmp_path / "x.pt")
        file = io.BytesIO()
        with tarfile.open(fileobj=file, mode="w") as tar:
            tar.add(tmp_path / "x.pt", arcname="composer_states.pt")
        contents = FOREIGN[suffix](file.getvalue())
    else:
        contents = (folder / "x.tar.bz2").read_bytes()
    path = tmp_path / f"x{suffix}"
    # Floats, the larger part of the file, end before doubles and bfloat16 begin.
    for place, names in ((0.55, {"floats", "doubles"}), (0.92, {"doubles", "bf16", "zeros"})):
        damaged = bytearray(contents)
        at = int(place * len(contents))
        damaged[at : at + 9] = bytes(9)
        path.write_bytes(damaged)
        [problem] = pyckpt.verify(path).problems
        assert problem.member == "composer_states.pt"
        assert problem.offset is not None
        named = {tensor.key_path for tensor in problem.tensors}
        assert named
        assert named <= names
        with pytest.raises(pyckpt.CorruptArchiveError, match=r"lost from tensor '\w+' \(torch\."):
            pyckpt.load(path)


def write_tar(path: Path, members: list[tuple[str, bytes]]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def test_members_that_no_archive_should_have(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    write_tar(path, [("a", b"1"), ("a", b"2"), ("../b", b""), ("/c", b""), ("./d/..e", b"")])
    problems = [str(problem) for problem in pyckpt.verify(path).problems]
    assert len(problems) == 2
    assert sum("leads out of the archive" in problem for problem in problems) == 2


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz"])
def test_data_behind_the_end(folder: Path, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x{suffix}"
    more = b"more" if suffix == ".tar" else b"\x1f\x8bmore"
    path.write_bytes((folder / f"x{suffix}").read_bytes() + more)
    assert not pyckpt.verify(path).ok
    path.write_bytes((folder / "x.tar").read_bytes() + bytes(70_000))
    assert pyckpt.verify(path).ok


BLOCKS = ["x.tar.gz", "x.tar.bz2", "x.tar.lzma", "x.tar.zst"]  # by pyckpt: several blocks each


@pytest.mark.parametrize("name", [*FOREIGN, ".tar.lzma alone", *BLOCKS])
@pytest.mark.parametrize("behind", [b"junk", b"junk" * 100_000, b"\x1f\x8b\x08"[:2] + b"j"])
def test_bytes_behind_the_compressed_stream(
    folder: Path, tmp_path: Path, name: str, behind: bytes
) -> None:
    """Other programs ignore them, so load does too. verify says so."""
    path = tmp_path / "x"
    if name in BLOCKS:
        contents = (folder / name).read_bytes()
    elif name in FOREIGN:
        contents = FOREIGN[name]((folder / "x.tar").read_bytes())
    else:
        contents = lzma.compress((folder / "x.tar").read_bytes(), format=lzma.FORMAT_ALONE)
    path.write_bytes(contents + behind)
    assert_equal(pyckpt.load(path), mixed_state())
    [problem] = pyckpt.verify(path).problems
    assert problem.message == f"{len(behind)} bytes follow the end of the compressed stream"
    path.write_bytes(contents + bytes(8))
    if name != ".tar.lzma alone":  # such files have no padding
        assert pyckpt.verify(path).ok


@pytest.mark.parametrize("compress", FOREIGN.values())
def test_a_second_stream_that_is_cut_off(
    folder: Path, tmp_path: Path, compress: Callable[[bytes], bytes]
) -> None:
    """It is not taken for something that is no stream."""
    raw = (folder / "x.tar").read_bytes()
    half = len(raw) // 2
    contents = compress(raw[:half]) + compress(raw[half:])
    path = tmp_path / "x"
    path.write_bytes(contents)
    assert pyckpt.verify(path).ok
    assert_equal(pyckpt.load(path), mixed_state())
    path.write_bytes(contents[:-1000])
    assert not pyckpt.verify(path).ok
    with pytest.raises(pyckpt.CorruptArchiveError):
        pyckpt.load(path)


def test_the_index_of_pixz(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "x.tar.xz"
    raw = (folder / "x.tar").read_bytes()
    index = (0xDBAE14D62E324CA6).to_bytes(8, "little")
    for name in (b"composer_states.pt", b""):
        index += name + b"\0" + bytes(8)
    for compress in (lambda data: lzma.compress(data), lambda data: data):
        path.write_bytes(compress(raw + index))
        assert pyckpt.verify(path).ok == (compress(b"") != b"")
        assert_equal(pyckpt.load(path), mixed_state())
        for wrong in (index[:-1], index + b"x", index[1:]):
            path.write_bytes(compress(raw + wrong))
            assert not pyckpt.verify(path).ok


def cut(data: bytearray, at: int, _: random.Random) -> None:
    del data[at:]


def flip(data: bytearray, at: int, choose: random.Random) -> None:
    data[at] ^= choose.randrange(1, 256)


def zero(data: bytearray, at: int, choose: random.Random) -> None:
    nbytes = min(choose.choice([1, 8, 600, 5000]), len(data) - at)
    data[at : at + nbytes] = bytes(nbytes)


def swap(data: bytearray, at: int, choose: random.Random) -> None:
    other = choose.randrange(len(data))
    nbytes = min(choose.choice([1, 16, 512]), len(data) - max(at, other))
    one, two = data[at : at + nbytes], data[other : other + nbytes]
    data[at : at + nbytes] = two
    data[other : other + nbytes] = one


def insert(data: bytearray, at: int, choose: random.Random) -> None:
    data[at:at] = choose.randbytes(choose.choice([1, 512]))


DAMAGES: list[Callable[[bytearray, int, random.Random], None]] = [cut, flip, zero, swap, insert]
SMALL_STATE: dict[str, Any] = {"t": torch.arange(3000.0), "u": torch.zeros(200), "text": "ab" * 50}


@pytest.fixture(scope="module")
def small_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("small")
    for suffix in [*FORMAT_SUFFIXES, ".pt"]:
        pyckpt.save(SMALL_STATE, folder / f"x{suffix}", fsync=False)
    (folder / "note").write_text("hello")
    with ArchiveWriter(folder / "y.tar.gz", WriteOptions(fsync=False)) as writer:
        writer.add_object("composer_states.pt", SMALL_STATE)
        writer.add_file("deepspeed/note", folder / "note")
        writer.add_object("deepspeed/other.pt", SMALL_STATE)
        writer.write()
        writer.commit()
    (folder / "z.tar.gz").write_bytes(gzip.compress((folder / "x.tar").read_bytes()))
    return folder


@given(
    place=st.floats(0, 1, exclude_max=True),
    damage=st.sampled_from(DAMAGES),
    seed=st.integers(0, 1 << 30),
)
@pytest.mark.parametrize(
    "name", [*(f"x{suffix}" for suffix in FORMAT_SUFFIXES), "x.pt", "y.tar.gz", "z.tar.gz"]
)
@pytest.mark.timeout(300)
def test_damage_is_found(
    small_files: Path,
    name: str,
    place: float,
    damage: Callable[[bytearray, int, random.Random], None],
    seed: int,
) -> None:
    """After any damage load gives the right data, or it raises and verify reports a problem."""
    contents = bytearray((small_files / name).read_bytes())
    damage(contents, int(place * len(contents)), random.Random(seed))
    path = small_files / f"damaged-{name}"
    path.write_bytes(contents)
    report = pyckpt.verify(path)
    try:
        loaded = pyckpt.load(path)
    except pyckpt.CheckpointError as error:
        caught = error
    else:
        assert_equal(loaded, SMALL_STATE)
        return
    assert str(path) in str(caught)
    assert not report.ok


def test_a_file_of_torch_whose_beginning_is_lost(small_files: Path, tmp_path: Path) -> None:
    """The member no longer looks like a file of torch, but its name says that it is one."""
    contents = bytearray((small_files / "x.tar").read_bytes())
    at = contents.index(b"PK\x03\x04")
    contents[at : at + 4] = bytes(4)
    (tmp_path / "x.tar").write_bytes(contents)
    [problem] = pyckpt.verify(tmp_path / "x.tar").problems
    assert (problem.member, problem.offset) == ("composer_states.pt", at)
    assert "not a file of torch.save" in problem.message


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        pyckpt.verify(tmp_path / "x.tar")


def test_a_file_that_asks_for_more_memory_than_there_is(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pyckpt import memory

    monkeypatch.setattr(memory, "_available", lambda: 1_000_000)
    for suffix in [".tar", ".tar.bz2"]:
        with pytest.raises(pyckpt.CheckpointError, match="of memory, and 1000000 are available"):
            pyckpt.load(folder / f"x{suffix}")
    assert_equal(pyckpt.load(folder / "x.tar", mmap=True), mixed_state())


def test_records_that_torch_cannot_read(tmp_path: Path) -> None:
    """What verify calls whole can be loaded, whatever bits of a record's header are flipped."""
    path = tmp_path / "x.pt"
    pyckpt.save({"t": torch.arange(9)}, path)
    contents = path.read_bytes()
    entry = contents.index(b"PK\x01\x02")
    for at in (8, 10, 11):  # flags and compression method
        for bit in range(8):
            changed = bytearray(contents)
            changed[entry + at] ^= 1 << bit
            path.write_bytes(changed)
            if pyckpt.verify(path).ok:
                assert torch.equal(pyckpt.load(path)["t"], torch.arange(9))


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_records_that_are_compressed(tmp_path: Path) -> None:
    """TorchScript compresses some records; other programs may compress all."""
    torch.jit.script(torch.nn.Linear(3, 4)).save(str(tmp_path / "script.pt"))
    report = pyckpt.verify(tmp_path / "script.pt")
    assert report.ok, report.problems
    path = tmp_path / "x.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("x/data.pkl", pickle.dumps("text" * 1_000_000, 2))
        file.writestr("x/other", random.Random(0).randbytes(1000))
    report = pyckpt.verify(path)
    assert report.ok, report.problems
    assert report.unchecked == []
    nbytes = len(pickle.dumps("text" * 1_000_000, 2))
    assert report.nbytes == nbytes + 1000
    whole = path.read_bytes()
    for change, message in (
        (lambda data: flipped(data, data.index(b"x/data.pkl") + 30), "data.pkl"),
        (lambda data: flipped(data, data.index(b"x/other") + 300), "other"),
        (lambda data: data.replace(nbytes.to_bytes(4, "little"), bytes([9, 0, 0, 0])), "size"),
    ):
        path.write_bytes(change(whole))
        [problem] = pyckpt.verify(path).problems
        assert message in str(problem)


# The pickle and its storages.


def repacked(path: Path, change: Callable[[dict[str, bytes]], Any]) -> None:
    """Rewrites a file of torch.save with other records, and the right checksums."""
    with zipfile.ZipFile(path) as file:
        records = {name.partition("/")[2]: file.read(name) for name in file.namelist()}
    change(records)
    with zipfile.ZipFile(path, "w") as file:
        for name, data in records.items():
            file.writestr(f"x/{name}", data)


def with_numel(records: dict[str, bytes], numel: bytes) -> None:
    assert records["data.pkl"].count(b"K\t\x85") == 1
    records["data.pkl"] = records["data.pkl"].replace(b"K\t\x85", b"K" + numel + b"\x85")


CHANGES: dict[str, tuple[Callable[[dict[str, bytes]], Any], str]] = {
    "no storage": (lambda r: r.pop("data/0"), "data/0"),
    "a short storage": (lambda r: r.update({"data/0": bytes(32)}), "data/0"),
    "a long storage": (lambda r: r.update({"data/0": bytes(40)}), "data/0"),
    "no pickle": (lambda r: r.pop("data.pkl"), "data.pkl"),
    "an empty pickle": (lambda r: r.update({"data.pkl": b""}), "data.pkl"),
    "half a pickle": (lambda r: r.update({"data.pkl": r["data.pkl"][:-9]}), "data.pkl"),
    "another byte order": (lambda r: r.update({"byteorder": b"middle"}), "byteorder"),
    "a tensor that is larger": (lambda r: with_numel(r, b"\x63"), "data/0"),
    "a tensor that is larger by one number": (lambda r: with_numel(r, b"\x0a"), "data/0"),
}


@pytest.mark.parametrize("suffix", [".pt", ".tar", ".tar.gz"])
@pytest.mark.parametrize("name", CHANGES)
def test_what_load_refuses_is_not_whole(tmp_path: Path, name: str, suffix: str) -> None:
    change, record = CHANGES[name]
    path = tmp_path / "composer_states.pt"
    torch.save({"w": torch.ones(9)}, path)
    repacked(path, lambda records: None)
    assert pyckpt.verify(path).ok
    repacked(path, change)
    if suffix != ".pt":
        with tarfile.open(tmp_path / "x", "w:gz" if suffix == ".tar.gz" else "w") as tar:
            tar.add(path, path.name)
        path = tmp_path / "x"
    for weights_only in (True, False):
        with pytest.raises(pyckpt.CorruptArchiveError):
            pyckpt.load(path, weights_only=weights_only)
    [problem] = pyckpt.verify(path).problems
    assert problem.record == record
    assert problem.member == (None if suffix == ".pt" else "composer_states.pt")


def test_zip_files_of_other_programs(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", np.ones(3))
    [problem] = pyckpt.verify(tmp_path / "x.npz").problems
    assert "not a file of torch.save" in problem.message
    # A tar may hold them.
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        tar.add(tmp_path / "x.npz", "arrays.npz")
    assert pyckpt.verify(tmp_path / "x.tar").ok
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        tar.add(tmp_path / "x.npz", "arrays.pt")
    assert not pyckpt.verify(tmp_path / "x.tar").ok


@pytest.mark.parametrize("mode", [None, "w", "w:gz"])
@pytest.mark.parametrize("part", [0.02, 0.3, 0.6, 0.999])
def test_old_files_that_are_cut_off(tmp_path: Path, mode: str | None, part: float) -> None:
    path = tmp_path / "old.pt"
    torch.save(
        {"a": torch.ones(99), "b": torch.zeros(50)}, path, _use_new_zipfile_serialization=False
    )
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * part)])
    if mode is not None:
        with tarfile.open(tmp_path / "x", mode) as tar:
            tar.add(path, "composer_states.pt")
        path = tmp_path / "x"
    with pytest.raises(pyckpt.CorruptArchiveError, match=path.name):
        pyckpt.load(path)
    assert not pyckpt.verify(path).ok


def test_a_record_outside_of_the_root_folder(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    torch.save({"w": torch.ones(9)}, path)
    with zipfile.ZipFile(path, "a") as file:
        file.writestr("data.pkl", pickle.dumps({"other": 1}, 2))
    with pytest.raises(RuntimeError, match="not in a subdirectory"):
        torch.load(path)
    with pytest.raises(pyckpt.CorruptArchiveError, match="outside of the folder"):
        pyckpt.load(path)
    [problem] = pyckpt.verify(path).problems
    assert problem.record == "../data.pkl"


class Half:
    """A class that verify does not know."""


def test_classes_of_the_user_are_no_problem(tmp_path: Path) -> None:
    torch.save({"half": Half(), "t": torch.ones(2)}, tmp_path / "x.pt")
    assert pyckpt.verify(tmp_path / "x.pt").ok
