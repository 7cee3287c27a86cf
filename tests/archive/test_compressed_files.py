"""Files of torch.save in one compressed stream: .pt.gz and its like."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import pyckpt
from pyckpt import _core
from pyckpt.archive.formats import file_suffixes
from tests.states import assert_equal

pytestmark = pytest.mark.timeout(120)

SUFFIXES = file_suffixes()
# What the commands that Composer runs are called.
COMMANDS = {".pt.gz": "gzip", ".pt.bz2": "bzip2", ".pt.xz": "xz", ".pt.lzma": "lzma"}
COMMANDS |= {".pt.zst": "zstd"}
OPENERS: dict[str, Callable[[bytes], bytes]] = {
    ".pt.gz": gzip.decompress,
    ".pt.bz2": bz2.decompress,
    ".pt.xz": lambda data: lzma.decompress(data, lzma.FORMAT_XZ),
    ".pt.lzma": lambda data: lzma.decompress(data, lzma.FORMAT_ALONE),
}
GZIP_TAIL = 5 + 8  # the last block and the trailer of the member with the index


def state() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "noise": torch.randn(700_000, generator=generator),
        "half": torch.randn(300_001, generator=generator).bfloat16(),
        "zeros": torch.zeros(200_000),
        "counts": torch.arange(9_000),
        "none": torch.empty(0),
    }


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("files")
    for suffix in [".pt", *SUFFIXES]:
        pyckpt.save(state(), folder / f"x{suffix}")
    return {suffix: folder / f"x{suffix}" for suffix in [".pt", *SUFFIXES]}


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_the_command_gives_the_file_that_torch_opens(files: dict[str, Path], suffix: str) -> None:
    done = subprocess.run([COMMANDS[suffix], "-dc", files[suffix]], capture_output=True, check=True)
    assert done.stdout == files[".pt"].read_bytes()
    assert_equal(torch.load(io.BytesIO(done.stdout), weights_only=True), state())


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_libraries_read_it(files: dict[str, Path], suffix: str) -> None:
    opener = OPENERS.get(suffix)
    if opener is not None:
        assert opener(files[suffix].read_bytes()) == files[".pt"].read_bytes()
    done = subprocess.run(["7z", "t", files[suffix]], capture_output=True, check=False)
    assert done.returncode == 0 or suffix == ".pt.zst"


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_way_of_reading(files: dict[str, Path], suffix: str, tmp_path: Path) -> None:
    path = files[suffix]
    assert_equal(pyckpt.load(path), state())
    assert pyckpt.load(path, keys="counts").keys() == {"counts"}
    report = pyckpt.verify(path)
    assert report.ok
    assert report.compression
    [member] = pyckpt.inspect(path).members
    assert {tensor.name for tensor in member.tensors} == state().keys()
    for other in (".tar.gz", ".pt", suffix):
        pyckpt.convert(path, tmp_path / f"y{other}")
        assert_equal(pyckpt.load(tmp_path / f"y{other}"), state())
        pyckpt.convert(tmp_path / f"y{other}", tmp_path / f"z{suffix}")
        assert_equal(pyckpt.load(tmp_path / f"z{suffix}"), state())
    assert (tmp_path / "y.pt").read_bytes() == files[".pt"].read_bytes()


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_what_the_command_has_written(files: dict[str, Path], suffix: str, tmp_path: Path) -> None:
    path = tmp_path / "theirs"
    done = subprocess.run(
        [COMMANDS[suffix], "-1"], input=files[".pt"].read_bytes(), capture_output=True, check=True
    )
    path.write_bytes(done.stdout)
    assert_equal(pyckpt.load(path), state())
    assert pyckpt.verify(path).ok


def test_gzip_of_ours_has_its_index_in_a_member_of_its_own(
    files: dict[str, Path], tmp_path: Path
) -> None:
    data = files[".pt.gz"].read_bytes()
    member = data.rindex(b"\x1f\x8b\x08\4\0\0\0\0\0\3")
    field = data[member + 10 : -GZIP_TAIL]
    assert int.from_bytes(field[:2], "little") == len(field) - 2
    assert field[2:4] == b"PY"
    assert int.from_bytes(field[4:6], "little") == len(field) - 6
    assert field[6:14] == field[-8:] == b"PYCKPTIX"
    assert data[-GZIP_TAIL:] == b"\1\0\0\xff\xff" + bytes(8)
    assert gzip.decompress(data[member:]) == b""
    assert gzip.decompress(data[:member]) == files[".pt"].read_bytes()
    # Each chunk is found by it: one tensor is read without the others.
    flipped = bytearray(data)
    flipped[1000] ^= 1
    (tmp_path / "x").write_bytes(flipped)
    assert_equal(pyckpt.load(tmp_path / "x", keys="counts"), {"counts": state()["counts"]})
    with pytest.raises(pyckpt.CorruptArchiveError):
        pyckpt.load(tmp_path / "x")


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_wrong_index_member_is_no_harm(
    files: dict[str, Path], tmp_path: Path, data: st.DataObject
) -> None:
    whole = files[".pt.gz"].read_bytes()
    member = whole.rindex(b"\x1f\x8b\x08\4\0\0\0\0\0\3")
    at = data.draw(st.integers(member, len(whole) - 1))
    damaged = bytearray(whole)
    damaged[at] ^= data.draw(st.integers(1, 255))
    (tmp_path / "x").write_bytes(damaged)
    try:
        loaded = pyckpt.load(tmp_path / "x")
    except pyckpt.CorruptArchiveError:
        return
    assert_equal(loaded, state())


def test_an_index_whose_sizes_do_not_add_up_is_not_used(
    files: dict[str, Path], tmp_path: Path
) -> None:
    """Nothing of the data is damaged, and other programs do not know the index."""
    damaged = bytearray(files[".pt.gz"].read_bytes())
    member = damaged.rindex(b"\x1f\x8b\x08\4\0\0\0\0\0\3")
    first_size = damaged.index(b"PYCKPTIX", member) + 8 + 4 + 3 * 8
    assert damaged[first_size] & 0x7F != 0
    damaged[first_size] -= 1
    path = tmp_path / "x.gz"
    path.write_bytes(damaged)
    image = _core.StreamImage(os.fsencode(path), threads=1, mapped=False, progress=None)
    assert image.nbytes is None
    assert_equal(pyckpt.load(path), state())


@pytest.mark.parametrize("at", [10, 11, 14, 15], ids=["field", "field", "subfield", "subfield"])
def test_sizes_of_the_index_member_are_compared(
    files: dict[str, Path], tmp_path: Path, at: int
) -> None:
    """gzip goes by the size of the field. If that is wrong, the file is damaged for us too."""
    damaged = bytearray(files[".pt.gz"].read_bytes())
    damaged[damaged.rindex(b"\x1f\x8b\x08\4\0\0\0\0\0\3") + at] ^= 1
    path = tmp_path / "x.gz"
    path.write_bytes(damaged)
    image = _core.StreamImage(os.fsencode(path), threads=1, mapped=False, progress=None)
    assert image.nbytes is None  # the index is not used
    done = subprocess.run(["gzip", "-t", path], capture_output=True)
    assert (done.returncode == 0) == pyckpt.verify(path).ok == (at >= 14)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("kept", [0.0, 0.3, 0.999])
def test_files_that_are_cut(
    files: dict[str, Path], suffix: str, kept: float, tmp_path: Path
) -> None:
    data = files[suffix].read_bytes()
    (tmp_path / "x").write_bytes(data[: int(kept * len(data))])
    with pytest.raises(pyckpt.CorruptArchiveError):
        pyckpt.load(tmp_path / "x")
    assert not pyckpt.verify(tmp_path / "x").ok


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_levels(suffix: str, tmp_path: Path) -> None:
    text = {"text": "".join(f"{n} {n * n} " for n in range(30_000))}
    sizes = []
    for level in (1, 9):
        path = tmp_path / f"{level}{suffix}"
        pyckpt.save(text, path, compression_level=level)
        assert pyckpt.load(path) == text
        sizes.append(path.stat().st_size)
    assert sizes[1] != sizes[0]
    with pytest.raises(pyckpt.OptionError, match="compression_level"):
        pyckpt.save(text, tmp_path / f"x{suffix}", compression_level=99)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_bytes_do_not_depend_on_threads(
    files: dict[str, Path], suffix: str, tmp_path: Path
) -> None:
    pyckpt.save(state(), tmp_path / f"x{suffix}", num_threads=3)
    assert (tmp_path / f"x{suffix}").read_bytes() == files[suffix].read_bytes()


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_checkpoints(suffix: str, tmp_path: Path) -> None:
    model = torch.nn.Linear(30, 40)
    saved = pyckpt.State(model, torch.optim.AdamW(model.parameters()))
    [path] = pyckpt.save_checkpoint(saved, tmp_path / f"ba{{batch}}-rank{{rank}}{suffix}")
    assert Path(path).name == f"ba0-rank0{suffix}"
    pending = pyckpt.async_save_checkpoint(saved, tmp_path / f"async{suffix}")
    [other] = pending.result()
    assert shutil.which(COMMANDS[suffix])
    for one in (path, other):
        new = torch.nn.Linear(30, 40)
        pyckpt.load_checkpoint(one, pyckpt.State(new, torch.optim.AdamW(new.parameters())))
        assert torch.equal(new.weight, model.weight)
