"""A checkpoint whose tensors are read only where they are wanted, and only the wanted parts.

The tree of an outline has all that the checkpoint holds, but its tensors are hollow: they have
shapes and no bytes. ``read`` fills tensors with parts of them.
"""

from __future__ import annotations

import sys
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list

from pyckpt.archive.formats import STATES_MEMBER
from pyckpt.archive.load import load
from pyckpt.archive.reader import ArchiveReader, Contents
from pyckpt.errors import CheckpointError, CorruptArchiveError, MixedFilesError
from pyckpt.sharded.dcp_metadata import load_metadata
from pyckpt.sharded.flat import nested
from pyckpt.sharded.members import rank_of
from pyckpt.sharded.optimizer_names import with_numbers
from pyckpt.sharded.part import METADATA, Part, find_part
from pyckpt.sharded.shard_reader import ShardReader, Wanted
from pyckpt.storage.inputs import InputFile
from pyckpt.storage.object_file import replaced
from pyckpt.storage.urls import Location, StorageOptions, beside
from pyckpt.torch_format.deserialize import Outlined, byte_order, outlined
from pyckpt.torch_format.hollow import hollow_storages, hollow_tensor
from pyckpt.torch_format.tensor_slices import CheckedRecord, TensorSlice, part_of, read_slices
from pyckpt.torch_format.torch_file import STORAGES, TorchFile

__all__ = ["ArchiveSet", "Outline", "Slice", "whole_file"]


@dataclass(frozen=True)
class Slice:
    """A part of a tensor of an outline, and where it is wanted.

    Attributes:
        name: The tensor's name, for messages.
        tensor: The hollow tensor.
        offsets: Where the part begins in each dimension.
        out: A tensor on the CPU that has the shape of the part.
    """

    name: str
    tensor: torch.Tensor
    offsets: tuple[int, ...]
    out: torch.Tensor


class Outline(ABC):
    """A checkpoint as a tree of hollow tensors.

    Attributes:
        tree: What the checkpoint holds.
    """

    tree: dict[str, Any]

    @abstractmethod
    def read(self, slices: Sequence[Slice], whole: Sequence[tuple[str, torch.Tensor]]) -> None:
        """Reads parts of tensors. Call it once.

        Args:
            slices: The parts.
            whole: Names, for messages, and hollow tensors that get all their bytes.

        Raises:
            CorruptArchiveError: Something is damaged. The message names it.
            CheckpointError: A file is missing, or is not of this checkpoint.
        """


class FullFile(Outline):
    """A file of torch.save, or a member of an archive, whose parts have known places.

    Args:
        reader: The archive.
        file: The file in it. All of its records are stored without compression of their own.
        weights_only: As in ``pyckpt.load``.

    Raises:
        CorruptArchiveError, pickle.UnpicklingError: As ``pyckpt.load``.
    """

    def __init__(self, reader: ArchiveReader, file: TorchFile, *, weights_only: bool) -> None:
        self._reader = reader
        self._outlined: Outlined = outlined(file, weights_only=weights_only)
        self.tree = self._outlined.obj
        self._is_foreign = byte_order(file) != sys.byteorder
        records = [file.records[f"{STORAGES}{key}"] for key in self._outlined.keys.values()]
        places = file.locate(records)
        self._records = {
            at: CheckedRecord(*place, record.crc)
            for at, place, record in zip(self._outlined.keys, places, records, strict=True)
        }

    def read(self, slices: Sequence[Slice], whole: Sequence[tuple[str, torch.Tensor]]) -> None:
        """See Outline."""
        storages = {t.untyped_storage()._cdata: (name, t) for name, t in whole}
        parts = [*slices, *(self._all_of(name, tensor) for name, tensor in storages.values())]
        wanted = [self._slice(one) for one in parts]
        read_slices(self._reader, sorted(wanted, key=lambda one: one.position))

    def _all_of(self, name: str, tensor: torch.Tensor) -> Slice:
        """The whole storage of a tensor, which others may share."""
        storage: Any = tensor.untyped_storage()
        whole = torch.empty(0, dtype=torch.uint8, device="cpu").set_(storage)
        if self._is_foreign:
            whole = whole.view(tensor.dtype)
        return Slice(name, whole, (0,), whole)

    def _slice(self, one: Slice) -> TensorSlice:
        tensor = one.tensor
        record = self._records[tensor.untyped_storage()._cdata]
        return TensorSlice(
            f"tensor {one.name!r}",
            record.offset + int(tensor.storage_offset()) * tensor.element_size(),
            tensor.dtype,
            tensor.stride(),
            one.offsets,
            tuple(one.out.shape),
            one.out,
            record,
            self._is_foreign,
        )


