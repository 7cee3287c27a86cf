"""Optimizer states by name, by position, and merged of several ranks."""

from typing import Any

import hypothesis
import pytest
import torch
from hypothesis import strategies as st
from torch import nn

import pyckpt
from pyckpt.sharded.optimizer_names import (
    by_name,
    by_position,
    is_by_position,
    merge_groups,
    merged_names,
    with_numbers,
)


class Tree(nn.Module):
    """Modules inside of modules, some with parameters of their own."""

    def __init__(self, shape: Any) -> None:
        super().__init__()
        for number, part in enumerate(shape):
            if part is None:
                self.register_parameter(f"own{number}", nn.Parameter(torch.zeros(1)))
            else:
                self.add_module(f"part{number}", Tree(part))


TREES = st.recursive(st.none(), lambda part: st.lists(part, max_size=4), max_leaves=12)


@hypothesis.given(st.lists(TREES, max_size=4), st.data())
def test_parts_of_a_model_come_in_its_order(shape: Any, data: Any) -> None:
    """However ranks divide the parameters, a whole model's optimizer finds its own by position."""
    names = [name for name, _ in Tree(shape).named_parameters()]
    ranks = 3
    owners = [data.draw(st.sets(st.integers(0, ranks - 1), min_size=1)) for _ in names]
    by_rank = [
        [name for name, owner in zip(names, owners, strict=True) if rank in owner]
        for rank in range(ranks)
    ]
    merged = merged_names(by_rank)
    assert sorted(merged) == sorted(names)
    if all(rank in owner for owner in owners for rank in [0]):
        assert merged == names


def test_stages_of_a_pipeline_come_one_after_another() -> None:
    first = ["embed.weight", "layers.0.weight", "layers.1.weight"]
    assert merged_names([first, ["layers.2.weight", "head.weight"]]) == [
        *("embed.weight", "layers.0.weight", "layers.1.weight", "layers.2.weight", "head.weight")
    ]


def test_groups_in_another_order_follow_one_another() -> None:
    assert merged_names([["b.w", "a.x", "b.x"], ["c.w"]]) == ["b.w", "a.x", "b.x", "c.w"]


def trained() -> tuple[nn.Module, torch.optim.Optimizer]:
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
    groups = [{"params": [*model[1].parameters()], "lr": 0.5}, {"params": [*model[0].parameters()]}]
    optimizer = torch.optim.Adam(groups)
    model(torch.ones(1, 3)).sum().backward()
    model[0].bias.grad = None  # it has no state
    optimizer.step()
    return model, optimizer


def test_names_and_positions_are_each_others_reverse() -> None:
    model, optimizer = trained()
    names = {id(one): name for name, one in model.named_parameters()}
    saved = optimizer.state_dict()
    named = by_name(saved, optimizer, names)
    assert is_by_position(saved)
    assert not is_by_position(named)
    assert [group["params"] for group in named["param_groups"]] == [
        ["1.weight", "1.bias"],
        ["0.weight", "0.bias"],
    ]
    assert list(named["state"]) == ["1.weight", "1.bias", "0.weight"]
    assert named["param_groups"][0]["lr"] == 0.5
    back = by_position(named)
    assert back["param_groups"] == saved["param_groups"]
    assert back["state"].keys() == saved["state"].keys()
    assert all(back["state"][key] is saved["state"][key] for key in back["state"])


@pytest.mark.parametrize(
    "saved",
    [
        *(None, 3, {}, {"state": {}}, [1], {"param_groups": []}, {"state": 3, "param_groups": []}),
        *({"state": {}, "param_groups": [groups]} for groups in (3, {}, [])),
        {"state": {}, "param_groups": 3},
    ],
)
def test_what_is_no_state_of_an_optimizer(saved: Any) -> None:
    assert not is_by_position(saved)
    assert with_numbers(saved) is saved


def test_texts_become_positions_again() -> None:
    _, optimizer = trained()
    saved = optimizer.state_dict()
    texts = {**saved, "state": {str(key): one for key, one in saved["state"].items()}}
    assert with_numbers(texts)["state"].keys() == saved["state"].keys()
    own = {**texts, "state": {**texts["state"], "own": 1}}
    assert "own" in with_numbers(own)["state"]
    named = {
        "state": {"0": 1},
        "param_groups": [{"params": ["0"]}],
    }  # a parameter of nn.ParameterList
    assert with_numbers(named) is named


def group(*params: str, **options: Any) -> dict[str, Any]:
    return {"params": [*params], "lr": 0.1, **options}


def test_groups_are_merged_one_by_one() -> None:
    by_rank = [[group("a.w"), group("a.b", decay=0)], [group("c.w"), group("c.b", decay=0)]]
    assert merge_groups(by_rank, "Adam") == [group("a.w", "c.w"), group("a.b", "c.b", decay=0)]


def test_groups_with_options_that_are_tensors() -> None:
    rates = [torch.tensor([0.1, 0.2]), torch.tensor([0.1, 0.2])]
    [one] = merge_groups([[group("a", lr=rates[0])], [group("b", lr=rates[1])]], "Adam")
    assert one["lr"] is rates[0]


@pytest.mark.parametrize(
    ("groups", "text"),
    [
        ([group("b", lr=0.2)], r"Adam: 'lr' of group 0 differs between ranks: 0.1 and 0.2"),
        ([group("b", more=1)], r"Adam: 'more' of group 0 differs between ranks: None and 1"),
        ([group("b"), group("c")], r"Adam has 1 groups of parameters on one rank, and 2"),
    ],
)
def test_groups_that_do_not_fit(groups: list[dict[str, Any]], text: str) -> None:
    with pytest.raises(pyckpt.ShardedStateError, match=text) as caught:
        merge_groups([[group("a")], groups], "Adam")
    assert caught.value.rank == 1
