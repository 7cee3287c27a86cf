"""Uploads one object by way of fsspec.

fsspec defers what appears: ``commit()`` of a file that is opened with ``autocommit=False`` lets it
appear, ``discard()`` removes it. A file system whose files do not know that is good enough if an
object appears when its file is closed, as Azure and Hugging Face have it. Any other is refused: it
would show an object that is not whole.
"""

from __future__ import annotations

import errno
import io
import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from fsspec.spec import AbstractBufferedFile

from pyckpt.interrupts import is_interrupt
from pyckpt.storage.parts import part_nbytes
from pyckpt.storage.urls import Url

__all__ = ["FsspecUpload", "reported"]

_LOGGER = logging.getLogger("pyckpt")

_ERRNO_OF_TYPE = (
    (FileNotFoundError, errno.ENOENT),
    (PermissionError, errno.EACCES),
    (TimeoutError, errno.ETIMEDOUT),
    (FileExistsError, errno.EEXIST),
)


class FsspecUpload:
    """See :class:`pyckpt.storage.store.Upload`.

    Memory: one part, and what the file system's class needs to send it.

    Args:
        fs: A file system that nobody else uses.
    """

    def __init__(self, fs: Any, url: Url) -> None:
        self._fs = fs
        self._url = url
        self._file: Any = None
        self._defers = False
        self._keeps_nothing = False
        # Whether there was an older object; None if nothing has to be taken back.
        self._has_replaced: bool | None = None

    def open(self, most_nbytes: int) -> None:
        block_nbytes = part_nbytes(most_nbytes)
        with reported("beginning the upload", self._url):
            # MemoryFileSystem, among others, asks for the transaction and not for autocommit.
            self._fs.start_transaction()
            self._require_whole_objects()
            self._file = _opened(self._fs, str(self._url), block_nbytes)
        self._keeps_nothing = isinstance(self._file, AbstractBufferedFile | io.BytesIO)
        self._defers = _defers(self._file)

    def write(self, piece: memoryview) -> None:
        with reported("uploading", self._url):
            self._file.write(piece if self._keeps_nothing else piece.tobytes())

    def seal(self, nbytes: int) -> None:
        if self._defers:
            with reported("uploading", self._url):
                self._file.close()

    def stop(self) -> None:
        """Nothing: its file cannot be stopped while it sends a part."""

    def commit(self, keep_previous: bool) -> None:
        with reported("committing", self._url):
            has_replaced = self._fs.exists(str(self._url)) if keep_previous else None
            if self._defers:
                self._file.commit()
            else:
                self._file.close()
        self._file = None
        self._has_replaced = has_replaced

    def keep(self) -> None:
        self._has_replaced = None

    def restore(self) -> None:
        has_replaced, self._has_replaced = self._has_replaced, None
        if has_replaced is False:
            try:
                self._fs.rm_file(str(self._url))
            except Exception as error:
                _LOGGER.warning("%s could not be taken back: %s", self._url, error)
        elif has_replaced:
            _LOGGER.warning(
                "%s is the new one of a save that failed: the previous one cannot be brought back",
                self._url,
            )

    def abandon(self) -> None:
        self.restore()
        file, self._file = self._file, None
        if file is None:
            return
        try:
            _discard(file)
        except Exception as error:
            _LOGGER.warning("the upload of %s could not be discarded: %s", self._url, error)

    def _require_whole_objects(self) -> None:
        """Checks that an object does not appear before it is whole.

        Only an open file tells, and to open it may empty the old one. So this opens another one.
        """
        name = f"{self._url}.pyckpt-probe"
        probe = _opened(self._fs, name, part_nbytes(0))
        if _defers(probe) or isinstance(probe, AbstractBufferedFile):
            _discard(probe)
            return
        probe.close()
        with suppress(Exception):
            self._fs.rm_file(name)
        raise OSError(
            errno.ENOTSUP,
            f"{type(self._fs).__name__} cannot write an object that appears as a whole",
            self._url,
        )


def _opened(fs: Any, name: str, block_nbytes: int) -> Any:
    return fs.open(name, "wb", block_size=block_nbytes, autocommit=False)


def _defers(file: Any) -> bool:
    """Whether an object appears by ``commit()`` of its file, and not by ``close()``."""
    return getattr(type(file), "commit", None) not in (None, AbstractBufferedFile.commit)


def _discard(file: Any) -> None:
    """Lets nothing of a file appear."""
    # Closing it, as the garbage collector does, would let a part of the object appear.
    if isinstance(file, AbstractBufferedFile):
        file.closed = True
    if callable(discard := getattr(file, "discard", None)):
        discard()


@contextmanager
def reported(doing: str, url: Url) -> Iterator[None]:
    """Makes the errors of a file system OSErrors that name the URL.

    Its libraries have exceptions of their own, or leave out the errno.
    """
    try:
        yield
    except (TypeError, ValueError):
        raise  # arguments that are wrong
    except Exception as error:
        if is_interrupt(error):
            raise
        number = error.errno if isinstance(error, OSError) else None
        for kind, usual in _ERRNO_OF_TYPE:
            if number is None and isinstance(error, kind):
                number = usual
        text = f"{doing}: {type(error).__name__}: {error}"
        raise OSError(number or errno.EIO, text, str(url)) from error