class LoadedFile(Outline):
    """A file that has to be read as a whole: those of other programs, and torch's old format.

    Its tensors are not hollow.

    Args, Raises:
        As ``FullFile``.
    """

    def __init__(self, file: Any, *, num_threads: int | None, weights_only: bool) -> None:
        self.tree = load(file, num_threads=num_threads, weights_only=weights_only)

    def read(self, slices: Sequence[Slice], whole: Sequence[tuple[str, torch.Tensor]]) -> None:
        """See Outline."""
        for one in slices:
            one.out.copy_(part_of(one.tensor, one.offsets, one.out.shape))


def whole_file(input_file: InputFile, *, num_threads: int | None, weights_only: bool) -> Outline:
    """The outline of one file with the whole state. Raises as ``pyckpt.load``."""
    reader = ArchiveReader(input_file, num_threads=num_threads)
    if not reader.is_ordered:
        member = reader.find(STATES_MEMBER) if reader.is_tar else reader.whole()
        if reader.contents(member.offset) is Contents.TORCH_ZIP:
            file = TorchFile(reader, member.offset, member.nbytes)
            if file.holds_object and all(record.stored for record in file.records.values()):
                return FullFile(reader, file, weights_only=weights_only)
    return LoadedFile(input_file, num_threads=num_threads, weights_only=weights_only)


