"""save_checkpoint: a training state in, the paths of all ranks out."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from pyckpt.archive import STATES_MEMBER, ArchiveWriter, tar_suffixes
from pyckpt.distributed import Ranks, current_ranks, together
from pyckpt.errors import DuplicateFileError, OptionError
from pyckpt.file_identity import file_identity
from pyckpt.key_paths import IgnoreKeys, without_ignored
from pyckpt.naming import add_tar_suffix, render
from pyckpt.options import WriteOptions
from pyckpt.rng import rng_state
from pyckpt.state import TrainingState, is_deepspeed_engine, model_state_dict

__all__ = ["save_checkpoint"]


def save_checkpoint(
    state: TrainingState,
    filename: str | PurePath = "ep{epoch}-ba{batch}-rank{rank}",
    *,
    weights_only: bool = False,
    ignore_keys: IgnoreKeys = None,
    compression_level: int | None = None,
    num_threads: int | None = None,
    fsync: bool = True,
) -> list[Path]:
    """Saves the training state; the counterpart of ``composer.utils.save_checkpoint``.

    Call it on every rank. Without DeepSpeed rank 0 writes one file; with DeepSpeed every rank
    writes an archive of its own. Either the files of all ranks are there in the end, or all ranks
    raise and every earlier file is as it was.

    The file holds ``{"state": state.state_dict(), "rng": [random states by rank]}``. Tensors are
    written from where they lie and must not change meanwhile.

    Args:
        state: Anything that follows the TrainingState protocol, such as Composer's State.
        filename: May contain the variables of pyckpt.naming.VARIABLES with format specs, in its
            folders too, which are created. The suffix decides the format: ``.tar``, ``.tar.gz``,
            ``.tar.bz2``, ``.tar.lzma`` and their short forms; any other name gets torch's own file.
            With DeepSpeed ``.tar`` is appended unless there is such a suffix.
        weights_only: Save ``{"state": {"model": ...}, "rng": ...}``. Not with DeepSpeed.
        ignore_keys: What not to save: globs over key paths such as ``state/optimizers/*``, or a
            callable that edits the dict before it is saved.
        compression_level: The format's level; None takes its standard one.
        num_threads: Worker threads of each rank that writes; None takes an equal share of the CPUs
            that the process may use.
        fsync: Whether to wait until the disks have the files.

    Returns:
        The path that rank 0 wrote, on every rank; with DeepSpeed the paths of all ranks, by rank,
        each valid on its rank's machine.

    Raises:
        CheckpointError: Some rank failed; its attributes and message name rank and cause, and every
            rank raises it. FilenameError, DuplicateFileError and OptionError, which are
            ValueErrors, come before anything is written.
    """
    save = _Save(state, filename, weights_only, ignore_keys)
    try:
        targets = together(
            "preparing the checkpoint",
            lambda: save.prepare(compression_level, num_threads, fsync),
        )
        _check_distinct(targets)
        random_states = together("collecting the random states", rng_state)
        together("collecting the training state", lambda: save.collect_state(random_states))
        if save.is_deepspeed:
            together("collecting DeepSpeed's states", save.collect_engine)
        together("writing the checkpoint", save.write)
        together("committing the checkpoint", lambda: save.commit(several=save.is_deepspeed))
        save.keep()
    finally:
        save.close()
    return [t.path for t in (targets if save.is_deepspeed else targets[:1])]


@dataclass(frozen=True)
class _Target:
    """What a rank is going to write; all ranks know that of all."""

    path: Path
    writes: bool
    identity: str  # see file_identity


def _check_distinct(targets: list[_Target]) -> None:
    seen: dict[str, int] = {}
    for rank, target in enumerate(targets):
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


class _Save:
    """One call of save_checkpoint on one rank: the steps between which ranks exchange outcomes."""

    def __init__(
        self,
        state: TrainingState,
        filename: str | PurePath,
        weights_only: bool,
        ignore_keys: IgnoreKeys,
    ) -> None:
        self.is_deepspeed = is_deepspeed_engine(state.model)
        self._state = state
        self._filename = filename
        self._weights_only = weights_only
        self._ignore_keys = ignore_keys
        self._cleanup = ExitStack()
        self._ranks = Ranks()
        self._writer: ArchiveWriter | None = None

    def prepare(
        self, compression_level: int | None, num_threads: int | None, fsync: bool
    ) -> _Target:
        """Everything that can be known to be wrong before a byte is written."""
        self._ranks = current_ranks()
        if self._weights_only and self.is_deepspeed:
            raise OptionError("weights_only=True is not possible with DeepSpeed")
        path = render(self._filename, self._state, self._ranks)
        if self.is_deepspeed:
            path = add_tar_suffix(path, tar_suffixes())
        writes = self.is_deepspeed or self._ranks.rank == 0
        if writes:
            self._writer = ArchiveWriter(
                path,
                WriteOptions(compression_level, num_threads, fsync),
                writers_on_node=self._ranks.local_world_size if self.is_deepspeed else 1,
            )
            self._cleanup.callback(self._writer.abandon)
        return _Target(path, writes, file_identity(path))

    def collect_state(self, random_states: list[dict[str, Any]]) -> None:
        """Gathers the state on every rank: its state_dict() may itself be collective."""
        state = (
            {"model": model_state_dict(self._state)}
            if self._weights_only
            else self._state.state_dict()
        )
        contents = without_ignored({"state": state, "rng": random_states}, self._ignore_keys)
        if self._writer is not None and self._ranks.rank == 0:
            self._writer.add_object(STATES_MEMBER, contents)

    def collect_engine(self) -> None:
        """Lets DeepSpeed save into this rank's archive."""
        from pyckpt.deepspeed import collect_engine_states

        assert self._writer is not None
        self._cleanup.enter_context(collect_engine_states(self._state.model, self._writer))

    def write(self) -> None:
        """The bytes, under a name that nobody sees."""
        if self._writer is not None:
            self._writer.write()

    def commit(self, *, several: bool) -> None:
        """The name. Where several ranks commit, each can still go back until keep()."""
        if self._writer is not None:
            self._writer.commit(keep_previous=several)

    def keep(self) -> None:
        """All ranks have committed."""
        if self._writer is not None:
            self._writer.keep()

    def close(self) -> None:
        """Removes what was not kept."""
        self._cleanup.close()
