"""pyckpt.load: files by other writers, broken files, and parts of files."""

import fractions
import gzip
import lzma
import os
import random
import shutil
import sys
import tarfile
import threading
import types
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import pyckpt
from pyckpt import _core
from pyckpt.archive import formats
from pyckpt.archive.formats import usual_suffixes
from pyckpt.archive.writer import ArchiveWriter
from pyckpt.options import WriteOptions
from tests.states import assert_equal, mixed_state

STATES = formats.STATES_MEMBER
TAR_SUFFIXES = formats.tar_suffixes()
FORMAT_SUFFIXES = usual_suffixes()  # one of each format
COMPRESSED = [row for row in _core.formats() if row.name != "tar"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The mixed state under every suffix: x.tar, x.tar.gz, ..."""
    folder = tmp_path_factory.mktemp("every-suffix")
    for suffix in [*TAR_SUFFIXES, ".pt"]:
        pyckpt.save(mixed_state(), folder / f"x{suffix}", num_threads=3)
    return folder


# Loading files by other writers.


@pytest.mark.parametrize("suffix", [".pt", ".tar", ".bin"])
@pytest.mark.parametrize("new_format", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("weights_only", [True, False])
def test_load_of_torch_save(
    tmp_path: Path, suffix: str, new_format: bool, weights_only: bool
) -> None:
    """The suffix does not matter."""
    path = tmp_path / f"x{suffix}"
    torch.save(mixed_state(), path, _use_new_zipfile_serialization=new_format)
    assert_equal(pyckpt.load(path, weights_only=weights_only), mixed_state())


def write_as_composer_does(path: Path, mode: str, new_format: bool) -> None:
    folder = path.parent / "to-pack"
    folder.mkdir(mode=0o700)
    torch.save(mixed_state(), folder / STATES, _use_new_zipfile_serialization=new_format)
    with tarfile.open(path, mode) as tar:
        tar.add(folder, arcname="")


@pytest.mark.parametrize("new_format", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize(
    ("suffix", "mode"),
    [(".tar", "w"), (".tar.gz", "w:gz"), (".tar.bz2", "w:bz2"), (".tar.lzma", "w:xz")],
)
def test_load_of_composers_archives(
    tmp_path: Path, suffix: str, mode: str, new_format: bool
) -> None:
    path = tmp_path / f"x{suffix}"
    write_as_composer_does(path, mode, new_format)
    assert_equal(pyckpt.load(path), mixed_state())


def test_load_of_the_old_lzma_format(tmp_path: Path) -> None:
    pyckpt.save([1, torch.ones(3)], tmp_path / "x.tar")
    data = lzma.compress((tmp_path / "x.tar").read_bytes(), format=lzma.FORMAT_ALONE)
    (tmp_path / "y.tar.lzma").write_bytes(data)
    assert pyckpt.load(tmp_path / "y.tar.lzma")[0] == 1


def test_load_passes_its_options_on(tmp_path: Path) -> None:
    pyckpt.save({"t": torch.ones(3)}, tmp_path / "x.tar.gz")
    assert pyckpt.load(tmp_path / "x.tar.gz", map_location="meta")["t"].device.type == "meta"
    pyckpt.save({"t": fractions.Fraction(1, 2)}, tmp_path / "y.tar.gz")
    with pytest.raises(Exception, match=r"weights_only|Weights only"):
        pyckpt.load(tmp_path / "y.tar.gz")
    assert pyckpt.load(tmp_path / "y.tar.gz", weights_only=False)["t"] == fractions.Fraction(1, 2)


# Loading broken files.


@pytest.mark.parametrize("name", ["no.tar", "no.pt", "no/such/folder.tar.gz"])
def test_load_of_a_missing_file(tmp_path: Path, name: str) -> None:
    with pytest.raises(FileNotFoundError, match=name):
        pyckpt.load(tmp_path / name)


def test_load_of_a_folder(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError):
        pyckpt.load(tmp_path)


def test_load_of_a_missing_member(folder: Path) -> None:
    for suffix in TAR_SUFFIXES:
        with pytest.raises(pyckpt.OptionError, match=f"no member 'other'; it has '{STATES}'") as e:
            pyckpt.load(folder / f"x{suffix}", member="other")
        assert str(folder / f"x{suffix}") in str(e.value)


def assert_corrupt(path: Path) -> None:
    with pytest.raises(pyckpt.CorruptArchiveError, match="x") as caught:
        pyckpt.load(path)
    assert caught.value.path == str(path)
    assert str(path) in str(caught.value)


FOREIGN = {
    "an lz4 file": b"\x04\x22\x4d\x18",
    "a 7z archive": b"7z\xbc\xaf\x27\x1c",
    "an lzip file": b"LZIP",
    "an HDF5 file": b"\x89HDF\r\n\x1a\n",
    "a safetensors file": (80).to_bytes(8, "little") + b'{"weight":{"dtype":"F32"',
    "a pointer of Git LFS": b"version https://git-lfs.github.com/spec/v1\n",
}


@pytest.mark.parametrize("name", FOREIGN)
@pytest.mark.parametrize("nbytes", [0, 5000])
def test_formats_of_others_are_named(tmp_path: Path, name: str, nbytes: int) -> None:
    path = tmp_path / "x.tar"
    path.write_bytes(FOREIGN[name] + bytes(nbytes))
    for read in (pyckpt.load, pyckpt.inspect):
        with pytest.raises(pyckpt.CorruptArchiveError, match=f"x.tar is {name}") as caught:
            read(path)
        assert caught.value.path == str(path)
    [problem] = pyckpt.verify(path).problems
    assert str(problem).startswith(f"is {name}")


def test_load_of_an_empty_file(tmp_path: Path) -> None:
    (tmp_path / "x.tar").touch()
    with pytest.raises(pyckpt.CorruptArchiveError, match=r"x.tar is empty"):
        pyckpt.load(tmp_path / "x.tar")


@pytest.mark.timeout(60)
def test_load_of_a_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.tar")
    for read in (pyckpt.load, pyckpt.verify, pyckpt.inspect):
        with pytest.raises(OSError, match="only regular files"):
            read(tmp_path / "x.tar")
    state = pyckpt.State(nn.Linear(1, 1))
    with pytest.raises(pyckpt.CheckpointError, match="only regular files"):
        pyckpt.load_checkpoint(tmp_path / "x.tar", state)


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz", ".pt"])
@pytest.mark.parametrize(
    "garbage",
    [
        b"",
        b"\0",
        b"hello",
        bytes(2000),
        b"PK\3\4",
        b"PK\3\4" + bytes(100),
        b"\x1f\x8b",
        b"\x1f\x8b\x08" + bytes(100),
        b"BZh9",
        b"BZh9" + b"\xaa" * 100,
        b"\xfd7zXZ\0",
        b"\xfd7zXZ\0" + b"\xaa" * 100,
        b"\x80\x02garbage",
        random.Random(6).randbytes(5000),
        gzip.compress(b"", mtime=0),
        gzip.compress(b"not a tar", mtime=0),
        lzma.compress(b"not a tar"),
    ],
    ids=lambda data: repr(data[:8]),
)
def test_load_of_garbage(tmp_path: Path, suffix: str, garbage: bytes) -> None:
    path = tmp_path / f"x{suffix}"
    path.write_bytes(garbage)
    assert_corrupt(path)


@pytest.mark.parametrize("suffix", [*FORMAT_SUFFIXES, ".pt"])
@pytest.mark.parametrize("part", [0.0001, 0.1, 0.5, 0.9, 0.995])
def test_load_of_a_truncated_file(folder: Path, tmp_path: Path, suffix: str, part: float) -> None:
    data = (folder / f"x{suffix}").read_bytes()
    path = tmp_path / f"x{suffix}"
    path.write_bytes(data[: int(part * len(data))])
    assert_corrupt(path)


@pytest.mark.parametrize("suffix", [row.suffixes[0] for row in COMPRESSED])
@pytest.mark.parametrize("part", [0.1, 0.5, 0.9])
def test_load_of_a_compressed_file_with_flipped_bits(
    folder: Path, tmp_path: Path, suffix: str, part: float
) -> None:
    data = bytearray((folder / f"x{suffix}").read_bytes())
    at = int(part * len(data))
    data[at : at + 4] = bytes(b ^ 0xA5 for b in data[at : at + 4])
    path = tmp_path / f"x{suffix}"
    path.write_bytes(data)
    assert_corrupt(path)


def test_load_of_a_damaged_zip(folder: Path, tmp_path: Path) -> None:
    data = bytearray((folder / "x.pt").read_bytes())
    data[:4] = b"PK\3\4"
    data[0x30:0x100] = bytes(0x100 - 0x30)  # the pickle's beginning
    (tmp_path / "x.pt").write_bytes(data)
    assert_corrupt(tmp_path / "x.pt")


@pytest.mark.parametrize("suffix", FORMAT_SUFFIXES)
def test_load_of_a_member_that_torch_did_not_write(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x{suffix}"
    (tmp_path / "note").write_text("hello")
    with ArchiveWriter(path, WriteOptions()) as writer:
        writer.add_file(STATES, tmp_path / "note")
        writer.write()
        writer.commit()
    assert_corrupt(path)


@pytest.fixture(scope="module")
def small_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("small")
    for suffix in [*FORMAT_SUFFIXES, ".pt"]:
        pyckpt.save(SMALL_STATE, folder / f"x{suffix}", fsync=False)
    return folder


SMALL_STATE = {"t": torch.arange(2000, dtype=torch.float32), "text": "abc" * 50}


@given(place=st.floats(0, 1, exclude_max=True), flip=st.integers(0, 255))
@settings(max_examples=150, deadline=None)
@pytest.mark.parametrize("suffix", [*FORMAT_SUFFIXES, ".pt"])
def test_damage_is_never_wrong_data(
    small_files: Path, suffix: str, place: float, flip: int
) -> None:
    """Wherever the damage is, load gives the right data or an error that names the file."""
    contents = bytearray((small_files / f"x{suffix}").read_bytes())
    at = int(place * len(contents))
    if flip == 0:
        del contents[at:]
    else:
        contents[at] ^= flip
    path = small_files / f"damaged{suffix}"
    path.write_bytes(contents)
    try:
        loaded = pyckpt.load(path)
    except pyckpt.CorruptArchiveError as caught:
        error = caught
    else:
        assert_equal(loaded, SMALL_STATE)
        return
    assert str(path) in str(error)


# Parts of files, and mapped files.


def nested_state() -> dict[str, Any]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(300, 400), nn.BatchNorm1d(400), nn.Linear(400, 200))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(3, 300)).sum().backward()
    optimizer.step()
    return {"state": {"model": model.state_dict(), "optimizers": optimizer.state_dict()}, "n": 1}


@pytest.fixture(scope="module")
def nested(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("nested")
    for suffix in [*FORMAT_SUFFIXES, ".pt"]:
        pyckpt.save(nested_state(), folder / f"x{suffix}")
    return folder


@pytest.mark.parametrize("suffix", [*FORMAT_SUFFIXES, ".pt"])
def test_keys_choose_what_is_loaded(nested: Path, suffix: str) -> None:
    path = nested / f"x{suffix}"
    whole = nested_state()
    [one] = pyckpt.load(path, keys="state/model/2.weight")["state"]["model"].items()
    assert one[0] == "2.weight"
    assert torch.equal(one[1], whole["state"]["model"]["2.weight"])
    part = pyckpt.load(path, keys=["state/model/*", "n"])
    assert part["n"] == 1
    assert list(part["state"]) == ["model"]
    assert_equal(part["state"]["model"], whole["state"]["model"])
    moments = pyckpt.load(path, keys="*/exp_avg")["state"]["optimizers"]["state"]
    assert {key: list(value) for key, value in moments.items()} == {
        n: ["exp_avg"] for n in range(6)
    }
    assert moments[0]["exp_avg"].shape == (400, 300)


def test_keys_that_name_nothing(nested: Path) -> None:
    with pytest.raises(
        pyckpt.OptionError, match="nothing matches 'state/mode'; there is 'state/model'"
    ):
        pyckpt.load(nested / "x.tar", keys=["state/mode", "n"])
    for wrong in ([1], 1, {"n"}):
        with pytest.raises(pyckpt.OptionError, match="takes globs"):
            pyckpt.load(nested / "x.tar", keys=wrong)  # type: ignore[arg-type]
    with pytest.raises(pyckpt.OptionError, match="keys is empty"):
        pyckpt.load(nested / "x.tar", keys=[])


def test_keys_leave_damage_elsewhere_alone(nested: Path, tmp_path: Path) -> None:
    """What is not asked for is not read."""
    contents = bytearray((nested / "x.tar").read_bytes())
    place = next(
        entry
        for member in pyckpt.inspect(nested / "x.tar").members
        for entry in member.tensors
        if entry.info.key_path == "state/model/0.weight"
    )
    weight = nested_state()["state"]["model"]["0.weight"].numpy().tobytes()
    assert place.info.nbytes == len(weight)
    contents[contents.index(weight) + 1000] ^= 1
    path = tmp_path / "x.tar"
    path.write_bytes(contents)
    with pytest.raises(
        pyckpt.CorruptArchiveError, match=r"tensor 'state/model/0.weight' \(torch.float32, \[400,"
    ):
        pyckpt.load(path)
    part = pyckpt.load(path, keys="state/model/2.*")["state"]["model"]
    assert torch.equal(part["2.bias"], nested_state()["state"]["model"]["2.bias"])
    loaded = pyckpt.load(path, verify=False)["state"]["model"]["0.weight"]
    assert (loaded != nested_state()["state"]["model"]["0.weight"]).sum() == 1


@pytest.mark.parametrize("suffix", [".tar", ".pt"])
@pytest.mark.parametrize("verify", [True, False])
def test_mapped_tensors_are_copied_on_write(
    folder: Path, tmp_path: Path, suffix: str, verify: bool
) -> None:
    path = tmp_path / f"x{suffix}"
    shutil.copy(folder / f"x{suffix}", path)
    before = path.read_bytes()
    loaded = pyckpt.load(path, mmap=True, verify=verify)
    assert_equal(loaded, mixed_state())
    loaded["floats"].zero_()
    assert loaded["floats"].sum() == 0
    assert path.read_bytes() == before


def test_tensors_outlive_each_other(nested: Path) -> None:
    """Freeing one tensor never frees the memory of another."""
    for suffix in FORMAT_SUFFIXES:
        loaded = pyckpt.load(nested / f"x{suffix}")["state"]["model"]
        expected = nested_state()["state"]["model"]
        for name in list(loaded)[::2]:
            del loaded[name]
        for name, tensor in loaded.items():
            assert torch.equal(tensor, expected[name])
            tensor.add_(1)


def test_views_share_their_storage_again(tmp_path: Path) -> None:
    base = torch.arange(12.0)
    pyckpt.save({"a": base[2:8].view(2, 3), "b": base, "c": torch.zeros(0, 4)}, tmp_path / "x.tar")
    for options in ({}, {"mmap": True}, {"weights_only": False}):
        loaded = pyckpt.load(tmp_path / "x.tar", **options)
        assert loaded["c"].shape == (0, 4)
        loaded["b"][2] = -1
        assert loaded["a"][0, 0] == -1


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_what_only_torch_reads(tmp_path: Path) -> None:
    torch.jit.script(nn.Linear(3, 4)).save(str(tmp_path / "script.pt"))
    with pytest.warns(UserWarning, match="TorchScript"):
        assert pyckpt.load(tmp_path / "script.pt", weights_only=False)(torch.ones(3)).shape == (4,)
    # Other programs may compress records.
    torch.save({"t": torch.arange(9)}, tmp_path / "x.pt")
    with (
        zipfile.ZipFile(tmp_path / "x.pt") as old,
        zipfile.ZipFile(tmp_path / "y.pt", "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for name in old.namelist():
            new.writestr(name, old.read(name))
    assert torch.equal(pyckpt.load(tmp_path / "y.pt")["t"], torch.arange(9))


# What a pickle asks torch to do.


def rewritten(path: Path, old: bytes, new: bytes) -> None:
    """Changes the pickle of a .pt and updates the checksums."""
    with zipfile.ZipFile(path) as file:
        records = {name: file.read(name) for name in file.namelist()}
    [pickle_name] = [name for name in records if name.endswith("/data.pkl")]
    assert records[pickle_name].count(old) == 1
    records[pickle_name] = records[pickle_name].replace(old, new)
    with zipfile.ZipFile(path, "w") as file:
        for name, data in records.items():
            file.writestr(name, data)


@pytest.mark.parametrize("weights_only", [True, False])
def test_no_tensor_is_larger_than_its_storage(tmp_path: Path, weights_only: bool) -> None:
    """torch would enlarge the storage, and its new bytes would be uninitialized memory."""
    torch.save({"t": torch.zeros(0)}, tmp_path / "x.pt")
    rewritten(tmp_path / "x.pt", b"K\0\x85", b"J" + (5_000_000).to_bytes(4, "little") + b"\x85")
    with pytest.raises(pyckpt.CorruptArchiveError, match="larger than its storage '0'"):
        pyckpt.load(tmp_path / "x.pt", weights_only=weights_only)


def test_types_that_others_admit_stay_admitted(tmp_path: Path) -> None:
    """torch has one set of allowed types for all threads."""
    path = tmp_path / "x.tar"
    pyckpt.save({"t": torch.ones(3), "random": np.arange(3, dtype=np.uint32)}, path)
    before = set(torch.serialization.get_safe_globals())
    torch.serialization.add_safe_globals([np.dtype])
    try:
        pyckpt.load(path)
        assert set(torch.serialization.get_safe_globals()) == before | {np.dtype}
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(list(before))

    loading, done = threading.Event(), threading.Event()

    def wait(storage: torch.UntypedStorage, _location: str) -> torch.UntypedStorage:
        loading.set()
        assert done.wait(60)
        return storage

    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(pyckpt.load, path, map_location=wait)
        assert loading.wait(60)
        pyckpt.load(path)
        done.set()
        assert slow.result()["random"].tolist() == [0, 1, 2]
    assert set(torch.serialization.get_safe_globals()) == before


@pytest.mark.parametrize("mmap", [True, False])
@pytest.mark.parametrize(
    "map_location",
    [
        None,
        torch.device("cpu"),
        {"cpu": "meta"},
        lambda storage, location: storage if location == "cpu" else None,
        lambda storage, location: None,
    ],
)
def test_map_location_is_torchs(folder: Path, map_location: Any, mmap: bool) -> None:
    expected = torch.load(folder / "x.pt", map_location=map_location)
    loaded = pyckpt.load(folder / "x.tar", map_location=map_location, mmap=mmap)
    assert loaded["floats"].device == expected["floats"].device
    if loaded["floats"].device.type != "meta":
        assert_equal(loaded, expected)


class TheirStorage:
    """A class of a user whose name ends as torch's storages do, in a module named torch..."""

    def __init__(self) -> None:
        self.value = 3


TheirStorage.__module__ = "torchmodels_of_a_user"


@pytest.mark.parametrize("new_format", [True, False], ids=["zip", "legacy"])
def test_classes_named_storage(
    tmp_path: Path, new_format: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = types.ModuleType(TheirStorage.__module__)
    module.TheirStorage = TheirStorage  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, TheirStorage.__module__, module)
    path = tmp_path / "x.pt"
    state = {"mine": TheirStorage(), "t": torch.ones(2), "s": torch.ones(2).untyped_storage()}
    torch.save(state, path, _use_new_zipfile_serialization=new_format)
    loaded = pyckpt.load(path, weights_only=False)
    assert type(loaded["mine"]) is TheirStorage
    assert loaded["mine"].value == 3
    with torch.serialization.safe_globals([TheirStorage]):
        assert pyckpt.load(path)["mine"].value == 3
    assert pyckpt.verify(path).ok


def swapped(path: Path) -> None:
    """Turns a file into that of a machine with the other byte order."""
    with zipfile.ZipFile(path) as file:
        records = {name: file.read(name) for name in file.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in records.items():
            if name.endswith("byteorder"):
                data = {b"little": b"big", b"big": b"little"}[data]
            if "/data/" in name:
                data = np.frombuffer(data, np.uint32).byteswap().tobytes()
            file.writestr(name, data)


@pytest.mark.parametrize("weights_only", [True, False])
def test_the_other_byte_order(tmp_path: Path, weights_only: bool) -> None:
    path = tmp_path / "x.pt"
    state = {"t": torch.arange(9.0), "random": np.arange(3, dtype=np.uint32)}
    torch.save(state, path)
    swapped(path)
    loaded = pyckpt.load(path, weights_only=weights_only)
    assert torch.equal(loaded["t"], state["t"])
    assert np.array_equal(loaded["random"], state["random"])
    assert pyckpt.load(path, keys="t", weights_only=weights_only)["t"][2] == 2
    assert pyckpt.verify(path).ok
