"""Reads the decompressed bytes of one file."""

from __future__ import annotations

import copy
import os
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pyckpt import _core
from pyckpt.errors import CorruptArchiveError
from pyckpt.options import default_threads, whole_threads
from pyckpt.progress import Report

__all__ = ["Damage", "StreamReader", "describe"]


@dataclass(frozen=True)
class Damage:
    """Bytes of the decompressed stream that could not be decoded.

    Attributes:
        offset: Where they begin in the stream.
        nbytes: Number of bytes.
        code_offset: Where the code of these bytes begins to be wrong.
        message: What is wrong.
        code_is_in_file: Whether the code is bytes of the file itself. If not, it is in the
            decompressed stream: deflated records in a file that is compressed.
    """

    offset: int
    nbytes: int
    code_offset: int
    message: str
    code_is_in_file: bool

    def hits(self, offset: int, nbytes: int) -> bool:
        """Whether the damage overlaps the range of ``nbytes`` bytes at ``offset``."""
        return self.offset < offset + nbytes and offset < self.offset + self.nbytes


class StreamReader:
    """Reads the decompressed bytes of one file.

    Args:
        path: What messages call the file.
        fd: A descriptor of the file, which stays open as long as this is used.
        supply: Brings the bytes of ``fd`` when they are wanted.
        num_threads: Decoding threads; None takes the CPUs that this process may use.
        mapped: Map an uncompressed file into memory instead of reading it.
        report: Called with the bytes done and ``wanted_nbytes``. It may raise to stop the work.

    Attributes:
        num_threads: Number of decoding threads.
        mapped: Whether the bytes stay in the file: ``mapped`` was asked for and the file is not
            compressed.
        wanted_nbytes: Bytes that will be decoded in total, set by the user of this object; None if
            unknown. Used only for ``report``.

    Raises:
        OSError: The file cannot be read.
        OptionError: ``num_threads`` is wrong.
        CorruptArchiveError: The file is damaged. All methods that decode raise it too, unless they
            return damage.
    """

    def __init__(
        self,
        path: Path | str,
        *,
        fd: int,
        supply: _core.Supply | None = None,
        num_threads: int | None = None,
        mapped: bool = False,
        report: Report | None = None,
    ) -> None:
        self.path = path
        self.fd = fd
        self.supply = supply
        self.num_threads = default_threads() if num_threads is None else whole_threads(num_threads)
        self.wanted_nbytes: int | None = None
        self._reporter = report
        self._may_map = mapped
        self.reopen()
        self.mapped = mapped and not self.image.compression

    def reopen(self) -> None:
        """Begins again, with nothing decoded. Nothing may be taken."""
        with self.corruption():
            self.image = _core.StreamImage(
                os.fsencode(self.path),
                self.fd,
                supply=self.supply,
                threads=self.num_threads,
                mapped=self._may_map,
                progress=None if self._reporter is None else _weakly(self._report),
            )

    def inflated(
        self, entries: Sequence[_core.ZipEntry]
    ) -> tuple[StreamReader, list[tuple[int, int]]]:
        """A stream of the contents of deflated records of a zip file in this one.

        They are decoded when they are asked for. Call neither its ``finish()`` nor ``reopen()``.

        Returns:
            The stream, and the place of each record in it: (offset, nbytes).
        """
        stream = copy.copy(self)
        with self.corruption():
            stream.image, places = _core.inflate_zip_records(self.image, entries)
        stream.mapped = False
        return stream, places

    @property
    def file_nbytes(self) -> int:
        """Size of the file."""
        return os.fstat(self.fd).st_size

    def require(self, offset: int, nbytes: int) -> None:
        """Decodes bytes of the stream, so that they can be read or taken."""
        with self.corruption():
            if not self.image.require((offset, nbytes)):
                raise _core.CorruptError(f"it ends before byte {offset + nbytes}")

    def read(self, offset: int, nbytes: int) -> bytes:
        """Returns a copy of bytes of the decompressed stream."""
        self.require(offset, nbytes)
        return self.image.read((offset, nbytes))

    def take(self, offset: int, nbytes: int) -> _core.ImageBytes:
        """Returns bytes of the decompressed stream without copying them.

        Take each range only once: its memory is given back when the result is freed.
        """
        self.require(offset, nbytes)
        return self.image.take((offset, nbytes))

    def fill(
        self, ranges: Sequence[tuple[int, int]], *, keep: bool, checksums: bool
    ) -> tuple[list[int], list[Damage]]:
        """Decodes ranges of the stream. Damage is returned, not raised.

        Args:
            ranges: (offset, nbytes) of each.
            keep: Whether the bytes must be readable afterwards.
            checksums: Whether to compute the CRC-32 of each range.

        Returns:
            The CRC-32 of each range (meaningless for damaged ranges), and the damage.
        """
        crcs, damages = self.image.fill(ranges, keep=keep, checksums=checksums)
        return crcs, [Damage(*one) for one in damages]

    def finish(self) -> list[Damage]:
        """Decodes the rest of the stream and compares the checksums of the whole. Keeps nothing.

        Returns:
            The damage.
        """
        with self.corruption():
            return [Damage(*one) for one in self.image.finish()]

    def check_rest(self) -> None:
        """Decodes the rest of the stream and compares the checksums of the whole.

        Call it after all wanted bytes are decoded and before they are taken, because further
        decoding may move them.

        Raises:
            CorruptArchiveError: A checksum does not match, or the rest cannot be decoded.
        """
        damages = self.finish()
        if damages:
            raise CorruptArchiveError(
                f"{self.path} is damaged: {describe(damages[0])}", path=str(self.path)
            )

    @contextmanager
    def corruption(self, what: str = "is damaged") -> Iterator[None]:
        """Turns the core's CorruptError into CorruptArchiveError."""
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
    """Wraps a method without keeping its object alive.

    The core keeps the callback, and Python's garbage collector cannot see cycles through the core.
    """
    reference = weakref.WeakMethod(method)

    def call(done: int) -> None:
        if (target := reference()) is not None:
            target(done)

    return call


def describe(damage: Damage) -> str:
    """A message: what is wrong, and where."""
    where = "file" if damage.code_is_in_file else "decompressed stream"
    return f"{damage.message} (at byte {damage.code_offset} of the {where})"
