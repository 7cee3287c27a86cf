"""File objects that fsspec opens for writing: when something appears, and how nothing does.

fsspec defers what appears: ``commit()`` of a file that is opened with ``autocommit=False`` lets
it appear, ``discard()`` removes it. A class that has inherited both from fsspec says nothing by
them. Its object may appear when the file is closed, or grow under its final name from the first
block on. So such a class is good enough only if it is known here.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

from fsspec.spec import AbstractBufferedFile

__all__ = ["appears_whole", "defers", "discard"]

_HUGGING_FACE = ("huggingface_hub", "HfFileSystemFile")
# Package and class of files whose object appears as a whole when they are closed.
_AT_CLOSE = {("adlfs", "AzureBlobFile"), _HUGGING_FACE}
# Those whose object grows under its final name although they have a commit. It ends the growing.
_SHOWN = {("gcsfs", "ZonalFile")}


def appears_whole(file: Any) -> bool:
    """Whether nothing of an object is seen before it is whole."""
    kinds = _kinds(file)
    return kinds.isdisjoint(_SHOWN) and (defers(file) or not kinds.isdisjoint(_AT_CLOSE))


def defers(file: Any) -> bool:
    """Whether an object appears by ``commit()`` of its file, and not by ``close()``."""
    return getattr(type(file), "commit", None) not in (None, AbstractBufferedFile.commit)


def discard(file: Any) -> None:
    """Lets nothing of a file appear, and leaves nothing behind, as far as its class can."""
    # Closing it, as the garbage collector does, would let a part of the object appear.
    if isinstance(file, AbstractBufferedFile):
        file.closed = True
    try:
        if callable(own := getattr(file, "discard", None)):
            with suppress(FileNotFoundError):  # nothing of it has been sent
                own()
    finally:
        # It has a copy on the disk, which it removes after an upload that succeeded, and no other.
        if _HUGGING_FACE in _kinds(file) and (copy := getattr(file, "temp_file", None)) is not None:
            copy.close()
            Path(copy.name).unlink(missing_ok=True)


def _kinds(file: Any) -> set[tuple[str, str]]:
    return {(one.__module__.partition(".")[0], one.__name__) for one in type(file).__mro__}
