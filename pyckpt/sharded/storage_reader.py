"""StorageReader: torch.distributed.checkpoint reads folders of archives, and those of torch."""

from __future__ import annotations

import io
import os
import uuid
from pathlib import PurePath
from typing import Any

import torch
from torch.distributed.checkpoint import storage
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex, StorageMeta
from torch.distributed.checkpoint.planner import LoadItemType, LoadPlan, LoadPlanner, ReadItem
from torch.futures import Future

from pyckpt.errors import CheckpointError, CorruptArchiveError, OptionError
from pyckpt.sharded.dcp_folder import DcpFolder
from pyckpt.sharded.dcp_metadata import load_metadata
from pyckpt.sharded.part import METADATA
from pyckpt.sharded.shard_reader import ShardReader, Wanted
from pyckpt.storage.urls import StorageOptions

__all__ = ["StorageReader"]


class StorageReader(DcpFolder, storage.StorageReader):
    """Reads folders that ``StorageWriter`` or torch's ``FileSystemWriter`` wrote.

    Only the blocks with the bytes that this rank needs are fetched and decoded, straight into the
    tensors that are loaded where these are in host memory. So a load that fails may have filled
    some of them.

    Args:
        path: The folder, or its URL. ``checkpoint_id=`` of ``dcp.load`` replaces it.
        num_threads: Decoding threads; None takes the CPUs that this process may use.
        verify: Whether to compare checksums. A tensor's is compared when this rank reads all of a
            shard.
        storage_options: What the store of a URL is told besides the environment.

    Raises:
        OptionError: An argument is wrong.
        FilenameError: ``path`` is a URL that no store serves.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        num_threads: int | None = None,
        verify: bool = True,
        storage_options: StorageOptions = None,
    ) -> None:
        super().__init__(path, storage_options)
        self._shards = ShardReader(num_threads, verify, storage_options)
        self._load_id = uuid.uuid4().hex
        self._places: dict[MetadataIndex, Any] = {}

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """Begins a load, of another folder if ``checkpoint_id`` names one."""
        self._places = {}
        if checkpoint_id:
            self._move_to(checkpoint_id)
        self._load_id = uuid.uuid4().hex

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """The metadata of the checkpoint, or of that which ``rank`` has saved for itself.

        Raises:
            CorruptArchiveError: It is damaged.
            CheckpointError: It was replaced while it was read.
            OSError: It cannot be read. Without it, there is no complete checkpoint.
        """
        rank = kwargs.get("rank")
        path = self._folder.at(METADATA if rank is None else f"__{rank}{METADATA}")
        metadata = load_metadata(self._shards.read_bytes(path), path)
        if getattr(metadata, "storage_meta", None) is None:
            metadata.storage_meta = StorageMeta()
        if isinstance(metadata.storage_meta, StorageMeta):
            metadata.storage_meta.load_id = self._load_id
        return metadata

    def set_up_storage_reader(
        self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any
    ) -> None:
        """Takes the places of the shards from the metadata.

        Raises:
            CorruptArchiveError: It has none.
        """
        if not isinstance(metadata.storage_data, dict):
            raise self._broken("does not say where the shards are")
        self._places = metadata.storage_data

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        """Returns the plan as it is."""
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        """Returns the plans as they are."""
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Reads what the plan asks for.

        Raises:
            CorruptArchiveError: A file is damaged, or is not of this checkpoint. The message names
                the file and the tensor.
            OptionError: The folder was written with an extension that pyckpt does not have.
            CheckpointError: An object was replaced while it was read.
            OSError: A file cannot be read.
        """
        tensors: list[tuple[ReadItem, torch.Tensor]] = []
        texts: list[tuple[ReadItem, bytearray]] = []
        wanted = []
        for item in plan.items:
            if item.type == LoadItemType.BYTE_IO:
                raw = bytearray()
                texts.append((item, raw))
                wanted.append(self._wanted(item, raw))
            else:
                target = planner.resolve_tensor(item).detach()
                tensors.append((item, target))
                wanted.append(self._wanted(item, target))
        self._shards.read(wanted)
        for item, raw in texts:
            planner.load_bytes(item, io.BytesIO(raw))
        for item, target in tensors:
            planner.commit_tensor(item, target)
        done: Future[None] = Future()
        done.set_result(None)
        return done

    def _wanted(self, item: ReadItem, out: torch.Tensor | bytearray) -> Wanted:
        key = item.storage_index.fqn
        info = self._places.get(item.storage_index)
        if not isinstance(info, _StorageInfo):
            raise self._broken(f"does not say where the shard of {key!r} is")
        name, place = info.relative_path, (info.offset, info.length)
        if not isinstance(name, str) or not all(isinstance(number, int) for number in place):
            raise self._broken(f"has no place for the shard of {key!r}")
        if PurePath(name).is_absolute() or ".." in PurePath(name).parts:
            raise self._broken(f"names a file {name!r}, which is not in the folder")
        for descriptor in getattr(info, "transform_descriptors", None) or ():
            if not str(descriptor).startswith("pyckpt."):
                raise OptionError(
                    f"{self._folder.at(name)} was written with the extension {descriptor!r} of "
                    "torch.distributed.checkpoint, which only torch's reader reads"
                )
        if isinstance(out, bytearray):
            return Wanted(key, self._folder.at(name), None, place, (), (), out)
        lengths = tuple(item.lengths)
        if tuple(out.shape) != lengths:
            raise CheckpointError(
                f"{key!r} is planned to load {list(lengths)}, but has {list(out.shape)}"
            )
        return Wanted(
            key, self._folder.at(name), None, place, tuple(item.storage_offsets), lengths, out
        )

    def _broken(self, what: str) -> CorruptArchiveError:
        path = self._folder.at(METADATA)
        return CorruptArchiveError(f"{path} {what}", path=str(path))
