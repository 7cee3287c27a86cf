"""StorageWriter: torch.distributed.checkpoint writes into a folder of archives.

Each rank writes one archive, whose members are its shards. The names are new in each save, so an
older checkpoint in the folder stays as it is until all archives are sealed. Then ``.metadata``,
which says where each shard is, replaces the older one in one step. In a store the folder is what
the names of objects begin with, and archives are uploaded while they are written.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch.distributed.checkpoint import storage
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from pyckpt.archive.formats import TAR_SUFFIX, tar_suffixes
from pyckpt.archive.writer import ArchiveWriter
from pyckpt.errors import CheckpointError, OptionError
from pyckpt.interrupts import is_interrupt
from pyckpt.options import WriteOptions
from pyckpt.ranks.exchange import current_ranks
from pyckpt.sharded.dcp_folder import DcpFolder
from pyckpt.sharded.dcp_metadata import dump_metadata
from pyckpt.sharded.members import add_shards
from pyckpt.sharded.part import METADATA
from pyckpt.storage.folder import Folder
from pyckpt.storage.remote_object import target_at
from pyckpt.storage.urls import Location, StorageOptions

__all__ = ["StorageWriter"]

_LOGGER = logging.getLogger("pyckpt")
_ID_DIGITS = 12


@dataclass(frozen=True)
class _Order:
    """What the coordinator tells a rank in its plan.

    Attributes:
        save_id: Begins the name of the rank's archive.
        rank: The rank's number among those that save.
        answers: The rank's own id of this save. A planner that caches plans hands out those of an
            older save, which have another one.
        given_up: The id of the writer's previous save, if it did not come to its end.
    """

    save_id: str
    rank: int
    answers: str
    given_up: str | None


class StorageWriter(DcpFolder, storage.StorageWriter):
    """Writes checkpoints of ``dcp.save`` and ``dcp.async_save`` as archives in a folder or a store.

    The folder holds ``<save id>-rank<r>.tar`` for each rank, with the suffix of the compression,
    and ``.metadata``. Without compression, torch's ``FileSystemReader`` and ``dcp_to_torch_save``
    read it as well, and from a store torch's ``FsspecReader``. With compression, ``StorageReader``
    does.

    A checkpoint is complete once it has its ``.metadata``. If a save fails on any rank, the folder
    still holds the older checkpoint. The rank that failed leaves no file. What other ranks wrote in
    that save is removed when the same writer saves next. Archives of older checkpoints stay when
    ``.metadata`` is replaced.

    A writer does one save at a time. It can be pickled.

    Args:
        path: The folder, which is created, or a URL: ``s3://bucket/run/ckpt-5``. ``checkpoint_id=``
            of ``dcp.save`` replaces it.
        compression: None, or the end of a tar's suffix: ``"gz"``, ``"bz2"``, ``"xz"``, ``"zst"``.
        compression_level: The format's level; None takes its standard one.
        num_threads: Worker threads of each rank; None takes an equal share of the CPUs for each
            rank on the machine.
        fsync: Whether to wait until all files are on the disk. What a store has taken always is.
        storage_options: What the store of a URL is told besides the environment.

    Raises:
        OptionError: An argument is wrong.
        FilenameError: ``path`` is a URL that no store serves.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        compression: str | None = None,
        compression_level: int | None = None,
        num_threads: int | None = None,
        fsync: bool = True,
        storage_options: StorageOptions = None,
    ) -> None:
        super().__init__(path, storage_options)
        self._suffix = _suffix(compression)
        self._options = WriteOptions(compression_level, num_threads, fsync)
        self._archive_writer(self._folder.at(f"x{self._suffix}"))  # checks the options
        self._metadata_name = METADATA
        self._rank: int | None = None
        self._own_id = _new_id()
        self._save_id: str | None = None  # on the coordinator, until the save is finished
        # The id of the last save, and what was written in it.
        self._written: tuple[str, Folder, str] | None = None

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """Begins a save, into another folder if ``checkpoint_id`` names one."""
        if checkpoint_id:
            self._move_to(checkpoint_id)

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Begins a save. Newer versions of torch tell the rank, and whether ranks talk."""
        self._rank = kwargs.get("rank")
        self._own_id = _new_id()
        self._metadata_name = METADATA
        if not kwargs.get("use_collectives", True):  # each rank writes a checkpoint of its own
            self._metadata_name = f"__{self._rank}{METADATA}"

    def storage_meta(self) -> StorageMeta:
        """What the metadata says about this save."""
        return StorageMeta(checkpoint_id=str(self.path), save_id=self._save_id or self._own_id)

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        """Tells the coordinator this rank's id of the save."""
        return dataclasses.replace(plan, storage_data=self._own_id)

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """On the coordinator: gives each rank a name for its archive that was never used."""
        given_up, self._save_id = self._save_id, self._own_id
        return [
            dataclasses.replace(
                plan, storage_data=_Order(self._save_id, at, plan.storage_data, given_up)
            )
            for at, plan in enumerate(plans)
        ]

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Writes this rank's archive, and returns when it is sealed.

        Raises:
            CheckpointError: It could not be written. There is no new file.
        """
        order: _Order = plan.storage_data
        rank = order.rank if self._rank is None else self._rank
        save_id = order.save_id
        if order.answers == self._own_id:
            self._remove_leftover(order.given_up)
        else:  # a cached plan: its name was used before
            save_id = self._own_id
        done: Future[list[WriteResult]] = Future()
        done.set_result(self._write(plan, planner, save_id, rank) if plan.items else [])
        return done

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """On the coordinator, after all archives are sealed: completes the checkpoint.

        Raises:
            CheckpointError: The metadata could not be written. An older one is unchanged.
        """
        metadata.storage_data = {one.index: one.storage_data for ones in results for one in ones}
        metadata.storage_meta = self.storage_meta()
        path = self._folder.at(self._metadata_name)
        options = WriteOptions(fsync=self._options.fsync)
        with (
            _reporting(path, self._rank),
            ArchiveWriter(target_at(path, self._storage_options), options) as writer,
        ):
            writer.add_bytes(path.name, dump_metadata(metadata))
            writer.write()
            writer.commit()
        self._save_id = None

    def _write(
        self, plan: SavePlan, planner: SavePlanner, save_id: str, rank: int
    ) -> list[WriteResult]:
        path = self._folder.at(f"{save_id}-rank{rank}{self._suffix}")
        with _reporting(path, rank), self._archive_writer(path) as writer:
            added = add_shards(writer, plan.items, planner, rank)
            writer.plan()
            results = []
            for index, member in added:
                offset, nbytes = writer.place(member)
                results.append(WriteResult(index, nbytes, self._info(path.name, offset, nbytes)))
            writer.write()
            writer.commit()
        self._written = (save_id, self._folder, path.name)
        return results

    def _archive_writer(self, path: Location) -> ArchiveWriter:
        return ArchiveWriter(
            target_at(path, self._storage_options),
            self._options,
            writers_on_node=current_ranks().local_world_size,
        )

    def _info(self, name: str, offset: int, nbytes: int) -> _StorageInfo:
        info = _StorageInfo(name, offset, nbytes)
        if self._suffix != TAR_SUFFIX:
            # torch's reader refuses what it has no extension for, instead of reading wrong bytes.
            info.transform_descriptors = [f"pyckpt{self._suffix}/1"]
        return info

    def _remove_leftover(self, given_up: str | None) -> None:
        """Removes this rank's archive of a save that did not come to its end."""
        if self._written is not None and self._written[0] == given_up:
            _, folder, name = self._written
            self._written = None
            try:
                folder.remove([name])
            except OSError as error:  # no reason not to save
                _LOGGER.warning(
                    "%s, of a save that failed, stays behind: %s", folder.at(name), error
                )


def _suffix(compression: str | None) -> str:
    if compression is None:
        return TAR_SUFFIX
    suffix = f"{TAR_SUFFIX}.{compression}"
    if suffix not in tar_suffixes():
        known = [one.removeprefix(f"{TAR_SUFFIX}.") for one in tar_suffixes() if one.count(".") > 1]
        raise OptionError(
            f"compression must be None or one of {', '.join(known)}, not {compression!r}"
        )
    return suffix


def _new_id() -> str:
    return uuid.uuid4().hex[:_ID_DIGITS]


@contextmanager
def _reporting(path: Location, rank: int | None) -> Iterator[None]:
    """Turns what is raised inside into a CheckpointError that names the file and the rank."""
    try:
        yield
    except Exception as error:
        if is_interrupt(error):
            raise
        who = "" if rank is None else f" on rank {rank}"
        kind = "" if isinstance(error, CheckpointError) else f"{type(error).__name__}: "
        raise CheckpointError(
            f"saving {path} failed{who}: {kind}{error}",
            rank=rank,
            path=str(path),
            errno=getattr(error, "errno", None),
        ) from error
