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
        self._is_committed = False
        # Whether there was an older object; None if nothing has to be taken back.
        self._has_replaced: bool | None = None

    def open(self, most_nbytes: int) -> None:
        with reported("beginning the upload", self._url):
            # MemoryFileSystem, among others, asks for the transaction and not for autocommit.
            self._fs.start_transaction()
            self._file = self._fs.open(
                str(self._url), "wb", block_size=part_nbytes(most_nbytes), autocommit=False
            )
        file = self._file
        commit = getattr(type(file), "commit", None)
        self._keeps_nothing = isinstance(file, AbstractBufferedFile | io.BytesIO)
        self._defers = commit not in (None, AbstractBufferedFile.commit)
        if not self._defers and not isinstance(file, AbstractBufferedFile):
            raise OSError(
                errno.ENOTSUP,
                f"{type(self._fs).__name__} cannot write an object that appears as a whole",
                self._url,
            )

    def write(self, piece: memoryview) -> None:
        with reported("uploading", self._url):
            self._file.write(piece if self._keeps_nothing else piece.tobytes())

    def seal(self, nbytes: int) -> None:
        if self._defers:
            with reported("uploading", self._url):
                self._file.close()

    def commit(self, keep_previous: bool) -> None:
        with reported("committing", self._url):
            has_replaced = self._fs.exists(str(self._url)) if keep_previous else None
            if self._defers:
                self._file.commit()
            else:
                self._file.close()
        self._is_committed = True
        self._has_replaced = has_replaced

    def keep(self) -> None:
        self._has_replaced = None

    def restore(self) -> None:
        has_replaced, self._has_replaced = self._has_replaced, None
        if has_replaced is False:
            with suppress(Exception):
                self._fs.rm_file(str(self._url))
        elif has_replaced:
            _LOGGER.warning(
                "%s is the new one of a save that failed on another rank: the previous one cannot "
                "be brought back",
                self._url,
            )

    def abandon(self) -> None:
        self.restore()
        file, self._file = self._file, None
        if file is None or self._is_committed:
            return
        # Closing it, as the garbage collector does, would let a part of the object appear.
        if isinstance(file, AbstractBufferedFile):
            file.closed = True
        try:
            if callable(discard := getattr(file, "discard", None)):
                discard()
        except Exception as error:
            _LOGGER.warning("the upload of %s could not be discarded: %s", self._url, error)


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
