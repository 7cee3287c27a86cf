"""A meeting of ranks: none goes on before all have made the same call.

Ranks meet in the key-value store of the process group, not in a collective. So a rank that waits
can say whom it waits for, hears Ctrl-C, and leaves no collective behind that another one would
match. After a meeting every rank is known to take part, and collectives may wait as long as a slow
disk needs.
"""

from __future__ import annotations

import logging
import time
import zlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

from pyckpt.errors import CheckpointError

__all__ = ["meet"]

_LOGGER = logging.getLogger("pyckpt")
_PATIENCE_SECONDS = 20.0  # after this time, a rank that waits says so
_GIVEN_UP = 1 << 32  # added to the number of ranks that have come, by one that stops waiting
_MOST_NAMED = 8


def meet(
    store: Any, call: str, number: int, members: Sequence[int], rank: int, limit_seconds: float
) -> None:
    """Returns when all members have called it. Call it on every one of them, in the same order.

    After 20 seconds a warning is logged that names the ranks that have not come.

    Args:
        store: A torch.distributed.Store that only these members share.
        call: What the ranks are about to do, for messages: "save_checkpoint".
        number: How many meetings the members have had before. A rank that was not at one has a
            lower number, and finds that the others have given up when it comes to that meeting.
        members: The ranks that meet.
        rank: The member that calls.
        limit_seconds: How long to wait for the others.

    Raises:
        CheckpointError: A rank did not come in time, on this call or on an earlier one, or made
            another call.
    """
    place = str(number)
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
    if came == len(members):
        codes = store.add(f"{place}/codes", 0)
        store.set(f"{place}/all", "same" if codes == code * len(members) else "mixed")
    elif not _wait(store, place, call, members, limit_seconds):
        came = store.add(f"{place}/came", _GIVEN_UP)
        if came != _GIVEN_UP + len(members):  # else the last one came just now
            missing = _missing(store, place, members)
            raise CheckpointError(
                f"{call} waited {limit_seconds:.0f} seconds for {_named(missing, members)}. Call "
                "it on every rank",
                rank=missing[0] if missing else None,
            )
    if store.get(f"{place}/all") != b"same":
        raise _mixed(store, place, members)
    _forget(store, str(number - 1), rank, is_first=rank == members[0])


def _wait(store: Any, place: str, call: str, members: Sequence[int], limit_seconds: float) -> bool:
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
                _named(_missing(store, place, members), members),
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


def _missing(store: Any, place: str, members: Sequence[int]) -> list[int]:
    return [rank for rank in members if not store.check([f"{place}/{rank}"])]


def _named(missing: Sequence[int], members: Sequence[int]) -> str:
    if not missing:
        return "no rank any more"
    named = ", ".join(map(str, missing[:_MOST_NAMED]))
    more = "" if len(missing) <= _MOST_NAMED else f" and {len(missing) - _MOST_NAMED} more"
    return f"rank{'s' if len(missing) > 1 else ''} {named}{more} of {len(members)}"


def _mixed(store: Any, place: str, members: Sequence[int]) -> CheckpointError:
    calls = {rank: store.get(f"{place}/{rank}").decode() for rank in members}
    first = members[0]
    other = next(rank for rank, call in calls.items() if call != calls[first])
    return CheckpointError(
        f"rank {first} called {calls[first]}, and rank {other} called {calls[other]}: call the "
        "same on every rank",
        rank=other,
    )


def _forget(store: Any, previous: str, rank: int, *, is_first: bool) -> None:
    """Deletes the keys of the meeting before. Everybody has left it, since all are here."""
    keys = [f"{previous}/{rank}"]
    if is_first:
        keys += [f"{previous}/{key}" for key in ("came", "codes", "all")]
    for key in keys:
        with suppress(RuntimeError, NotImplementedError):  # not every store deletes
            store.delete_key(key)
