"""A number that ranks tell each other while they do something else."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist

from pyckpt.ranks.exchange import Channel

__all__ = ["OverlappedMaximum"]


class OverlappedMaximum:
    """The largest of the numbers that the ranks of a channel give, one call later.

    Args:
        channel: The same on every rank, and used for nothing else meanwhile.
        doing: What the ranks do, for messages.
    """

    def __init__(self, channel: Channel, doing: str) -> None:
        self._link = channel.link
        self._doing = doing
        self._under_way: tuple[Any, torch.Tensor] | None = None

    def turn(self, number: int) -> int:
        """Gives ``number``, and returns the largest of those given in the call before, or 0.

        Call it on every rank, equally often. With one rank, ``number`` itself is returned.

        Raises:
            CheckpointError: A rank has died.
        """
        if self._link is None:
            return number
        largest = self.finish()
        given = torch.tensor([number], device="cpu")
        self._under_way = (self._link.group.allreduce(given, dist.ReduceOp.MAX), given)
        return largest

    def finish(self) -> int:
        """Waits for the numbers of the last call of ``turn``, and returns the largest, or 0.

        Raises:
            CheckpointError: A rank has died.
        """
        under_way, self._under_way = self._under_way, None
        if under_way is None or self._link is None:
            return 0
        work, largest = under_way
        try:
            if work.is_completed():  # as almost always: a step takes longer
                work.wait()
                return int(largest.item())
            with self._link.circle.at_work():
                self._link.wait(self._doing, work)
        except Exception as error:
            failure = self._link.judge(self._doing, error)
            assert failure is not None
            raise failure.error() from error
        return int(largest.item())
