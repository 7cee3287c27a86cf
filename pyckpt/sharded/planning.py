"""Who saves which part of which tensor: torch's plan, made over a channel.

The engine is the planner of torch.distributed.checkpoint. Each rank lists the shards that it has.
The first rank drops what several have, checks that every tensor is whole, and tells each rank what
is left for it.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import SavePlan, WriteItem, WriteItemType

from pyckpt.errors import ShardedStateError
from pyckpt.ranks.exchange import Channel, together
from pyckpt.ranks.transfer import hand_out, packed_together, to_first

__all__ = ["SharedPlan", "plan_together"]

_PLANNING = "planning the checkpoint"


@dataclass(frozen=True)
class SharedPlan:
    """What all ranks save.

    Attributes:
        planner: Has this rank's data: ``planner.resolve_data(item)``.
        own: What this rank saves.
        every: What each rank saves, by rank. Empty but on the first rank.
        metadata: Which tensors there are, of which chunks. None but on the first rank.
    """

    planner: DefaultSavePlanner
    own: Sequence[WriteItem]
    every: Sequence[Sequence[WriteItem]]
    metadata: Metadata | None

    def tensors(self) -> list[torch.Tensor]:
        """The tensors that this rank saves, on their devices, in the order of ``own``."""
        with torch.no_grad():
            found: list[Any] = [
                self.planner.resolve_data(item)
                for item in self.own
                if item.type != WriteItemType.BYTE_IO
            ]
        return [tensor.detach() for tensor in found]


def plan_together(
    leaves: Mapping[str, Any],
    paths: Mapping[str, tuple[Any, ...]],
    channel: Channel,
    *,
    prefer_first: bool,
) -> SharedPlan:
    """Plans a save of what all ranks have. Collective.

    If all ranks have the same shards as the last time, the last plan holds.

    Args:
        leaves: What this rank has, by name.
        paths: Where each is in the nested state. They become the metadata's ``planner_data``.
        prefer_first: Whether the lowest rank saves what several have. Otherwise it is spread.

    Raises:
        ShardedStateError: The shards do not make up whole tensors.
    """
    # The leaves are flat. With either flag, torch would take apart those that are dicts.
    planner = DefaultSavePlanner(
        flatten_state_dict=False,
        flatten_sharded_tensors=False,
        dedup_save_to_lowest_rank=prefer_first,
    )

    remembered = _remembered.get((channel.members, prefer_first))
    local: list[SavePlan] = []

    def make_local() -> bool:
        planner.set_up_planner(dict(leaves), is_coordinator=channel.rank == 0)
        local.append(replace(planner.create_local_plan(), planner_data=dict(paths)))
        return remembered is not None and remembered.local == local[0]

    are_known = together(_PLANNING, make_local, channel)
    if remembered is not None and all(are_known):
        return SharedPlan(planner, remembered.own, remembered.every, remembered.metadata)
    local_plans = to_first(packed_together(_PLANNING, lambda: local[0], channel), channel)
    made: list[tuple[list[SavePlan], Metadata]] = []
    packed: list[bytes] = []

    def make_global() -> None:
        if local_plans is not None:
            made.append(_made_global(planner, [pickle.loads(plan) for plan in local_plans]))
            packed.extend(map(pickle.dumps, made[0][0]))

    together(_PLANNING, make_global, channel)
    own = planner.finish_plan(pickle.loads(hand_out(packed, channel))).items
    plans, metadata = made[0] if made else ([], None)
    every = [plan.items for plan in plans]
    _remembered.pop((channel.members, prefer_first), None)
    if sum(map(len, every)) + len(own) <= _MOST_REMEMBERED:
        _remembered[channel.members, prefer_first] = _Remembered(local[0], own, every, metadata)
    return SharedPlan(planner, own, every, metadata)


@dataclass(frozen=True)
class _Remembered:
    """The last plan of some ranks. It holds as long as each of them has the same shards."""

    local: SavePlan
    own: Sequence[WriteItem]
    every: Sequence[Sequence[WriteItem]]
    metadata: Metadata | None


# By the ranks, and by who is preferred. A plan has about a kilobyte for each item.
_remembered: dict[tuple[tuple[int, ...], bool], _Remembered] = {}
_MOST_REMEMBERED = 100_000  # items


def _made_global(
    planner: DefaultSavePlanner, plans: list[SavePlan]
) -> tuple[list[SavePlan], Metadata]:
    try:
        global_plans, metadata = planner.create_global_plan(plans)
    except (AssertionError, IndexError, ValueError) as error:  # what torch's planner raises
        raise ShardedStateError(f"the ranks' shards do not fit together: {error}") from error
    paths: dict[str, Any] = {}
    for plan in reversed(plans):
        paths.update(plan.planner_data)
    return global_plans, replace(metadata, planner_data=paths)
