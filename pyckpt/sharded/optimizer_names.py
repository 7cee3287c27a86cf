"""Optimizer states by the names of parameters, and by their positions.

torch's optimizers number their parameters. Numbers mean nothing on a rank that has another part of
the model, so sharded states go by name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pyckpt.errors import ShardedStateError

__all__ = [
    "by_name",
    "by_position",
    "is_by_position",
    "merge_groups",
    "merged_names",
    "with_numbers",
]


def by_name(saved: Mapping[str, Any], optimizer: Any, names: Mapping[int, str]) -> dict[str, Any]:
    """What ``optimizer.state_dict()`` returned, with names instead of positions.

    Args:
        saved: The state dict.
        names: The name of each parameter of the optimizer, by ``id()``.
    """
    order = [names[id(one)] for group in optimizer.param_groups for one in group["params"]]
    return {
        **saved,
        "state": {
            order[key] if type(key) is int and key < len(order) else key: value
            for key, value in saved["state"].items()
        },
        "param_groups": [
            {**group, "params": [order[position] for position in group["params"]]}
            for group in saved["param_groups"]
        ],
    }


def is_by_position(saved: Any) -> bool:
    """Whether it is the state of an optimizer whose parameters have numbers."""
    if not isinstance(saved, Mapping) or not isinstance(saved.get("state"), Mapping):
        return False
    groups = saved.get("param_groups")
    if not isinstance(groups, list) or not all(
        isinstance(one, Mapping) and "params" in one for one in groups
    ):
        return False
    return not any(isinstance(one, str) for group in groups for one in group["params"])


def with_numbers(saved: Any) -> Any:
    """An optimizer's state whose positions have become texts, with numbers again."""
    if not is_by_position(saved):
        return saved
    state = {
        int(key) if isinstance(key, str) and key.isdecimal() else key: value
        for key, value in saved["state"].items()
    }
    return {**saved, "state": state}


def by_position(named: Mapping[str, Any]) -> dict[str, Any]:
    """The reverse of ``by_name``: positions in the order of the groups."""
    order = [name for group in named["param_groups"] for name in group["params"]]
    positions = {name: position for position, name in enumerate(order)}
    return {
        **named,
        "state": {positions.get(key, key): value for key, value in named["state"].items()},
        "param_groups": [
            {**group, "params": [positions[name] for name in group["params"]]}
            for group in named["param_groups"]
        ],
    }


def merged_names(by_rank: Sequence[Sequence[str]]) -> list[str]:
    """The names of the parameters of all ranks, each once.

    If each rank lists its own in the order of its modules, as ``model.parameters()`` does, the
    result has that order too. So an optimizer of the whole model finds its parameters by their
    positions. Else those of the ranks follow one another.
    """
    names = list(dict.fromkeys(name for of_rank in by_rank for name in of_rank))
    if all(list(of_rank) == _in_module_order(of_rank) for of_rank in by_rank):
        return _in_module_order(names)
    return names


def _in_module_order(names: Sequence[str]) -> list[str]:
    """A module's own parameters first, then those of its parts, part by part."""
    own = [name for name in names if "." not in name]
    parts: dict[str, list[str]] = {}
    for name in names:
        part, dot, rest = name.partition(".")
        if dot:
            parts.setdefault(part, []).append(rest)
    return own + [
        f"{part}.{rest}" for part, rests in parts.items() for rest in _in_module_order(rests)
    ]


def merge_groups(
    by_rank: Sequence[Sequence[Mapping[str, Any]]], label: str
) -> list[dict[str, Any]]:
    """The groups of an optimizer of which every rank has the parameters of its part of the model.

    Group by group, the parameters of all ranks stand in the order of ``merged_names``.

    Args:
        by_rank: ``param_groups`` of each rank, by name.
        label: The optimizer's name, for messages.

    Raises:
        ShardedStateError: The ranks have other numbers of groups, or a group's options differ.
    """
    first = by_rank[0]
    for rank, groups in enumerate(by_rank):
        if len(groups) != len(first):
            raise ShardedStateError(
                f"{label} has {len(first)} groups of parameters on one rank, and {len(groups)} on "
                "another: make the same groups on every rank",
                rank=rank,
            )
        for index, (ours, theirs) in enumerate(zip(first, groups, strict=True)):
            for key in ours.keys() | theirs.keys():
                if key != "params" and not _equal(ours.get(key), theirs.get(key)):
                    raise ShardedStateError(
                        f"{label}: {key!r} of group {index} differs between ranks: "
                        f"{ours.get(key)!r} and {theirs.get(key)!r}",
                        rank=rank,
                    )
    return [
        {**group, "params": merged_names([groups[index]["params"] for groups in by_rank])}
        for index, group in enumerate(first)
    ]


def _equal(one: Any, other: Any) -> bool:
    try:
        return bool(one == other)
    except (RuntimeError, ValueError, TypeError):  # tensors of several elements, say
        return repr(one) == repr(other)
