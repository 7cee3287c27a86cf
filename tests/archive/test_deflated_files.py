"""Files of torch.save whose records are deflated: compression_level for a name without a suffix."""

from __future__ import annotations

import os
import pickle
import re
import subprocess
import tarfile
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

import pyckpt
from tests.states import assert_equal, mixed_state

pytestmark = pytest.mark.timeout(120)

CHUNK_NBYTES = 1 << 20
INDEX_ID = b"PY"
# torch's words, and how its versions raise them.
NO_MMAP = "Trying to resize storage that is not resizable"
NO_MMAP_ERRORS = (RuntimeError, pickle.UnpicklingError)
MANY_SMALL = {f"layer{n}": torch.arange(float(n)) for n in range(200)}


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("file") / "x.pt"
    pyckpt.save(mixed_state(), path, compression_level=6)
    return path


def changed(path: Path, new: Path, change: Callable[[bytearray], Any]) -> Path:
    data = bytearray(path.read_bytes())
    change(data)
    new.write_bytes(data)
    return new


def code_of(path: Path, record: str) -> tuple[int, int]:
    """Where a record's code is in the file: (offset, nbytes)."""
    with zipfile.ZipFile(path) as names:
        info = names.getinfo(f"archive/{record}")
    header = path.read_bytes()[info.header_offset : info.header_offset + 30]
    name, extra = (int.from_bytes(header[at : at + 2], "little") for at in (26, 28))
    return info.header_offset + 30 + name + extra, info.compress_size


# What other programs read.


@pytest.mark.parametrize("weights_only", [True, False])
@pytest.mark.parametrize("state", [mixed_state(), MANY_SMALL, {}, [torch.empty(0)], "text"])
def test_torch_loads_it(tmp_path: Path, state: Any, weights_only: bool) -> None:
    path = tmp_path / "model.ckpt"
    pyckpt.save(state, path, compression_level=6)
    for loaded in (torch.load(path, weights_only=weights_only), pyckpt.load(path)):
        if isinstance(state, dict):
            assert_equal(loaded, state)
        else:
            assert str(loaded) == str(state)
    assert pyckpt.verify(path).ok


@pytest.mark.parametrize(
    "state",
    [
        mixed_state(),
        MANY_SMALL,
        {"noise": torch.frombuffer(bytearray(os.urandom(9000)), dtype=torch.int8)},
    ],
)
def test_torch_refuses_to_map_it(tmp_path: Path, state: Any) -> None:
    """It would take the compressed bytes for the tensors', also where all tensors are small."""
    path = tmp_path / "x.pt"
    pyckpt.save(state, path, compression_level=6)
    for weights_only in (True, False):
        with pytest.raises(NO_MMAP_ERRORS, match=NO_MMAP):
            torch.load(path, mmap=True, weights_only=weights_only)
    with pytest.raises(pyckpt.OptionError, match=r"x\.pt has compressed records.*mmap=True"):
        pyckpt.load(path, mmap=True)


def test_torch_knows_the_shapes_without_the_data(file: Path) -> None:
    assert torch.load(file, map_location="meta")["floats"].shape == (400_000,)


@pytest.mark.parametrize(
    "command",
    [["unzip", "-tqq"], ["7z", "t"], ["bsdtar", "-tf"], ["python3", "-m", "zipfile", "-t"]],
)
def test_other_programs_test_it(file: Path, command: Sequence[str]) -> None:
    subprocess.run([*command, file], check=True, capture_output=True)


def test_bsdtar_reads_it_from_a_pipe(file: Path) -> None:
    with file.open("rb") as pipe:
        done = subprocess.run(
            ["sh", "-c", "cat | bsdtar -xOf - archive/data/0"], stdin=pipe, capture_output=True
        )
    assert done.stdout == mixed_state()["floats"].numpy().tobytes()


def test_its_records_are_those_of_the_file_without_compression(file: Path, tmp_path: Path) -> None:
    pyckpt.save(mixed_state(), tmp_path / "plain.pt")
    with zipfile.ZipFile(file) as ours, zipfile.ZipFile(tmp_path / "plain.pt") as plain:
        assert ours.testzip() is None
        assert {info.compress_type for info in ours.infolist()} == {zipfile.ZIP_DEFLATED}
        promises = {"archive/.format_version", "archive/.storage_alignment"}
        assert {*ours.namelist(), *promises} == {*plain.namelist(), "archive/data/mmap_guard"}
        for name in set(plain.namelist()) - promises - {"archive/data.pkl"}:
            assert ours.read(name) == plain.read(name)
    assert file.stat().st_size < 0.95 * (tmp_path / "plain.pt").stat().st_size


