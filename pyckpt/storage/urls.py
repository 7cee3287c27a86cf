"""URLs of objects: what they are, and which store serves them.

Nothing of a store's packages is imported before a URL asks for it.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import re
from collections.abc import Mapping
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from pyckpt.errors import FilenameError, OptionError
from pyckpt.paths import is_url, local_path, path_text

if TYPE_CHECKING:
    from pyckpt.storage.store import Store

__all__ = [
    "Location",
    "StorageOptions",
    "Stores",
    "Url",
    "beside",
    "check_has_bucket",
    "location",
    "name_beside",
    "open_store",
]

StorageOptions: TypeAlias = Mapping[str, Any] | None
"""What a store's client is told besides the environment. See docs/stores.md."""

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", re.DOTALL)
_S3 = ("s3", "s3a")
# What to install for schemes of fsspec, beside fsspec itself.
_EXTRAS = {
    "gs": "gs",
    "gcs": "gs",
    "az": "azure",
    "abfs": "azure",
    "abfss": "azure",
}
_WITH_BUCKETS = (*_S3, *_EXTRAS)
# Packages of file systems that have to be at least of a version, and what to install for it. Older
# ones of adlfs delete an object when they begin to write the one that replaces it.
_LEAST_VERSIONS = {"adlfs": ((2024, 12), "azure")}


class Url(str):
    """The URL of an object. It is a str, so that other libraries take it.

    Attributes:
        scheme: In lower case: "s3".
        bucket: What stands between the scheme and the first slash.
        key: What stands behind that slash.
    """

    __slots__ = ("bucket", "key", "scheme")
    scheme: str
    bucket: str
    key: str

    def __new__(cls, text: str) -> Url:
        """Makes one of its text.

        Raises:
            FilenameError: It is no URL, or has a password, which messages and logs would show.
        """
        match = _URL.fullmatch(text)
        if match is None:
            raise FilenameError(f"{text!r} is no URL of an object", path=text)
        scheme, rest = match[1].lower(), match[2]
        user, _, host = rest.partition("/")[0].rpartition("@")
        if ":" in user:
            safe = f"{scheme}://***@{host}"
            raise FilenameError(f"{safe} has a password: give it in storage_options", path=safe)
        url = super().__new__(cls, f"{scheme}://{rest}")
        url.scheme = scheme
        url.bucket, _, url.key = rest.partition("/")
        return url

    def __getnewargs__(self) -> tuple[str]:
        return (str(self),)

    @property
    def name(self) -> str:
        """The last part of the URL, which says the format."""
        return self.rpartition("/")[2]

    def with_name(self, name: str) -> Url:
        """The URL with another last part."""
        return Url(self.rpartition("/")[0] + "/" + name)


Location: TypeAlias = Path | Url
"""A file of this machine, or an object in a store. Both have a ``name`` and ``with_name``."""


def location(path: str | os.PathLike[str]) -> Location:
    """What ``path`` names. ``file://`` and an absolute path are a file of this machine.

    Raises:
        FilenameError: It is empty, not a str or path, or a URL that no store serves.
    """
    text = path_text(path)
    if not is_url(text):
        return local_path(path)
    if "\0" in text:
        raise FilenameError(f"{text!r} contains a NUL byte", path=text)
    if not isinstance(path, str):  # pathlib makes one slash of two
        raise FilenameError(f"{text!r} is a URL: give it as a str, and not as a path", path=text)
    if text.lower().startswith("file://"):
        return _local_file(text)
    url = Url(text)
    check_has_bucket(url)
    if not url.name or (url.scheme in _WITH_BUCKETS and not url.key):
        raise FilenameError(f"{text!r} does not name an object", path=text)
    _store_class(url.scheme, text)
    return url


def check_has_bucket(url: Url) -> None:
    """Checks that a URL names a bucket, if its store has buckets.

    Raises:
        FilenameError: It does not.
    """
    if url.scheme in _WITH_BUCKETS and not url.bucket:
        raise FilenameError(f"{str(url)!r} names no bucket", path=url)


