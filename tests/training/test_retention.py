"""Which checkpoints stay."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyckpt.errors import OptionError
from pyckpt.training.retention import Kept, Retention


def kept(retention: Retention, checkpoints: list[Kept]) -> list[int]:
    dropped = retention.dropped(checkpoints)
    return [one.step for i, one in enumerate(checkpoints) if i not in dropped]


def steps(*numbers: int) -> list[Kept]:
    return [Kept(number) for number in numbers]


@pytest.mark.parametrize(
    ("retention", "expected"),
    [
        (Retention(), [100, 200, 300, 400, 500]),
        (Retention(last=2), [400, 500]),
        (Retention(last=9), [100, 200, 300, 400, 500]),
        (Retention(every=200), [200, 400, 500]),
        (Retention(last=2, every=300), [300, 400, 500]),
    ],
)
def test_rules_about_steps(retention: Retention, expected: list[int]) -> None:
    assert kept(retention, steps(100, 200, 300, 400, 500)) == expected


def test_the_newest_is_the_one_saved_last() -> None:
    assert kept(Retention(last=2), steps(400, 500, 300)) == [500, 300]


@pytest.mark.parametrize(("mode", "best"), [("min", 2), ("max", 3)])
def test_the_best_stays_beside_the_newest(mode: Any, best: int) -> None:
    losses = [math.nan, 0.2, 0.9, 0.5]
    checkpoints = [Kept(step, {"loss": loss}) for step, loss in enumerate(losses, 1)]
    assert kept(Retention(best=("loss", mode)), checkpoints) == [best, 4]


def test_of_equally_good_ones_the_newest_stays() -> None:
    checkpoints = [Kept(step, {"loss": 0.5}) for step in range(3)]
    assert kept(Retention(best=("loss", "min")), [*checkpoints, Kept(3)]) == [2, 3]


def test_without_the_metric_none_is_best() -> None:
    checkpoints = [Kept(1, {"accuracy": 1.0}), Kept(2, {"loss": math.nan}), Kept(3)]
    assert Retention(best=("loss", "min")).best_of(checkpoints) is None
    assert kept(Retention(best=("loss", "min")), checkpoints) == [3]


@given(
    st.lists(st.integers(0, 50), unique=True, min_size=1),
    st.none() | st.integers(1, 5),
    st.none() | st.integers(1, 20),
)
def test_the_newest_always_stays(numbers: list[int], last: int | None, every: int | None) -> None:
    remaining = kept(Retention(last, every), steps(*numbers))
    assert remaining[-1] == numbers[-1]
    assert set(numbers[-(last or 1) :]) <= set(remaining)


@pytest.mark.parametrize(
    "options",
    [
        {"last": 0},
        {"last": True},
        {"every": -1},
        {"best": "loss"},
        {"best": ("loss",)},
        {"best": ("loss", "least")},
        {"best": (1, "min")},
    ],
)
def test_wrong_rules(options: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match="keep_"):
        Retention(**options)
