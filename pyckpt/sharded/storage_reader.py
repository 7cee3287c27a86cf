"""StorageReader: torch.distributed.checkpoint reads folders of archives, and those of torch."""

from __future__ import annotations

import io
import os
import uuid
from pathlib import Path, PurePath
from typing import Any

import torch
from torch.distributed.checkpoint import storage
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex, StorageMeta
from torch.distributed.checkpoint.planner import LoadItemType, LoadPlan, LoadPlanner, ReadItem
from torch.futures import Future

from pyckpt.errors import CheckpointError, CorruptArchiveError, OptionError
from pyckpt.paths import local_path
from pyckpt.sharded.dcp_metadata import load_metadata
from pyckpt.sharded.local_folder import LocalFolder
from pyckpt.sharded.part import METADATA
from pyckpt.sharded.shard_reader import ShardReader, Wanted

__all__ = ["StorageReader"]


class StorageReader(LocalFolder, storage.StorageReader):
    """Reads folders that ``StorageWriter`` or torch's ``FileSystemWriter`` wrote.

    Only the blocks with the bytes that this rank needs are decoded, straight into the tensors that
    are loaded where these are in host memory. So a load that fails may have filled some of them.

    Args:
        path: The folder. ``checkpoint_id=`` of ``dcp.load`` replaces it.
        num_threads: Decoding threads; None takes the CPUs that this process may use.
        verify: Whether to compare checksums. A tensor's is compared when this rank reads all of a
            shard.

    Raises:
        OptionError: ``num_threads`` is wrong.
        FilenameError: ``path`` is a URL.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, num_threads: int | None = None, verify: bool = True
    ) -> None:
        super().__init__()
        self.path = local_path(path)
        self._shards = ShardReader(num_threads, verify)
        self._load_id = uuid.uuid4().hex
        self._places: dict[MetadataIndex, Any] = {}

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """Begins a load, of another folder if ``checkpoint_id`` names one."""
        self._places = {}
        if checkpoint_id:
            self.path = local_path(checkpoint_id)
        self._load_id = uuid.uuid4().hex

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """The metadata of the checkpoint, or of that which ``rank`` has saved for itself.

        Raises:
            CorruptArchiveError: It is damaged.
            OSError: It cannot be read. Without it, there is no complete checkpoint.
        """
        rank = kwargs.get("rank")
        path = self.path / (METADATA if rank is None else f"__{rank}{METADATA}")
        metadata = load_metadata(path.read_bytes(), path)
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
            raise CorruptArchiveError(
                f"{self.path / METADATA} does not say where the shards are",
                path=str(self.path / METADATA),
            )
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
                    f"{self.path / name} was written with the extension {descriptor!r} of "
                    "torch.distributed.checkpoint, which only torch's reader reads"
                )
        if isinstance(out, bytearray):
            return Wanted(key, self.path / name, None, place, (), (), out)
        lengths = tuple(item.lengths)
        if tuple(out.shape) != lengths:
            raise CheckpointError(
                f"{key!r} is planned to load {list(lengths)}, but has {list(out.shape)}"
            )
        return Wanted(key, self.path / name, None, place, tuple(item.storage_offsets), lengths, out)

    def _broken(self, what: str) -> CorruptArchiveError:
        path: Path = self.path / METADATA
        return CorruptArchiveError(f"{path} {what}", path=str(path))
