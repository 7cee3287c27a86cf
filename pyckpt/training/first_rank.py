"""Saves of the first rank for all: for frameworks that make a checkpoint's contents themselves.

Every rank makes the call and makes the contents, since that may be collective. Those of the first
rank are saved as they are. Either its file is there, or every rank raises the same CheckpointError.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from pyckpt.archive.save import save
from pyckpt.ranks.exchange import Channel, begin_together, together
from pyckpt.staging.pending_saves import PendingSave, raise_uncollected, wait_for_room
from pyckpt.storage.urls import Location
from pyckpt.training.async_save import async_save

__all__ = ["FirstRankSave", "begin_on_first_rank", "save_on_first_rank"]


def save_on_first_rank(
    make: Callable[[], Any], path: str | os.PathLike[str], **options: Any
) -> None:
    """Saves what ``make`` returns on the first rank. Call it on every rank.

    Asynchronous saves that are under way are finished first, as by ``save_checkpoint``.

    Args:
        make: Called on every rank.
        path: Where the first rank saves. That of another rank does not count.
        options: Those of ``save``.

    Raises:
        CheckpointError: A rank failed. Every rank raises it. An earlier file is as it was.
    """
    wait_for_room(1)
    [channel] = begin_together("save_checkpoint")
    contents = _make_together(make, channel)
    together(
        "writing the checkpoint",
        lambda: save(contents, path, **options) if channel.rank == 0 else None,
        channel,
    )


def begin_on_first_rank(
    make: Callable[[], Any], path: str | os.PathLike[str], **options: Any
) -> FirstRankSave:
    """Starts what ``save_on_first_rank`` does, and returns while the file is written.

    Args:
        make, path: As in ``save_on_first_rank``.
        options: Those of ``async_save``.

    Raises:
        CheckpointError: A rank failed before the write. Every rank raises it.
    """
    [channel] = begin_together("async_save_checkpoint")
    contents = _make_together(make, channel)
    pending: PendingSave[Location] | None = None

    def begin() -> None:
        nonlocal pending
        if channel.rank == 0:
            pending = async_save(contents, path, **options)

    together("staging the state", begin, channel)
    return FirstRankSave(pending, channel)


class FirstRankSave:
    """An asynchronous save of the first rank, as every rank sees it."""

    def __init__(self, pending: PendingSave[Location] | None, channel: Channel) -> None:
        self._pending = pending
        self._channel = channel

    def has_ended(self, *, wait: bool) -> bool:
        """Whether the file is there: the same answer on every rank. Call it on every rank.

        Raises:
            CheckpointError: The save failed. Every rank raises it.
        """

        def look() -> bool:
            if self._pending is None:
                return False
            if wait or self._pending.done():
                self._pending.result()
                return True
            return False

        return together("writing the checkpoint", look, self._channel)[0]

    def wait_alone(self) -> None:
        """Waits for the file on the first rank, without the others, which do not wait.

        Raises:
            CheckpointError: The save failed.
        """
        if self._pending is not None:
            self._pending.result()


def _make_together(make: Callable[[], Any], channel: Channel) -> Any:
    """What ``make`` returns on this rank, once it has returned on all."""
    contents: Any = None

    def collect() -> None:
        nonlocal contents
        raise_uncollected()
        contents = make()

    together("collecting the training state", collect, channel)
    return contents
