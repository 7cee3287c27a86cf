"""Objects in whatever fsspec opens."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

import fsspec
from fsspec.spec import AbstractBufferedFile, AbstractFileSystem

from pyckpt.errors import OptionError
from pyckpt.interrupts import is_interrupt
from pyckpt.storage.fsspec_upload import FsspecUpload, reported
from pyckpt.storage.store import ObjectInfo, Store, UnfinishedUpload, Write
from pyckpt.storage.urls import Url

__all__ = ["FsspecStore"]

_ETAGS = ("ETag", "etag", "md5", "content_md5", "oid", "created", "mtime")
_TIMES = ("LastModified", "last_modified", "updated", "mtime", "modified", "created")


class FsspecStore(Store):
    """See :class:`pyckpt.storage.store.Store`. The options are those of the file system's class.

    It tries again as often as that class does.

    Raises:
        OptionError: The options are wrong.
    """

    def __init__(self, url: Url, options: Mapping[str, Any]) -> None:
        with reported("connecting to", url):
            self._fs: Any = _file_system(url.scheme, options)

    def stat(self, url: Url) -> ObjectInfo:
        with reported("looking at", url):
            info = self._fs.info(str(url))
            if info.get("type") == "directory":
                raise FileNotFoundError(errno.ENOENT, "it is a folder, and no object", url)
            return _object_info(url, info)

    def fetch(self, url: Url, start: int, end: int, write: Write, etag: str | None = None) -> None:
        with reported("reading", url):
            data = _bytes_of(self._fs, str(url), start, end)
        # If it is the same object afterwards, it was when the bytes were read.
        if etag is not None and self.stat(url).etag != etag:
            raise OSError(errno.ESTALE, "it was replaced", url)
        write(data)

    def list(self, prefix: Url, *, deep: bool = True) -> Iterator[ObjectInfo]:
        folder = prefix.rpartition("/")[0] + "/"
        with reported("listing", prefix):
            try:
                found = self._find(folder) if deep else self._files(folder)
            except FileNotFoundError:
                return
            start = self._fs._strip_protocol(folder).strip("/")
            for path in sorted(found):
                url = Url(folder + _behind(start, path, prefix))
                # An object of the folder's own name is listed too.
                if url.startswith(prefix) and path.strip("/") != start:
                    yield _object_info(url, found[path])

    def _find(self, folder: str) -> Mapping[str, Any]:
        found: dict[str, Any] = self._fs.find(folder, detail=True)
        return found

    def _files(self, folder: str) -> Mapping[str, Any]:
        found: list[dict[str, Any]] = self._fs.ls(folder, detail=True)
        return {one["name"]: one for one in found if one.get("type") != "directory"}

    def remove(self, url: Url) -> bool:
        with reported("removing", url):
            try:
                self._fs.rm_file(str(url))
            except FileNotFoundError:
                return False
            return True

    def remove_all(self, urls: Sequence[Url]) -> None:
        for url in urls:
            self.remove(url)

    def open_upload(self, url: Url) -> FsspecUpload:
        return FsspecUpload(self._fs, url)

    def unfinished(self, prefix: Url) -> Iterator[UnfinishedUpload]:
        """None: fsspec lists no uploads. What is unfinished expires by the store's own rules."""
        return iter(())

    def abort(self, upload: UnfinishedUpload) -> None:
        """There is none."""


def _file_system(scheme: str, options: Mapping[str, Any]) -> Any:
    # An instance of its own, because a transaction is a state of the instance.
    own = {"skip_instance_cache": True, "use_listings_cache": False, **options}
    try:
        return fsspec.filesystem(scheme, **own)
    except (TypeError, ValueError) as error:
        if is_interrupt(error):
            raise
        raise OptionError(f"the file system of {scheme}:// cannot be made: {error}") from error


def _bytes_of(fs: Any, name: str, start: int, end: int) -> bytes:
    data: bytes
    if getattr(fs.cat_file, "__func__", None) is not AbstractFileSystem.cat_file:
        data = fs.cat_file(name, start=start, end=end)
        return data
    # This one opens a file for each call, which reads ahead what nobody wants from it.
    with fs.open(name, "rb", cache_type="none") as file:
        if isinstance(file, AbstractBufferedFile):
            end = min(end, file.size)  # this is left to the cache
        file.seek(start)
        data = file.read(max(0, end - start))
        return data


def _behind(start: str, path: str, prefix: Url) -> str:
    """The part of a path that is behind the folder ``start``.

    A URL may have a host or an account in front, which is not in the paths.
    """
    path = path.lstrip("/")
    if start and not f"{path}/".startswith(f"{start}/"):
        raise OSError(errno.EIO, f"listing: {path!r} is not in {start!r}", prefix)
    return path[len(start) :].removeprefix("/")


def _object_info(url: Url, info: Mapping[str, Any]) -> ObjectInfo:
    etag = next((str(info[name]) for name in _ETAGS if info.get(name) is not None), None)
    time = next((info[name] for name in _TIMES if info.get(name) is not None), None)
    return ObjectInfo(url, int(info.get("size") or 0), etag, _seconds(time))


def _seconds(time: Any) -> float | None:
    try:
        if isinstance(time, str):
            time = datetime.fromisoformat(time.replace("Z", "+00:00"))
        return float(time.timestamp() if isinstance(time, datetime) else time)
    except (TypeError, ValueError):
        return None