def beside(place: Location, name: str) -> Location:
    """The file or the object that ``name`` leads to from the folder in which ``place`` is.

    In a URL, ".." goes up one folder. Everything else is taken as it is, since keys are any text.

    Raises:
        FilenameError: It leads out of the bucket.
    """
    if not isinstance(place, Url):
        return place.parent / name
    bucket, parts = _steps(place)
    parts.pop()
    for part in name.split("/"):
        if part != "..":
            parts.append(part)
        elif parts:
            parts.pop()
        else:
            raise FilenameError(f"{name!r} beside {str(place)!r} is in no bucket", path=place)
    return Url(bucket + "/".join(parts))


def name_beside(place: Location, other: Location) -> str:
    """The name by which ``beside(place, name)`` is ``other``.

    Raises:
        FilenameError: They are in different buckets, or no such name leads there.
    """
    if not (isinstance(place, Url) and isinstance(other, Url)):
        return os.path.relpath(Path(other).absolute(), Path(place).absolute().parent)
    bucket, folder = _steps(place)
    other_bucket, parts = _steps(other)
    folder.pop()
    both = zip(folder, parts[:-1], strict=False)
    common = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], both))
    name = "/".join([".."] * (len(folder) - common) + parts[common:])
    if bucket != other_bucket or ".." in parts[common:]:
        raise FilenameError(f"no name leads from {str(place)!r} to {str(other)!r}", path=other)
    return name


def _steps(url: Url) -> tuple[str, list[str]]:
    """What stays of a URL, and the folders and the name behind it."""
    if not url.key:  # memory://x.tar
        return f"{url.scheme}://", [url.bucket]
    return f"{url.scheme}://{url.bucket}/", url.key.split("/")


def open_store(url: Url, options: StorageOptions = None) -> Store:
    """A client of the store that serves ``url``. Make one for each save or load.

    Raises:
        FilenameError: No store serves it, or the package that does is not installed.
        OptionError: The options are wrong.
    """
    if options is not None and not isinstance(options, Mapping):
        raise OptionError(f"storage_options must be a dict, not {type(options).__name__}")
    make: Any = _store_class(url.scheme, url)
    store: Store = make(url, dict(options or {}))
    return store


class Stores:
    """Clients of stores for one load: one for each store, made when it is needed.

    A client has a pool of connections, which are used again for the next object. A forked process
    makes clients of its own.

    Args:
        options: What they are told besides the environment.
    """

    def __init__(self, options: StorageOptions = None) -> None:
        self._options = options
        self._clients: dict[tuple[int, str, str], Store] = {}

    def client(self, url: Url) -> Store:
        """The client of the store that serves ``url``. Raises as ``open_store``."""
        key = os.getpid(), url.scheme, url.bucket
        if key not in self._clients:
            self._clients[key] = open_store(url, self._options)
        return self._clients[key]


def _local_file(text: str) -> Path:
    path = text[len("file://") :]
    if not path.startswith("/"):
        raise FilenameError(f"{text!r} does not name a file by an absolute path", path=text)
    return Path(path)


def _store_class(scheme: str, text: str) -> Any:
    """What makes the store of a scheme."""
    if scheme in _S3:
        _require("botocore", "s3", text)
        return importlib.import_module("pyckpt.storage.s3_store").S3Store
    extra = _EXTRAS.get(scheme)
    fsspec = _require("fsspec", extra or "stores", text)
    try:
        served_by = fsspec.get_filesystem_class(scheme)
    except ValueError as error:
        raise FilenameError(
            f"{text!r} is a URL that nothing serves: neither pyckpt nor fsspec knows {scheme}://",
            path=text,
        ) from error
    except ImportError as error:
        raise _absent(str(error), extra, text) from error
    _check_version(served_by.__module__.partition(".")[0], text)
    return importlib.import_module("pyckpt.storage.fsspec_store").FsspecStore


def _check_version(package: str, text: str) -> None:
    if package not in _LEAST_VERSIONS:
        return
    least, extra = _LEAST_VERSIONS[package]
    try:
        version = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        version = "of no known version"
    if tuple(map(int, re.findall(r"\d+", version)[: len(least)])) < least:
        needed = ".".join(map(str, least))
        why = f"{package} is {version}, and has to be {needed} or newer"
        raise _absent(why, extra, text)


def _require(package: str, extra: str, text: str) -> Any:
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise _absent(f"{package} is not installed", extra, text) from error


def _absent(why: str, extra: str | None, text: str) -> FilenameError:
    command = "" if extra is None else f': pip install "pyckpt[{extra}]"'
    return FilenameError(
        f"{text!r} needs a package that is not installed ({why}){command}", path=text
    )
