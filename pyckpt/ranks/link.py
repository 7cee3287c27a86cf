"""A connection between ranks, which ends with one verdict for all of them.

    exchange breaks ─▶ roll call: who does not answer? ─▶ verdict in the store ─▶ all raise it
                                                            the first one counts

An exchange may break on one rank and pass on another, if a rank dies in it. Where that matters,
because files get or lose their names then, the ranks decide: the first word in the store counts,
"passed" or a failure, and each rank goes by it.

A link that has broken stays so. The next call of the ranks makes a new one: see exchange.py.
"""

from __future__ import annotations

import ctypes
import datetime
import pickle
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist

from pyckpt.errors import CheckpointError
from pyckpt.ranks.circle import Call, Circle, Silence, names, within
from pyckpt.ranks.failure import Failure, describe

__all__ = ["Link", "lost"]

_WAIT_SECONDS = 0.25  # between two looks for a verdict
_JUDGING_SECONDS = 15.0  # then the store counts as gone
_PASSED = "passed"


class _Ended(Exception):
    """Another rank has said what becomes of this exchange."""


class Link:
    """A connection between the ranks of a circle. It is for one thread at a time.

    Args:
        circle: The ranks.
        name: The same on every rank, and of no other link of the circle.
        group: torch's ProcessGroupGloo between them.
        broken: Called when it breaks, perhaps in another thread. It tells the other ranks.

    Attributes:
        circle, group: The same.
    """

    def __init__(self, circle: Circle, name: str, group: Any, broken: Callable[[], None]) -> None:
        self.circle = circle
        self.group = group
        self._broken = broken
        prefix_store: Any = dist.distributed_c10d.PrefixStore
        self._store = prefix_store(name, circle.store)
        self._decisions = 0
        self._open = ""  # the key of the decision that is being taken
        self._verdict: str | None = None
        self._decision: str | None = None

    def gather(self, doing: str, outcome: Any, *, decides: bool = False) -> list[Any]:
        """The outcomes of all ranks. Collective.

        Args:
            decides: Whether ``decide`` follows, on every rank.

        Raises:
            Exception: It broke: call ``judge``.
        """
        self._open, self._decision = "", None
        if decides:
            self._decisions += 1
            self._open = f"decision-{self._decisions}"
        if self._verdict is not None:
            raise _Ended
        data = torch.frombuffer(bytearray(pickle.dumps(outcome)), dtype=torch.uint8)
        sizes = [torch.zeros(1, dtype=torch.int64, device="cpu") for _ in self.circle.members]
        size = torch.tensor([len(data)], device="cpu")
        self.wait(doing, self.group.allgather([sizes], [size]))
        longest = max(int(size) for size in sizes)
        padded = torch.zeros(longest, dtype=torch.uint8, device="cpu")
        padded[: len(data)] = data
        gathered = [bytearray(longest) for _ in sizes]
        parts = [torch.frombuffer(one, dtype=torch.uint8) for one in gathered]
        self.wait(doing, self.group.allgather([parts], [padded]))
        return [
            pickle.loads(memoryview(one)[: int(size)])
            for one, size in zip(gathered, sizes, strict=True)
        ]

    def wait(self, doing: str, work: Any) -> None:
        """Waits for a collective of the group. Hears Ctrl-C, and what other ranks say meanwhile.

        Raises:
            Exception: It broke: call ``judge``.
        """

        def is_over(seconds: float) -> bool:
            try:
                work.wait(datetime.timedelta(seconds=seconds))
            except RuntimeError:
                if not work.is_completed():
                    return False
                work.wait()  # it may have ended just behind the time: this raises if it has failed
            return True

        self._wait(doing, is_over)

    def wait_for_transfers(self, doing: str, works: Sequence[Any]) -> None:
        """As ``wait``, for what ``send`` and ``recv`` of the group have returned.

        All are waited for, also if some fail: the memory is in use until then.
        """
        self._open, self._decision = "", None
        errors: list[RuntimeError] = []

        def wait_for_all() -> None:
            for work in works:
                try:
                    work.wait()
                except RuntimeError as error:
                    errors.append(error)

        call = Call(wait_for_all)
        self._wait(doing, call.is_over)
        if errors:
            raise errors[0]

    def decide(self, failure: Failure | None) -> Failure | None:
        """What all ranks go by, after a ``gather`` that decides. None: it has passed.

        Args:
            failure: What this rank has found.
        """
        word = _PASSED if failure is None else failure.to_text()
        try:
            word = self._say(self._open, word)
            if self.circle.place == 0:  # all ranks have left the one before
                self._store.delete_key(f"decision-{self._decisions - 1}")
        except (RuntimeError, NotImplementedError):
            pass  # the store is gone, and this rank has heard all others. Or it cannot delete.
        return _failure_in(word)

    def judge(self, doing: str, error: BaseException) -> Failure | None:
        """What all ranks go by, after an exchange that broke on this rank. The link is broken.

        Args:
            doing: What broke, for messages.
            error: What this rank has found.

        Returns:
            The failure. None if it has passed on another rank, so that all is well: only in an
            exchange that decides.
        """
        # Its threads may wait for a rank that never comes, and so would the end of the group.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self.group))
        try:
            return within(_JUDGING_SECONDS, lambda: self._judge(doing, error), shield=True)
        except (RuntimeError, TimeoutError):
            return Failure(
                None,
                "",
                "the ranks could not exchange their outcomes: one may have died, and the store of "
                "their process group cannot be reached",
            )

    def leave(self, doing: str, error: BaseException) -> None:
        """Tells the others that this rank does not come to the next exchange."""
        self._open = ""
        self.judge(doing, error)

    def _judge(self, doing: str, error: BaseException) -> Failure | None:
        self._broken()
        verdict = self._verdict = self._read("verdict")
        if verdict is None and self._open:
            decision = self._read(self._open)
            if decision is not None:
                return _failure_in(decision)
        if verdict is None:
            verdict = self._find_out(doing, error).to_text()
        if self._open:
            verdict = self._say(self._open, verdict)
        if verdict != _PASSED:
            verdict = self._verdict = self._say("verdict", verdict)
        self.circle.tell()
        return _failure_in(verdict)

    def _find_out(self, doing: str, error: BaseException) -> Failure:
        """Who is to blame."""
        rank = self.circle.members[self.circle.place]
        if isinstance(error, Silence):
            absent = error.args[0]
        elif isinstance(error, RuntimeError) and not isinstance(error, CheckpointError):
            absent = self.circle.absent()
        else:  # Ctrl-C, or what should never happen
            own = describe(error, rank)
            return Failure(rank, own.kind, f"{doing} failed on rank {rank}: {own.message}")
        if not absent:
            return Failure(
                None, "", f"{doing} failed: the ranks could not exchange their outcomes: {error}"
            )
        return lost(doing, absent)

    def _wait(self, doing: str, is_over: Callable[[float], bool]) -> None:
        self.circle.listen(self._look)
        try:
            look = self.circle.waiting(doing)
            while not is_over(_WAIT_SECONDS):
                if self._verdict is not None or self._decision is not None:
                    # Where it has passed, it passes here too in a moment, or a rank has died since.
                    if self._decision != _PASSED or not is_over(_JUDGING_SECONDS / 5):
                        raise _Ended
                    return
                look()
        finally:
            self.circle.forget(self._look)

    def _look(self) -> None:
        """In the circle's thread: there is news."""
        if self._verdict is None:
            self._verdict = self._read("verdict")
        if self._open and self._decision is None:
            self._decision = self._read(self._open)

    def _read(self, key: str) -> str | None:
        return self._store.get(key).decode() if self._store.check([key]) else None

    def _say(self, key: str, word: str) -> str:
        """The first word that a rank has said."""
        return bytes(self._store.compare_set(key, "", word)).decode()


def lost(doing: str, ranks: Sequence[int]) -> Failure:
    """What all others raise if ranks do not answer."""
    does = "does" if len(ranks) == 1 else "do"
    message = (
        f"{doing} failed: {names(ranks)} {does} not answer. A process that was killed or stopped "
        "does not, nor one that cannot be reached"
    )
    return Failure(ranks[0], "", message)


def _failure_in(word: str) -> Failure | None:
    return None if word == _PASSED else Failure.from_text(word)