def test_the_headers(file: Path) -> None:
    """Golden: what readers that do not look at the directory see."""
    data = file.read_bytes()
    assert data.startswith(
        b"PK\3\4\x14\0\x08\x08\x08\0" + bytes(16) + b"\x10\0\0\0archive/data.pkl"
    )
    offset, nbytes = code_of(file, "data/0")
    with zipfile.ZipFile(file) as names:
        info = names.getinfo("archive/data/0")
    descriptor = data[offset + nbytes : offset + nbytes + 16]
    numbers = (info.CRC, info.compress_size, info.file_size)
    assert descriptor == b"PK\7\x08" + b"".join(n.to_bytes(4, "little") for n in numbers)
    # One part of a chunk with the pickle, then 400,000 floats up to the chunk's end.
    assert info.extra.startswith(INDEX_ID)
    assert info.extra[4:6] == b"\1\2"
    first, second, *code_nbytes = varints(info.extra[6:])
    assert first + second == info.file_size
    assert sum(code_nbytes) == info.compress_size


def varints(data: bytes) -> list[int]:
    """Numbers of seven bits a byte, the lowest first; the last byte of each has no top bit."""
    numbers, shift = [0], 0
    for byte in data:
        numbers[-1] |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            numbers, shift = [*numbers, 0], 0
    return numbers[:-1]


# Levels and options.


def test_levels(tmp_path: Path) -> None:
    text = {"text": "".join(f"{n} {n * n} " for n in range(30_000))}
    sizes = []
    for level in (None, 0, 1, 9):
        path = tmp_path / f"{level}.pt"
        pyckpt.save(text, path, compression_level=level)
        assert torch.load(path) == pyckpt.load(path) == text
        sizes.append(path.stat().st_size)
    assert sizes[0] == sizes[1] > sizes[2] > sizes[3]
    torch.load(tmp_path / "0.pt", mmap=True)
    with pytest.raises(pyckpt.OptionError, match="0 to 9, not 10"):
        pyckpt.save(text, tmp_path / "x.pt", compression_level=10)


def test_bytes_depend_on_nothing_else(file: Path, tmp_path: Path) -> None:
    for threads in (1, 5):
        pyckpt.save(mixed_state(), tmp_path / "x.pt", compression_level=6, num_threads=threads)
        assert (tmp_path / "x.pt").read_bytes() == file.read_bytes()


@pytest.mark.parametrize("is_async", [True, False])
def test_checkpoints(tmp_path: Path, is_async: bool) -> None:
    model = nn.Linear(30, 40)
    saved = pyckpt.State(model, torch.optim.AdamW(model.parameters()))
    name = tmp_path / "ba{batch}-rank{rank}.pt"
    if is_async:
        [path] = pyckpt.async_save_checkpoint(saved, name, compression_level=6).result()
    else:
        [path] = pyckpt.save_checkpoint(saved, name, compression_level=6)
    assert torch.equal(
        torch.load(path, weights_only=False)["state"]["model"]["weight"], model.weight
    )
    new = nn.Linear(30, 40)
    pyckpt.load_checkpoint(path, pyckpt.State(new, torch.optim.AdamW(new.parameters())))
    assert torch.equal(new.weight, model.weight)


# Reading.


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.data())
def test_any_tensors(tmp_path: Path, data: st.DataObject) -> None:
    dtypes = [torch.float32, torch.bfloat16, torch.int64, torch.bool, torch.complex64]
    state = {}
    for name in range(data.draw(st.integers(0, 4))):
        shape = data.draw(st.lists(st.integers(0, 700), max_size=2))
        base = torch.randint(-3, 100, (*shape, 3)).to(data.draw(st.sampled_from(dtypes)))
        state[str(name)] = base[..., data.draw(st.integers(0, 2))]
    if len(state) > 1:
        state["shared"] = state["0"]
    path = tmp_path / "x.pt"
    level, threads = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 3))
    pyckpt.save(state, path, compression_level=level, num_threads=threads)
    assert_equal(torch.load(path), state)
    loaded = pyckpt.load(path, num_threads=threads)
    assert_equal(loaded, state)
    if "shared" in state:
        assert loaded["shared"].data_ptr() == loaded["0"].data_ptr()
    with pytest.raises(NO_MMAP_ERRORS, match=NO_MMAP):
        torch.load(path, mmap=True)


def test_one_tensor_without_the_rest(file: Path, tmp_path: Path) -> None:
    offset, _ = code_of(file, "data/0")

    def flip(data: bytearray) -> None:
        data[offset + 100] ^= 0xFF

    path = changed(file, tmp_path / "x.pt", flip)
    assert_equal(pyckpt.load(path, keys="bf16"), {"bf16": mixed_state()["bf16"]})
    with pytest.raises(pyckpt.CorruptArchiveError, match="is damaged: tensor 'floats'"):
        pyckpt.load(path)
    [problem] = pyckpt.verify(path).problems
    assert problem.record == "data/0"
    assert problem.tensors[0].key_path == "floats"


