"""DeepSpeed: its states go into this rank's archive, and back.

DeepSpeed passes each state dict to ``engine.checkpoint_engine.save(state_dict, path)``. During a
save, that checkpoint engine is replaced by ours, which adds the state as a member
``deepspeed/<file>``. Files that DeepSpeed writes itself (the script that merges ZeRO states,
tensors offloaded to NVMe) go to a temporary folder and are added from there.

Loading replaces the checkpoint engine in the same way. DeepSpeed looks for files by name before it
asks the engine for their contents. So it gets a folder of empty files with the names of the
members.
"""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from deepspeed import comm
from deepspeed.runtime.checkpoint_engine.checkpoint_engine import CheckpointEngine

from pyckpt.archive.formats import STATES_MEMBER
from pyckpt.archive.reader import ArchiveReader
from pyckpt.archive.writer import ArchiveWriter
from pyckpt.errors import (
    CheckpointError,
    CorruptArchiveError,
    MixedFilesError,
    OptionError,
    StateMismatchError,
)
from pyckpt.ranks.exchange import Channel, barrier, together
from pyckpt.sharded.part import find_part
from pyckpt.storage.inputs import open_input, require_one_version
from pyckpt.storage.urls import Location, Stores
from pyckpt.training.deepspeed_types import allow_deepspeed_types
from pyckpt.training.shared_reads import Source, read_shared, read_source

__all__ = [
    "TAG",
    "EngineStates",
    "check_can_load",
    "collect_engine_states",
    "with_exchanges",
]

TAG = "deepspeed"
"""The tag that the checkpoint is saved under, as Composer names it."""

allow_deepspeed_types()


@contextmanager
def with_exchanges(doing: str, channel: Channel) -> Iterator[None]:
    """A context in which DeepSpeed's barriers of all ranks are exchanges, in this thread.

    So no rank waits for one that has died, or whose DeepSpeed has raised: they raise AllRaised.

    Args:
        doing: The step that this is in, for messages.
    """
    original, thread = comm.barrier, threading.get_ident()

    def replacement(group: Any = None, *args: Any, **kwargs: Any) -> Any:
        if group is not None or threading.get_ident() != thread:
            return original(group, *args, **kwargs)
        return barrier(doing, channel)

    comm.barrier = replacement
    try:
        yield
    finally:
        comm.barrier = original


@contextmanager
def collect_engine_states(
    engine: Any, writer: ArchiveWriter, doing: str, channel: Channel
) -> Iterator[None]:
    """Adds to ``writer`` all that this rank saves of ``engine``. Call it on every rank.

    The added files exist until the context is left, so write the archive inside it.

    Args:
        doing: The step of ``together`` that this is, for messages.

    Raises:
        Exception: A state could not be added. Raised only after DeepSpeed's barriers, since it also
            has other collectives, in which others would wait.
        AllRaised: Another rank failed.
    """
    with tempfile.TemporaryDirectory(prefix="pyckpt-") as name:
        folder = Path(name)
        (folder / TAG).mkdir()
        replaced = engine.checkpoint_engine
        collector = _CollectingEngine(replaced, folder, writer)
        engine.checkpoint_engine = collector
        try:
            with with_exchanges(doing, channel):
                engine.save_checkpoint(str(folder), tag=TAG)
        finally:
            engine.checkpoint_engine = replaced
        collector.raise_error()
        for path in sorted(folder.rglob("*")):
            member = path.relative_to(folder).as_posix()
            if path.is_dir():  # empty ones too: loading from NVMe looks for one
                writer.add_directory(member)
            else:
                writer.add_file(member, path)
        yield


