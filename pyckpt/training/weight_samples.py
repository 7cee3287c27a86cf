"""A few numbers of each weight, to tell whether ranks hold replicas or parts of one model.

Replicas may drift apart, as in local SGD. Shards have no numbers in common. Ranks that share no
weight at all train models of their own. Then a warning is logged.
"""

from __future__ import annotations

import hashlib
import logging
import math
import random
from collections.abc import Sequence
from typing import Any

import torch

from pyckpt.errors import ShardedStateError
from pyckpt.ranks.exchange import Channel, together
from pyckpt.training.shards import ADVICE, sharding_modules

__all__ = ["WeightSamples"]

_LOGGER = logging.getLogger("pyckpt")

_MOST_WEIGHTS = 64
_NUMBERS_OF_EACH = 16
# Numbers without relation differ by about 1.4 times their size, replicas by far less.
_UNRELATED = 0.5


class WeightSamples:
    """A few numbers of each weight of a model, taken when it is made and looked at later.

    A rank whose model is None, or no module, has none, and is not compared.

    Making it queues small copies on the devices and does not wait for them.
    """

    def __init__(self, model: Any) -> None:
        self._names: list[str] = []
        self._taken: list[torch.Tensor] = []
        self._events: list[torch.cuda.Event] = []
        if isinstance(model, torch.nn.Module) and not sharding_modules(model):
            self._take(model)

    def check_related(self, channel: Channel) -> None:
        """Compares the samples of all members of the channel. Collective.

        Raises:
            ShardedStateError: A weight has nothing in common with the first member's of the same
                name, and others have.
        """
        doing = "comparing the ranks' weights"
        digests = together(doing, self._digest, channel)
        if all(digest in (digests[0], "") for digest in digests):
            return  # replicas are equal, so this is where it mostly ends
        first, *others = together(doing, self._numbers, channel)
        first_rank, *other_ranks = channel.members
        for rank, theirs in zip(other_ranks, others, strict=True):
            pairs = {name: (numbers, theirs.get(name, [])) for name, numbers in first.items()}
            unrelated = [name for name, pair in pairs.items() if _is_unrelated(*pair)]
            shared = [name for name, pair in pairs.items() if _is_shared(*pair)]
            if unrelated and shared:
                raise ShardedStateError(
                    f"weight {unrelated[0]!r} of rank {rank} has nothing in common with rank "
                    f"{first_rank}'s, and {shared[0]!r} has: the ranks hold parts of one model. "
                    f"{ADVICE}",
                    rank=rank,
                )
            if unrelated and channel.rank == 0:
                _LOGGER.warning(
                    "the models of ranks %d and %d have nothing in common: the first is saved",
                    first_rank,
                    rank,
                )

    def _take(self, model: torch.nn.Module) -> None:
        parameters = list(model.named_parameters())
        if len(parameters) > _MOST_WEIGHTS:  # the same choice on every rank, of all kinds
            parameters = random.Random(0).sample(parameters, _MOST_WEIGHTS)
        for name, parameter in parameters:
            weight = parameter.detach()
            if type(weight) is not torch.Tensor or weight.layout is not torch.strided:
                continue
            if not weight.numel() or not (weight.is_cpu or weight.is_cuda):
                continue
            row = (weight[weight.shape[0] // 2] if weight.ndim > 1 else weight).reshape(-1)
            self._names.append(name)
            self._taken.append(row[:_NUMBERS_OF_EACH].to(torch.float32, copy=True))
        for device in {row.device for row in self._taken if row.is_cuda}:
            event = torch.cuda.Event()
            event.record(torch.cuda.current_stream(device))
            self._events.append(event)

    def _digest(self) -> str:
        return hashlib.sha256(repr(self._numbers()).encode()).hexdigest() if self._names else ""

    def _numbers(self) -> dict[str, list[float]]:
        for event in self._events:
            event.synchronize()
        rows = (row.tolist() for row in self._taken)
        return dict(zip(self._names, rows, strict=True))


def _is_unrelated(first: Sequence[float], second: Sequence[float]) -> bool:
    distance, size = _distance(first, second)
    return distance > _UNRELATED * size


def _is_shared(first: Sequence[float], second: Sequence[float]) -> bool:
    """Whether two samples are alike, and not just because both are as they were initialised."""
    distance, size = _distance(first, second)
    return len(set(first)) > 1 and distance <= _UNRELATED * size


def _distance(first: Sequence[float], second: Sequence[float]) -> tuple[float, float]:
    """How far two samples are from each other, and how large they are."""
    size = max(math.hypot(*first), math.hypot(*second))
    if not first or len(first) != len(second) or not math.isfinite(size):
        return 0.0, 0.0  # not comparable
    return math.dist(first, second), size
