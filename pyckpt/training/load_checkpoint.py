"""load_checkpoint: restores a training state from the files of save_checkpoint."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path, PurePath
from typing import Any

from pyckpt.archive.formats import STATES_MEMBER, add_tar_suffix, tar_suffixes
from pyckpt.archive.reader import ArchiveReader
from pyckpt.errors import CheckpointError, OptionError, StateMismatchError
from pyckpt.key_paths import IgnoreKeys, without_ignored
from pyckpt.options import WriteOptions, default_threads
from pyckpt.progress import ProgressHook, of_group
from pyckpt.ranks.exchange import Channel, Ranks, begin_together, current_ranks, together
from pyckpt.restoration import Restoration
from pyckpt.sharded.part import SHARDED, Part, find_part
from pyckpt.state import RestorableState, check_is_state, is_deepspeed_engine, prepare_to_restore
from pyckpt.storage.inputs import InputFile, Version, open_input, require_one_version
from pyckpt.storage.urls import Location, StorageOptions, Stores
from pyckpt.torch_format.weights_only import is_weights_only
from pyckpt.training.holding import Holding, holding_of
from pyckpt.training.named_state import keeping_shards
from pyckpt.training.names import find
from pyckpt.training.per_rank import Parts, chosen_parts, restore_part
from pyckpt.training.rng import RandomStates, set_rng_state
from pyckpt.training.shared_reads import Source, read_shared
from pyckpt.warn import warn

__all__ = ["load_checkpoint"]

_WITH_WEIGHTS_ONLY = {"model", "integrations", "metadata"}  # the last two by Composer


def load_checkpoint(
    path: str | PurePath,
    state: RestorableState,
    *,
    load_weights_only: bool = False,
    strict_model_weights: bool = True,
    ignore_keys: IgnoreKeys = None,
    weights_only: bool | None = None,
    num_threads: int | None = None,
    progress: ProgressHook = False,
    process_group: Any = None,
    storage_options: StorageOptions = None,
) -> list[dict[str, Any]] | None:
    """Restores a training state; the counterpart of ``composer.utils.load_checkpoint``.

    Call it on every rank. All ranks read first, and compare the checkpoint with their states. The
    states change only if it can be read and fits on every rank. What the checkpoint lacks stays as
    it is. If it holds weights alone, a warning says so. Each rank gets its ``state.per_rank``.

    With DeepSpeed every rank reads its own archive. What data parallelism saved only once is read
    from other ranks' archives, so rank 0's archive must be readable on every machine. DeepSpeed
    gets the states from memory; nothing is extracted.

    Args:
        path: The file, or the object's URL, as save_checkpoint returned it. Or a name that contains
            ``{rank}``, ``{local_rank}``, ``{world_size}``, ``{local_world_size}`` or
            ``{node_rank}``. Other variables of save_checkpoint have the values of the time of
            saving, so write these values out. With DeepSpeed ``.tar`` is appended as in
            save_checkpoint.
        state: Anything that follows the RestorableState protocol, such as Composer's State.
        load_weights_only: Restore only the model, and no random states. Not with ZeRO 3, whose
            weights are in the optimizer's shards.
        strict_model_weights: Whether the weights must be exactly those of the model.
        ignore_keys: What not to restore: globs over key paths such as ``state/optimizers/*``, or a
            callable that edits the loaded dict. DeepSpeed's own states are not in it.
        weights_only: As in ``pyckpt.load``. None means True, unless torch's environment variables
            say otherwise. False unpickles anything, and runs code of the files.
        num_threads: Decoding threads of each rank; None takes an equal share of the CPUs that the
            process may use.
        progress: As in ``pyckpt.load``; for each file that rank 0 reads.
        process_group: The ranks that load together, as in ``save_checkpoint``. Each gets the random
            states of its place in the group.
        storage_options: What the store of a URL is told besides the environment.

    Returns:
        The saved random states of all ranks. This rank's generators are restored already. If you
        draw from them before training goes on, restore them again with
        ``pyckpt.training.rng.set_rng_state(states[rank])``. In a process group, that is the rank in
        the group. None if the file has none, or with ``load_weights_only``. If it has the states of
        a different number of ranks, a warning says so, and ranks without a state leave their
        generators as they are.

    Raises:
        FilenameError: ``path`` cannot be rendered.
        OptionError: Arguments exclude each other, ``state`` has no ``load_state_dict``, or a tar
            has no ``composer_states.pt``.
        CorruptArchiveError: A file is damaged.
        StateMismatchError: The checkpoint has other weights, or is of a different number of ranks.
        CheckpointError: Anything else, such as a missing file. Every rank raises each of these
            errors. The message names the cause, and attributes the rank and the file. The state is
            unchanged unless the message begins with "restoring the state failed".
    """
    [channel] = begin_together("load_checkpoint", process_group=process_group)
    options = {
        "weights_only": weights_only,
        "num_threads": num_threads,
        "progress": of_group(progress, channel.rank),
        "storage_options": storage_options,
    }
    loading = _Load(path, state, load_weights_only, strict_model_weights, options, channel)
    try:
        _load(loading, ignore_keys, channel)
    except BaseException as error:
        channel.leave("load_checkpoint", error)
        raise
    return loading.random_states


def _load(loading: _Load, ignore_keys: IgnoreKeys, channel: Channel) -> None:
    together("preparing to load the checkpoint", loading.prepare, channel)
    contents = loading.read()
    together(
        "preparing to restore the state", lambda: loading.choose(contents, ignore_keys), channel
    )
    together("reading the checkpoint", loading.fill, channel)
    try:
        together("comparing the checkpoint with the state", loading.fit, channel)
    except BaseException:
        loading.undo()
        raise
    together("restoring the state", loading.restore, channel)


class _Load:
    """One call of load_checkpoint on one rank. Ranks exchange outcomes between its steps."""

    def __init__(
        self,
        path: str | PurePath,
        state: RestorableState,
        load_weights_only: bool,
        strict: bool,
        options: dict[str, Any],
        channel: Channel,
    ) -> None:
        self.random_states: RandomStates | None = None
        self._template = path
        self._state = state
        self._load_weights_only = load_weights_only
        self._strict = strict
        self._options = options
        self._channel = channel
        self._is_deepspeed = False
        self._ranks = Ranks()
        self._path: Location = Path()
        self._contents: dict[str, Any] = {}
        self._parts: Parts = []
        self._engine_states: Any = None
        self._found: tuple[Location, Part] | None = None
        self._version: Version | None = None  # of what the first rank has looked at
        self._outline: Any = None
        self._holdings: list[Holding] = []
        self._restoration = Restoration()

    def prepare(self) -> None:
        """Finds every error that can be found before a byte is read."""
        check_is_state(self._state)
        self._is_deepspeed = is_deepspeed_engine(self._state.model)
        self._ranks = current_ranks()
        if self._options["num_threads"] is None:
            self._options["num_threads"] = default_threads(self._ranks.local_world_size)
        WriteOptions(num_threads=self._options["num_threads"], progress=self._options["progress"])
        self._options["weights_only"] = is_weights_only(self._options["weights_only"])
        self._path = find(self._template, self._ranks, self._options["storage_options"])
        if not callable(getattr(self._state, "load_state_dict", None)):
            raise OptionError(f"{type(self._state).__qualname__} has no load_state_dict()")
        if self._is_deepspeed:
            from pyckpt.training.deepspeed import check_can_load

            if self._channel.size != self._ranks.world_size:
                raise OptionError(
                    "process_group is not possible with DeepSpeed: all ranks load its states"
                )
            check_can_load(self._state.model, self._load_weights_only)
            self._path = add_tar_suffix(self._path, tar_suffixes())

    def read(self) -> Any:
        """Reads all that this rank needs. Returns the contents of the states file."""
        if not self._is_deepspeed and self._find_out_how():
            together("reading the checkpoint", self._read_outline, self._channel)
            return self._outline.tree
        if not self._is_deepspeed:
            source = Source(self._path, STATES_MEMBER, self._version)
            [contents] = read_shared([source], self._channel, **self._options)
            return contents
        from pyckpt.training.deepspeed import EngineStates

        self._engine_states = EngineStates(self._path, self._channel, self._options)
        return self._engine_states.read(self._state.model)

    def _find_out_how(self) -> bool:
        """Whether a rank has, or the checkpoint is, a part of something. Collective."""
        found = together("looking at the checkpoint", self._look, self._channel)
        self._found, self._version, _ = found[0]
        self._holdings = [holding for _, _, holding in found]
        return (
            self._found is not None
            or any(one.has_shards for one in self._holdings)
            or len({one.digest for one in self._holdings}) > 1
        )

    def _look(self) -> tuple[tuple[Location, Part] | None, Version | None, Holding]:
        """The archive of a set, or else the version, that the first rank finds.

        And what this rank has.
        """
        holding = holding_of(self._state)
        if self._channel.rank != 0:
            return None, None, holding
        file = self._opened()
        part = find_part(ArchiveReader(file, num_threads=1))
        if part is None or part.kind != SHARDED:
            return None, file.version, holding
        path = self._path.absolute() if isinstance(self._path, Path) else self._path
        return (path, part), None, holding

    def _opened(self) -> InputFile:
        """The file. It has the version that the first rank has looked at."""
        file = open_input(self._path, Stores(self._options["storage_options"]))
        if self._version is not None:
            require_one_version((self._version, file.version))
        return file

    def _read_outline(self) -> None:
        from pyckpt.sharded.outline import ArchiveSet, whole_file

        options = {key: self._options[key] for key in ("num_threads", "weights_only")}
        if self._found is None:
            self._outline = whole_file(self._opened(), **options)
        else:
            store = self._options["storage_options"]
            self._outline = ArchiveSet(*self._found, storage_options=store, **options)

    def choose(self, contents: Any, ignore_keys: IgnoreKeys) -> None:
        """Chooses what to restore of ``contents``."""
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
            warn(f"{self._path} holds only weights: everything else stays as it is")
        everything = contents
        contents = without_ignored(everything, ignore_keys)
        parts = chosen_parts(everything, contents)
        training_state = contents.get("state", {})
        if self._load_weights_only:
            weights = {key: training_state[key] for key in ("model",) if key in training_state}
            if not weights and not self._is_deepspeed:
                raise StateMismatchError(f"{self._path} holds no weights", path=str(self._path))
            self._contents = weights
        else:
            self._contents = training_state
            self._parts = parts
            states = contents.get("rng")
            self.random_states = None if states is None else RandomStates(states)

    def fill(self) -> None:
        """Reads the tensors that this rank needs, if only their places are known yet."""
        if self._outline is not None:
            from pyckpt.training.sharded_load import fill

            others = [self._parts, self.random_states]
            self._contents = fill(
                self._outline,
                self._state,
                self._contents,
                others,
                self._holdings,
                self._channel.rank,
            )

    def fit(self) -> None:
        """Checks that what was chosen fits the state. ``undo`` takes back what this changes."""
        if self._contents:
            with keeping_shards(self._state) if self._outline is not None else nullcontext():
                self._restoration = prepare_to_restore(
                    self._state, self._contents, strict=self._strict
                )

    def undo(self) -> None:
        """Leaves the state as it was before ``fit``."""
        self._restoration.undo()

    def restore(self) -> None:
        """Changes the state. Random states come last, because other steps may draw from them."""
        try:
            self._restore()
        except StateMismatchError as error:  # it promises that nothing has changed
            raise CheckpointError(str(error), path=str(self._path)) from error

    def _restore(self) -> None:
        if self._is_deepspeed:
            self._engine_states.restore(
                self._state.model,
                strict=self._strict,
                load_weights_only=self._load_weights_only,
            )
        with keeping_shards(self._state) if self._outline is not None else nullcontext():
            self._restoration.finish()
        restore_part(
            self._state, self._parts, self._channel.rank, self._channel.size, str(self._path)
        )
        if self.random_states is not None:
            self._restore_random_states(self.random_states)

    def _restore_random_states(self, saved: list[dict[str, Any]]) -> None:
        rank, size = self._channel.rank, self._channel.size
        if len(saved) != size:
            warn(
                f"{self._path} has the random states of {len(saved)} ranks, and there are "
                f"{size}: training will not go on exactly as it would have",
            )
        if rank < len(saved):
            set_rng_state(saved[rank])
