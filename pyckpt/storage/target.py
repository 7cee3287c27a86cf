"""Where an archive is written to: the half of a sink that Python has."""

from __future__ import annotations

from typing import Protocol

from pyckpt import _core
from pyckpt.storage.urls import Location

__all__ = ["Target"]


class Target(Protocol):
    """A place for one archive.

    Attributes:
        path: What messages call it.
    """

    @property
    def path(self) -> Location: ...

    def sink(self, *, durable: bool) -> _core.Sink:
        """A new sink that writes there. It is not open yet."""

    def prepare(self, *, durable: bool) -> None:
        """Call it before the sink is opened.

        Raises:
            OSError: The place cannot be written to.
        """

    def prepare_commit(self, *, durable: bool) -> None:
        """Call it before the commit. What ``prepare`` has made may be gone since.

        Raises:
            OSError: The place cannot be written to.
        """

    def stop(self) -> None:
        """Lets a sink fail soon that waits for the place. Any thread."""

    def finish(self, *, durable: bool) -> None:
        """Call it when all is written.

        Raises:
            OSError: What was written cannot be passed on.
        """

    def end(self, *, is_there: bool) -> None:
        """Call it at last: whether the archive is there and stays, or what was prepared goes."""
