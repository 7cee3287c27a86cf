"""A state of which every rank has a part, written as one file by the first rank.

The first rank's pickle has hollow tensors where the parts are put together: see gather.py.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from pyckpt.ranks.exchange import Channel, together
from pyckpt.ranks.transfer import hand_out, to_first
from pyckpt.sharded.flat import Path, flatten, mapping_of, replaced
from pyckpt.sharded.gather import Gathered, Gathering, Piece, requests_of, serve, share_nbytes
from pyckpt.sharded.merge import Elsewhere, merged, packed_outline
from pyckpt.sharded.planning import SharedPlan, plan_together
from pyckpt.sharded.shard import Shard
from pyckpt.tensor_kinds import PLAIN_TENSORS
from pyckpt.torch_format.hollow import hollow_storages, hollow_tensor
from pyckpt.torch_format.records import Record

__all__ = ["FullState"]

_COLLECTING = "collecting the training state"


class FullState:
    """What this rank has of the state, and on the first rank the state that is to be written.

    Call ``collect``; the first rank then pickles ``tree``, and passes its records to ``bind``.
    ``agree`` follows, and ``run`` on all ranks: the first one writes, and the others send.

    Attributes:
        tree: On the first rank, the whole state; some tensors in it are hollow.
        shards: What this rank has, in memory that may be staged.
    """

    def __init__(self) -> None:
        self.tree: dict[str, Any] = {}
        self.shards: list[Shard] = []
        self._hollow: dict[int, Gathered] = {}  # by the storage's _cdata
        self._gathering: Gathering | None = None
        self._tensors: Sequence[Gathered] = ()  # in the order of the file
        self._requests: Sequence[Sequence[int]] = ()
        self._room = torch.UntypedStorage(0)  # for what this rank sends at a time

    def collect(self, tree: Mapping[str, Any], channel: Channel, *, is_pipeline: bool) -> None:
        """Finds out who has what. Collective.

        Args:
            tree: What this rank has, with optimizers by name.
            is_pipeline: Whether some ranks have what the first one lacks.
        """
        flat = flatten(tree)
        tensors = {name: one for name, one in flat.items() if isinstance(one[1], torch.Tensor)}
        plan = plan_together(
            {name: leaf for name, (_, leaf) in tensors.items()},
            mapping_of(tensors),
            channel,
            prefer_first=True,
        )

        def make_shards() -> None:
            self.shards = Shard.all_of(plan.tensors())

        together(_COLLECTING, make_shards, channel)
        packed = to_first(packed_outline(tree, channel), channel) if is_pipeline else []

        def make_tree() -> None:
            if channel.rank == 0:
                assert packed is not None
                others = [pickle.loads(one) for one in packed[1:]]
                self._make_tree(merged([tree, *others]) if is_pipeline else tree, plan)

        together(_COLLECTING, make_tree, channel)

    def bind(self, records: Sequence[Record]) -> list[Record]:
        """Lets the records of hollow tensors read what is gathered. On the first rank.

        Args:
            records: Those of the pickled ``tree``, in the order of the file.
        """
        hollow = [r for r in records if r.owner._cdata in self._hollow and r.nbytes]
        self._tensors = [self._hollow[record.owner._cdata] for record in hollow]
        gathering = self._gathering = Gathering(self._tensors)
        numbers = {record.owner._cdata: number for number, record in enumerate(hollow)}
        return [
            record
            if record.owner._cdata not in numbers
            else record._replace(
                address=0,
                reader=gathering.reader(numbers[record.owner._cdata]),
                is_storage=False,
            )
            for record in records
        ]

    def agree(self, channel: Channel) -> None:
        """Tells every rank what it will send. Collective, after ``bind``."""
        requests = requests_of(self._tensors, channel.size) if channel.rank == 0 else ()
        self._requests = pickle.loads(hand_out([*map(pickle.dumps, requests)], channel))
        nbytes = share_nbytes(self._requests, self.shards)

        def make_room() -> None:
            [self._room] = hollow_storages([nbytes])

        together(_COLLECTING, make_room, channel)

    def stage(self, staged: Callable[[Record], Record]) -> None:
        """Replaces the records of what this rank sends or puts in, by ``staged`` ones."""
        wanted = {number for numbers in self._requests for number in numbers}
        for number in wanted:
            shard = self.shards[number]
            self.shards[number] = shard.staged(staged(shard.record))

    def run(
        self, before: Callable[[], None], write: Callable[[], Any] | None, channel: Channel
    ) -> None:
        """Writes on the first rank, and sends on the others, at the same time.

        Args:
            before: Called before anything is read.
            write: Writes the file, on the first rank; None on the others.
        """
        if write is None:
            serve(self._requests, self.shards, self._room, before, channel)
            return
        assert self._gathering is not None
        with self._gathering.running(self.shards, channel):
            before()
            write()

    def _make_tree(self, tree: Mapping[str, Any], plan: SharedPlan) -> None:
        """The whole state. Tensors that are whole on this rank are taken as they are."""
        assert plan.metadata is not None
        pieces = _pieces(plan)
        leaves: dict[Path, Any] = {}
        gathered: dict[Any, tuple[Gathered, list[Path]]] = {}
        for name, (path, leaf) in flatten(tree).items():
            if not isinstance(leaf, torch.Tensor | Elsewhere):
                continue
            its_pieces = pieces[name]
            if type(leaf) in PLAIN_TENSORS and all(piece.rank == 0 for piece in its_pieces):
                continue
            stored = plan.metadata.state_dict_metadata[name]
            assert isinstance(stored, TensorStorageMetadata)
            tensor = Gathered(stored.properties.dtype, tuple(stored.size), tuple(its_pieces))
            gathered.setdefault(_identity(leaf, name), (tensor, []))[1].append(path)
        storages = hollow_storages([tensor.nbytes for tensor, _ in gathered.values()])
        for storage, (tensor, paths) in zip(storages, gathered.values(), strict=True):
            self._hollow[storage._cdata] = tensor
            leaves.update(dict.fromkeys(paths, hollow_tensor(storage, tensor.dtype, tensor.shape)))
        self.tree = dict(replaced(tree, leaves))


def _identity(leaf: Any, name: str) -> Any:
    """Equal for names of one tensor, such as tied weights."""
    local = getattr(leaf, "_local_tensor", None)
    if local is None or not local.data_ptr():
        return name
    return local.data_ptr(), tuple(leaf.shape), tuple(leaf.placements), leaf.dtype


def _pieces(plan: SharedPlan) -> dict[str, list[Piece]]:
    """Who has what of each tensor."""
    pieces: dict[str, list[Piece]] = {}
    for rank, items in enumerate(plan.every):
        number = 0
        for item in items:
            if item.tensor_data is None:
                continue
            chunk = item.tensor_data.chunk
            piece = Piece(rank, number, tuple(chunk.offsets), tuple(chunk.sizes))
            pieces.setdefault(item.index.fqn, []).append(piece)
            number += 1
    return pieces
