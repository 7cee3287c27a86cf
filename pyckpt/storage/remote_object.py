"""An object in a store that an archive is written to."""

from __future__ import annotations

from pathlib import Path

from pyckpt import _core
from pyckpt.errors import OptionError
from pyckpt.storage.local_file import LocalFile
from pyckpt.storage.store import Upload
from pyckpt.storage.target import Target
from pyckpt.storage.urls import Location, StorageOptions, Url, open_store

__all__ = ["RemoteObject", "target_at"]


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
        self._uploads.append(self._store.open_upload(self.path))
        return _core.upload_sink(self._uploads[-1])

    def prepare(self) -> None:
        """Nothing is to be done: objects have no folders."""

    def stop(self) -> None:
        for upload in self._uploads:
            upload.stop()

    def finish(self, *, durable: bool) -> None:
        """Nothing is left to do: the sink has uploaded it."""


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
