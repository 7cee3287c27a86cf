"""What pyckpt needs of an object store.

All methods raise OSError, with the URL and the cause: FileNotFoundError (no such object or bucket),
PermissionError (refused, or credentials that are wrong or have expired), TimeoutError, or another
one. They have tried again by then, a bounded number of times, if that could help.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from pyckpt.storage.urls import Url

__all__ = ["ObjectInfo", "Store", "UnfinishedUpload", "Upload", "Write"]


@dataclass(frozen=True)
class ObjectInfo:
    """What a store tells of an object.

    Attributes:
        nbytes: Its size.
        etag: A text that differs once the object is replaced; None if the store has none.
        modified: When it was written, in seconds since 1970; None if the store does not tell.
    """

    url: Url
    nbytes: int
    etag: str | None
    modified: float | None


@dataclass(frozen=True)
class UnfinishedUpload:
    """An upload that was begun, and neither finished nor aborted.

    Attributes:
        id: The store's name for it.
        started: When it began, in seconds since 1970.
    """

    url: Url
    id: str
    started: float


class Upload(Protocol):
    """One object on its way to a store. It has the methods of a sink: see csrc/write/sink.h.

    The calls are ``open``, any number of ``write``, ``seal``, ``commit``, then ``keep`` or
    ``restore``, all on one thread at a time. ``abandon`` may come at any time, and ``stop`` on any
    thread. Nobody sees the object before ``commit``, and an older one stays whole until then.

    ``keep``, ``restore`` and ``abandon`` log what they cannot do, and raise nothing but interrupts,
    when they have done what they can.
    """

    def open(self, most_nbytes: int) -> None:
        """Begins. The object will hardly be larger than ``most_nbytes``."""

    def write(self, piece: memoryview) -> None:
        """Takes the next bytes. Nothing of ``piece`` is kept after the call."""

    def seal(self, nbytes: int) -> None:
        """Waits until all ``nbytes`` are where a commit finds them."""

    def stop(self) -> None:
        """Lets ``write`` and ``seal`` fail soon, if they wait."""

    def commit(self, keep_previous: bool) -> None:
        """Lets the object appear, in one step. If that fails, ``abandon`` looks what has become."""

    def keep(self) -> None:
        """Nothing has to be taken back any more."""

    def restore(self) -> None:
        """Takes the object back after ``commit(True)``, as far as the store can.

        This and ``abandon`` wait some seconds at most for a store that does not answer.
        """

    def abandon(self) -> None:
        """Leaves nothing behind, unless the object is final."""


Write: TypeAlias = Callable[[bytes], object]


class Store(Protocol):
    """A client of one store. Threads may share it. ``url`` lies in the store that it is for."""

    def stat(self, url: Url) -> ObjectInfo:
        """What the store tells of an object."""

    def fetch(self, url: Url, start: int, end: int, write: Write, etag: str | None = None) -> None:
        """Gives the bytes from ``start`` up to ``end`` to ``write``, in pieces, each byte once.

        Fewer only at the object's end. With ``etag``, an OSError with ESTALE if it is not that
        object any more. Without, the same if it is replaced in the middle, where the store can
        tell. What has been given until then is of that object.
        """

    def read_range(self, url: Url, start: int, end: int, etag: str | None = None) -> bytes:
        """The bytes that ``fetch`` gives."""
        pieces: list[bytes] = []
        self.fetch(url, start, end, pieces.append, etag)
        return b"".join(pieces)

    def list(self, prefix: Url, *, deep: bool = True) -> Iterator[ObjectInfo]:
        """All objects whose URLs begin with ``prefix``, in the order of their names.

        With ``deep=False``, only those that have no slash behind it.
        """

    def remove(self, url: Url) -> bool:
        """Removes an object. Returns whether there was one."""

    def remove_all(self, urls: Sequence[Url]) -> None:
        """Removes objects of one bucket, in few requests if the store can. Some may be gone."""

    def open_upload(self, url: Url) -> Upload:
        """A new upload. It does nothing before its ``open()``."""

    def unfinished(self, prefix: Url) -> Iterator[UnfinishedUpload]:
        """The unfinished uploads whose URLs begin with ``prefix``, if the store has such."""

    def abort(self, upload: UnfinishedUpload) -> None:
        """Removes an unfinished upload, if it still is one."""
