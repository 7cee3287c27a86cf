"""Puts together states of ranks that hold other parts of a model, such as stages of a pipeline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from pyckpt.ranks.exchange import Channel
from pyckpt.ranks.transfer import packed_together
from pyckpt.sharded.flat import Path, flatten, replaced
from pyckpt.sharded.optimizer_names import merge_groups

__all__ = ["Elsewhere", "merged", "outline", "packed_outline", "with_merged_groups"]


@dataclass(frozen=True)
class Elsewhere:
    """Stands for a tensor that another rank has.

    Attributes:
        name: Its name among the leaves of the state.
    """

    name: str


def outline(tree: Mapping[str, Any]) -> Any:
    """A copy of ``tree`` that can be sent: without the tensors, which Elsewhere stands for."""
    return replaced(
        tree,
        {
            path: Elsewhere(name)
            for name, (path, leaf) in flatten(tree).items()
            if isinstance(leaf, torch.Tensor)
        },
    )


def packed_outline(tree: Mapping[str, Any], channel: Channel) -> bytes:
    """The outline, pickled. Collective, since a rank may have what cannot be pickled.

    Raises:
        CheckpointError: A rank has.
    """
    return packed_together("collecting the training state", lambda: outline(tree), channel)


def merged(trees: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The union of nested dicts. Of what several ranks have, the first one's counts.

    Optimizers are to be by name. Their groups are merged: see ``merge_groups``.
    """
    out = _union(trees)
    return with_merged_groups(out, trees)


def with_merged_groups(
    tree: Mapping[str, Any], trees: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """``tree`` with the groups of the optimizers of all ``trees``.

    Raises:
        ShardedStateError: The groups do not fit together.
    """
    optimizers = tree.get("state", {}).get("optimizers", {})
    groups: dict[Path, Any] = {}
    for label in optimizers:
        path = ("state", "optimizers", label, "param_groups")
        found = [_at(one, path) for one in trees]
        present = [one for one in found if one is not None]
        if present:
            groups[path] = merge_groups(present, label)
    return dict(replaced(tree, groups))


def _at(tree: Any, path: Path) -> Any:
    for key in path:
        if not isinstance(tree, Mapping) or key not in tree:
            return None
        tree = tree[key]
    return tree


def _union(trees: Sequence[Mapping[str, Any]]) -> Any:
    first = trees[0]
    out: Any = replaced(first, {})
    for tree in trees[1:]:
        for key, value in tree.items():
            if key not in out:
                out[key] = value
            elif isinstance(value, Mapping) and isinstance(out[key], Mapping):
                out[key] = _union([out[key], value])
    return out
