"""Names of what is in a nested state, which agree with torch's."""

from collections import Counter, OrderedDict, defaultdict
from typing import Any

import hypothesis
import pytest
import torch
from hypothesis import strategies as st
from torch.distributed.checkpoint._nested_dict import flatten_state_dict, unflatten_state_dict

import pyckpt
from pyckpt.sharded.flat import flatten, mapping_of, nested, replaced, require_texts

KEYS = st.text("ab.é0", max_size=3)
TENSORS = st.integers(0, 3).map(lambda n: torch.arange(n))
PLAIN = st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=3), st.tuples())


def trees(leaves: st.SearchStrategy[Any], keys: st.SearchStrategy[Any], least: int) -> Any:
    """States: dicts of leaves, lists and dicts."""
    inner = st.recursive(
        leaves,
        lambda one: st.lists(one, max_size=3) | st.dictionaries(keys, one, min_size=least),
        max_leaves=12,
    )
    return st.dictionaries(st.text("abc", min_size=1), inner)


def same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor) or isinstance(other, torch.Tensor):
        return one is other
    if isinstance(one, dict):
        return (
            type(one) is type(other)
            and list(one) == list(other)
            and all(same(one[key], other[key]) for key in one)
        )
    if isinstance(one, list | tuple):
        return type(one) is type(other) and len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and one == other


# torch forgets empty dicts.
@hypothesis.given(trees(TENSORS | PLAIN, KEYS, least=1))
def test_names_and_paths_are_those_of_torch(tree: dict[str, Any]) -> None:
    try:
        leaves, mapping = flatten_state_dict(tree)
    except ValueError:
        with pytest.raises(pyckpt.OptionError, match="two entries of the state are called"):
            flatten(tree)
        return
    flat = flatten(tree)
    assert same({name: leaf for name, (_, leaf) in flat.items()}, leaves)
    assert mapping_of(flat) == mapping
    assert [list(map(type, path)) for path in mapping_of(flat).values()] == [
        list(map(type, path)) for path in mapping.values()
    ]
    assert same(nested(leaves, mapping), unflatten_state_dict(leaves, mapping))


@hypothesis.given(trees(TENSORS | PLAIN, st.text("ab", min_size=1, max_size=2), least=0))
def test_nested_brings_back_what_was_flat(tree: dict[str, Any]) -> None:
    """Also empty dicts, in lists too."""
    flat = flatten(tree)
    leaves = {name: leaf for name, (_, leaf) in flat.items()}
    assert same(nested(leaves, mapping_of(flat)), tree)


@pytest.mark.parametrize(
    "whole",
    [{}, Counter({30: 1, 80: 2}), {1: "a"}, {("a", 1): 2}, defaultdict(list, a=[1]), {True: 1}],
)
def test_what_torch_would_change_is_kept_whole(whole: Any) -> None:
    """torch would make texts of the milestones of a schedule, and its rates would be wrong."""
    tree = {"schedule": {"milestones": whole, "rest": [whole, {"a": 1}]}}
    flat = flatten(tree)
    assert flat["schedule.milestones"][1] is whole
    require_texts(flat)
    back = nested({name: leaf for name, (_, leaf) in flat.items()}, mapping_of(flat))
    assert back == tree
    assert type(back["schedule"]["milestones"]) is type(whole)


@pytest.mark.parametrize(
    "mapping", [{"a": ("x",), "b": ("x",)}, {"a": ("x",), "b": ("x", "y")}, {"a": (), "b": ("y",)}]
)
def test_paths_that_contradict_each_other(mapping: dict[str, tuple[str, ...]]) -> None:
    with pytest.raises(ValueError, match=r"cannot be inside|place of something else"):
        nested({"a": 1, "b": 2}, mapping)


def test_an_ordered_dict_is_taken_apart() -> None:
    assert list(flatten({"model": OrderedDict(a=1, b=2)})) == ["model.a", "model.b"]


def test_keys_that_would_become_texts_are_refused() -> None:
    flat = flatten({"own": {"by number": {7: torch.ones(1)}}})
    with pytest.raises(pyckpt.OptionError, match=r"'own.by number.7' .* the key 7 .* is no text"):
        require_texts(flat)


def test_positions_in_optimizers_are_not_refused() -> None:
    kept = {0: {"exp_avg": torch.ones(1)}}
    require_texts(flatten({"state": {"optimizers": {"Adam": {"state": kept}}}}))


def test_keys_with_dots_are_ambiguous() -> None:
    with pytest.raises(pyckpt.OptionError, match=r"two entries of the state are called 'a\.b'"):
        flatten({"a": {"b": 1}, "a.b": 2})


@hypothesis.given(trees(TENSORS | PLAIN, KEYS | st.integers(0, 3), least=0), st.data())
def test_replaced_changes_only_what_it_is_told(tree: dict[str, Any], data: Any) -> None:
    try:
        flat = flatten(tree)
    except pyckpt.OptionError:
        hypothesis.reject()
    names = data.draw(st.sets(st.sampled_from(sorted(flat)))) if flat else set()
    other = torch.ones(1)
    new = replaced(tree, {flat[name][0]: other for name in names})
    after = {name: leaf for name, (_, leaf) in flatten(new).items()}
    expected = {name: other if name in names else flat[name][1] for name in flat}
    assert same(after, expected)
    assert same(replaced(tree, {}), tree)


def test_replaced_keeps_the_types_of_containers() -> None:
    model: Any = OrderedDict(a=1)
    model._metadata = {"": {"version": 2}}
    new = replaced({"model": model, "milestones": Counter({3: 1})}, {("model", "a"): 2})
    assert type(new["model"]) is OrderedDict
    assert new["model"] == {"a": 2}
    assert new["model"]._metadata == {"": {"version": 2}}
    assert type(new["milestones"]) is Counter
    assert model["a"] == 1