def test_it_is_listed(file: Path) -> None:
    [member] = pyckpt.inspect(file).members
    tensors = {tensor.name: tensor.code_nbytes for tensor in member.tensors}
    assert tensors.keys() == {"floats", "doubles", "bf16", "zeros"}
    for name, record in (("floats", "data/0"), ("zeros", "data/3")):
        assert tensors[name] == code_of(file, record)[1]


def zipped_anew(path: Path, new: Path, methods: dict[str, int] | None = None) -> Path:
    """As another program would have zipped it: whole records, no index."""
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(new, "w") as out:
        for name in old.namelist():
            method = (methods or {}).get(name, zipfile.ZIP_DEFLATED)
            out.writestr(name, old.read(name), method)
    return new


def test_files_of_other_programs(tmp_path: Path) -> None:
    torch.save(mixed_state(), tmp_path / "x.pt")
    some = {"x/data/0": zipfile.ZIP_STORED, "x/data/2": zipfile.ZIP_STORED}
    for methods in ({}, some):
        path = zipped_anew(tmp_path / "x.pt", tmp_path / "y.pt", methods)
        assert_equal(pyckpt.load(path), mixed_state())
        assert_equal(pyckpt.load(path, keys="zeros"), {"zeros": mixed_state()["zeros"]})
        report = pyckpt.verify(path)
        assert report.ok
        assert report.records == 10
        for compressed in (".tar.gz", ".tar.bz2", ".tar"):
            pack = tmp_path / f"packed{compressed}"
            pyckpt.pack(path, pack)
            assert_equal(pyckpt.load(pack), mixed_state())
            assert pyckpt.verify(pack).ok


def test_unknown_methods_are_named(tmp_path: Path) -> None:
    torch.save({"a": torch.arange(9)}, tmp_path / "x.pt")
    methods = {"x/data/0": zipfile.ZIP_BZIP2}
    path = zipped_anew(tmp_path / "x.pt", tmp_path / "y.pt", methods)
    with pytest.raises(pyckpt.CorruptArchiveError, match=r"'data/0': .*unknown method"):
        pyckpt.load(path)
    [problem] = pyckpt.verify(path).problems
    assert "unknown method" in str(problem)


# Converting.


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz", ".tar.bz2", ".pt.gz", ".pt.bz2", ".pt"])
def test_conversions(file: Path, tmp_path: Path, suffix: str) -> None:
    other, back = tmp_path / f"other{suffix}", tmp_path / "back.pt"
    pyckpt.convert(file, other)
    assert_equal(pyckpt.load(other), mixed_state())
    pyckpt.convert(other, back, compression_level=6)
    assert back.read_bytes() == file.read_bytes()
    if suffix == ".pt":
        pyckpt.save(mixed_state(), tmp_path / "plain.pt")
        assert other.read_bytes() == (tmp_path / "plain.pt").read_bytes()
        assert_equal(torch.load(other, mmap=True), mixed_state())
    if suffix == ".tar":
        [extracted] = pyckpt.extract(other, tmp_path / "folder")
        assert_equal(torch.load(extracted, mmap=True), mixed_state())


@pytest.mark.parametrize("protocol", [1, 2, 4])
def test_pickles_of_every_protocol(tmp_path: Path, protocol: int) -> None:
    deflated, back = tmp_path / "deflated.pt", tmp_path / "back.pt"
    torch.save(mixed_state(), tmp_path / "x.pt", pickle_protocol=protocol)
    pyckpt.convert(tmp_path / "x.pt", deflated, compression_level=6)
    pyckpt.convert(deflated, deflated, compression_level=1)
    assert_equal(torch.load(deflated, weights_only=False), mixed_state())
    with pytest.raises(RuntimeError, match="not resizable"):
        torch.load(deflated, mmap=True, weights_only=False)
    pyckpt.convert(deflated, back)
    assert_equal(torch.load(back, weights_only=False), mixed_state())
    assert pyckpt.verify(back).ok


