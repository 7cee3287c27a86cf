"""After a load only the memory of the tensors stays, and it does not move."""

import bz2
import gc
import gzip
import io
import lzma
import os
import struct
import subprocess
import sys
import tarfile
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import pyckpt
from pyckpt import _core
from pyckpt.archive import formats
from tests import zstd_command

MIB = 1 << 20
# Streams that state no sizes: their memory grows as they are decoded.
FOREIGN: dict[str, Callable[[bytes], bytes]] = {
    ".tar.gz": lambda raw: gzip.compress(raw, 1, mtime=0),
    ".tar.bz2": lambda raw: bz2.compress(raw, 1),
    ".tar.xz": lambda raw: lzma.compress(raw, preset=0),
    ".tar.zst": zstd_command.compress,
}
FOREIGN_NAMES = [f"foreign{suffix}" for suffix in FOREIGN]
OWN_NAMES = ["x.tar", "x.pt", "x.tar.gz", "x.tar.bz2", "x.tar.lzma", "x.tar.zst"]


def noise(nbytes: int) -> torch.Tensor:
    return torch.randn(nbytes // 4, generator=torch.Generator().manual_seed(0))


def torch_saved(state: Any, *, new_format: bool = True) -> bytes:
    file = io.BytesIO()
    torch.save(state, file, _use_new_zipfile_serialization=new_format)
    return file.getvalue()


def tar_of(members: dict[str, bytes], zeros_behind: int = 0) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name, contents in members.items():
            header = tarfile.TarInfo(name)
            header.size = len(contents)
            tar.addfile(header, io.BytesIO(contents))
    return file.getvalue() + bytes(zeros_behind)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """2 MiB of noise in every format, by pyckpt and by others."""
    folder = tmp_path_factory.mktemp("files")
    state = {"t": noise(2 * MIB)}
    for name in OWN_NAMES:
        pyckpt.save(state, folder / name, fsync=False)
    for suffix, compress in FOREIGN.items():
        raw = tar_of({formats.STATES_MEMBER: torch_saved(state)})
        (folder / f"foreign{suffix}").write_bytes(compress(raw))
    return folder


def resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def allocated() -> int:
    """Resident memory without that of mapped files."""
    _, pages, of_files = Path("/proc/self/statm").read_text().split()[:3]
    return (int(pages) - int(of_files)) * os.sysconf("SC_PAGE_SIZE")


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize("name", OWN_NAMES + FOREIGN_NAMES)
def test_a_loaded_object_keeps_no_file(files: Path, name: str) -> None:
    before = open_files()
    loaded = pyckpt.load(files / name)
    assert torch.equal(loaded["t"], noise(2 * MIB))
    assert open_files() == before
    assert str(files / name) not in Path("/proc/self/maps").read_text()


@pytest.mark.parametrize("name", ["x.tar", "x.tar.gz", "foreign.tar.gz"])
def test_memory_goes_with_the_object(files: Path, name: str) -> None:
    pyckpt.load(files / name)
    before = resident()
    for _ in range(20):
        pyckpt.load(files / name)
    assert resident() - before < 10 * MIB


class Hook:
    """A progress hook that refers to the loaded object, or to the error that it raised."""

    def __init__(self, error: Exception | None = None) -> None:
        self.loaded: Any = None
        self.error = error

    def __call__(self, _done: int, _total: int | None) -> None:
        if self.error is not None:
            raise self.error


@pytest.mark.parametrize("name", OWN_NAMES + FOREIGN_NAMES)
def test_a_hook_can_refer_to_what_is_loaded(files: Path, name: str) -> None:
    hook = Hook()
    hook.loaded = pyckpt.load(files / name, progress=hook)
    assert torch.equal(hook.loaded["t"], noise(2 * MIB))
    gone = weakref.ref(hook)
    del hook
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize("name", OWN_NAMES + FOREIGN_NAMES)
def test_a_hook_can_refer_to_what_it_raised(files: Path, name: str) -> None:
    """The error refers to the frames of the load, and these to the reader."""
    before = open_files()
    hook = Hook(RuntimeError("enough"))
    try:
        pyckpt.load(files / name, progress=hook)
    except RuntimeError as error:
        assert error is hook.error  # noqa: PT017 - pytest.raises would keep it
    else:
        pytest.fail("the hook's error is lost")
    gone = weakref.ref(hook)
    del hook
    gc.collect()
    assert gone() is None
    assert open_files() == before
    assert str(files / name) not in Path("/proc/self/maps").read_text()


@pytest.mark.parametrize("new_format", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("suffix", FOREIGN)
def test_memory_does_not_move_under_tensors(tmp_path: Path, suffix: str, new_format: bool) -> None:
    """The memory of such a stream moves as it grows, and data behind the tensors makes it grow."""
    path = tmp_path / f"x{suffix}"
    block = noise(MIB // 4)
    for nbytes in (MIB, 2 * MIB, 4 * MIB):  # sizes at which the memory is doubled
        floats = block.repeat(nbytes // MIB * 4)[: (nbytes - 5_000) // 4]
        state = {"a": floats[:100_000].clone(), "b": floats[100_000:].clone()}
        states = torch_saved(state, new_format=new_format)
        assert nbytes - 5_000 < len(states) < nbytes
        for raw in (
            tar_of({formats.STATES_MEMBER: states, "other": bytes(6 * MIB)}),
            tar_of({formats.STATES_MEMBER: states}, zeros_behind=6 * MIB),
        ):
            path.write_bytes(FOREIGN[suffix](raw))
            loaded = pyckpt.load(path)
            assert torch.equal(loaded["a"], state["a"])
            assert torch.equal(loaded["b"], state["b"])


def test_the_core_moves_nothing_that_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "x.gz"
    path.write_bytes(FOREIGN[".tar.gz"](bytes(MIB) + b"1" * 9 * MIB))
    image = _core.StreamImage(os.fsencode(path), threads=1, mapped=False, progress=None)
    with pytest.raises(ValueError, match="not there"):
        image.take((0, MIB))
    assert image.require((0, MIB))
    taken = image.take((0, MIB))
    with pytest.raises(ValueError, match="taken and must stay"):
        image.require((MIB, 9 * MIB))
    assert bytes(taken) == bytes(MIB)


@pytest.mark.parametrize("new_format", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("suffix", FOREIGN)
def test_members_that_end_before_they_should(tmp_path: Path, suffix: str, new_format: bool) -> None:
    """The compressed file is whole, but the tar in it is cut."""
    path = tmp_path / f"x{suffix}"
    # Long enough that the first bytes are there before the end is known.
    states = torch_saved({"t": noise(MIB // 4).repeat(20)}, new_format=new_format)
    raw = tar_of({formats.STATES_MEMBER: states + bytes(9 * MIB)})
    path.write_bytes(FOREIGN[suffix](raw[: len(states) // 2]))
    for verify in (True, False):
        with pytest.raises(pyckpt.CorruptArchiveError, match=r"cut off|it ends before|file ends"):
            pyckpt.load(path, verify=verify)


@pytest.mark.parametrize("suffix", FOREIGN)
def test_nothing_is_unpickled_from_a_file_that_is_damaged_further_on(
    tmp_path: Path, suffix: str
) -> None:
    path = tmp_path / f"x{suffix}"
    raw = tar_of({formats.STATES_MEMBER: torch_saved(Telltale())}, zeros_behind=3 * MIB)
    path.write_bytes(FOREIGN[suffix](raw))
    assert pyckpt.load(path, weights_only=False) == "unpickled"
    assert len(unpickled) == 1
    contents = bytearray(path.read_bytes())
    contents[-9] ^= 1  # in the checksums of the whole stream
    path.write_bytes(contents)
    with pytest.raises(pyckpt.CorruptArchiveError, match=suffix):
        pyckpt.load(path, weights_only=False)
    assert unpickled.pop() == 1
    assert not unpickled


unpickled: list[int] = []


def tell(number: int) -> str:
    unpickled.append(number)
    return "unpickled"


class Telltale:
    def __reduce__(self) -> Any:
        return tell, (1,)


# Files that demand too much memory.


class Peak:
    """A progress hook that records how much the memory of the process grows."""

    def __init__(self) -> None:
        self.before = allocated()
        self.growth = 0

    def __call__(self, _done: int, _total: int | None) -> None:
        self.growth = max(self.growth, allocated() - self.before)


def repeated(suffix: str, raw: bytes, nbytes: int, count: int) -> bytes:
    """A file of several streams, which tools read as one: raw, then count times nbytes of zeros."""
    compress = {**FOREIGN, ".tar.bz2": bz2.compress}[suffix]
    return compress(raw) + count * compress(bytes(nbytes))


@pytest.mark.parametrize(("suffix", "nbytes"), [(".tar.gz", 16 * MIB), (".tar.bz2", 45 * MIB)])
def test_zeros_behind_a_tar_take_no_memory(tmp_path: Path, suffix: str, nbytes: int) -> None:
    path = tmp_path / f"x{suffix}"
    path.write_bytes(repeated(suffix, tar_of({"a": b"1"}), nbytes, 240 * MIB // nbytes))
    peak = Peak()
    assert pyckpt.verify(path, progress=peak, num_threads=1).ok
    assert peak.growth < 120 * MIB


def test_verify_keeps_one_member_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "x.tar.gz"
    states = torch_saved({"t": torch.zeros(4 * MIB)})
    member = tar_of({"a": states})[: 512 + -(-len(states) // 512) * 512]
    path.write_bytes(12 * FOREIGN[".tar.gz"](member) + FOREIGN[".tar.gz"](tar_of({"b": b""})))
    peak = Peak()
    report = pyckpt.verify(path, progress=peak)
    assert report.ok
    assert len(report.replaced) == 11
    assert report.records >= 12
    assert peak.growth < 80 * MIB


@pytest.mark.parametrize("deflated", [False, True])
def test_verify_keeps_one_batch_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, deflated: bool
) -> None:
    """Of records that are smaller than blocks, and of the code of deflated ones."""
    monkeypatch.setattr("pyckpt.archive.verify._BATCH_NBYTES", 1)  # 16 MiB for one thread
    records = 150 * MIB // (2 * MIB if deflated else MIB // 2)
    noise_ = torch.frombuffer(bytearray(os.urandom(150 * MIB)), dtype=torch.uint8)
    state = {str(n): part.clone() for n, part in enumerate(noise_.chunk(records))}
    path = tmp_path / "x.tar.gz"
    if deflated:
        pyckpt.save(state, tmp_path / "x.pt", compression_level=1, fsync=False)
        pyckpt.pack(tmp_path / "x.pt", path, fsync=False)
    else:
        pyckpt.save(state, path, fsync=False)
    peak = Peak()
    report = pyckpt.verify(path, progress=peak, num_threads=1)
    assert report.ok
    assert report.records > records
    assert peak.growth < 80 * MIB


@pytest.fixture(scope="module", params=["x.tar", "x.tar.gz", "x.tar.lzma", *FOREIGN_NAMES])
def many_members(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """150 MB in members that are smaller than what is decoded at once, some of them tiny."""
    folder = tmp_path_factory.mktemp("many")
    half = os.urandom(1000) + bytes(449_000)
    tiny = {f"t{n}": b"1" for n in range(3000)}
    raw = tar_of({**tiny, **{f"f{n}": half for n in range(330)}})
    path = folder / request.param
    if request.param in FOREIGN_NAMES:
        path.write_bytes(FOREIGN[request.param.removeprefix("foreign")](raw))
    else:
        (folder / "raw.tar").write_bytes(raw)
        pyckpt.convert(folder / "raw.tar", path, fsync=False)
    return path


@pytest.mark.timeout(300)
def test_many_small_members_take_little_memory(many_members: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.workers.small_members_worker", many_members, tmp_path]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    growths = dict(line.split() for line in done.stdout.splitlines())
    assert len(growths) == 5
    assert max(map(int, growths.values())) < 90 * MIB, growths


@pytest.mark.parametrize("suffix", [".tar.gz", ".tar.bz2"])
def test_a_stream_of_any_size_is_refused_in_time(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pyckpt import memory

    path = tmp_path / f"x{suffix}"
    path.write_bytes(repeated(suffix, b"PK\3\4" + bytes(100), 16 * MIB, 10))
    left = iter([100 * MIB, 36 * MIB])
    monkeypatch.setattr(memory, "_available", lambda: next(left))
    for read in (pyckpt.load, pyckpt.inspect):
        with pytest.raises(pyckpt.CheckpointError, match=f"and {36 * MIB} are available"):
            read(path)
        left = iter([100 * MIB, 36 * MIB])


def test_an_absurd_directory_is_not_read(tmp_path: Path) -> None:
    nbytes = 300 << 20
    path = tmp_path / "x.pt"
    with path.open("wb") as file:
        file.write(b"PK\3\4".ljust(30, b"\0"))
        file.seek(30 + nbytes)
        file.write(struct.pack("<IHHHHIIH", 0x06054B50, 0, 0, 1, 1, nbytes, 30, 0))
    with pytest.raises(pyckpt.CorruptArchiveError, match="absurdly large"):
        pyckpt.load(path)


def test_a_pickle_that_needs_too_much_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pyckpt import memory

    pyckpt.save(["text" * MIB], tmp_path / "x.tar.gz")
    monkeypatch.setattr(memory, "_available", lambda: 5 * MIB)
    with pytest.raises(pyckpt.CheckpointError, match="bytes of memory"):
        pyckpt.load(tmp_path / "x.tar.gz")


# The address space is what is limited, so that mapping fails and nothing else does.
WITHOUT_ROOM = """
import errno, resource, sys
import pyckpt, torch
path = sys.argv[1]
mapped = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (mapped + (256 << 20), resource.RLIM_INFINITY))
for read in (pyckpt.load, pyckpt.verify, pyckpt.inspect):
    try:
        read(path, **({} if read is pyckpt.inspect else {"num_threads": 1}))
    except OSError as error:
        assert (error.errno, error.filename) == (errno.ENOMEM, path), repr(error)
    else:
        assert False, read
resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
assert pyckpt.load(path)["x"].nbytes == 512 << 20
"""


@pytest.mark.timeout(100)
@pytest.mark.parametrize("suffix", [".tar", ".tar.gz", ".tar.zst"])
def test_a_file_for_which_there_is_no_room_is_not_damaged(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x{suffix}"
    pyckpt.save({"x": torch.zeros(512 << 20, dtype=torch.uint8)}, path, fsync=False)
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_ROOM, path],
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert done.returncode == 0, done.stderr