class ArchiveSet(Outline):
    """The archives that the ranks of one save have written.

    Args:
        path: Any of them.
        part: What it says of itself.

    Raises:
        CheckpointError: The first archive is missing.
        MixedFilesError: The archives are not of one save.
        CorruptArchiveError: The first archive is damaged.
    """

    def __init__(
        self,
        path: Location,
        part: Part,
        *,
        num_threads: int | None,
        weights_only: bool,
        storage_options: StorageOptions = None,
    ) -> None:
        self._given = path
        self._part = part
        self._weights_only = weights_only
        self._shards = ShardReader(
            num_threads, storage_options=storage_options, check=self._require_part
        )
        self._ranks: dict[Location, int] = {}  # by the paths of their archives
        self._seen: set[int] = set()
        first = self._path(0)
        self._look(0)
        data = self._shards.read_bytes(first, member=METADATA)
        self._metadata: Metadata = load_metadata(data, first)
        self._names: dict[int, str] = {}  # of hollow tensors, by their storages
        self.tree = self._tree()

    def read(self, slices: Sequence[Slice], whole: Sequence[tuple[str, torch.Tensor]]) -> None:
        """See Outline."""
        parts = [*slices, *(Slice(name, t, (0,) * t.dim(), t) for name, t in whole)]
        wanted = [one for part in parts for one in self._wanted(part)]
        for rank in sorted({rank_of(one.member or "") for one in wanted}):
            self._look(rank)
        self._shards.read(wanted)

    def _path(self, rank: int) -> Location:
        path = beside(self._given, self._part.files[rank])
        self._ranks[path] = rank
        return path

    def _look(self, rank: int) -> None:
        """Checks that the archive of a rank is there, and is of this save, before much is read."""
        if rank in self._seen:
            return
        path = self._path(rank)
        try:
            self._shards.look(path)
        except FileNotFoundError as error:
            raise CheckpointError(
                f"the archive of rank {rank} is not there: {path}. A sharded checkpoint is "
                f"complete with {len(self._part.files)} archives, in the places that they had to "
                "each other",
                rank=rank,
                path=str(path),
                errno=error.errno,
            ) from error
        self._seen.add(rank)

    def _require_part(self, reader: ArchiveReader) -> None:
        """Checks that an archive is of this save. It may have been another one a moment ago."""
        found = find_part(reader)
        if found is not None and found.save_id == self._part.save_id:
            return
        rank = self._ranks[reader.path]
        if rank in self._seen or rank == self._part.rank:
            raise replaced(reader.path)
        raise MixedFilesError(
            f"{reader.path} is not of the same save as {self._path(self._part.rank)}: the archives "
            "of one checkpoint belong together",
            rank=rank,
            path=str(reader.path),
        )

    def _tree(self) -> dict[str, Any]:
        tensors = {
            name: stored
            for name, stored in self._metadata.state_dict_metadata.items()
            if isinstance(stored, TensorStorageMetadata)
        }
        sizes = [
            stored.size.numel() * stored.properties.dtype.itemsize for stored in tensors.values()
        ]
        leaves = self._objects()
        for storage, (name, stored) in zip(hollow_storages(sizes), tensors.items(), strict=True):
            leaf = hollow_tensor(storage, stored.properties.dtype, stored.size)
            self._names[_identity(leaf)] = name
            leaves[name] = leaf
        mapping = self._metadata.planner_data
        try:
            tree = nested({name: leaves[name] for name in mapping}, mapping)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise self._damaged(error) from error
        state = tree.get("state")
        if isinstance(state, dict) and isinstance(state.get("optimizers"), dict):
            optimizers = state["optimizers"]
            state["optimizers"] = {key: with_numbers(one) for key, one in optimizers.items()}
        return tree

    def _objects(self) -> dict[str, Any]:
        """What is no tensor."""
        found: dict[str, bytearray] = {}
        wanted = []
        for name, stored in self._metadata.state_dict_metadata.items():
            if not isinstance(stored, TensorStorageMetadata):
                found[name] = bytearray()
                member = self._member(MetadataIndex(name))
                path = self._path(rank_of(member))
                wanted.append(Wanted(name, path, member, None, (), (), found[name]))
                self._look(rank_of(member))
        self._shards.read(wanted)
        return {name: _loaded(raw, self._weights_only) for name, raw in found.items()}

    def _member(self, index: MetadataIndex) -> str:
        places: Mapping[Any, Any] = self._metadata.storage_data
        place = places.get(index)
        try:
            if not isinstance(place, _StorageInfo):
                raise ValueError(f"{index.fqn!r} has no place")
            member = str(place.relative_path)
            if rank_of(member) >= len(self._part.files):
                raise ValueError(f"{member!r} is of no rank")
        except ValueError as error:
            raise self._damaged(error) from error
        return member

    def _damaged(self, error: Exception) -> CorruptArchiveError:
        path = self._path(0)
        return CorruptArchiveError(f"{path} is damaged in {METADATA!r}: {error}", path=str(path))

    def _wanted(self, part: Slice) -> Iterator[Wanted]:
        """The parts of saved shards that make up a part of a tensor."""
        name = self._names[_identity(part.tensor)]
        stored: Any = self._metadata.state_dict_metadata[name]
        chunk = ChunkStorageMetadata(torch.Size(part.offsets), part.out.shape)
        for item in create_read_items_for_chunk_list(name, stored, [chunk]):
            offsets, lengths = tuple(item.storage_offsets), tuple(item.lengths)
            if 0 in lengths:
                continue
            out = part_of(part.out, item.dest_offsets, lengths)
            member = self._member(item.storage_index)
            path = self._path(rank_of(member))
            yield Wanted(part.name, path, member, None, offsets, lengths, out)


def _identity(hollow: torch.Tensor) -> int:
    # Empty tensors may share one storage, and have nothing to read.
    identity: int = hollow.untyped_storage()._cdata
    return identity


def _loaded(raw: bytearray, weights_only: bool) -> Any:
    """The object in a file of torch.save."""
    with tempfile.NamedTemporaryFile(prefix="pyckpt-") as file:
        file.write(raw)
        file.flush()
        return load(file.name, weights_only=weights_only)
