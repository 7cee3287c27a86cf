"""URLs of objects: what they are, and which store serves them.

Nothing of a store's packages is imported before a URL asks for it.
"""

from __future__ import annotations

import importlib
import os
import posixpath
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from pyckpt.errors import FilenameError, OptionError
from pyckpt.paths import is_url, local_path, path_text

if TYPE_CHECKING:
    from pyckpt.storage.store import Store

__all__ = ["Location", "StorageOptions", "Url", "beside", "location", "open_store"]

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
            FilenameError: It is no URL.
        """
        match = _URL.fullmatch(text)
        if match is None:
            raise FilenameError(f"{text!r} is no URL of an object", path=text)
        scheme, rest = match[1].lower(), match[2]
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
    if not url.name or (url.scheme in _S3 and not url.key):
        raise FilenameError(f"{text!r} does not name an object", path=text)
    _store_class(url.scheme, text)
    return url


def beside(place: Location, name: str) -> Location:
    """The file or the object that ``name`` leads to from the folder in which ``place`` is."""
    if isinstance(place, Url):
        path = posixpath.normpath(posixpath.join("/", place.bucket, place.key, "..", name))
        return Url(f"{place.scheme}:/{path}")
    return place.parent / name


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
        fsspec.get_filesystem_class(scheme)
    except ValueError as error:
        raise FilenameError(
            f"{text!r} is a URL that nothing serves: neither pyckpt nor fsspec knows {scheme}://",
            path=text,
        ) from error
    except ImportError as error:
        raise _absent(str(error), extra, text) from error
    return importlib.import_module("pyckpt.storage.fsspec_store").FsspecStore


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
