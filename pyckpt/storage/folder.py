"""The files of one folder, on this machine or in a store.

In a store a folder is nothing but the beginning of URLs, up to a slash. What is deeper is in other
folders.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

from pyckpt.errors import OptionError
from pyckpt.paths import is_url, local_path, path_text
from pyckpt.storage.small_files import replace_file, replace_link
from pyckpt.storage.store import Store
from pyckpt.storage.urls import Location, StorageOptions, Url, location, open_store

__all__ = ["Entry", "Folder", "LocalFolder", "RemoteFolder", "open_folder"]

# No small file has so many bytes.
_MOST_NBYTES = 64 << 20
_ATTEMPTS = 4
# How long a client is used. A new one sees credentials that have changed.
_CLIENT_SECONDS = 60.0


@dataclass(frozen=True)
class Entry:
    """A file in a folder.

    Attributes:
        name: Without the folder.
        modified: Returns when it was written, by the clock of the file system or of the store, in
            seconds since 1970; 0 if that is not known. Raises FileNotFoundError if it is gone.
    """

    name: str
    modified: Callable[[], float]


class Folder(Protocol):
    """One folder. Any thread may use it, and another process that gets a copy of it.

    All methods but ``at`` raise OSError with the path or the URL, and with the cause.
    """

    @property
    def path(self) -> Location:
        """The folder itself, without a slash at its end."""

    def at(self, name: str) -> Location:
        """The file of this name, which need not be there."""

    def entries(self) -> list[Entry]:
        """All files, and no folders. There are none if the folder is not there.

        A store is asked once, or once for each 1000 files.
        """

    def read(self, name: str) -> bytes:
        """A small file.

        Raises:
            FileNotFoundError: It is not there.
        """

    def replace(self, name: str, data: bytes, *, fsync: bool) -> None:
        """Gives a small file these contents, as a whole or not at all. The folder is there."""

    def replace_links(self, prefix: str, targets: Mapping[str, str]) -> None:
        """Makes links to files of the folder: each name leads to its file.

        Other links whose names begin with ``prefix`` are removed. Stores and some file systems have
        no links: then nothing is done.
        """

    def remove(self, names: Iterable[str]) -> None:
        """Removes files. Some of them may be gone already."""

    def is_lost(self, number: int | None) -> bool:
        """Whether a file is lost if reading it failed with this errno, or with none.

        A store that does not answer says nothing about its objects.
        """


# What file systems say that have no symbolic links, as exFAT.
_NO_LINKS = (errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP)


def open_folder(path: str | os.PathLike[str], options: StorageOptions = None) -> Folder:
    """The folder that a path or a URL names, such as ``s3://bucket/run``. A slash may follow.

    Nothing is asked and nothing is made.

    Raises:
        FilenameError: It is empty, not a str or path, or a URL that no store serves.
        OptionError: The options are wrong, or there are some for a folder of this machine.
    """
    text = path_text(path)
    if not is_url(text):
        folder: Location = local_path(path)
    elif not isinstance(path, str):
        folder = location(path)  # raises FilenameError
    else:
        prefix = text if text.endswith("://") else text.rstrip("/") + "/"
        inside = location(f"{prefix}x")
        folder = inside.parent if isinstance(inside, Path) else Url(prefix)
    if isinstance(folder, Url):
        return RemoteFolder(folder, options)
    if options:
        raise OptionError(f"storage_options are for URLs, and {folder} is a folder of this machine")
    return LocalFolder(folder)


@dataclass(frozen=True)
class LocalFolder:
    """See Folder."""

    path: Path

    def at(self, name: str) -> Path:
        return self.path / name

    def entries(self) -> list[Entry]:
        try:
            with os.scandir(self.path) as found:
                return [Entry(one.name, partial(_modified, one)) for one in found if one.is_file()]
        except FileNotFoundError:
            return []

    def read(self, name: str) -> bytes:
        return self.at(name).read_bytes()

    def replace(self, name: str, data: bytes, *, fsync: bool) -> None:
        replace_file(self.at(name), data, fsync=fsync)

    def replace_links(self, prefix: str, targets: Mapping[str, str]) -> None:
        try:
            for name, target in targets.items():
                replace_link(self.at(name), target)
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            return
        with os.scandir(self.path) as found:
            names = [one.name for one in found if one.is_symlink() and one.name.startswith(prefix)]
        for name in names:
            if name not in targets:
                self.at(name).unlink()

    def remove(self, names: Iterable[str]) -> None:
        for name in names:
            self.at(name).unlink(missing_ok=True)

    def is_lost(self, number: int | None) -> bool:
        return True


def _modified(entry: os.DirEntry[str]) -> float:
    return entry.stat().st_mtime


class RemoteFolder:
    """See Folder.

    Args:
        prefix: What the URLs of its objects begin with, up to a slash.

    Raises:
        FilenameError: No store serves it, or a package is not installed.
        OptionError: The options are wrong.
    """

    def __init__(self, prefix: Url, options: StorageOptions = None) -> None:
        self._prefix = prefix
        self._options = options
        self._client: tuple[Store, int, float] = self._new_client()

    def __reduce__(self) -> tuple[type[RemoteFolder], tuple[Url, StorageOptions]]:
        return RemoteFolder, (self._prefix, self._options)

    @property
    def path(self) -> Url:
        return self._prefix if self._prefix.endswith("://") else Url(self._prefix.rstrip("/"))

    def at(self, name: str) -> Url:
        return Url(self._prefix + name)

    def entries(self) -> list[Entry]:
        start = len(self._prefix)
        return [
            Entry(one.url[start:], partial(float, one.modified or 0.0))
            for one in self._store().list(self._prefix, deep=False)
            if len(one.url) > start  # some tools make an object for the folder itself
        ]

    def read(self, name: str) -> bytes:
        url = self.at(name)
        for attempt in range(_ATTEMPTS):
            try:
                data = self._store().read_range(url, 0, _MOST_NBYTES)
                break
            except OSError as error:  # it was replaced in the middle
                if error.errno != errno.ESTALE or attempt == _ATTEMPTS - 1:
                    raise
        if len(data) == _MOST_NBYTES:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), url)
        return bytes(data)

    def replace(self, name: str, data: bytes, *, fsync: bool) -> None:
        upload = self._store().open_upload(self.at(name))
        try:
            upload.open(len(data))
            upload.write(memoryview(data))
            upload.seal(len(data))
            upload.commit(keep_previous=False)
        finally:
            upload.abandon()

    def replace_links(self, prefix: str, targets: Mapping[str, str]) -> None:
        """Nothing: a store has no links."""

    def remove(self, names: Iterable[str]) -> None:
        self._store().remove_all([self.at(name) for name in names])

    def is_lost(self, number: int | None) -> bool:
        return number in (None, errno.ENOENT)

    def _store(self) -> Store:
        store, process, made = self._client
        if process != os.getpid() or time.monotonic() - made > _CLIENT_SECONDS:
            self._client = self._new_client()
            store = self._client[0]
        return store

    def _new_client(self) -> tuple[Store, int, float]:
        return open_store(self._prefix, self._options), os.getpid(), time.monotonic()
