"""Uploads one object by way of fsspec.

What appears, and when, is up to the class of its file object (pyckpt/storage/fsspec_files.py). A
file system that would show an object that is not whole is refused.
"""

from __future__ import annotations

import errno
import io
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from fsspec.spec import AbstractBufferedFile

from pyckpt.errors import CheckpointError
from pyckpt.interrupts import is_interrupt, to_the_end
from pyckpt.storage.fsspec_files import appears_whole, defers, discard
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
_ERRNO_OF_STATUS = {
    **{401: errno.EACCES, 403: errno.EACCES, 404: errno.ENOENT},
    **{408: errno.ETIMEDOUT, 412: errno.ESTALE},
}


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
            self._file = self._opened(str(self._url), block_size=block_nbytes)
        self._keeps_nothing = isinstance(self._file, AbstractBufferedFile | io.BytesIO)
        self._defers = defers(self._file)

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
            has_replaced = self._is_there() if keep_previous else None
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
            self._remove(str(self._url))
        elif has_replaced:
            _LOGGER.warning(
                "%s is the new one of a save that failed: the previous one cannot be brought back",
                self._url,
            )

    def abandon(self) -> None:
        to_the_end(self.restore, self._discard)

    def _discard(self) -> None:
        file, self._file = self._file, None
        if file is None:
            return
        try:
            discard(file)
        except Exception as error:
            if is_interrupt(error):
                raise
            _LOGGER.warning("the upload of %s could not be discarded: %s", self._url, error)

    def _opened(self, name: str, **options: Any) -> Any:
        return self._fs.open(name, "wb", autocommit=False, **options)

    def _is_there(self) -> bool:
        """Whether there is an older object. One that cannot be looked at counts as one."""
        try:
            return bool(self._fs.info(str(self._url)).get("type") != "directory")
        except FileNotFoundError:
            return False
        except Exception as error:
            if is_interrupt(error):
                raise
            return True

    def _remove(self, name: str) -> None:
        try:
            self._fs.rm_file(name)
        except FileNotFoundError:
            pass
        except Exception as error:
            if is_interrupt(error):
                raise
            _LOGGER.warning("%s stays, as it could not be removed: %s", name, error)

    def _require_whole_objects(self) -> None:
        """Checks that an object does not appear before it is whole.

        Only an open file tells, and to open it may empty the old one. So this opens another one.
        """
        name = f"{self._url}.pyckpt-probe"
        probe = self._opened(name)
        if appears_whole(probe):
            discard(probe)
            return
        if isinstance(probe, AbstractBufferedFile):
            discard(probe)  # nothing is made before its first block, or its end
        else:
            probe.close()
            self._remove(name)
        raise OSError(
            errno.ENOTSUP,
            f"{type(self._fs).__name__} is not known to write objects that appear as a whole",
            self._url,
        )


@contextmanager
def reported(doing: str, url: Url) -> Iterator[None]:
    """Makes the errors of a file system OSErrors that name the URL.

    Its libraries have exceptions of their own, or leave out the errno.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, CheckpointError) or is_interrupt(error):
            raise
        text = f"{doing}: {type(error).__name__}: {error}"
        raise OSError(_errno(error) or errno.EIO, text, str(url)) from error


def _errno(error: BaseException | None) -> int | None:
    """What an error says, or else those behind it."""
    seen: set[BaseException] = set()
    while error is not None and error not in seen:
        seen.add(error)
        if isinstance(error, OSError) and error.errno:
            return error.errno
        for kind, number in _ERRNO_OF_TYPE:
            if isinstance(error, kind):
                return number
        for name in ("status_code", "status", "code"):  # of an answer by HTTP
            status = getattr(error, name, None)
            if isinstance(status, int) and status in _ERRNO_OF_STATUS:
                return _ERRNO_OF_STATUS[status]
        error = error.__cause__ or error.__context__
    return None
