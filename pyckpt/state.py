"""What is saved and restored: two protocols, and a State for training without Composer."""

from __future__ import annotations

import datetime
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol, runtime_checkable

import torch

from pyckpt.errors import OptionError
from pyckpt.fitting import check_weights, is_plain_optimizer, parameters_by_position
from pyckpt.restoration import Restoration
from pyckpt.warn import warn

__all__ = [
    "RestorableState",
    "State",
    "Timestamp",
    "TrainingState",
    "check_is_state",
    "each",
    "is_deepspeed_engine",
    "model_state_dict",
    "named_objects",
    "optimizers_of",
    "prepare_to_restore",
    "unwrapped",
]


class TrainingTime(Protocol):
    """How far the training has come. ``int()`` converts the counts."""

    epoch: Any
    batch: Any
    batch_in_epoch: Any
    sample: Any
    sample_in_epoch: Any
    token: Any
    token_in_epoch: Any
    total_wct: datetime.timedelta
    epoch_wct: datetime.timedelta
    batch_wct: datetime.timedelta


@runtime_checkable
class TrainingState(Protocol):
    """What save_checkpoint needs of a state. Composer's ``State`` has it.

    A state may also have ``get_model_state_dict()``. ``weights_only`` then saves its result. It may
    have ``per_rank``, as ``pyckpt.State`` does.
    """

    model: Any
    run_name: Any
    timestamp: Any

    def state_dict(self) -> dict[str, Any]:
        """Everything that training needs to go on."""
        ...


@runtime_checkable
class RestorableState(TrainingState, Protocol):
    """What load_checkpoint needs of a state. Composer's ``State`` has it too.

    A state may also have ``prepare_to_load(state_dict, *, strict)``, as ``pyckpt.State`` does. It
    checks that ``state_dict`` fits, and returns an object with ``finish()`` and ``undo()``. Then no
    rank changes its state before every rank has checked.
    """

    def load_state_dict(self, state_dict: dict[str, Any], *, strict: bool) -> Any:
        """Restores what ``state_dict`` has. What it lacks stays as it is.

        ``strict``: whether the weights must be exactly those of the model.
        """
        ...


