"""remove: takes an older checkpoint away once the newer ones are safe."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from typing import Any

from pyckpt.errors import CheckpointError
from pyckpt.staging.pending_saves import (
    PendingSave,
    Removal,
    is_torn_unnoticed,
    raise_uncollected,
    under_way,
)
from pyckpt.storage.claim import remove_folder
from pyckpt.storage.store import Store
from pyckpt.storage.urls import Location, StorageOptions, location, open_store
from pyckpt.training.background import in_turn

__all__ = ["remove", "remove_now"]

_LOGGER = logging.getLogger("pyckpt")


def remove(path: str | os.PathLike[str], *, storage_options: StorageOptions = None) -> Future[bool]:
    """Removes a file, or a folder with all that is in it, once all saves before it are safe.

    A folder is hidden in one rename before its files are removed, so nobody finds a part of it. A
    URL names one object.

    The removal takes its turn behind the asynchronous saves of this process that are under way.
    Saves that are started later, blocking ones too, come after it, so one of the same name stays.
    If no save is under way, it is done when the call returns.

    If a save that it waits for fails, nothing is removed, because ``path`` may be the last
    checkpoint that is good. A warning says so.

    Args:
        storage_options: As in ``save``.

    Returns:
        A Future: whether there was something, and it was removed. It raises a CheckpointError with
        the path and the errno if the system refuses. A symbolic link is removed, not what it points
        to.

    Raises:
        FilenameError: ``path`` is neither a path nor a URL that a store serves.
        CheckpointError: An earlier asynchronous save failed, and nobody has asked for its result.
            Nothing is removed.
    """
    found = location(path)
    store = None if isinstance(found, Path) else open_store(found, storage_options)
    saves = under_way()
    raise_uncollected()  # after that, so that a save which fails just now is seen here or there
    torn = not saves and is_torn_unnoticed()
    removal = Removal(found)

    def work() -> bool:
        try:
            return _remove_after(saves, found, store, torn)
        finally:
            removal.end()

    try:
        return in_turn(work)
    except BaseException:
        removal.end()
        raise


def _remove_after(
    saves: Sequence[PendingSave[Any]], path: Location, store: Store | None, torn: bool
) -> bool:
    # Future's own method: PendingSave's would count as the caller's asking for the error.
    if torn or any(Future.exception(save) is not None for save in saves):
        _LOGGER.warning("%s stays, because a save failed that was to be safe first", path)
        return False
    try:
        if isinstance(path, Path):
            return remove_now(path)
        assert store is not None
        return store.remove(path)
    except OSError as error:
        raise CheckpointError(
            f"{path} could not be removed: {error}", path=str(path), errno=error.errno
        ) from error


def remove_now(path: Path) -> bool:
    """As ``remove``, in no turn. Raises OSError."""
    with suppress(FileNotFoundError):
        if path.is_dir() and not path.is_symlink():
            remove_folder(path)
        else:
            path.unlink()
        return True
    return False
