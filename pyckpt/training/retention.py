"""Which of many checkpoints are kept."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from pyckpt.errors import OptionError
from pyckpt.options import whole_number

__all__ = ["KeepBest", "Kept", "Retention"]

KeepBest: TypeAlias = tuple[str, Literal["min", "max"]]


@dataclass(frozen=True)
class Kept:
    """What retention knows of a checkpoint.

    Attributes:
        step: The step at which it was saved.
        metrics: What was measured then.
    """

    step: int
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Retention:
    """Rules for what is kept. A checkpoint stays if one of them keeps it. Without rules, all stay.

    Attributes:
        last: How many of the newest stay.
        every: Those at steps that are multiples of it stay.
        best: A metric, and whether its smallest ("min") or largest ("max") value is best. The
            checkpoint with the best value stays; of equal ones, the newest. NaN is never best.

    Raises:
        OptionError: A value is out of range or of the wrong type.
    """

    last: int | None = None
    every: int | None = None
    best: KeepBest | None = None

    def __post_init__(self) -> None:
        for name, value in (("keep_last", self.last), ("keep_every", self.every)):
            if value is not None:
                whole_number(name, value, 1)
        if self.best is None:
            return
        pair = tuple(self.best) if isinstance(self.best, tuple | list) else ()
        if len(pair) != 2 or not isinstance(pair[0], str) or pair[1] not in ("min", "max"):
            raise OptionError(
                f"keep_best must be (metric, 'min' or 'max'), such as ('loss', 'min'), not "
                f"{self.best!r}"
            )

    def dropped(self, checkpoints: Sequence[Kept]) -> list[int]:
        """The places of those that need not stay, of checkpoints in the order of their saves.

        The newest always stays, because training goes on from it.
        """
        if self.last is None and self.every is None and self.best is None:
            return []
        count = len(checkpoints)
        kept = set(range(max(0, count - (self.last or 1)), count))
        if self.every is not None:
            kept.update(i for i, one in enumerate(checkpoints) if one.step % self.every == 0)
        best = self.best_of(checkpoints)
        if best is not None:
            kept.add(best)
        return [i for i in range(count) if i not in kept]

    def best_of(self, checkpoints: Sequence[Kept]) -> int | None:
        """The place of the best one, or None if none has the metric."""
        if self.best is None:
            return None
        metric, mode = self.best
        values = {
            i: one.metrics[metric]
            for i, one in enumerate(checkpoints)
            if not math.isnan(one.metrics.get(metric, math.nan))
        }
        if not values:
            return None
        best = (min if mode == "min" else max)(values.values())
        return max(i for i, value in values.items() if value == best)
