"""What the campaigns try while calls fail, and what must be there afterwards."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed.checkpoint as dcp

import pyckpt
from pyckpt.archive import writer
from pyckpt.archive.assembly import saving
from pyckpt.archive.formats import file_suffixes, tar_suffixes
from pyckpt.options import WriteOptions
from pyckpt.sharded import StorageReader, StorageWriter

__all__ = ["Scenario", "scenarios"]

_THREADS = 2
# One thread of liblzma encodes all of it, slowly.
_SLOW_SUFFIXES = (".pt.lzma",)
# Of what an error says if the new file has its name all the same.
_NEW_IS_THERE = "the new file has its name"


class Scenario(Protocol):
    """One thing that pyckpt does, again and again.

    Attributes:
        name: For people, and for ``--case``.
        what: Its format or the like: the row of the table.
        refused: Kinds of calls that fail all the time, with their errno.
        durable: Whether it must fail if a flush fails.
        on_disk: Whether its folder must not be in memory.
    """

    name: str
    what: str
    refused: Mapping[str, int]
    durable: bool
    on_disk: bool

    def prepare(self, folder: Path) -> None:
        """Makes ``folder``, which may be there, what it is before ``run()``."""

    def run(self) -> None:
        """What is tried."""

    def problems(self, raised: str | None, *, settled: bool) -> Iterator[str]:
        """What is wrong in the folder after ``run()``, which has raised this message, or nothing.

        May look into the files with pyckpt.

        Args:
            settled: Whether no call has failed in this run.
        """


def contents(seed: int) -> dict[str, Any]:
    """Small tensors of several kinds, and some text."""
    noise = torch.Generator().manual_seed(seed)
    return {
        "floats": torch.randn(10_000, generator=noise),
        "bf16": torch.randn(5_000, generator=noise).bfloat16(),
        "zeros": torch.zeros(5_000),
        "steps": torch.arange(seed, seed + 1000),
        "text": f"{seed} to be or not to be, " * 200,
    }


def _few(seed: int) -> dict[str, Any]:
    noise = torch.Generator().manual_seed(seed)
    return {"floats": torch.randn(1000, generator=noise), "text": f"{seed} to be"}


def _is_equal(a: Any, b: Mapping[str, Any]) -> bool:
    return list(a) == list(b) and all(
        torch.equal(a[key], value) and a[key].dtype == value.dtype
        if isinstance(value, torch.Tensor)
        else a[key] == value
        for key, value in b.items()
    )


def _tree(folder: Path) -> dict[str, bytes | None]:
    """What is in a folder: the bytes of each file by its path; None for a folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


