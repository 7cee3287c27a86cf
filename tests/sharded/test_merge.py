"""States of ranks that have other parts of a model, put together."""

import pickle
from collections import OrderedDict
from typing import Any

import pytest
import torch

import pyckpt
from pyckpt.sharded.merge import Elsewhere, merged, outline


def stage(*names: str, lr: float = 0.1, **more: Any) -> dict[str, Any]:
    weights: Any = OrderedDict((name, torch.ones(2)) for name in names)
    optimizer = {
        "state": {name: {"exp_avg": torch.zeros(2)} for name in names},
        "param_groups": [{"params": [*names], "lr": lr}],
    }
    return {"state": {"model": weights, "optimizers": {"Adam": optimizer}, **more}, "rng": [1, 2]}


def test_an_outline_has_everything_but_tensors() -> None:
    tree = stage("a.w", extra={"rates": [0.1], "memory": [torch.ones(1), None]})
    found = pickle.loads(pickle.dumps(outline(tree)))
    assert found["state"]["model"] == OrderedDict({"a.w": Elsewhere("state.model.a.w")})
    assert found["state"]["extra"] == {
        "rates": [0.1],
        "memory": [Elsewhere("state.extra.memory.0"), None],
    }
    assert isinstance(tree["state"]["model"]["a.w"], torch.Tensor)  # it is a copy


def test_stages_are_put_together() -> None:
    first, second = stage("a.w", run="mine"), stage("b.w", run="theirs", only=[1])
    both = merged([first, outline(second)])
    assert list(both["state"]["model"]) == ["a.w", "b.w"]
    assert both["state"]["model"]["a.w"] is first["state"]["model"]["a.w"]
    assert both["state"]["model"]["b.w"] == Elsewhere("state.model.b.w")
    assert both["state"]["run"] == "mine"  # the first one's counts
    assert both["state"]["only"] == [1]
    [group] = both["state"]["optimizers"]["Adam"]["param_groups"]
    assert group == {"params": ["a.w", "b.w"], "lr": 0.1}
    assert list(first["state"]["model"]) == ["a.w"]
    assert first["state"]["optimizers"]["Adam"]["param_groups"][0]["params"] == ["a.w"]


def test_groups_that_do_not_fit_are_refused() -> None:
    with pytest.raises(pyckpt.ShardedStateError, match="'lr' of group 0 differs"):
        merged([stage("a.w"), stage("b.w", lr=0.2)])
