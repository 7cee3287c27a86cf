"""A meeting of all ranks: none goes on before all have made the same call.

Ranks meet in the key-value store of the process group, not in a collective. So a rank that waits
can say whom it waits for, hears Ctrl-C, and leaves no collective behind that another one would
match. After a meeting every rank is known to take part, and collectives may wait as long as a slow
disk needs.
"""

from __future__ import annotations

import itertools
import logging
import time
import zlib
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from pyckpt.errors import CheckpointError

__all__ = ["meet"]

_LOGGER = logging.getLogger("pyckpt")
_PATIENCE_SECONDS = 20.0  # after this time, a rank that waits says so
_GIVEN_UP = 1 << 32  # added to the number of ranks that have come, by one that stops waiting
_MOST_NAMED = 8

# Every rank counts its meetings. A rank that was not at one has a lower number, and finds that the
# others have given up when it comes to that meeting.
_numbers = itertools.count()


def meet(store: Any, call: str, rank: int, world_size: int, limit_seconds: float) -> None:
    """Returns when all ranks have called it. Call it on every rank, in the same order.

    After 20 seconds a warning is logged that names the ranks that have not come.

    Args:
        store: A torch.distributed.Store that all ranks share.
        call: What the ranks are about to do, for messages: "save_checkpoint".
        limit_seconds: How long to wait for the others.

    Raises:
        CheckpointError: A rank did not come in time, on this call or on an earlier one, or made
            another call.
    """
    place = f"pyckpt/{next(_numbers)}"
    store.set(f"{place}/{rank}", call)
    code = zlib.crc32(call.encode())
    store.add(f"{place}/codes", code)
    came = store.add(f"{place}/came", 1)
    if came > _GIVEN_UP:
        raise CheckpointError(
            f"{call} came too late on rank {rank}: others have called it, and did not wait any "
            "longer. Call it on every rank, at about the same time",
            rank=rank,
        )
    if came == world_size:
        codes = store.add(f"{place}/codes", 0)
        store.set(f"{place}/all", "same" if codes == code * world_size else "mixed")
    elif not _wait(store, place, call, world_size, limit_seconds):
        came = store.add(f"{place}/came", _GIVEN_UP)
        if came != _GIVEN_UP + world_size:  # else the last one came just now
            raise CheckpointError(
                f"{call} waited {limit_seconds:.0f} seconds for "
                f"{_missing(store, place, world_size)}. Call it on every rank",
                rank=rank,
            )
    if store.get(f"{place}/all") != b"same":
        raise _mixed(store, place, world_size)
    _forget_previous(store, place, rank)


def _wait(store: Any, place: str, call: str, world_size: int, limit_seconds: float) -> bool:
    """Waits until all have come. Returns whether they have within the limit."""
    begin = time.monotonic()
    told = False
    for pause in _pauses():
        if store.check([f"{place}/all"]):
            return True
        waited = time.monotonic() - begin
        if waited >= limit_seconds:
            return False
        if waited >= _PATIENCE_SECONDS and not told:
            told = True
            _LOGGER.warning(
                "%s waits for %s. Call it on every rank. It gives up after %.0f seconds.",
                call,
                _missing(store, place, world_size),
                limit_seconds,
            )
        time.sleep(min(pause, max(0.0, limit_seconds - waited)))
    raise AssertionError("the pauses never end")


def _pauses() -> Iterator[float]:
    """Seconds between two looks: short at first, since ranks come at about the same time."""
    pause = 0.0005
    while True:
        yield pause
        pause = min(1.5 * pause, 0.05)


def _missing(store: Any, place: str, world_size: int) -> str:
    missing = [rank for rank in range(world_size) if not store.check([f"{place}/{rank}"])]
    if not missing:
        return "no rank any more"
    named = ", ".join(map(str, missing[:_MOST_NAMED]))
    more = "" if len(missing) <= _MOST_NAMED else f" and {len(missing) - _MOST_NAMED} more"
    return f"rank{'s' if len(missing) > 1 else ''} {named}{more} of {world_size}"


def _mixed(store: Any, place: str, world_size: int) -> CheckpointError:
    calls = [store.get(f"{place}/{rank}").decode() for rank in range(world_size)]
    other = next(rank for rank, call in enumerate(calls) if call != calls[0])
    return CheckpointError(
        f"rank 0 called {calls[0]}, and rank {other} called {calls[other]}: call the same on "
        "every rank",
        rank=other,
    )


def _forget_previous(store: Any, place: str, rank: int) -> None:
    """Deletes the keys of the meeting before. Everybody has left it, since all are here."""
    number = int(place.rpartition("/")[2]) - 1
    keys = [f"pyckpt/{number}/{rank}"]
    if rank == 0:
        keys += [f"pyckpt/{number}/{key}" for key in ("came", "codes", "all")]
    for key in keys:
        with suppress(RuntimeError, NotImplementedError):  # not every store deletes
            store.delete_key(key)