def test_what_has_no_records_is_not_deflated(tmp_path: Path) -> None:
    torch.save([1], tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    (tmp_path / "x.txt").write_text("text")
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        tar.add(tmp_path / "x.txt", "x.txt")
    for source in ("old.pt", "x.tar"):
        with pytest.raises(pyckpt.OptionError, match="no records that can be compressed"):
            pyckpt.convert(tmp_path / source, tmp_path / "y.pt", compression_level=6)
    assert not (tmp_path / "y.pt").exists()


# Damage.


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.data())
def test_damage_anywhere(file: Path, tmp_path: Path, data: st.DataObject) -> None:
    def damage(raw: bytearray) -> None:
        at = data.draw(st.integers(0, len(raw) - 1) | st.integers(len(raw) - 2000, len(raw) - 1))
        kind = data.draw(st.sampled_from(["flip", "cut", "zero", "insert"]))
        if kind == "flip":
            raw[at] ^= data.draw(st.integers(1, 255))
        elif kind == "cut":
            del raw[at:]
        elif kind == "zero":
            raw[at : at + 50] = bytes(len(raw[at : at + 50]))
        else:
            raw[at:at] = b"x"

    path = changed(file, tmp_path / "x.pt", damage)
    pyckpt.verify(path)
    try:
        loaded = pyckpt.load(path)
    except pyckpt.CorruptArchiveError:
        return
    assert_equal(loaded, mixed_state())


@pytest.mark.parametrize(
    ("suffix", "where"),
    [("tar", "file"), ("tar.gz", "decompressed stream"), ("tar.bz2", "decompressed stream")],
)
def test_damage_in_a_tar_says_where(file: Path, tmp_path: Path, suffix: str, where: str) -> None:
    offset, _ = code_of(file, "data/0")

    def damage(raw: bytearray) -> None:
        raw[offset] = 0xFF  # no kind of block

    broken = changed(file, tmp_path / "composer_states.pt", damage)
    pack = tmp_path / f"x.{suffix}"
    with tarfile.open(pack, f"w:{suffix[4:]}") as tar:
        tar.add(broken, broken.name)
    with tarfile.open(pack) as tar:
        at = tar.getmember(broken.name).offset_data + offset
    place = f"its compressed data is damaged (at byte {at} of the {where})"
    with pytest.raises(pyckpt.CorruptArchiveError, match=re.escape(place)):
        pyckpt.load(pack)
    [problem] = pyckpt.verify(pack).problems
    assert problem.message == place


@pytest.mark.parametrize("by", [-1, 1])
def test_a_wrong_index_is_found(file: Path, tmp_path: Path, by: int) -> None:
    with zipfile.ZipFile(file) as names:
        extra = names.getinfo("archive/data/0").extra

    def shift(raw: bytearray) -> None:
        at = raw.rindex(extra) + len(extra) - 1
        raw[at] += by

    path = changed(file, tmp_path / "x.pt", shift)
    # Its sizes do not add up any more, so the record is decoded as a whole, as others do.
    assert_equal(pyckpt.load(path), mixed_state())


def test_a_record_that_claims_too_much_is_refused_before_memory_is_taken(
    file: Path, tmp_path: Path
) -> None:
    nbytes = mixed_state()["zeros"].nbytes.to_bytes(4, "little")

    def claim(raw: bytearray) -> None:
        at = raw.rindex(nbytes, 0, raw.rindex(b"archive/data/3"))
        raw[at : at + 4] = (0xF0000000).to_bytes(4, "little")

    path = changed(file, tmp_path / "x.pt", claim)
    with pytest.raises(
        pyckpt.CorruptArchiveError, match="claims more bytes than its code can hold"
    ):
        pyckpt.load(path)


def test_another_record_in_its_place_is_found(tmp_path: Path) -> None:
    """The CRC of what is decoded is compared, not that of the file."""
    states = [{"a": torch.full((3 * CHUNK_NBYTES // 4,), float(n))} for n in range(2)]
    for n, state in enumerate(states):
        pyckpt.save(state, tmp_path / f"{n}.pt", compression_level=6)
    (offset, nbytes), other = (code_of(tmp_path / f"{n}.pt", "data/0") for n in range(2))
    assert other[1] == nbytes
    code = (tmp_path / "1.pt").read_bytes()[other[0] : other[0] + nbytes]

    def swap(raw: bytearray) -> None:
        raw[offset : offset + nbytes] = code

    path = changed(tmp_path / "0.pt", tmp_path / "x.pt", swap)
    with pytest.raises(pyckpt.CorruptArchiveError, match=r"'a' .*its checksum does not"):
        pyckpt.load(path)
    assert not pyckpt.verify(path).ok
    # A new checksum would make it look whole.
    for other in ("y.pt", "y.tar.gz"):
        with pytest.raises(pyckpt.CorruptArchiveError, match="'data/0': its checksum does not"):
            pyckpt.convert(path, tmp_path / other)
        assert not (tmp_path / other).exists()


def test_failed_saves_leave_the_old_file(file: Path, tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    path.write_bytes(b"old")

    class Unreadable:
        def __reduce__(self) -> Any:
            raise RuntimeError("no")

    with pytest.raises(pyckpt.CheckpointError):
        pyckpt.save([np.zeros(3), Unreadable()], path, compression_level=6)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
