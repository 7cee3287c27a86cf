"""save_checkpoint: saves a training state, returns the paths of all ranks.

The class Save is one such save in two halves: collecting the state, and writing it.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, Literal

from pyckpt.archive.formats import STATES_MEMBER, add_tar_suffix, tar_suffixes
from pyckpt.archive.writer import ArchiveWriter
from pyckpt.errors import CheckpointError, DuplicateFileError, OptionError
from pyckpt.key_paths import IgnoreKeys, path_of, without_ignored
from pyckpt.options import WriteOptions
from pyckpt.progress import ProgressHook, of_group
from pyckpt.ranks.exchange import (
    Channel,
    Ranks,
    begin_together,
    current_ranks,
    decide,
    require_group,
    together,
)
from pyckpt.ranks.file_identity import file_identity
from pyckpt.staging.pending_saves import raise_uncollected, wait_for_all
from pyckpt.state import (
    TrainingState,
    check_is_state,
    is_deepspeed_engine,
    model_state_dict,
)
from pyckpt.storage.leftovers import bring_back
from pyckpt.storage.remote_object import target_at
from pyckpt.storage.urls import Location, StorageOptions
from pyckpt.tensor_kinds import is_shard
from pyckpt.torch_format.records import Record
from pyckpt.training.agreement import Description
from pyckpt.training.named_state import keeping_shards, with_names, with_positions
from pyckpt.training.names import check_one_set, render, values
from pyckpt.training.per_rank import add_parts, chosen_parts, pack_part
from pyckpt.training.refused_types import warn_of_refused
from pyckpt.training.rng import rng_state
from pyckpt.training.weight_samples import WeightSamples

if TYPE_CHECKING:
    from pyckpt.sharded.full_state import FullState
    from pyckpt.sharded.local_records import LocalRecords

__all__ = ["Save", "StateDictType", "save_checkpoint"]

StateDictType = Literal["full", "sharded"]

_COLLECTING = "collecting the training state"
_COLLECTING_ENGINE = "collecting DeepSpeed's states"


def save_checkpoint(
    state: TrainingState,
    filename: str | PurePath = "ep{epoch}-ba{batch}-rank{rank}",
    *,
    weights_only: bool = False,
    ignore_keys: IgnoreKeys = None,
    state_dict_type: StateDictType | None = None,
    compression_level: int | None = None,
    num_threads: int | None = None,
    fsync: bool = True,
    progress: ProgressHook = False,
    process_group: Any = None,
    storage_options: StorageOptions = None,
) -> list[Location]:
    """Saves the training state; the counterpart of ``composer.utils.save_checkpoint``.

    Call it on every rank. Without DeepSpeed rank 0 writes one file; with DeepSpeed every rank
    writes an archive of its own. Either all ranks have their files in the end, or all ranks raise
    and every earlier file is as it was. A rank that waits for others logs a warning after 20
    seconds, which names them.

    Without DeepSpeed there is one file with the whole state. If the state is sharded over ranks
    (FSDP, tensor parallelism, the stages of a pipeline), the ranks send what they have to rank 0,
    tensor after tensor. Or every rank writes what it has: see ``state_dict_type``. What differs
    between ranks and cannot be put together is refused: see pyckpt.training.agreement.

    The file holds ``{"state": state.state_dict(), "rng": [random states by rank]}``, and besides
    ``"per_rank": [...]`` if a rank has something in ``state.per_rank``. Tensors are read in place
    and must not change during the call. Asynchronous saves that are under way are finished first.

    Args:
        state: Anything that follows the TrainingState protocol, such as Composer's State.
        filename: May contain the variables of pyckpt.training.names.VARIABLES with format specs,
            in its folders too, which are created. The suffix decides the format: ``.tar``,
            ``.tar.gz``, ``.tar.bz2``, ``.tar.lzma``, ``.tar.zst`` and their short forms;
            ``.pt.gz``, ``.pt.bz2``, ``.pt.xz``, ``.pt.zst`` and ``.pt.lzma`` for torch's own file
            in one compressed stream. Names of other compressed files are an error; any other name
            gets torch's own file. With DeepSpeed ``.tar`` is appended unless the name has a tar's
            suffix. A URL is an object in a store: see docs/stores.md.
        weights_only: Save ``{"state": {"model": ...}, "rng": ...}``. Not with DeepSpeed.
        ignore_keys: What to leave out: globs over key paths such as ``state/optimizers/*``, or a
            callable that edits the dict before it is saved. In a sharded state, the tensors in it
            are this rank's.
        state_dict_type: "full" saves one file, as of a model on one device. "sharded" lets every
            rank write an archive of its own, to be named with ``{rank}``. All of them, extracted
            into one folder, are a checkpoint of torch.distributed.checkpoint. ``.tar`` is appended
            as with DeepSpeed. None takes the state's ``fsdp_state_dict_type`` if it has one, as
            Composer's, and else "full". Not with DeepSpeed.
        compression_level: The format's level; None takes its standard level. In torch's own file,
            None compresses nothing. From 1 to 9, torch.load reads it all the same, but not with
            ``mmap=True``.
        num_threads: Worker threads of each rank that writes; None takes an equal share of the CPUs
            that the process may use.
        fsync: Whether to wait until the disks have the files.
        progress: True shows a bar. A function is called some 20 times a second, with the bytes done
            and in total. Only on rank 0, and only for what it writes.
        process_group: The ranks that save together: a group of torch.distributed, or a DeviceMesh
            with one dimension. None means all. Only they make the call. The first one does what
            rank 0 does else, and lists by rank have their states alone. ``{rank}`` and the other
            rank names remain those among all ranks. Not with DeepSpeed, unless it has all ranks.
        storage_options: As in ``save``; for the ranks that write.

    Returns:
        The path that rank 0 wrote, on every rank; with DeepSpeed and for "sharded" the paths of all
        ranks, by rank, each valid on its rank's machine.

    Raises:
        CheckpointError: A rank failed. Every rank raises it. The message names the cause, and the
            attribute ``rank`` the rank. FilenameError, OptionError and ShardedStateError, which are
            ValueErrors, are raised before anything is written. So is the error of an earlier
            asynchronous save whose result has not been asked for.
    """
    # Else an older asynchronous save of the same name could replace this newer file, or an older
    # removal take it away.
    wait_for_all()
    [channel] = begin_together("save_checkpoint", process_group=process_group)
    save = Save(state, filename, weights_only, ignore_keys, state_dict_type, storage_options)

    def make_options() -> WriteOptions:
        raise_uncollected()
        return WriteOptions(compression_level, num_threads, fsync, of_group(progress, channel.rank))

    try:
        save.collect(make_options, channel)
        return save.write(channel)
    except BaseException as error:
        channel.leave("save_checkpoint", error)
        raise
    finally:
        save.close()


@dataclass(frozen=True)
class _Target:
    """What a rank is going to write. Every rank knows the targets of all ranks."""

    path: Location
    writes: bool
    identity: str  # see file_identity; a URL is its own
    template: str
    values: dict[str, str]  # what the template's variables stand for
    contents: str  # for messages: "the whole state"
    save_id: str  # the first rank's is that of the save


def _check_alike(targets: list[_Target], channel: Channel) -> None:
    for rank, target in zip(channel.members, targets, strict=True):
        if target.contents != targets[0].contents:
            raise CheckpointError(
                f"rank {channel.members[0]} would save {targets[0].contents}, and rank {rank} "
                f"{target.contents}: save the same on every rank",
                rank=rank,
            )


def _check_distinct(targets: list[_Target], channel: Channel) -> None:
    seen: dict[str, int] = {}
    for rank, target in zip(channel.members, targets, strict=True):
        if not target.writes:
            continue
        other = seen.setdefault(target.identity, rank)
        if other != rank:
            raise DuplicateFileError(
                f"ranks {other} and {rank} would both write {target.path}: put {{rank}} in the "
                "filename, as in 'ep{epoch}-ba{batch}-rank{rank}'",
                rank=rank,
                path=str(target.path),
            )


@dataclass(frozen=True)
class _Collected:
    """What a rank tells of its state: see Description."""

    digests: dict[str, str]
    has_shards: bool


class Save:
    """One save of a training state on one rank. Ranks exchange outcomes between its steps.

    Call ``collect``, then ``write``, then ``close``, on every rank.
    """

    def __init__(
        self,
        state: TrainingState,
        filename: str | PurePath,
        weights_only: bool,
        ignore_keys: IgnoreKeys,
        state_dict_type: StateDictType | None = None,
        storage_options: StorageOptions = None,
    ) -> None:
        self.is_deepspeed = False
        self._storage_options = storage_options
        self._state_dict_type = state_dict_type
        self._state: Any = state
        self._filename = filename
        self._weights_only = weights_only
        self._ignore_keys = ignore_keys
        self._cleanup = ExitStack()
        self._ranks = Ranks()
        self._is_first = False
        self._targets: list[_Target] = []
        self._writer: ArchiveWriter | None = None
        self._contents: dict[str, Any] = {}
        self._named: dict[str, Any] = {}  # the state in them, with optimizers by name
        self._full: FullState | None = None
        self._local: LocalRecords | None = None
        self._is_pipeline = False  # whether some ranks have what the first one lacks
        self._is_sharded = False  # whether every rank writes its shards
        self._description: Description | None = None
        self._samples: WeightSamples | None = None

    @property
    def paths(self) -> list[Location]:
        """The file that this rank writes, if it writes one."""
        return [] if self._writer is None else [self._writer.path]

    @property
    def progress(self) -> tuple[int, int]:
        """Bytes written and in total; see ArchiveWriter.progress. (0, 0) on a rank without file."""
        return (0, 0) if self._writer is None else self._writer.progress

    def state_records(self) -> list[Record]:
        """The records of all bytes in the state's own memory that this rank may read."""
        if self._local is not None:
            return self._local.records
        return [] if self._writer is None else self._writer.state_records()

    def replace_state_records(self, records: Sequence[Record]) -> None:
        """Replaces ``state_records()``. The new records have the same order and sizes."""
        if self._local is not None:
            self._local.stage(records)
        elif self._writer is not None:
            self._writer.replace_state_records(records)
            self._writer.plan()

    def give_up(self) -> None:
        """Lets ``write()`` fail soon. Any thread."""
        if self._writer is not None:
            self._writer.give_up()

    def collect(self, make_options: Callable[[], WriteOptions], channel: Channel) -> None:
        """Collects all that will be written, without copying tensors.

        Args:
            make_options: Called early. Its errors are raised on all ranks.
        """
        self._targets = together(
            "preparing the checkpoint", lambda: self._prepare(make_options, channel), channel
        )
        _check_alike(self._targets, channel)
        _check_distinct(self._targets, channel)
        if self._is_each_rank_writing:
            names = [(target.template, target.values) for target in self._targets]
            check_one_set(names, channel.members)
        of_ranks = together("collecting what each rank has of its own", self._own, channel)
        collected = together(_COLLECTING, lambda: self._collect_state(of_ranks, channel), channel)
        is_pipeline = False
        if self._description is not None:
            is_pipeline = self._description.compare([one.digests for one in collected], channel)
        if self.is_deepspeed:
            together(_COLLECTING, self._add_contents, channel)
            together(
                "collecting DeepSpeed's states", lambda: self._collect_engine(channel), channel
            )
        elif self._is_sharded or is_pipeline or any(one.has_shards for one in collected):
            self._is_pipeline = is_pipeline
            together(_COLLECTING, self._collect_local, channel)
        else:
            together(_COLLECTING, self._add_contents, channel)

    def write(
        self,
        channel: Channel,
        before: Callable[[], None] = lambda: None,
        after: Callable[[], None] = lambda: None,
    ) -> list[Location]:
        """Writes and commits; returns the paths of all ranks that write.

        Args:
            before: Called before the bytes are read. If it raises, no file gets its name.
            after: Called when the bytes are written and the file has no name yet. Likewise.
        """
        several = self._is_each_rank_writing
        if self._samples is not None:
            self._samples.check_related(channel)
        # Here, and not in collect, because training need not wait for the plan.
        if self._local is not None and self._is_sharded:
            self._plan_parts(self._local, channel)
        elif self._local is not None:
            self._plan_whole(self._local, channel)
        together("writing the checkpoint", lambda: self._write(before, after, channel), channel)
        try:
            self._commit_together(channel)
        except CheckpointError:
            self._bring_back()
            raise
        return [target.path for target in (self._targets if several else self._targets[:1])]

    def close(self) -> None:
        """Removes what was not kept, and releases the state. Only ``progress`` is left."""
        self._cleanup.close()
        self._contents = {}
        self._named = {}
        self._full = self._local = self._description = self._samples = None
        self._state = None

    @property
    def _is_each_rank_writing(self) -> bool:
        return self.is_deepspeed or self._is_sharded

    def _prepare(self, make_options: Callable[[], WriteOptions], channel: Channel) -> _Target:
        """Finds every error that can be found before a byte is written."""
        check_is_state(self._state)
        require_group()
        options = make_options()
        self.is_deepspeed = is_deepspeed_engine(self._state.model)
        self._ranks = current_ranks()
        if self._weights_only and self.is_deepspeed:
            raise OptionError("weights_only=True is not possible with DeepSpeed")
        self._is_sharded = self._chosen_type() == "sharded"
        if self.is_deepspeed and channel.size != self._ranks.world_size:
            raise OptionError(
                "process_group is not possible with DeepSpeed: all ranks save its states"
            )
        path = render(self._filename, self._state, self._ranks)
        if self._is_each_rank_writing:
            path = add_tar_suffix(path, tar_suffixes())
        self._is_first = channel.rank == 0
        writes = self._is_each_rank_writing or self._is_first
        if writes:
            self._writer = ArchiveWriter(
                target_at(path, self._storage_options),
                options,
                writers_on_node=(self._ranks.local_world_size if self._is_each_rank_writing else 1),
            )
            self._cleanup.callback(self._writer.abandon)
        return _Target(
            path,
            writes,
            file_identity(path) if isinstance(path, Path) else path,
            os.fspath(self._filename),
            values(self._filename, self._state),
            self._what(),
            uuid.uuid4().hex,
        )

    def _what(self) -> str:
        if self.is_deepspeed:
            return "a DeepSpeed engine"
        what = "weights only" if self._weights_only else "the whole state"
        return f"{what}, sharded" if self._is_sharded else what

    def _chosen_type(self) -> StateDictType:
        chosen = self._state_dict_type
        if chosen is None and not self.is_deepspeed:
            chosen = getattr(self._state, "fsdp_state_dict_type", None)
        if chosen not in (None, "full", "sharded"):
            raise OptionError(f"state_dict_type must be 'full', 'sharded' or None, not {chosen!r}")
        if self.is_deepspeed and chosen is not None:
            raise OptionError("state_dict_type is not possible with DeepSpeed, which has its own")
        return chosen or "full"

    def _own(self) -> tuple[dict[str, Any], dict[str, bytes]]:
        """This rank's random states and its per_rank."""
        return rng_state(), {} if self._weights_only else pack_part(self._state)

    def _collect_state(
        self, of_ranks: list[tuple[dict[str, Any], dict[str, bytes]]], channel: Channel
    ) -> _Collected:
        """Collects the state on every rank, because its state_dict() may be collective."""
        with keeping_shards(self._state):
            state = (
                {"model": model_state_dict(self._state)}
                if self._weights_only
                else self._state.state_dict()
            )
            everything = {"state": state, "rng": [random_states for random_states, _ in of_ranks]}
            add_parts(everything, [part for _, part in of_ranks])
            self._contents = without_ignored(everything, self._ignore_keys)
            chosen_parts(everything, self._contents)
            saved = self._contents.get("state")
            saved = saved if isinstance(saved, dict) else {}
            is_alone = channel.size == 1
            if is_alone and not self._is_sharded and path_of(saved, is_shard) is None:
                return _Collected({}, False)
            self._named = with_names(self._state, saved)
        description = Description(self._state, self._named)
        if is_alone:
            return _Collected({}, description.has_shards)
        self._description = description
        # All ranks compare samples, also those that have no model to save.
        self._samples = WeightSamples(self._state.model if "model" in saved else None)
        return _Collected(self._description.digests(), self._description.has_shards)

    def _add_contents(self) -> None:
        """Adds the first rank's state to its archive."""
        if self._writer is not None and self._is_first:
            self._add_object(self._contents)

    def _add_object(self, contents: dict[str, Any]) -> None:
        assert self._writer is not None
        named: list[Any] = []
        self._writer.add_object(STATES_MEMBER, contents, named=named)
        warn_of_refused(contents, named)

    def _collect_local(self) -> None:
        """Collects what this rank has of a state that is spread over ranks."""
        # Imported here: torch.distributed.checkpoint takes a while to import.
        from pyckpt.sharded.local_records import LocalRecords

        self._local = LocalRecords(
            {**self._contents, "state": self._named},
            is_first=self._is_first,
            is_pipeline=self._is_pipeline,
            is_compact=self._is_sharded,
        )

    def _plan_parts(self, local: LocalRecords, channel: Channel) -> None:
        """Finds out what each rank writes to an archive of its own. Collective."""
        from pyckpt.sharded.sharded_state import add_sharded_state

        assert self._writer is not None
        add_sharded_state(
            self._writer,
            local.tree,
            [target.path for target in self._targets],
            local.staged,
            channel,
            is_pipeline=self._is_pipeline,
        )

    def _plan_whole(self, local: LocalRecords, channel: Channel) -> None:
        """Finds out which parts the first rank gathers into one file. Collective."""
        from pyckpt.sharded.full_state import FullState

        full = self._full = FullState()
        full.collect(local.tree, channel, is_pipeline=self._is_pipeline)

        def add() -> None:
            if self._writer is not None:
                self._add_object(with_positions(self._state, full.tree))
                records = full.bind(self._writer.state_records())
                self._writer.replace_state_records(
                    [local.staged(one) if one.is_storage else one for one in records]
                )

        together(_COLLECTING, add, channel)
        full.agree(channel)
        together(_COLLECTING, lambda: full.stage(local.staged), channel)

    def _collect_engine(self, channel: Channel) -> None:
        """Lets DeepSpeed save into this rank's archive."""
        from pyckpt.sharded.part import DEEPSPEED, Part
        from pyckpt.training.deepspeed import collect_engine_states

        assert self._writer is not None
        paths = [target.path for target in self._targets]
        part = Part.of(self._targets[0].save_id, channel.rank, paths, DEEPSPEED)
        self._writer.add_bytes(part.member, part.to_bytes())
        engine = self._state.model
        states = collect_engine_states(engine, self._writer, _COLLECTING_ENGINE, channel)
        self._cleanup.enter_context(states)

    def _write(
        self, before: Callable[[], None], after: Callable[[], None], channel: Channel
    ) -> None:
        """Writes the bytes, to a file that has no name yet."""
        write = None if self._writer is None else self._writer.write
        try:
            if self._full is not None:
                self._full.run(before, write, channel)
            else:
                before()
                if write is not None:
                    write()
        finally:
            after()  # its error tells more, if memory was freed that was read

    def _commit_together(self, channel: Channel) -> None:
        """Gives all files their names. If several ranks commit, the first one's comes last.

        It makes the set complete.
        """
        doing = "committing the checkpoint"
        if self._is_each_rank_writing:
            others = (lambda: None) if self._is_first else self._commit
            together(doing, others, channel)
        decide(doing, self._commit if self._is_first else lambda: None, channel, self._keep)

    def _bring_back(self) -> None:
        """Does for ranks that have died in the commit what they would have done."""
        for target in self._targets if self._is_each_rank_writing else ():
            path = target.path
            if isinstance(path, Path) and file_identity(path) == target.identity:
                bring_back(path)

    def _commit(self) -> None:
        """Gives the file its name. If several ranks commit, each can go back until all have."""
        if self._writer is not None:
            self._writer.commit(keep_previous=self._is_each_rank_writing)

    def _keep(self) -> None:
        """Makes the commit final."""
        if self._writer is not None:
            self._writer.keep()
