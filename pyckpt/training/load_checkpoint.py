"""load_checkpoint: restores a training state from the files of save_checkpoint."""

from __future__ import annotations

import warnings
from pathlib import Path, PurePath
from typing import Any

from pyckpt.archive.formats import STATES_MEMBER, add_tar_suffix, tar_suffixes
from pyckpt.errors import OptionError, StateMismatchError
from pyckpt.key_paths import IgnoreKeys, without_ignored
from pyckpt.options import WriteOptions, default_threads
from pyckpt.progress import ProgressHook
from pyckpt.ranks.exchange import Ranks, current_ranks, together
from pyckpt.state import RestorableState, is_deepspeed_engine, restore
from pyckpt.training.names import render_ranks
from pyckpt.training.rng import set_rng_state
from pyckpt.training.shared_reads import Source, read_shared

__all__ = ["load_checkpoint"]

_WITH_WEIGHTS_ONLY = {"model", "integrations", "metadata"}  # the last two by Composer


def load_checkpoint(
    path: str | PurePath,
    state: RestorableState,
    *,
    load_weights_only: bool = False,
    strict_model_weights: bool = True,
    ignore_keys: IgnoreKeys = None,
    weights_only: bool = True,
    num_threads: int | None = None,
    progress: ProgressHook = False,
) -> list[dict[str, Any]] | None:
    """Restores a training state; the counterpart of ``composer.utils.load_checkpoint``.

    Call it on every rank. All ranks read first. The state changes only if all ranks could read.
    What the checkpoint lacks stays as it is. If it holds weights alone, a warning says so.

    With DeepSpeed every rank reads its own archive. What data parallelism saved only once is read
    from other ranks' archives, so rank 0's archive must be readable on every machine. DeepSpeed
    gets the states from memory; nothing is extracted.

    Args:
        path: The file. May contain ``{rank}``, ``{local_rank}``, ``{world_size}``,
            ``{local_world_size}`` and ``{node_rank}``. Other variables of save_checkpoint have the
            values of the time of saving, so write these values out. With DeepSpeed ``.tar`` is
            appended as in save_checkpoint.
        state: Anything that follows the RestorableState protocol, such as Composer's State.
        load_weights_only: Restore only the model, and no random states. Not with ZeRO 3, whose
            weights are in the optimizer's shards.
        strict_model_weights: Whether the weights must be exactly those of the model.
        ignore_keys: What not to restore: globs over key paths such as ``state/optimizers/*``, or a
            callable that edits the loaded dict. DeepSpeed's own states are not in it.
        weights_only: As in ``pyckpt.load``. False unpickles anything, and runs code of the files.
        num_threads: Decoding threads of each rank; None takes an equal share of the CPUs that the
            process may use.
        progress: As in ``pyckpt.load``; for each file that rank 0 reads.

    Returns:
        The saved random states of all ranks. This rank's generators are restored already. If you
        draw from them before training goes on, restore them again with
        ``pyckpt.training.rng.set_rng_state(states[rank])``. None if the file has none, or with
        ``load_weights_only``. If it has the states of a different number of ranks, a warning says
        so, and ranks without a state leave their generators as they are.

    Raises:
        FilenameError: ``path`` cannot be rendered.
        OptionError: Arguments exclude each other, or ``state`` has no ``load_state_dict``.
        CorruptArchiveError: A file is damaged, or has no such member.
        StateMismatchError: The checkpoint has other weights, or is of a different number of ranks.
        CheckpointError: Anything else, such as a missing file. Every rank raises each of these
            errors. The message names the cause, and attributes the rank and the file. The state is
            unchanged unless the message begins with "restoring the state failed". With DeepSpeed it
            may also be changed if DeepSpeed did not load the file, or if memory is short.
    """
    options = {"weights_only": weights_only, "num_threads": num_threads, "progress": progress}
    loading = _Load(path, state, load_weights_only, strict_model_weights, options)
    together("preparing to load the checkpoint", loading.prepare)
    contents = loading.read()
    together("preparing to restore the state", lambda: loading.choose(contents, ignore_keys))
    together("restoring the state", loading.restore)
    return loading.random_states


