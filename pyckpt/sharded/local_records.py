"""The bytes of all tensors that a rank has of a sharded state, staged before the plan is made.

Training waits until they are staged. Who saves which of them is found out later.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from pyckpt.errors import CheckpointError
from pyckpt.sharded.flat import flatten
from pyckpt.tensor_kinds import PLAIN_TENSORS, is_shard, local_parts
from pyckpt.torch_format.device_reader import memory_of
from pyckpt.torch_format.records import Record
from pyckpt.torch_format.serialize import serialize, spanned_records

__all__ = ["LocalRecords"]


class LocalRecords:
    """What this rank has of a state.

    Args:
        tree: The state.
        is_first: Whether this rank saves what all have alike.
        is_pipeline: Whether ranks have parts of the model that the first one lacks.
        is_compact: Whether plain tensors are saved without the rest of their storages.

    Attributes:
        tree: The state; a copy of it once it is staged, except for the tensors.
        records: Where the bytes are.
    """

    def __init__(
        self, tree: Mapping[str, Any], *, is_first: bool, is_pipeline: bool, is_compact: bool
    ) -> None:
        self.tree = tree
        self._staged: dict[tuple[int, int, int], Record] | None = None
        parts: list[torch.Tensor] = []
        plain: list[torch.Tensor] = []
        for _, leaf in flatten(tree).values():
            is_plain = type(leaf) in PLAIN_TENSORS
            if not is_plain and not isinstance(leaf, torch.Tensor) and not is_shard(leaf):
                continue
            if is_plain and not (is_first or is_pipeline):
                continue  # all have it alike
            if is_plain and is_first and not is_compact:
                plain.append(leaf)
            else:
                parts += local_parts(leaf)
        records = spanned_records(parts)
        records += [one for one in serialize(plain) if one.is_storage]
        self.records = list({memory_of(one): one for one in records if one.nbytes}.values())

    def stage(self, records: Sequence[Record]) -> None:
        """Replaces ``records`` by copies of the same bytes, in the same order."""
        self._staged = {memory_of(old): new for old, new in zip(self.records, records, strict=True)}
        tensors = {id(one): one for one in _tensors(self.tree)}
        self.tree = copy.deepcopy(self.tree, tensors)

    def staged(self, record: Record) -> Record:
        """The copy of a record; the record itself if nothing is staged.

        Raises:
            CheckpointError: It was not staged.
        """
        if self._staged is None or not record.nbytes:
            return record
        copied = self._staged.get(memory_of(record))
        if copied is None:
            raise CheckpointError(
                "a tensor is saved that was not there when the state was staged: save it with "
                "save_checkpoint"
            )
        return record._replace(address=copied.address, reader=copied.reader, owner=copied.owner)


def _tensors(node: Any) -> Iterator[Any]:
    if isinstance(node, torch.Tensor) or is_shard(node):
        yield node
    elif isinstance(node, Mapping):
        for value in node.values():
            yield from _tensors(value)
    elif isinstance(node, list | tuple):
        for value in node:
            yield from _tensors(value)
