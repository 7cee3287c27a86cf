"""What ignore_keys leaves out. test_composer.py compares it with Composer's ignore_keys."""

from __future__ import annotations

import collections
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import pyckpt
from pyckpt.key_paths import only, path_of, without_ignored


def tree() -> dict[str, Any]:
    return {
        "state": {
            "model": {"0.weight": 1, "0.bias": 2, "1.weight": 3},
            "optimizers": {"AdamW": {"state": {0: {"step": 5}}, "param_groups": [{"lr": 1}, 6]}},
            "callbacks": [("tuple", {"inside": 7}), ["a", "b", "c", "d"]],
        },
        "rng": [{"python": 8}, {"python": 9}],
    }


def paths(node: Any, prefix: str = "") -> set[str]:
    """The paths of everything below ``node`` that a glob can match."""
    items: Any = ()
    if isinstance(node, dict):
        items = node.items()
    elif isinstance(node, list):
        items = enumerate(node)
    found = set()
    for key, value in items:
        found |= {f"{prefix}{key}"} | paths(value, f"{prefix}{key}/")
    return found


@pytest.mark.parametrize(
    ("glob", "gone"),
    [
        ("rng", {"rng"}),
        ("state/model/0.weight", {"state/model/0.weight"}),
        ("state/model/0.*", {"state/model/0.weight", "state/model/0.bias"}),
        ("*weight", {"state/model/0.weight", "state/model/1.weight"}),
        ("state/*/0*", {"state/model/0.weight", "state/model/0.bias", "state/callbacks/0"}),
        ("state/model/?.weight", {"state/model/0.weight", "state/model/1.weight"}),
        ("state/model/[!0].weight", {"state/model/1.weight"}),
        ("state/optimizers/AdamW/state/0/step", {"state/optimizers/AdamW/state/0/step"}),
        ("*/lr", {"state/optimizers/AdamW/param_groups/0/lr"}),
        ("rng/*/python", {"rng/0/python", "rng/1/python"}),
        ("*", {"state", "rng"}),
    ],
)
def test_globs(glob: str, gone: set[str]) -> None:
    left = without_ignored(tree(), glob)
    if glob == "state/*/0*":  # matches across "/" too
        gone = gone | {"state/optimizers/AdamW/state/0", "state/optimizers/AdamW/param_groups/0"}
    shifted = {"state/callbacks/0", "state/optimizers/AdamW/param_groups/0"} & gone
    expected = {
        path
        for path in paths(tree())
        if not any(path == name or path.startswith(f"{name}/") for name in gone)
    }
    if not shifted:
        assert paths(left) == expected
    assert without_ignored(tree(), [glob]) == left


def test_several_items_of_a_list() -> None:
    left = without_ignored(tree(), ["state/callbacks/1/[02]"])
    assert left["state"]["callbacks"][1] == ["b", "d"]
    assert without_ignored(tree(), "rng/*")["rng"] == []


def test_what_is_no_dict_and_no_list_is_whole() -> None:
    with pytest.warns(UserWarning, match="nothing matches"):
        left = without_ignored(tree(), "*inside")
    assert left == tree()


def test_all_globs_mean_the_tree_as_it_was() -> None:
    left = without_ignored(tree(), ["rng/0", "rng/1", "state", "state/model/*"])
    assert left == {"rng": []}


def test_the_tree_stays_as_it_is_and_values_are_not_copied() -> None:
    weights = torch.ones(3)
    original = {"state": {"a": weights, "b": [weights, {"c": weights}]}}
    left = without_ignored(original, ["state/b/1"])
    assert left["state"]["a"] is left["state"]["b"][0] is weights
    assert len(original["state"]["b"]) == 2
    assert without_ignored(original, None) is original


def test_kinds_of_dicts_are_kept() -> None:
    ordered: Any = collections.OrderedDict(a=1, b=2, c=3)
    ordered._metadata = {"version": 1}  # as a module's state dict has it
    counted = collections.Counter(x=2, y=3)
    left = without_ignored({"ordered": ordered, "counted": counted}, ["*/b", "*/x"])
    assert type(left["ordered"]) is collections.OrderedDict
    assert list(left["ordered"]) == ["a", "c"]
    assert left["ordered"]._metadata == {"version": 1}
    assert left["counted"] == collections.Counter(y=3)
    assert list(ordered) == ["a", "b", "c"]


def test_a_callable_edits_a_copy() -> None:
    def edit(contents: dict[str, Any]) -> None:
        del contents["state"]["model"]["0.bias"]
        contents["rng"].pop()
        contents["new"] = 1

    original = tree()
    left = without_ignored(original, edit)
    assert original == tree()
    assert list(left["state"]["model"]) == ["0.weight", "1.weight"]
    assert left["rng"] == [{"python": 8}]
    assert left["new"] == 1


def test_a_glob_without_a_match_warns_and_a_wrong_one_raises() -> None:
    with pytest.warns(UserWarning, match="nothing matches 'state/modle'"):
        assert without_ignored(tree(), "state/modle") == tree()
    for wrong in ([3], ["rng", None], 3):
        with pytest.raises(pyckpt.OptionError, match="globs"):
            without_ignored(tree(), wrong)  # type: ignore[arg-type]


NESTED = st.recursive(
    st.integers(),
    lambda inner: (
        st.dictionaries(st.sampled_from("abc") | st.integers(0, 2), inner, max_size=3)
        | st.lists(inner, max_size=3)
    ),
    max_leaves=12,
)


@given(st.dictionaries(st.sampled_from("abc"), NESTED, min_size=1), st.data())
def test_a_path_names_one_part(node: dict[str, Any], data: st.DataObject) -> None:
    chosen = data.draw(st.sampled_from(sorted(paths(node))))
    left = without_ignored(node, chosen)
    parts = chosen.split("/")
    below: Any = node
    kept: Any = left
    for part in parts[:-1]:
        assert len(kept) == len(below)
        key = int(part) if isinstance(below, list) or int_key(below, part) else part
        below, kept = below[key], kept[key]
    removed = 1 + (isinstance(below, dict) and {parts[-1], int_of(parts[-1])} <= set(below))
    assert len(kept) == len(below) - removed


def int_of(part: str) -> int | None:
    return int(part) if part.isdigit() else None


def int_key(node: Any, part: str) -> bool:
    return part.isdigit() and int(part) in node


def test_what_contains_itself() -> None:
    tree: dict[str, Any] = {"a": {"b": 1, "c": [2]}, "list": [0]}
    tree["a"]["up"] = tree
    tree["list"].append(tree["list"])
    left = without_ignored(tree, ["a/b", "list/0"])
    assert left["a"].keys() == {"c", "up"}
    assert left["a"]["up"] is left
    assert left["list"] == [left["list"]]
    assert tree["a"]["b"] == 1
    kept = only(tree, ["a/c"])
    assert kept == {"a": {"c": [2]}}
    assert without_ignored(tree, lambda state: state.pop("list"))["a"]["up"].keys() == {"a"}


def test_any_depth() -> None:
    tree: Any = {"x": 1, "y": 2}
    for _ in range(5000):
        tree = {"a": tree}
    path = "a/" * 5000 + "x"
    for left in (without_ignored(tree, path), only(tree, [path[:-1] + "y"])):
        for _ in range(5000):
            left = left["a"]
        assert left == {"y": 2}


def test_the_path_of_a_value() -> None:
    wanted = object()
    tree = {"a": [1, ({b"k": wanted},)], "b": wanted}
    assert path_of(tree, lambda value: value is wanted) == "a/1/0/k"
    assert path_of(tree, lambda value: value == 7) is None
