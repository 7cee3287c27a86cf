"""Files of this machine on their way to a store, where their objects appear one soon after another.

    seal: upload the large ones ─▶ commit: let those appear, and upload the small ones ─▶ keep
                                       └──────────── abandon: take back, abort

A file of one part or less needs one request. So nothing is gained by reading it before the commit.
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from pathlib import Path

from pyckpt.storage.in_threads import for_each
from pyckpt.storage.parts import IN_FLIGHT, part_nbytes
from pyckpt.storage.store import Store, Upload
from pyckpt.storage.urls import Url

__all__ = ["FileToUpload", "FileUploads", "is_large"]

_PIECE_NBYTES = 1 << 20


@dataclass(frozen=True)
class FileToUpload:
    """A file and its object. Nobody writes to the file any more, which has ``nbytes``."""

    path: Path
    nbytes: int
    url: Url


def is_large(nbytes: int) -> bool:
    """Whether a file of this size is uploaded before the commit."""
    return nbytes > part_nbytes(nbytes)


class FileUploads:
    """The uploads of one rank. The methods are for one thread at a time.

    Memory: that of one upload in ``seal``; in ``commit``, IN_FLIGHT files of a part or less.

    Methods raise OSError, with the URL or the file.
    """

    def __init__(self, store: Store, files: list[FileToUpload]) -> None:
        self._store = store
        self._large = [file for file in files if is_large(file.nbytes)]
        self._small = [file for file in files if not is_large(file.nbytes)]
        self._uploads: list[Upload] = []  # all that may have to be taken back or aborted

    def seal(self) -> None:
        """Uploads all large files. Nobody sees them yet."""
        for file in self._large:
            self._upload(file)

    def commit(self) -> None:
        """Lets all objects appear, the small ones last."""
        for_each(lambda one: one.commit(True), list(self._uploads), threads=IN_FLIGHT)
        for_each(self._commit_small, self._small, threads=IN_FLIGHT)

    def keep(self) -> None:
        """Nothing has to be taken back any more."""
        for upload in self._uploads:
            upload.keep()
        self._uploads.clear()

    def abandon(self) -> None:
        """Takes back what has appeared, as far as the store can, and aborts the rest."""
        uploads = self._uploads[::-1]
        self._uploads.clear()
        for_each(lambda one: one.abandon(), uploads, threads=IN_FLIGHT)

    def _commit_small(self, file: FileToUpload) -> None:
        self._upload(file).commit(True)

    def _upload(self, file: FileToUpload) -> Upload:
        upload = self._store.open_upload(file.url)
        self._uploads.append(upload)
        upload.open(file.nbytes)
        _send(file, upload)
        upload.seal(file.nbytes)
        return upload


def _send(file: FileToUpload, upload: Upload) -> None:
    piece = memoryview(bytearray(min(_PIECE_NBYTES, file.nbytes + 1)))
    done = 0
    fd = os.open(file.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    with os.fdopen(fd, "rb", buffering=0) as source:
        while count := source.readinto(piece):
            upload.write(piece[:count])
            done += count
            if done > file.nbytes:
                break
    if done != file.nbytes:
        raise OSError(errno.ESTALE, "it was changed after the end of the block", str(file.path))
