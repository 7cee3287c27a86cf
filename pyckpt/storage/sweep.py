"""Finds and aborts uploads that killed processes have left in a store.

Nobody sees them, and they cost what their parts weigh.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator

from pyckpt.errors import CheckpointError, FilenameError, OptionError
from pyckpt.paths import is_url
from pyckpt.storage.store import UnfinishedUpload
from pyckpt.storage.urls import StorageOptions, Url, check_has_bucket, open_store

__all__ = ["age_seconds", "sweep"]

_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
_AGE = re.compile(r"(\d+(?:\.\d+)?)([smhd]?)")


def age_seconds(text: str) -> float:
    """The seconds that an age such as ``"90"``, ``"36h"`` or ``"2d"`` stands for.

    Raises:
        OptionError: It is none.
    """
    match = _AGE.fullmatch(text)
    if match is None:
        raise OptionError(f"an age is a number of s, m, h or d, such as 36h, and not {text!r}")
    return float(match[1]) * _SECONDS[match[2]]


def sweep(
    prefix: str,
    *,
    older_than: float,
    dry_run: bool = False,
    storage_options: StorageOptions = None,
) -> Iterator[UnfinishedUpload]:
    """Aborts the unfinished uploads below a prefix, and yields each.

    Args:
        prefix: What their URLs begin with, such as ``s3://bucket/run/``.
        older_than: Only those that were begun at least so many seconds ago. A save that is under
            way has such uploads too: take more than the longest save needs.
        dry_run: Yields them, and aborts none.

    Raises:
        FilenameError: ``prefix`` is no URL of a store, or names no bucket, or no store serves it.
        OptionError: ``older_than`` is negative.
        CheckpointError: The store refuses, or cannot be reached.
    """
    if not is_url(prefix) or prefix.lower().startswith("file:"):
        raise FilenameError(f"{prefix!r} is no URL of a store", path=prefix)
    if older_than < 0:
        raise OptionError(f"an age cannot be negative, and is {older_than}")
    url = Url(prefix)
    check_has_bucket(url)
    store = open_store(url, storage_options)
    latest = time.time() - older_than
    try:
        for upload in store.unfinished(url):
            if upload.started <= latest:
                if not dry_run:
                    store.abort(upload)
                yield upload
    except OSError as error:
        raise CheckpointError(
            f"the uploads below {url} could not be swept: {error}", path=url, errno=error.errno
        ) from error