def _make(folder: Path, tree: Mapping[str, bytes | None]) -> None:
    """Gives a folder these contents."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name, data in tree.items():
        if data is None:
            (folder / name).mkdir()
        else:
            (folder / name).write_bytes(data)


def _is_hidden(name: str) -> bool:
    return ".pyckpt-" in name


def _difference(is_: Mapping[str, bytes | None], should_be: Mapping[str, bytes | None]) -> str:
    return ", ".join(
        [
            *(f"{name} is left" for name in is_ if name not in should_be),
            *(f"{name} is gone" for name in should_be if name not in is_),
            *(f"{n} has changed" for n in is_ if n in should_be and is_[n] != should_be[n]),
        ]
    )


@dataclass
class Save:
    """A save of one file.

    Attributes:
        suffix: Its format.
        start: Saves an object to a path, and returns when it is there.
        inside: Its folder, which the save makes; empty if it replaces a file.
    """

    suffix: str
    how: str
    start: Callable[[dict[str, Any], Path], object]
    inside: str = ""
    refused: Mapping[str, int] = field(default_factory=dict)
    durable: bool = True
    on_disk: bool = False
    make: Callable[[int], dict[str, Any]] = contents

    def __post_init__(self) -> None:
        if self.suffix in _SLOW_SUFFIXES:
            self.make = _few
        over = f"into {self.inside}" if self.inside else "over a file"
        self.what = f"save {self.suffix}"
        self.name = f"{self.what}, {self.how}, {over}"
        self._old, self._new = _few(1), self.make(2)
        self._before: dict[str, bytes | None] | None = None

    def prepare(self, folder: Path) -> None:
        self._folder = folder
        self._path = folder / self.inside / f"model{self.suffix}"
        if self._before is None:
            _make(folder, {})
            if not self.inside:
                pyckpt.save(self._old, self._path, fsync=False)
            self._before = _tree(folder)
        _make(folder, self._before)

    def run(self) -> None:
        self.start(self._new, self._path)

    def problems(self, raised: str | None, *, settled: bool) -> Iterator[str]:
        assert self._before is not None
        now = _tree(self._folder)
        if raised is not None and _NEW_IS_THERE not in raised:
            if different := _difference(now, self._before):
                yield f"after an error {different}"
            return
        parts = Path(self.inside).parts
        folders = {"/".join(parts[:n]) for n in range(1, len(parts) + 1)}
        expected = {*folders, str(self._path.relative_to(self._folder))}
        if set(now) != expected:
            yield f"there is {sorted(now)}, and not {sorted(expected)}"
        elif not _is_equal(pyckpt.load(self._path, weights_only=True), self._new):
            yield "what was saved is not what is loaded"


@dataclass
class Read:
    """Something that reads a file and changes nothing.

    Attributes:
        read: Returns whether the file has what it should have.
    """

    suffix: str
    how: str
    read: Callable[[Path, dict[str, Any]], bool]
    save: Callable[[dict[str, Any], Path], object]
    refused: Mapping[str, int] = field(default_factory=dict)
    durable: bool = False
    on_disk: bool = False
    make: Callable[[int], dict[str, Any]] = contents

    def __post_init__(self) -> None:
        if self.suffix in _SLOW_SUFFIXES:
            self.make = _few
        self.what = f"{self.how} {self.suffix}"
        self.name = self.what
        self._contents = self.make(1)
        self._before: dict[str, bytes | None] | None = None
        self._is_right = True

    def prepare(self, folder: Path) -> None:
        self._folder = folder
        self._path = folder / f"model{self.suffix}"
        if self._before is None:
            _make(folder, {})
            self.save(self._contents, self._path)
            self._before = _tree(folder)

    def run(self) -> None:
        self._is_right = True
        self._is_right = self.read(self._path, self._contents)

    def problems(self, raised: str | None, *, settled: bool) -> Iterator[str]:
        assert self._before is not None
        if raised is None and not self._is_right:
            yield "it reads something else"
        if different := _difference(_tree(self._folder), self._before):
            yield f"after a read {different}"


@dataclass
class Transaction:
    """Two files that appear together."""

    over: bool
    refused: Mapping[str, int] = field(default_factory=dict)
    durable: bool = True
    on_disk: bool = False
    how: str = ""
    what: str = "transaction"

    def __post_init__(self) -> None:
        over = "over a folder" if self.over else "into new/folder"
        self.name = f"{self.what}, {over}{', ' if self.how else ''}{self.how}"
        self._old, self._new = contents(1), contents(2)
        self._before: dict[str, bytes | None] | None = None

    def prepare(self, folder: Path) -> None:
        self._folder = folder
        self._target = folder / "step" if self.over else folder / "new" / "step"
        if self._before is None:
            _make(folder, {})
            if self.over:
                self._write(self._old)
            self._before = _tree(folder)
        _make(folder, self._before)

    def _write(self, obj: dict[str, Any]) -> None:
        with pyckpt.transaction(self._target) as inside:
            pyckpt.save(obj, inside / "model.tar", num_threads=_THREADS)
            pyckpt.save(obj["text"], inside / "text.pt", num_threads=_THREADS)

    def run(self) -> None:
        self._write(self._new)

    def problems(self, raised: str | None, *, settled: bool) -> Iterator[str]:
        assert self._before is not None
        # What could not be removed goes with the next transaction: see hidden_folder.py.
        now = {n: data for n, data in _tree(self._folder).items() if settled or not _is_hidden(n)}
        if raised is not None:
            if different := _difference(now, self._before):
                yield f"after an error {different}"
            return
        inner = self._target.relative_to(self._folder)
        parts = [str(parent) for parent in inner.parents if parent.name]
        expected = {*parts, str(inner), f"{inner}/model.tar", f"{inner}/text.pt"}
        if set(now) != expected:
            yield f"there is {sorted(now)}, and not {sorted(expected)}"
        elif not _is_equal(pyckpt.load(self._target / "model.tar"), self._new):
            yield "what was saved is not what is loaded"


@dataclass
class Manager:
    """The second and third checkpoint of a run, of which one stays."""

    asynchronous: bool
    refused: Mapping[str, int] = field(default_factory=dict)
    durable: bool = True
    on_disk: bool = False
    what: str = "CheckpointManager"

    def __post_init__(self) -> None:
        self.name = f"{self.what}, {'asynchronous' if self.asynchronous else 'blocking'}"
        model = torch.nn.Linear(40, 40)
        self._state = pyckpt.State(model, torch.optim.AdamW(model.parameters()))
        self._before: dict[str, bytes | None] | None = None

    def _manager(self) -> pyckpt.CheckpointManager:
        return pyckpt.CheckpointManager(
            self._run, suffix=".tar.gz", keep_last=1, asynchronous=self.asynchronous, num_threads=2
        )

    def prepare(self, folder: Path) -> None:
        self._folder = folder
        self._run = folder / "run"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        if self._before is not None:
            shutil.copytree(folder.with_name("before"), self._run, symlinks=True)
            return
        manager = self._manager()
        manager.save(1, self._state)
        manager.wait()
        shutil.copytree(self._run, folder.with_name("before"), symlinks=True)
        self._before = _tree(folder)

    def run(self) -> None:
        manager = self._manager()
        manager.save(2, self._state)
        manager.wait()

    def problems(self, raised: str | None, *, settled: bool) -> Iterator[str]:
        found = {path.name for path in self._run.iterdir()}
        steps = {"step-1-rank0.tar.gz", "step-2-rank0.tar.gz"}
        others = found - steps - {"checkpoints.json", "latest-rank0.tar.gz"}
        if raised is not None:  # a lock that cannot be removed stays until the next save
            others = {name for name in others if not name.endswith(".pyckpt-lock")}
        if others:
            yield f"{sorted(others)} is left"
        if not found & steps:
            yield "no checkpoint is left"
        for name in sorted(found & steps):
            if not pyckpt.verify(self._run / name).ok:
                yield f"{name} is damaged"
        if raised is None and found & steps != {"step-2-rank0.tar.gz"}:
            yield f"there is {sorted(found)}"
        latest = self._manager().latest()
        if latest is None or not pyckpt.verify(latest.paths[0]).ok:
            yield "the newest checkpoint cannot be read"


@dataclass
class Shards:
    """A checkpoint of torch.distributed.checkpoint, on one rank, over an older one."""

    refused: Mapping[str, int] = field(default_factory=dict)
    durable: bool = True
    on_disk: bool = False
    what: str = "StorageWriter"

    def __post_init__(self) -> None:
        self.name = self.what
        self._old = {"w": torch.arange(3000.0)}
        self._new = {"w": torch.arange(3000.0) + 1}
        self._before: dict[str, bytes | None] | None = None

    def prepare(self, folder: Path) -> None:
        self._folder = folder
        self._path = folder / "dcp"
        self._writer = StorageWriter(self._path, num_threads=_THREADS)
        if self._before is None:
            _make(folder, {})
            self._save(self._old)
            self._before = _tree(folder)
        _make(folder, self._before)

    def _save(self, state: dict[str, Any]) -> None:
        dcp.save(state, storage_writer=self._writer, no_dist=True)

    def run(self) -> None:
        self._save(self._new)

    def problems(self, raised: str | None, *, settled: bool) -> Iterator[str]:
        assert self._before is not None
        now = _tree(self._folder)
        gone = set(self._before) - set(now)
        if gone:
            yield f"{sorted(gone)} is gone"
        hidden = [name for name in now if "/." in name and name != "dcp/.metadata"]
        if hidden:
            yield f"{hidden} is left"
        loaded = {"w": torch.zeros(3000)}
        dcp.load(loaded, storage_reader=StorageReader(self._path), no_dist=True)
        is_old = raised is not None and _is_equal(loaded, self._old)
        may_be_new = raised is None or _NEW_IS_THERE in raised
        if not is_old and not (may_be_new and _is_equal(loaded, self._new)):
            yield "what is loaded is not what it should be"


def _blocking(**options: Any) -> Callable[[dict[str, Any], Path], object]:
    return lambda obj, path: pyckpt.save(obj, path, num_threads=_THREADS, **options)


def _background(obj: dict[str, Any], path: Path) -> object:
    return pyckpt.async_save(obj, path, num_threads=_THREADS).result()


def _with_previous(obj: dict[str, Any], path: Path) -> None:
    """As each of several ranks commits."""
    options = WriteOptions(num_threads=_THREADS)
    with saving(path), writer.ArchiveWriter(path, options) as archive:
        archive.add_object("composer_states.pt", obj)
        archive.write()
        archive.commit(keep_previous=True)
        archive.keep()


def _of_files(obj: dict[str, Any], path: Path) -> None:
    """An archive of what is read from files."""
    source = path.parent.parent / "source.pt"
    if not source.exists():
        torch.save(obj, source)
    with pyckpt.ArchiveWriter(path, num_threads=_THREADS) as archive:
        archive.add_file("composer_states.pt", source)
        archive.write()
        archive.commit()


def _load(path: Path, expected: dict[str, Any]) -> bool:
    return _is_equal(pyckpt.load(path, num_threads=_THREADS), expected)


def _load_mapped(path: Path, expected: dict[str, Any]) -> bool:
    return _is_equal(pyckpt.load(path, mmap=True, num_threads=_THREADS), expected)


def _load_object(path: Path, expected: dict[str, Any]) -> bool:
    file = path.open("rb")
    try:
        return _is_equal(pyckpt.load(file, num_threads=_THREADS), expected)
    finally:
        with suppress(OSError):  # the campaign's own close may be the one that fails
            file.close()


def _load_one(path: Path, expected: dict[str, Any]) -> bool:
    loaded = pyckpt.load(path, keys="floats", num_threads=_THREADS)
    return _is_equal(loaded, {"floats": expected["floats"]})


def _verify(path: Path, expected: dict[str, Any]) -> bool:
    return pyckpt.verify(path, num_threads=_THREADS).ok


def _inspect(path: Path, expected: dict[str, Any]) -> bool:
    found = [tensor for member in pyckpt.inspect(path).members for tensor in member.tensors]
    return len(found) == sum(isinstance(value, torch.Tensor) for value in expected.values())


@dataclass
class Convert(Save):
    """A conversion of a file into another one."""

    source_suffix: str = ".tar"

    def prepare(self, folder: Path) -> None:
        self._source = folder.with_name(f"source{self.source_suffix}")
        if self._before is None:
            pyckpt.save(self._new, self._source, fsync=False)
        super().prepare(folder)

    def run(self) -> None:
        pyckpt.convert(self._source, self._path, num_threads=_THREADS)


NO_UNNAMED = {"open_unnamed": errno.EOPNOTSUPP}
NO_EXCHANGE = {"exchange": errno.EINVAL}


def _save_scenarios(suffix: str, **options: Any) -> Iterator[Scenario]:
    blocking = _blocking(**options)
    yield Save(suffix, "blocking", blocking)
    yield Save(suffix, "blocking, named", blocking, refused=NO_UNNAMED)
    yield Save(suffix, "blocking", blocking, inside="new/folder")


def _large(suffix: str) -> Callable[[int], dict[str, Any]]:
    """Several chunks of the format. Zeros are quick to compress."""
    zeros = torch.zeros(6 << 20 if suffix == ".tar" else 2 << 20, dtype=torch.uint8)
    return lambda seed: {**contents(seed), "many": zeros}


def _huge(seed: int) -> dict[str, Any]:
    """So large that it is written past the page cache."""
    return {"bytes": torch.full((34 << 20,), seed, dtype=torch.uint8)}


def scenarios() -> Iterator[Scenario]:
    """All of them."""
    suffixes = [*usual_tar_suffixes(), ".pt", *file_suffixes()]
    for suffix in suffixes:
        yield from _save_scenarios(suffix)
    for scenario in _save_scenarios(".pt", compression_level=6):
        scenario.what = "save .pt, deflated"
        scenario.name = scenario.name.replace("save .pt,", "save .pt, deflated,")
        yield scenario
    for suffix in (".tar", ".tar.gz", ".pt"):
        yield Save(suffix, "asynchronous", _background)
        yield Save(suffix, "asynchronous", _background, inside="new/folder")
    yield Save(".tar", "not durable", _blocking(fsync=False), durable=False)
    yield Save(".tar", "not durable", _blocking(fsync=False), inside="new/folder", durable=False)
    yield Save(".tar", "the previous kept", _with_previous)
    yield Save(".tar", "the previous kept, named", _with_previous, refused=NO_UNNAMED)
    yield Save(".tar.gz", "the previous kept", _with_previous, inside="new/folder")
    for suffix in (".tar", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst"):
        yield Save(suffix, "several chunks", _blocking(), make=_large(suffix))
    yield Save(".tar", "past the page cache", _blocking(), on_disk=True, make=_huge)
    yield Convert(".tar.gz", "converted", _blocking())
    yield Convert(".tar", "converted", _blocking(), source_suffix=".tar.zst")
    yield Transaction(over=True)
    yield Transaction(over=True, refused=NO_EXCHANGE, how="names cannot be exchanged")
    yield Transaction(over=False)
    yield Manager(asynchronous=False)
    yield Manager(asynchronous=True)
    yield Shards()
    for suffix in suffixes:
        yield Read(suffix, "load", _load, _blocking(fsync=False))
        yield Read(suffix, "verify", _verify, _blocking(fsync=False))
    deflated = _blocking(fsync=False, compression_level=6)
    yield Read(".pt", "load deflated", _load, deflated)
    yield Read(".pt", "verify deflated", _verify, deflated)
    for suffix in (".tar", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst"):
        yield Read(
            suffix, "load several chunks of", _load, _blocking(fsync=False), make=_large(suffix)
        )
    for suffix in (".tar", ".pt"):
        yield Read(suffix, "map", _load_mapped, _blocking(fsync=False))
    for suffix in (".tar", ".tar.gz", ".tar.bz2"):
        yield Read(suffix, "load from a file object", _load_object, _blocking(fsync=False))
        yield Read(suffix, "load one tensor of", _load_one, _blocking(fsync=False))
        yield Read(suffix, "inspect", _inspect, _blocking(fsync=False))


def usual_tar_suffixes() -> list[str]:
    """One for each compression, and both that mean xz."""
    usual = (".tar", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.lzma", ".tar.zst")
    assert set(usual) <= set(tar_suffixes())
    return list(usual)