class _Load:
    """One call of load_checkpoint on one rank. Ranks exchange outcomes between its steps."""

    def __init__(
        self,
        path: str | PurePath,
        state: RestorableState,
        load_weights_only: bool,
        strict: bool,
        options: dict[str, Any],
    ) -> None:
        self.random_states: list[dict[str, Any]] | None = None
        self._template = path
        self._state = state
        self._load_weights_only = load_weights_only
        self._strict = strict
        self._options = options
        self._is_deepspeed = is_deepspeed_engine(state.model)
        self._ranks = Ranks()
        self._path = Path()
        self._contents: dict[str, Any] = {}
        self._engine_states: Any = None

    def prepare(self) -> None:
        """Finds every error that can be found before a byte is read."""
        self._ranks = current_ranks()
        if self._options["num_threads"] is None:
            self._options["num_threads"] = default_threads(self._ranks.local_world_size)
        WriteOptions(num_threads=self._options["num_threads"], progress=self._options["progress"])
        self._path = render_ranks(self._template, self._ranks)
        if not callable(getattr(self._state, "load_state_dict", None)):
            raise OptionError(f"{type(self._state).__qualname__} has no load_state_dict()")
        if self._is_deepspeed:
            from pyckpt.training.deepspeed import check_can_load

            check_can_load(self._state.model, self._load_weights_only)
            self._path = add_tar_suffix(self._path, tar_suffixes())

    def read(self) -> Any:
        """Reads all that this rank needs. Returns the contents of the states file."""
        if not self._is_deepspeed:
            source = Source(self._path, STATES_MEMBER)
            [contents] = read_shared([source], self._ranks, **self._options)
            return contents
        from pyckpt.training.deepspeed import EngineStates

        self._engine_states = EngineStates(self._path, self._ranks, self._options)
        return self._engine_states.read(self._state.model)

    def choose(self, contents: Any, ignore_keys: IgnoreKeys) -> None:
        """Chooses what to restore of ``contents``. The last step that does not change the state."""
        if not isinstance(contents, dict) or not isinstance(contents.get("state"), dict):
            raise StateMismatchError(
                f"{self._path} holds no training state: no dict with a 'state'",
                path=str(self._path),
            )
        if self._is_deepspeed:
            self._engine_states.check(
                self._state.model, contents.get("rng"), self._load_weights_only
            )
        if not self._load_weights_only and contents["state"].keys() <= _WITH_WEIGHTS_ONLY:
            warnings.warn(
                f"{self._path} holds only weights: everything else stays as it is", stacklevel=5
            )
        contents = without_ignored(contents, ignore_keys)
        training_state = contents.get("state", {})
        if self._load_weights_only:
            weights = {key: training_state[key] for key in ("model",) if key in training_state}
            if not weights and not self._is_deepspeed:
                raise StateMismatchError(f"{self._path} holds no weights", path=str(self._path))
            self._contents = weights
        else:
            self._contents = training_state
            self.random_states = contents.get("rng")

    def restore(self) -> None:
        """Changes the state. Random states come last, because other steps may draw from them."""
        if self._is_deepspeed:
            self._engine_states.restore(
                self._state.model,
                strict=self._strict,
                load_weights_only=self._load_weights_only,
            )
        if self._contents:
            restore(self._state, self._contents, strict=self._strict)
        if self.random_states is not None:
            self._restore_random_states(self.random_states)

    def _restore_random_states(self, saved: list[dict[str, Any]]) -> None:
        rank, world_size = self._ranks.rank, self._ranks.world_size
        if len(saved) != world_size:
            warnings.warn(
                f"{self._path} has the random states of {len(saved)} ranks, and there are "
                f"{world_size}: training will not go on exactly as it would have",
                stacklevel=5,
            )
        if rank < len(saved):
            set_rng_state(saved[rank])
