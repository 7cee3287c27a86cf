"""An object in a store that an archive is written to.

An upload that nobody commits is abandoned when its sink goes, and at the latest when the
interpreter ends. Later it could not be: requests need threads. And some file objects of fsspec
publish what they have got so far when they are collected as garbage.
"""

from __future__ import annotations

import atexit
import os
import weakref
from pathlib import Path

from pyckpt import _core
from pyckpt.errors import OptionError
from pyckpt.interrupts import to_the_end
from pyckpt.storage.local_file import LocalFile
from pyckpt.storage.store import Upload
from pyckpt.storage.target import Target
from pyckpt.storage.urls import Location, StorageOptions, Url, open_store

__all__ = ["RemoteObject", "target_at"]

_begun: weakref.WeakSet[Upload] = weakref.WeakSet()


class RemoteObject:
    """See :class:`pyckpt.storage.target.Target`.

    Raises:
        FilenameError: No store serves the URL, or a package is not installed.
        OptionError: The options are wrong.
    """

    def __init__(self, url: Url, options: StorageOptions = None) -> None:
        self.path = url
        self._store = open_store(url, options)
        self._uploads: list[Upload] = []

    def sink(self, *, durable: bool) -> _core.Sink:
        """Stores are always durable: what is committed is safe."""
        upload = self._store.open_upload(self.path)
        self._uploads.append(upload)
        _begun.add(upload)
        return _core.upload_sink(upload)

    def prepare(self, *, durable: bool) -> None:
        """Nothing is to be done: objects have no folders."""

    def prepare_commit(self, *, durable: bool) -> None:
        """Nothing is to be done, as in ``prepare``."""

    def stop(self) -> None:
        for upload in self._uploads:
            upload.stop()

    def finish(self, *, durable: bool) -> None:
        """Nothing is left to do: the sink has uploaded it."""

    def end(self, *, is_there: bool) -> None:
        """Nothing was prepared."""


def target_at(path: Location, options: StorageOptions = None) -> Target:
    """The place for an archive that a path or a URL names.

    Raises:
        FilenameError: The path exists and is not a regular file, or as in RemoteObject.
        OptionError: There are options for a file of this machine, or they are wrong.
    """
    if isinstance(path, Path):
        if options:
            raise OptionError(f"storage_options are for URLs, and {path} is a file of this machine")
        return LocalFile(path)
    return RemoteObject(path, options)


@atexit.register
def _abandon_all() -> None:
    to_the_end(*(upload.abandon for upload in list(_begun)))  # of a final object, that is nothing


# The uploads of a forked process are its parent's.
os.register_at_fork(after_in_child=_begun.clear)