class _CollectingEngine(CheckpointEngine):  # type: ignore[misc]
    """A CheckpointEngine whose files are members of an archive."""

    def __init__(self, replaced: Any, folder: Path, writer: ArchiveWriter) -> None:
        super().__init__(None)
        self.name = "pyckpt"
        self._replaced = replaced
        self._folder = folder
        self._writer = writer
        self._error: BaseException | None = None

    def create(self, info: Any) -> None:
        """Does nothing. ``info`` is a tag up to DeepSpeed 0.18.3, then a CheckpointCommitInfo."""

    def save(self, state_dict: Any, path: str) -> None:
        """Adds a member; keeps the first error, since raising here would hang the other ranks."""
        if self._error is not None:
            return
        try:
            name = Path(path).relative_to(self._folder).as_posix()
            # ZeRO's states are views of flat buffers that hold other data too.
            self._writer.add_object(name, state_dict, compact_views=True)
        except BaseException as error:
            self._error = error

    def load(self, path: str, map_location: Any = None) -> Any:
        """As the replaced engine."""
        return self._replaced.load(path, map_location=map_location)

    def commit(self, info: Any) -> bool:
        """The archive is committed later, when all ranks have written theirs."""
        return True

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        """Makes a folder for files that DeepSpeed writes itself."""
        Path(path).mkdir(parents=True, exist_ok=exist_ok)

    def preserves_storage_sharing(self) -> bool:
        """False, so that DeepSpeed does not clone the views that it saves."""
        return False

    def raise_error(self) -> None:
        """Raises the error that ``save`` kept."""
        if self._error is not None:
            raise self._error


def check_can_load(engine: Any, load_weights_only: bool) -> None:
    """Checks that archives can be loaded into ``engine``.

    Raises:
        OptionError: They cannot; the message says why.
    """
    if engine.zero_nvme_offload_optimizer():
        raise OptionError(
            "an optimizer on NVMe can only be loaded from files: extract the archives into one "
            f"folder and call engine.load_checkpoint(folder, tag={TAG!r})"
        )
    if load_weights_only and engine.zero_optimization_stage() == 3:
        raise OptionError(
            "load_weights_only=True is not possible with ZeRO 3: the weights lie in the "
            "optimizer's shards"
        )


class EngineStates:
    """What one rank needs from the archives of all ranks to restore its engine.

    Call ``read()`` and ``check()``, which do not change the engine, and then ``restore()``.

    Args:
        path: This rank's archive.
        options: Those of ``pyckpt.load``.
    """

    def __init__(self, path: Location, channel: Channel, options: dict[str, Any]) -> None:
        self._path = path
        self._channel = channel
        self._options = options
        self._sources: dict[str, Source] = {}
        self._states: dict[str, Any] = {}

    def read(self, engine: Any) -> Any:
        """Reads the states that this rank needs. Returns the contents of the states file.

        Collective. Keeps the states of this rank's archive and of the model in memory.

        Raises:
            CheckpointError: A rank could not read something. All ranks raise it.
            MixedFilesError: The archives are of several saves. All ranks raise it.
        """
        listings = together("looking at the checkpoint", self._list, self._channel)
        own_listing = listings[self._channel.rank]
        sources = list(chain.from_iterable(one.sources for one in (own_listing, *listings)))
        require_one_version(one.version for one in sources if one.version is not None)
        _check_one_save(listings, self._channel)
        # This rank's members first, then those of the lowest rank. Equal names have equal contents.
        for source in sources:
            self._sources.setdefault(source.member, source)
        members = [source.member for source in own_listing.sources]
        own = [member for member in members if member != STATES_MEMBER]
        wanted = dict.fromkeys([STATES_MEMBER, *own, *_needed(engine, load_weights_only=True)])

        found = together(
            "looking for the states",
            lambda: [self._source(member) for member in wanted],
            self._channel,
        )
        sources = found[self._channel.rank]
        read = read_shared(sources, self._channel, **self._options)
        self._states = dict(zip(wanted, read, strict=True))
        return self._states.pop(STATES_MEMBER)

    def check(self, engine: Any, random_states: Any, load_weights_only: bool) -> None:
        """Checks that the states fit this engine.

        Raises:
            CorruptArchiveError: This rank's shard is in no archive.
            StateMismatchError: ZeRO sharded the optimizer for a different number of ranks.
        """
        sharded = engine.zero_optimization_stage() > 0 and not load_weights_only
        saved_by = len(random_states) if isinstance(random_states, list) else None
        if sharded and saved_by not in (None, self._channel.size):
            raise StateMismatchError(
                f"{self._path} was saved by {saved_by} ranks, and there are "
                f"{self._channel.size}: ZeRO's shards can only be loaded by the number of "
                "ranks that saved them",
                path=str(self._path),
            )
        for member in _needed(engine, load_weights_only):
            self._source(member)

    def restore(self, engine: Any, *, strict: bool, load_weights_only: bool) -> None:
        """Lets DeepSpeed load the states. Collective.

        Raises:
            Exception: DeepSpeed failed. The engine may then be restored in part.
        """
        with tempfile.TemporaryDirectory(prefix="pyckpt-") as name:
            folder = Path(name)
            for member in self._sources:
                placeholder = folder / member
                placeholder.parent.mkdir(parents=True, exist_ok=True)
                placeholder.touch()
            replaced = engine.checkpoint_engine
            engine.checkpoint_engine = _ArchiveEngine(folder, self._state)
            try:
                loaded, _ = engine.load_checkpoint(
                    name, tag=TAG, load_module_strict=strict, load_module_only=load_weights_only
                )
            finally:
                engine.checkpoint_engine = replaced
                self._states.clear()
        if loaded is None:
            raise CheckpointError(f"DeepSpeed did not load {self._path}", path=str(self._path))

    def _state(self, member: str) -> Any:
        if member in self._states:
            return self._states[member]
        # A state of another rank: experts, or a part of the model that DeepSpeed looks at.
        return read_source(self._source(member), **self._options)

    def _list(self) -> _Listing:
        """What this rank's archive has. Raises as ``_listing``."""
        return _listing(self._path, Stores(self._options["storage_options"]))

    def _source(self, member: str) -> Source:
        try:
            return self._sources[member]
        except KeyError:
            raise CorruptArchiveError(
                f"{self._path} has no member {member!r}, nor has another rank's archive; put "
                "{rank} in the path, and use as many ranks as saved it",
                path=str(self._path),
            ) from None


