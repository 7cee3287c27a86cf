"""Reading what several ranks want: decompressed once per machine, handed on through a file.

A file without compression is read by every rank for itself: it lies in the page cache, and no other
way is shorter. Decompression costs CPU time, so the first rank of each machine that wants a
member does it and writes the object, uncompressed, to a temporary folder (``TMPDIR``), from which
the others read. Where that folder is too small, they decompress too. The folder holds at most what
is shared, and is empty again when the call returns.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyckpt.archive.load import load
from pyckpt.archive.save import save
from pyckpt.errors import CheckpointError
from pyckpt.ranks.exchange import Ranks, together
from pyckpt.ranks.file_identity import file_identity, machine

__all__ = ["Source", "read_shared"]

_COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0")  # gzip, bzip2, xz


@dataclass(frozen=True)
class Source:
    """A member of an archive; a file of torch.save is its only member, whatever its name."""

    path: Path
    member: str


def read_shared(sources: Sequence[Source], ranks: Ranks, **options: Any) -> list[Any]:
    """The objects that ``sources`` name, on the CPU. Call it on every rank.

    Args:
        options: Those of ``pyckpt.load``.

    Raises:
        CheckpointError: Some rank could not read something (see ``pyckpt.load``); on all ranks.
    """
    keys = together("looking at the checkpoint", lambda: [_key(one) for one in sources])
    first_to_want: dict[str, int] = {}
    wanted_by: dict[str, int] = {}
    for rank, its_keys in enumerate(keys):
        for key in filter(None, dict.fromkeys(its_keys)):
            first_to_want.setdefault(key, rank)
            wanted_by[key] = wanted_by.get(key, 0) + 1
    own_keys = keys[ranks.rank]
    objects: dict[int, Any] = {}

    with ExitStack() as cleanup:

        def read_first() -> dict[str, Path]:
            handed_on = {}
            for index, (source, key) in enumerate(zip(sources, own_keys, strict=True)):
                if key is not None and first_to_want[key] != ranks.rank:
                    continue
                objects[index] = _load(source, options)
                if key is not None and wanted_by[key] > 1:
                    path = _hand_on(objects[index], cleanup)
                    if path is not None:
                        handed_on[key] = path
            return handed_on

        def read_rest() -> None:
            for index, (source, key) in enumerate(zip(sources, own_keys, strict=True)):
                if index not in objects:
                    assert key is not None
                    path = handed_on[first_to_want[key]].get(key)
                    there = source if path is None else Source(path, source.member)
                    objects[index] = _load(there, options)

        handed_on = together("reading the checkpoint", read_first)
        together("reading the checkpoint", read_rest)
    return [objects[index] for index in range(len(sources))]


def _key(source: Source) -> str | None:
    """What ranks that can share the source have in common; None if it is read by each."""
    with source.path.open("rb") as file:
        if not file.read(6).startswith(_COMPRESSED):
            return None
    return f"{machine()}\0{file_identity(source.path)}\0{source.member}"


def _load(source: Source, options: dict[str, Any]) -> Any:
    return load(source.path, member=source.member, **options)


def _hand_on(obj: Any, cleanup: ExitStack) -> Path | None:
    """A file with the object that only this user can read, or None if there is no room for it."""
    try:
        folder = tempfile.TemporaryDirectory(prefix="pyckpt-")
        cleanup.enter_context(folder)
        path = Path(folder.name) / "shared.pt"
        save(obj, path, fsync=False)
    except (OSError, CheckpointError):
        return None
    return path