@dataclass
class Timestamp:
    """How far the training has come. Times are wall-clock times.

    Counts may be of any type that ``int()`` takes, such as NumPy's. They are saved as ints.
    """

    epoch: int = 0
    batch: int = 0
    batch_in_epoch: int = 0
    sample: int = 0
    sample_in_epoch: int = 0
    token: int = 0
    token_in_epoch: int = 0
    total_wct: datetime.timedelta = field(default_factory=datetime.timedelta)
    epoch_wct: datetime.timedelta = field(default_factory=datetime.timedelta)
    batch_wct: datetime.timedelta = field(default_factory=datetime.timedelta)

    def state_dict(self) -> dict[str, Any]:
        """The fields by name."""
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {
            name: value if isinstance(value, datetime.timedelta) else int(value)
            for name, value in fields.items()
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Sets the fields that ``state_dict`` has."""
        for name in self.__dataclass_fields__:
            if name in state_dict:
                setattr(self, name, state_dict[name])


@dataclass
class State:
    """A training state for training without Composer. It is saved in the layout of Composer's.

    Attributes:
        model: The module that is trained, or a DeepSpeedEngine.
        optimizers: One optimizer or several; saved by class name, as in Composer. Those of a dict
            are saved by its keys.
        schedulers: One learning-rate scheduler or several, saved likewise. None means no scheduler.
        run_name: What ``{run_name}`` stands for.
        timestamp: How far the training has come.
        extra: Anything else to save, under the key ``extra``. The same on every rank.
        per_rank: What differs by rank, such as the place of a data loader: small values, with
            tensors on the CPU only. Saved for all ranks in whatever format, beside what
            ``state_dict()`` gives, and restored to each.
    """

    model: Any
    optimizers: Any = ()
    schedulers: Any = ()
    run_name: str = "run"
    timestamp: Timestamp = field(default_factory=Timestamp)
    extra: Mapping[str, Any] = field(default_factory=dict)
    per_rank: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # A generator gives its objects only once.
        if isinstance(self.optimizers, Iterator):
            self.optimizers = list(self.optimizers)
        if isinstance(self.schedulers, Iterator):
            self.schedulers = list(self.schedulers)

    def get_model_state_dict(self) -> dict[str, Any]:
        """The weights, by the names of the unwrapped model."""
        state_dict: dict[str, Any] = unwrapped(self.model).state_dict()
        return state_dict

    def state_dict(self) -> dict[str, Any]:
        """Everything that training needs to go on, and that all ranks have alike.

        With DeepSpeed, the engine saves model, optimizer and its scheduler in files of its own.
        """
        engine_saved: dict[str, Any] = {}
        if not is_deepspeed_engine(self.model):
            engine_saved = {
                "model": self.get_model_state_dict(),
                "optimizers": _by_class(self.optimizers),
            }
        return {
            **engine_saved,
            "schedulers": _by_class(self.schedulers),
            "timestamp": {"Timestamp": self.timestamp.state_dict()},
            "run_name": self.run_name,
            "extra": dict(self.extra),
        }

    def load_state_dict(self, state_dict: Mapping[str, Any], *, strict: bool = True) -> None:
        """Restores what ``state_dict`` has. What it lacks stays as it is.

        If it has optimizers or schedulers, but lacks one of this state, a warning names that one.

        Args:
            strict: Whether the weights must be exactly those of the model.

        Raises:
            StateMismatchError: Weights or optimizers do not fit. Nothing was changed.
        """
        self.prepare_to_load(state_dict, strict=strict).finish()

    def prepare_to_load(self, state_dict: Mapping[str, Any], *, strict: bool) -> Restoration:
        """Checks everything that ``load_state_dict`` would restore.

        Optimizers and schedulers with a ``load_state_dict`` of their own are restored at once,
        since only they know what they accept. ``undo()`` of the result takes that back.
        ``finish()`` restores the rest.

        Raises:
            StateMismatchError: Something does not fit. Nothing was changed.
        """
        module = unwrapped(self.model)
        engine_saved = is_deepspeed_engine(self.model)
        weights = state_dict.get("model")
        if weights is not None:
            check_weights(module, weights, strict)
        restoration = Restoration()
        optimizers = [] if engine_saved else _saved(self.optimizers, state_dict, "optimizers")
        unsure = list(_saved(self.schedulers, state_dict, "schedulers"))
        for one, saved in optimizers:
            if is_plain_optimizer(one, saved):
                fitted = parameters_by_position(module, one, saved)
                restoration.load_later(partial(one.load_state_dict, fitted))
            else:
                unsure.append((one, saved))
        if weights is not None:
            restoration.load_later(partial(module.load_state_dict, weights, strict=strict))
        restoration.load_later(partial(self._load_rest, state_dict))
        for one, saved in unsure:
            restoration.load_now(one, saved)
        return restoration

    def _load_rest(self, state_dict: Mapping[str, Any]) -> None:
        self.timestamp.load_state_dict(state_dict.get("timestamp", {}).get("Timestamp", {}))
        self.run_name = state_dict.get("run_name", self.run_name)
        self.extra = state_dict.get("extra", self.extra)


def unwrapped(model: Any) -> Any:
    """The module inside the wrappers of parallelism and torch.compile."""
    while True:
        if isinstance(model, torch.nn.DataParallel | torch.nn.parallel.DistributedDataParallel):
            model = model.module
        elif isinstance(model, torch.nn.Module) and hasattr(model, "_orig_mod"):
            # The wrapper of torch.compile. Its class cannot be named without importing it.
            model = model._orig_mod
        else:
            return model


def _by_class(objects: Any) -> dict[str, Any]:
    """State dicts by class name."""
    return {name: one.state_dict() for name, one in named_objects(objects)}


def named_objects(objects: Any) -> Iterator[tuple[str, Any]]:
    """Objects by class name. A second object of a class gets a number. A dict has names already."""
    if isinstance(objects, Mapping):
        yield from ((str(name), one) for name, one in objects.items())
        return
    seen: dict[str, int] = {}
    for one in each(objects):
        name = type(one).__qualname__
        count = seen.get(name, 0)
        seen[name] = count + 1
        yield (f"{name}-{count}" if count else name), one


def each(objects: Any) -> list[Any]:
    """The objects of a list, a tuple or a dict; one object by itself; none for None."""
    if objects is None:
        return []
    if isinstance(objects, Mapping):
        return list(objects.values())
    return list(objects) if isinstance(objects, Sequence) else [objects]


def optimizers_of(state: TrainingState) -> list[Any]:
    """The optimizers that ``state`` names."""
    return each(getattr(state, "optimizers", None))


def _saved(objects: Any, state_dict: Mapping[str, Any], key: str) -> Iterator[tuple[Any, Any]]:
    """Each object with its saved state."""
    saved = state_dict.get(key, {})
    for name, one in named_objects(objects):
        if name in saved:
            yield one, saved[name]
        elif saved:  # no warning if none were saved: that is intended
            warn(f"the checkpoint has no {key}/{name}: it stays as it is")


def check_is_state(state: Any) -> None:
    """Checks that ``state`` follows the TrainingState protocol.

    Raises:
        OptionError: It does not.
    """
    if not isinstance(state, TrainingState):
        raise OptionError(
            f"a training state is needed, not {type(state).__qualname__}: pass "
            "pyckpt.State(model, optimizers), on every rank. pyckpt.save and pyckpt.load take any "
            "object"
        )


def is_deepspeed_engine(model: Any) -> bool:
    """Whether ``model`` is a DeepSpeedEngine. Does not import deepspeed."""
    deepspeed = sys.modules.get("deepspeed")
    return deepspeed is not None and isinstance(model, deepspeed.DeepSpeedEngine)


def model_state_dict(state: TrainingState) -> Any:
    """The weights of ``state`` alone."""
    getter = getattr(state, "get_model_state_dict", None)
    return getter() if getter is not None else state.model.state_dict()


def prepare_to_restore(state: Any, state_dict: dict[str, Any], *, strict: bool) -> Restoration:
    """Checks that ``state_dict`` fits, if the state can tell. The result restores it.

    Raises:
        StateMismatchError: It does not fit.
    """
    prepare = getattr(state, "prepare_to_load", None)
    if prepare is not None:
        prepared: Restoration = prepare(state_dict, strict=strict)
        return prepared
    restoration = Restoration()
    restoration.load_later(partial(_restore, state, state_dict, strict))
    return restoration


def _restore(state: Any, state_dict: dict[str, Any], strict: bool) -> None:
    """Calls ``state.load_state_dict``. Composer's needs a logger too."""
    composer = sys.modules.get("composer.core")
    if composer is not None and isinstance(state, composer.State):
        from composer.loggers import Logger

        state.load_state_dict(state_dict, Logger(state=state), strict=strict)
    else:
        state.load_state_dict(state_dict, strict=strict)
