"""Reads what several ranks want: decompressed once per machine, handed on through a file.

Every rank reads a file without compression for itself, because it comes from the page cache.
Decompression costs CPU time, and an object of a store the time of a download. So on each machine
the first rank that wants such a member reads it and writes the object, uncompressed, to a temporary
folder (``TMPDIR``). The others read it there. If the folder has no room, the others read it
themselves. The folder holds at most what is shared, and is empty again when the call returns.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyckpt.archive.formats import is_compressed
from pyckpt.archive.load import load
from pyckpt.archive.save import save
from pyckpt.errors import CheckpointError
from pyckpt.ranks.exchange import Channel, together
from pyckpt.ranks.file_identity import file_identity, machine
from pyckpt.storage.inputs import Version, open_input, require_one_version
from pyckpt.storage.urls import Location, Stores, Url

__all__ = ["Source", "read_shared", "read_source"]


@dataclass(frozen=True)
class Source:
    """A member of an archive. A file of torch.save has no members, so ``member`` is ignored.

    Attributes:
        version: That of the archive. None takes any.
    """

    path: Location
    member: str
    version: Version | None = None


def read_shared(sources: Sequence[Source], channel: Channel, **options: Any) -> list[Any]:
    """The objects that ``sources`` name, on the CPU. Call it on every rank.

    Args:
        options: Those of ``pyckpt.load``.

    Raises:
        CheckpointError: A rank could not read something (see ``pyckpt.load``). All ranks raise it.
    """
    keys = together("looking at the checkpoint", lambda: [_key(one) for one in sources], channel)
    first_to_want: dict[str, int] = {}
    wanted_by: dict[str, int] = {}
    for rank, its_keys in enumerate(keys):
        for key in filter(None, dict.fromkeys(its_keys)):
            first_to_want.setdefault(key, rank)
            wanted_by[key] = wanted_by.get(key, 0) + 1
    own_keys = keys[channel.rank]
    objects: dict[int, Any] = {}

    with ExitStack() as cleanup:

        def read_first() -> dict[str, Path]:
            handed_on = {}
            for index, (source, key) in enumerate(zip(sources, own_keys, strict=True)):
                if key is not None and first_to_want[key] != channel.rank:
                    continue
                objects[index] = read_source(source, **options)
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
                    objects[index] = read_source(there, **options)

        handed_on = together("reading the checkpoint", read_first, channel)
        together("reading the checkpoint", read_rest, channel)
    return [objects[index] for index in range(len(sources))]


def _key(source: Source) -> str | None:
    """A text that is equal on ranks that can share the source; None if each reads for itself."""
    if isinstance(source.path, Url):  # it need not be fetched twice
        return f"{machine()}\0{source.path}\0{source.member}"
    if not is_compressed(source.path):
        return None
    return f"{machine()}\0{file_identity(source.path)}\0{source.member}"


def read_source(source: Source, **options: Any) -> Any:
    """The object that ``source`` names.

    Args:
        options: Those of ``pyckpt.load``.

    Raises:
        CheckpointError: It has another version: ESTALE. Or as ``pyckpt.load``.
    """
    file: Any = open_input(source.path, Stores(options.get("storage_options")))
    if source.version is not None:
        require_one_version((source.version, file.version))
    return load(file, member=source.member, **options)


def _hand_on(obj: Any, cleanup: ExitStack) -> Path | None:
    """Writes the object to a file that only this user can read; None if there is no room."""
    try:
        folder = tempfile.TemporaryDirectory(prefix="pyckpt-")
        cleanup.enter_context(folder)
        path = Path(folder.name) / "shared.pt"
        save(obj, path, fsync=False)
    except (OSError, CheckpointError):
        return None
    return path