class _ArchiveEngine(CheckpointEngine):  # type: ignore[misc]
    """A CheckpointEngine that loads members of archives."""

    def __init__(self, folder: Path, state: Callable[[str], Any]) -> None:
        super().__init__(None)
        self.name = "pyckpt"
        self._folder = folder
        self._state = state

    def create(self, info: Any) -> None:
        """Not used when loading."""

    def save(self, state_dict: Any, path: str) -> None:
        """Not used when loading."""
        raise NotImplementedError("this engine only loads")

    def load(self, path: str, map_location: Any = None) -> Any:
        """The state, on the CPU. DeepSpeed copies it from there."""
        return self._state(Path(path).relative_to(self._folder).as_posix())

    def commit(self, info: Any) -> bool:
        """Not used when loading."""
        return True


def _needed(engine: Any, load_weights_only: bool) -> list[str]:
    """The members that this rank cannot do without."""
    names = [engine._get_ckpt_name("", TAG)]
    if engine.zero_optimization_stage() > 0 and not load_weights_only:
        names.append(engine._get_zero_ckpt_name("", TAG))
    return names


@dataclass(frozen=True)
class _Listing:
    """The states in a rank's archive, and its save. Archives of older releases do not tell it."""

    path: Location
    save_id: str | None
    sources: list[Source]


def _listing(path: Location, stores: Stores) -> _Listing:
    """What a rank's archive has.

    Raises:
        CorruptArchiveError: The file is not a tar, is damaged, or has a member whose name leads out
            of the archive.
        OSError: The file cannot be read.
    """
    folder = f"{TAG}/"
    file = open_input(path, stores)
    part = find_part(ArchiveReader(file, num_threads=1))
    # Another reader: this one goes to the end, and keeps nothing of what it has passed.
    names = [member.inner_name(file.path) for member in ArchiveReader(file).index()]
    return _Listing(
        path,
        None if part is None else part.save_id,
        [
            Source(path, name, file.version)
            for name in names
            if name == STATES_MEMBER or (name.startswith(folder) and name.endswith(".pt"))
        ],
    )


def _check_one_save(listings: Sequence[_Listing], channel: Channel) -> None:
    first = listings[0]
    for rank, listing in zip(channel.members, listings, strict=True):
        if listing.save_id != first.save_id:
            raise MixedFilesError(
                f"{listing.path} is not of the same save as {first.path}: the archives of one "
                "checkpoint belong together",
                rank=rank,
                path=str(listing.path),
            )
