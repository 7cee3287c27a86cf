"""A state of which every rank has a part, written by every rank to an archive of its own.

Every shard is a member: see members.py. The first archive also has torch's ``.metadata``, which
names the members. So the archives, extracted into one folder, are a checkpoint of
torch.distributed.checkpoint.
"""

from __future__ import annotations

import pickle
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex

from pyckpt.archive.writer import ArchiveWriter
from pyckpt.ranks.exchange import Channel, together
from pyckpt.ranks.transfer import hand_out, packed_together, to_first
from pyckpt.sharded.dcp_metadata import dump_metadata
from pyckpt.sharded.flat import Path as LeafPath
from pyckpt.sharded.flat import flatten, mapping_of, require_texts
from pyckpt.sharded.members import add_shards
from pyckpt.sharded.merge import packed_outline, with_merged_groups
from pyckpt.sharded.part import METADATA, Part
from pyckpt.sharded.planning import plan_together
from pyckpt.storage.urls import Location
from pyckpt.tensor_kinds import PLAIN_TENSORS
from pyckpt.torch_format.records import Record

__all__ = ["add_sharded_state"]

_COLLECTING = "collecting the training state"


def add_sharded_state(
    writer: ArchiveWriter,
    tree: Mapping[str, Any],
    paths: Sequence[Location],
    staged: Callable[[Record], Record],
    channel: Channel,
    *,
    is_pipeline: bool,
) -> None:
    """Adds what this rank saves of the state to its archive, which is then planned. Collective.

    Args:
        writer: This rank's.
        tree: What this rank has, with optimizers by name.
        paths: The archives of all ranks.
        staged: The record of a copy of a record's bytes, or the record itself.
        is_pipeline: Whether some ranks have what the first one lacks.

    Raises:
        CheckpointError: A rank failed.
    """
    trees = to_first(packed_outline(tree, channel), channel) if is_pipeline else None
    chosen: dict[str, tuple[LeafPath, Any]] = {}

    def choose() -> None:
        whole = tree
        if trees is not None:
            whole = with_merged_groups(tree, [pickle.loads(one) for one in trees])
        chosen.update(_chosen(whole, is_first=channel.rank == 0, is_pipeline=is_pipeline))

    together(_COLLECTING, choose, channel)
    leaves = {name: leaf for name, (_, leaf) in chosen.items()}
    plan = plan_together(leaves, mapping_of(chosen), channel, prefer_first=False)
    ids = [uuid.uuid4().hex.encode()] * channel.size if channel.rank == 0 else None
    save_id = hand_out(ids, channel).decode()
    stored: list[tuple[MetadataIndex, _StorageInfo]] = []

    def add() -> None:
        with torch.no_grad():
            added = add_shards(writer, plan.own, plan.planner, channel.rank)
        part = Part.of(save_id, channel.rank, paths)
        writer.add_bytes(part.member, part.to_bytes())
        writer.replace_state_records([staged(one) for one in writer.state_records()])
        if channel.rank == 0:
            sizes = writer.sizes()  # the metadata is still to come
        else:
            writer.plan()
            sizes = {name: writer.place(name)[1] for _, name in added}
        stored.extend((index, _StorageInfo(name, 0, sizes[name])) for index, name in added)

    together(_COLLECTING, add, channel)
    packed = to_first(packed_together(_COLLECTING, lambda: stored, channel), channel)

    def add_metadata() -> None:
        if packed is not None:
            assert plan.metadata is not None
            every = [pickle.loads(one) for one in packed]
            writer.add_bytes(METADATA, _metadata_file(plan.metadata, every))
            writer.plan()

    together(_COLLECTING, add_metadata, channel)


def _chosen(
    tree: Mapping[str, Any], *, is_first: bool, is_pipeline: bool
) -> dict[str, tuple[LeafPath, Any]]:
    """What this rank offers to save. What all ranks have alike is the first one's to save."""
    flat = flatten(tree)
    require_texts(flat)
    if is_first:
        return flat
    return {
        name: (path, leaf)
        for name, (path, leaf) in flat.items()
        if (isinstance(leaf, torch.Tensor) and (is_pipeline or type(leaf) not in PLAIN_TENSORS))
        or (is_pipeline and _belongs_to_a_part(path))
    }


def _belongs_to_a_part(path: LeafPath) -> bool:
    """Whether it is of a part of the model, so that the first rank may lack it."""
    if path[:2] == ("state", "optimizers"):
        return path[3:4] == ("state",)  # the first rank has the groups of all
    return path[:2] == ("state", "model")


def _metadata_file(
    metadata: Metadata, stored: Sequence[Sequence[tuple[MetadataIndex, _StorageInfo]]]
) -> bytes:
    """torch's ``.metadata``, for the folder into which all archives are extracted."""
    places = {index: place for of_rank in stored for index, place in of_rank}
    return dump_metadata(replace(metadata, storage_data=places))
