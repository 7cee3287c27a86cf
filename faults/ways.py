"""Ways to save over an older checkpoint, and which of the two is there afterwards."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import pyckpt
from pyckpt.archive.assembly import saving
from pyckpt.archive.writer import ArchiveWriter
from pyckpt.options import WriteOptions

__all__ = ["Way", "ways"]


@dataclass(frozen=True)
class Way:
    """A way to save a checkpoint over an older one.

    Attributes:
        name: The row of the table.
        save: Saves version 1 or 2 below a folder.
        found: The version that is there, or 0 if there is none that is whole.
        durable: Whether one of them must be there, and the new one after the save's return.
        first: Whether there is no older one.
    """

    name: str
    save: Callable[[Path, int], object]
    found: Callable[[Path], int]
    durable: bool = True
    first: bool = False

    def problem(self, version: int, returned: bool) -> str:
        """What does not hold if this version was found; empty if everything does."""
        if not self.durable or version == 2:
            return ""
        if returned:
            return "the save returned, and the new checkpoint is not there"
        if version == 1 or (self.first and version == 0):
            return ""
        return "neither the old checkpoint nor the new one is there"


def tensors(version: int) -> dict[str, Any]:
    """Different tensors for each version; none of them is zero, as lost blocks are."""
    noise = torch.Generator().manual_seed(version)
    return {"version": version, "weight": torch.randn(200_000, generator=noise)}


def version_of(loaded: dict[str, Any]) -> int:
    """Which version was loaded.

    Raises:
        AssertionError: None of them: tensors are wrong in silence.
    """
    version: int = loaded["version"]
    expected = tensors(version)
    assert torch.equal(loaded["weight"], expected["weight"]), "tensors are wrong in silence"
    return version


def of_file(suffix: str, inside: str = "", **options: Any) -> Way:
    """A save of one file."""

    def path(folder: Path) -> Path:
        return folder / inside / f"model{suffix}"

    def found(folder: Path) -> int:
        if not path(folder).exists():
            return 0
        try:
            return version_of(pyckpt.load(path(folder), weights_only=True))
        except pyckpt.CheckpointError:
            assert options.get("fsync") is False, "the file is damaged"
            return 0

    durable = options.get("fsync", True)
    how = [f"save {suffix}"]
    if inside:
        how.append("into new folders")
    if not durable:
        how.append("fsync=False")
    return Way(
        ", ".join(how),
        lambda folder, version: pyckpt.save(tensors(version), path(folder), **options),
        found,
        durable,
        first=bool(inside),
    )


def in_background(folder: Path, version: int) -> None:
    pyckpt.async_save(tensors(version), folder / "model.tar.gz").result()


def in_a_set(folder: Path, version: int) -> None:
    """As each of several ranks commits: the old file is held until all have named theirs."""
    path = folder / "model.tar.gz"
    with saving(path), ArchiveWriter(path, WriteOptions()) as archive:
        archive.add_object("composer_states.pt", tensors(version))
        archive.write()
        archive.commit(keep_previous=True)
        archive.keep()


def in_transaction(folder: Path, version: int) -> None:
    with pyckpt.transaction(folder / "step") as inside:
        for name in ("a.pt", "b.tar.gz"):
            pyckpt.save(tensors(version), inside / name)
        (inside / "version").write_text(str(version))


def found_in_transaction(folder: Path) -> int:
    step = folder / "step"
    if not step.exists():
        return 0
    versions = {version_of(pyckpt.load(step / name)) for name in ("a.pt", "b.tar.gz")}
    versions.add(int((step / "version").read_text()))
    assert len(versions) == 1, f"the folder is mixed: {versions}"
    return versions.pop()


def state(version: int) -> pyckpt.State:
    torch.manual_seed(version)
    return pyckpt.State(torch.nn.Linear(200, 200), extra=tensors(version))


def by_manager(folder: Path, version: int) -> None:
    pyckpt.CheckpointManager(folder / "run", suffix=".tar.gz", keep_last=1).save(
        version, state(version)
    )


def found_by_manager(folder: Path) -> int:
    restored = state(0)
    manager = pyckpt.CheckpointManager(folder / "run", suffix=".tar.gz", keep_last=1)
    if manager.restore_latest(restored) is None:
        return 0
    return version_of(restored.extra)


def ways() -> list[Way]:
    """All of them."""
    return [
        *(of_file(suffix) for suffix in (".tar", ".tar.gz", ".tar.zst", ".pt")),
        of_file(".tar.gz", inside="new/folder"),
        Way("async_save", in_background, of_file(".tar.gz").found),
        Way("a file of a set", in_a_set, of_file(".tar.gz").found),
        Way("transaction", in_transaction, found_in_transaction),
        Way("CheckpointManager", by_manager, found_by_manager),
        *(of_file(suffix, fsync=False) for suffix in (".tar.gz", ".pt")),
    ]
