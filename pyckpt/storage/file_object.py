"""Binary file objects, as ``open()`` returns them: what archives are written to and read from.

A file object is anything with ``write(bytes)``, or with ``read(nbytes)``: files, BytesIO, pipes,
sockets, what other libraries return.
"""

from __future__ import annotations

import errno
import io
import operator
import os
import select
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pyckpt import _core
from pyckpt.errors import OptionError
from pyckpt.memory import require_memory
from pyckpt.storage.inputs import InputFile
from pyckpt.storage.memory_file import memory_file

__all__ = ["OutputFile", "input_file", "is_file_object"]

_READ_NBYTES = 8 << 20
# Their write() keeps nothing of the memory that it gets. Any other might, so it gets a copy.
_KEEP_NOTHING = (io.BytesIO, io.FileIO, io.BufferedWriter, io.BufferedRandom)


def is_file_object(f: Any, method: str) -> bool:
    """Whether ``f`` is no path, and has ``method``: read or write."""
    is_path = isinstance(f, str | bytes | os.PathLike)
    return not is_path and callable(getattr(f, method, None))


class OutputFile:
    """A file object that an archive is written to, from where it stands.

    See :class:`pyckpt.storage.target.Target`. Nothing is taken back after a failure: what was
    written stays.

    Raises:
        OptionError: It is a text file, closed, or not open for writing.
    """

    def __init__(self, file: Any) -> None:
        _check(file, "writable", "writing")
        self.path = _name(file)
        self._file = file
        self._is_raw = isinstance(file, io.RawIOBase)
        self._keeps_nothing = type(file) in _KEEP_NOTHING

    def sink(self, *, durable: bool) -> _core.Sink:
        return _core.ordered_sink(self._write)

    def prepare(self, *, durable: bool) -> None:
        """Nothing is to be done: it is open."""

    def prepare_commit(self, *, durable: bool) -> None:
        """Nothing is to be done, as in ``prepare``."""

    def stop(self) -> None:
        """Nothing: it is not known what the file waits for."""

    def finish(self, *, durable: bool) -> None:
        """Flushes it, as torch.save does; if ``durable``, a regular file also to the disk."""
        if callable(flush := getattr(self._file, "flush", None)):
            flush()
        if durable and (fd := _regular(self._file)) is not None:
            os.fsync(fd)

    def end(self, *, is_there: bool) -> None:
        """Nothing was prepared."""

    def _write(self, piece: memoryview) -> None:
        with piece:  # its memory is not valid any longer than this call
            rest: Any = piece if self._keeps_nothing else piece.tobytes()
            while rest:
                rest = rest[self._taken(self._file.write(rest), len(rest)) :]

    def _taken(self, written: Any, nbytes: int) -> int:
        """How many bytes of ``nbytes`` a call of ``write`` took that has returned ``written``."""
        if written is None and self._is_raw:  # it does not wait, and has no room now
            _wait_for(self._file, to_write=True)
            return 0
        if written is None:  # not in Python's io, where a number is promised: it took all
            return nbytes
        try:
            taken = operator.index(written)
        except TypeError:
            raise TypeError(f"write() returned {written!r}, which is no number of bytes") from None
        if not 0 < taken <= nbytes:
            raise OSError(errno.EIO, f"write() says that it took {taken} of {nbytes} bytes")
        return taken


@contextmanager
def input_file(file: Any) -> Iterator[InputFile]:
    """What a file object has from where it stands, as a file to read from.

    A regular file that stands at its start is read through its descriptor. Anything else is copied
    to memory once. Afterwards, the file object stands at its end. After an error, it stands where
    it was, if it can seek.

    Raises:
        OptionError: It is a text file, closed, or not open for reading.
        OSError: It cannot be read.
        CheckpointError: There is not enough memory.
    """
    _check(file, "readable", "reading")
    path = _name(file)
    start = file.tell() if _can_seek(file) else None
    try:
        fd = _own_descriptor(file) if start == 0 else None
        if fd is not None:
            yield InputFile(path, fd)
            file.seek(0, os.SEEK_END)
        else:
            with memory_file() as copy:
                _copy(file, copy, path)
                yield InputFile(path, copy.fileno(), is_copy=True)
    except BaseException:
        if start is not None:
            file.seek(start)
        raise


def _check(file: Any, question: str, purpose: str) -> None:
    """Checks that a file object is binary, and open for a purpose, as far as it tells."""
    name = _name(file)
    if getattr(file, "closed", False) is True:
        raise OptionError(f"the file object {name} is closed")
    if isinstance(file, io.TextIOBase) or hasattr(file, "encoding"):
        raise OptionError(f"the file object {name} is a text file: open it in binary mode")
    if callable(ask := getattr(file, question, None)) and not ask():
        raise OptionError(f"the file object {name} is not open for {purpose}")


def _name(file: Any) -> Path:
    name = getattr(file, "name", None)
    if isinstance(name, str | bytes | os.PathLike) and name:
        return Path(os.fsdecode(name))
    kind = type(file).__name__
    return Path(f"<{kind} of descriptor {name}>" if isinstance(name, int) else f"<{kind}>")


def _regular(file: Any) -> int | None:
    """The descriptor of a file object, if there is a regular file behind it."""
    try:
        fd = file.fileno()
        return fd if stat.S_ISREG(os.fstat(fd).st_mode) else None
    except (AttributeError, OSError, TypeError, ValueError):
        return None


def _own_descriptor(file: Any) -> int | None:
    """The descriptor of a file object, if reading it gives the bytes of the regular file behind it.

    The descriptor of a GzipFile, for example, gives other bytes.
    """
    if isinstance(file, tempfile._TemporaryFileWrapper):
        file = file.file  # what its methods call
    raw = file.raw if type(file) in (io.BufferedReader, io.BufferedRandom) else file
    if type(raw) is not io.FileIO:
        return None
    file.flush()  # what was written by it
    return _regular(raw)


def _wait_for(file: Any, *, to_write: bool) -> None:
    """Waits until a file object has data or room."""
    try:
        select.select([] if to_write else [file], [file] if to_write else [], [])
    except (io.UnsupportedOperation, TypeError):
        raise BlockingIOError(errno.EAGAIN, "it is not ready, and cannot be waited for") from None


def _can_seek(file: Any) -> bool:
    try:
        file.seek(file.tell())
    except (AttributeError, OSError):  # io.UnsupportedOperation is an OSError
        return False
    return True


def _copy(file: Any, copy: Any, path: Path) -> None:
    """Reads a file object to its end."""
    if type(file) is io.BytesIO:
        with file.getbuffer() as whole, whole[file.tell() :] as rest:
            require_memory(len(rest), path)
            _write_all(copy, rest)
        file.seek(0, os.SEEK_END)
        return
    while True:
        data = file.read(_READ_NBYTES)
        if data is None:  # it does not wait, and has nothing now
            _wait_for(file, to_write=False)
        elif isinstance(data, str):
            raise OptionError(f"the file object {path} is a text file: open it in binary mode")
        elif not data:
            return
        else:
            require_memory(len(data), path)
            _write_all(copy, data)


def _write_all(raw: Any, data: Any) -> None:
    with memoryview(data) as view:
        done = 0
        while done < len(view):
            done += raw.write(view[done:])
