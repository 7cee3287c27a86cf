"""The decompressed bytes of one file."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pyckpt import _core
from pyckpt.errors import CorruptArchiveError
from pyckpt.options import default_threads
from pyckpt.progress import Report

__all__ = ["Damage", "StreamReader", "describe"]


@dataclass(frozen=True)
class Damage:
    """Bytes of the decompressed stream that could not be had.

    Attributes:
        offset: Where they begin in the stream.
        nbytes: How many they are.
        file_offset: Where the file's own bytes begin to be wrong.
        message: What is wrong.
    """

    offset: int
    nbytes: int
    file_offset: int
    message: str

    def hits(self, offset: int, nbytes: int) -> bool:
        """Whether it is among those bytes."""
        return self.offset < offset + nbytes and offset < self.offset + self.nbytes


class StreamReader:
    """Reads the decompressed bytes of one file.

    Args:
        path: Any file.
        num_threads: As many threads decode; None takes the CPUs that this process may use.
        mapped: Leave the bytes of a file that is not compressed where they are, on disk.
        report: Called with the bytes that are done, and ``wanted_nbytes``; raises to stop.

    Attributes:
        num_threads: How many threads decode.
        mapped: Whether bytes stay in the file.
        wanted_nbytes: How many are going to be decoded, as far as its user has said.

    Raises:
        OSError: The file cannot be read.
        CorruptArchiveError: It is damaged; as all methods do.
    """

    def __init__(
        self,
        path: Path,
        *,
        num_threads: int | None = None,
        mapped: bool = False,
        report: Report | None = None,
    ) -> None:
        self.path = path
        self.num_threads = num_threads or default_threads()
        self.wanted_nbytes: int | None = None
        self._reporter = report
        with self.corruption():
            self.image = _core.StreamImage(
                os.fsencode(path),
                threads=self.num_threads,
                mapped=mapped,
                progress=None if report is None else _weakly(self._report),
            )
        self.mapped = mapped and not self.image.compression

    def require(self, offset: int, nbytes: int) -> None:
        """Decodes bytes of the stream."""
        with self.corruption():
            if not self.image.require((offset, nbytes)):
                raise _core.CorruptError(f"it ends before its byte {offset + nbytes}")

    def read(self, offset: int, nbytes: int) -> bytes:
        """A copy of bytes of the decompressed stream."""
        self.require(offset, nbytes)
        return self.image.read((offset, nbytes))

    def take(self, offset: int, nbytes: int) -> _core.ImageBytes:
        """Bytes of the decompressed stream, to be asked for once.

        When the result goes, so do they.
        """
        self.require(offset, nbytes)
        return self.image.take((offset, nbytes))

    def fill(
        self, ranges: Sequence[tuple[int, int]], *, keep: bool, checksums: bool
    ) -> tuple[list[int], list[Damage]]:
        """Decodes ranges of the stream: (offset, nbytes).

        Args:
            keep: Whether they are to be readable afterwards.
            checksums: Whether to take the CRC-32 of each.

        Returns:
            The CRC-32 of each, without meaning for those that are damaged; and the damage.
        """
        crcs, damages = self.image.fill(ranges, keep=keep, checksums=checksums)
        return crcs, [Damage(*one) for one in damages]

    def finish(self) -> list[Damage]:
        """Decodes what has not been, and compares the checksums of the whole stream."""
        with self.corruption():
            return [Damage(*one) for one in self.image.finish()]

    def check_rest(self) -> None:
        """Decodes what has not been, and compares the checksums of the whole stream.

        To be called when all bytes that are wanted are decoded, and before they are taken: what is
        decoded later could move them.
        """
        damages = self.finish()
        if damages:
            raise CorruptArchiveError(
                f"{self.path} is damaged: {describe(damages[0])}", path=str(self.path)
            )

    @contextmanager
    def corruption(self, what: str = "is damaged") -> Iterator[None]:
        """Turns the core's error over broken contents into CorruptArchiveError."""
        try:
            yield
        except _core.CorruptError as error:
            raise CorruptArchiveError(
                f"{self.path} {what}: {error}", path=str(self.path)
            ) from error

    def _report(self, done: int) -> None:
        assert self._reporter is not None
        wanted = self.wanted_nbytes
        self._reporter(done if wanted is None else min(done, wanted), wanted)


def _weakly(method: Callable[[int], None]) -> Callable[[int], None]:
    """The method, for the core to keep: Python sees no cycle that leads through the core."""
    reference = weakref.WeakMethod(method)

    def call(done: int) -> None:
        if (target := reference()) is not None:
            target(done)

    return call


def describe(damage: Damage) -> str:
    """What is wrong, and where in the file."""
    return f"{damage.message} (at byte {damage.file_offset} of the file)"
