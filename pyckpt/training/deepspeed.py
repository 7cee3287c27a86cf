"""DeepSpeed: its checkpoint, with every state streamed into this rank's archive.

DeepSpeed hands each state dict to ``engine.checkpoint_engine.save(state_dict, path)``. For the
length of one save that engine is ours, which adds the state as a member ``deepspeed/<file>``. What
DeepSpeed writes on its own (the script that merges ZeRO states, tensors offloaded to NVMe) goes to
a temporary folder and is added as files.

Loading goes the same way back. DeepSpeed looks for its files by name before it asks the checkpoint
engine for what they hold, so it is shown a folder of empty files that are called as the members.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from deepspeed.runtime.checkpoint_engine.checkpoint_engine import CheckpointEngine

from pyckpt.archive.formats import STATES_MEMBER
from pyckpt.archive.load import load
from pyckpt.archive.reader import ArchiveReader
from pyckpt.archive.writer import ArchiveWriter
from pyckpt.errors import CheckpointError, CorruptArchiveError, OptionError, StateMismatchError
from pyckpt.ranks.exchange import Ranks, together
from pyckpt.torch_format.admitted_types import admitted
from pyckpt.training.shared_reads import Source, read_shared

__all__ = ["TAG", "EngineStates", "check_can_load", "collect_engine_states"]

TAG = "deepspeed"
"""The tag that the checkpoint is saved under, as Composer names it."""


@contextmanager
def collect_engine_states(engine: Any, writer: ArchiveWriter) -> Iterator[None]:
    """Adds all that this rank saves of ``engine`` to ``writer``; call it on every rank.

    The files that were added exist until the context is left, so write the archive inside it.

    Raises:
        Exception: What went wrong with a state, once DeepSpeed has come through its barriers: a
            rank that left early would leave the others waiting.
    """
    with tempfile.TemporaryDirectory(prefix="pyckpt-") as name:
        folder = Path(name)
        (folder / TAG).mkdir()
        replaced = engine.checkpoint_engine
        collector = _CollectingEngine(replaced, folder, writer)
        engine.checkpoint_engine = collector
        try:
            engine.save_checkpoint(str(folder), tag=TAG)
        finally:
            engine.checkpoint_engine = replaced
        collector.raise_error()
        for path in sorted(folder.rglob("*")):
            member = path.relative_to(folder).as_posix()
            if path.is_dir():  # even when empty: loading from NVMe looks for one
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
        """Nothing is to be prepared. A tag up to DeepSpeed 0.18.3, then a CheckpointCommitInfo."""

    def save(self, state_dict: Any, path: str) -> None:
        """Adds a member; keeps the first error, since raising here would hang the other ranks."""
        if self._error is not None:
            return
        try:
            name = Path(path).relative_to(self._folder).as_posix()
            # ZeRO's states are views of flat buffers that hold much else.
            self._writer.add_object(name, state_dict, compact_views=True)
        except BaseException as error:
            self._error = error

    def load(self, path: str, map_location: Any = None) -> Any:
        """As the engine that was there before."""
        return self._replaced.load(path, map_location=map_location)

    def commit(self, info: Any) -> bool:
        """The archive is committed later, when all ranks have written theirs."""
        return True

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        """Makes a folder for what DeepSpeed writes on its own."""
        Path(path).mkdir(parents=True, exist_ok=exist_ok)

    def preserves_storage_sharing(self) -> bool:
        """No: so DeepSpeed need not clone the views that it saves."""
        return False

    def raise_error(self) -> None:
        """Raises what ``save`` kept."""
        if self._error is not None:
            raise self._error


def check_can_load(engine: Any, load_weights_only: bool) -> None:
    """Whether archives can be loaded into ``engine`` at all.

    Raises:
        OptionError: They cannot, and why.
    """
    if engine.zero_nvme_offload_optimizer():
        raise OptionError(
            "an optimizer that lies on NVMe is loaded from files: extract the archives into one "
            f"folder and call engine.load_checkpoint(folder, tag={TAG!r})"
        )
    if load_weights_only and engine.zero_optimization_stage() == 3:
        raise OptionError(
            "load_weights_only=True is not possible with ZeRO 3: the weights lie in the "
            "optimizer's shards"
        )


class EngineStates:
    """What one rank needs of the ranks' archives to restore its engine.

    Call ``read()`` and then ``check()``, which leave the engine alone, and then ``restore()``.

    Args:
        path: This rank's archive.
        options: Those of ``pyckpt.load``; DeepSpeed's own types are admitted.
    """

    def __init__(self, path: Path, ranks: Ranks, options: dict[str, Any]) -> None:
        self._path = path
        self._ranks = ranks
        self._options = options
        self._holders: dict[str, Path] = {}
        self._states: dict[str, Any] = {}

    def read(self, engine: Any) -> Any:
        """Reads this rank's states; returns what rank 0's archive holds beside them.

        Collective. In memory are then the states of this rank's archive, and the model's.

        Raises:
            CheckpointError: Some rank could not read something; on all ranks.
        """
        listings = together(
            "looking at the checkpoint", lambda: (self._path, _state_members(self._path))
        )
        # Own members first, then those of the lowest rank: all that have one have the same.
        for path, members in (listings[self._ranks.rank], *listings):
            for member in members:
                self._holders.setdefault(member, path)
        own = [member for member in listings[self._ranks.rank][1] if member != STATES_MEMBER]
        wanted = dict.fromkeys([STATES_MEMBER, *own, *_needed(engine, load_weights_only=True)])

        found = together(
            "looking for the states",
            lambda: [Source(self._holder(member), member) for member in wanted],
        )
        with _admitted_types():
            read = read_shared(found[self._ranks.rank], self._ranks, **self._options)
        self._states = dict(zip(wanted, read, strict=True))
        return self._states.pop(STATES_MEMBER)

    def check(self, engine: Any, random_states: Any, load_weights_only: bool) -> None:
        """Whether the states are those of this engine.

        Raises:
            CorruptArchiveError: This rank's shard is in no archive.
            StateMismatchError: ZeRO sharded the optimizer for another number of ranks.
        """
        sharded = engine.zero_optimization_stage() > 0 and not load_weights_only
        saved_by = len(random_states) if isinstance(random_states, list) else None
        if sharded and saved_by not in (None, self._ranks.world_size):
            raise StateMismatchError(
                f"{self._path} was saved by {saved_by} ranks, and there are "
                f"{self._ranks.world_size}: ZeRO's shards fit the number of ranks alone that "
                "saved them",
                path=str(self._path),
            )
        for member in _needed(engine, load_weights_only):
            self._holder(member)

    def restore(self, engine: Any, *, strict: bool, load_weights_only: bool) -> None:
        """Lets DeepSpeed load the states. Collective.

        Raises:
            Exception: What DeepSpeed raises; the engine may then be restored in part.
        """
        with tempfile.TemporaryDirectory(prefix="pyckpt-") as name:
            folder = Path(name)
            for member in self._holders:
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
        # Of another rank: experts, or a model's part that DeepSpeed takes a look at.
        with _admitted_types():
            return load(self._holder(member), **self._options, member=member)

    def _holder(self, member: str) -> Path:
        try:
            return self._holders[member]
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
        """Of saving alone."""

    def save(self, state_dict: Any, path: str) -> None:
        """Of saving alone."""
        raise NotImplementedError("this engine loads")

    def load(self, path: str, map_location: Any = None) -> Any:
        """The state, on the CPU, whence DeepSpeed copies it."""
        return self._state(Path(path).relative_to(self._folder).as_posix())

    def commit(self, info: Any) -> bool:
        """Of saving alone."""
        return True


def _needed(engine: Any, load_weights_only: bool) -> list[str]:
    """The members without which this rank cannot go on."""
    names = [engine._get_ckpt_name("", TAG)]
    if engine.zero_optimization_stage() > 0 and not load_weights_only:
        names.append(engine._get_zero_ckpt_name("", TAG))
    return names


def _state_members(path: Path) -> list[str]:
    """The states in an archive.

    Raises:
        CorruptArchiveError: It is no tar, is damaged, or has a name that leads elsewhere.
        OSError: The file cannot be read.
    """
    folder = f"{TAG}/"
    names = [member.inner_name(path) for member in ArchiveReader(path).members()]
    return [n for n in names if n == STATES_MEMBER or (n.startswith(folder) and n.endswith(".pt"))]


@contextmanager
def _admitted_types() -> Iterator[None]:
    """Lets torch's ``weights_only`` loader build what DeepSpeed's states hold."""
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    with admitted([DynamicLossScaler, LossScaler, ZeroStageEnum, fragment_address]):
        yield
