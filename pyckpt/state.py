"""What is saved and restored: two protocols, and a State for training without Composer."""

from __future__ import annotations

import datetime
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch

from pyckpt.errors import StateMismatchError

__all__ = [
    "RestorableState",
    "State",
    "Timestamp",
    "TrainingState",
    "is_deepspeed_engine",
    "model_state_dict",
    "restore",
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

    A state may also have ``get_model_state_dict()``. ``weights_only`` then saves its result.
    """

    model: Any
    run_name: Any
    timestamp: Any

    def state_dict(self) -> dict[str, Any]:
        """Everything that training needs to go on."""
        ...


@runtime_checkable
class RestorableState(TrainingState, Protocol):
    """What load_checkpoint needs of a state. Composer's ``State`` has it too."""

    def load_state_dict(self, state_dict: dict[str, Any], *, strict: bool) -> Any:
        """Restores what ``state_dict`` has. What it lacks stays as it is.

        ``strict``: whether the weights must be exactly those of the model.
        """
        ...


@dataclass
class Timestamp:
    """How far the training has come. Times are wall-clock times."""

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
        return asdict(self)

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
        optimizers: One optimizer or several; saved by class name, as in Composer.
        schedulers: One learning-rate scheduler or several, saved likewise. None means no scheduler.
        run_name: What ``{run_name}`` stands for.
        timestamp: How far the training has come.
        extra: Anything else to save, under the key ``extra``.
    """

    model: Any
    optimizers: Any = ()
    schedulers: Any = ()
    run_name: str = "run"
    timestamp: Timestamp = field(default_factory=Timestamp)
    extra: Mapping[str, Any] = field(default_factory=dict)

    def get_model_state_dict(self) -> dict[str, Any]:
        """The weights, by the names of the unwrapped model."""
        state_dict: dict[str, Any] = _unwrapped(self.model).state_dict()
        return state_dict

    def state_dict(self) -> dict[str, Any]:
        """Everything that training needs to go on.

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
        module = _unwrapped(self.model)
        engine_saved = is_deepspeed_engine(self.model)
        weights = state_dict.get("model")
        if weights is not None:
            _check_weights(module, weights, strict)
        optimizers = [] if engine_saved else list(_saved(self.optimizers, state_dict, "optimizers"))
        prepared = [(one, _by_position(module, one, saved)) for one, saved in optimizers]
        schedulers = list(_saved(self.schedulers, state_dict, "schedulers"))

        if weights is not None:
            module.load_state_dict(weights, strict=strict)
        for one, saved in (*prepared, *schedulers):
            one.load_state_dict(saved)
        self.timestamp.load_state_dict(state_dict.get("timestamp", {}).get("Timestamp", {}))
        self.run_name = state_dict.get("run_name", self.run_name)
        self.extra = state_dict.get("extra", self.extra)


def _unwrapped(model: Any) -> Any:
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
    return {name: one.state_dict() for name, one in _named(objects)}


def _named(objects: Any) -> Iterator[tuple[str, Any]]:
    """Objects by class name. A second object of a class gets a number."""
    if objects is None:
        return
    several = objects if isinstance(objects, Sequence) else (objects,)
    seen: dict[str, int] = {}
    for one in several:
        name = type(one).__qualname__
        count = seen.get(name, 0)
        seen[name] = count + 1
        yield (f"{name}-{count}" if count else name), one


def _saved(objects: Any, state_dict: Mapping[str, Any], key: str) -> Iterator[tuple[Any, Any]]:
    """Each object with its saved state."""
    saved = state_dict.get(key, {})
    for name, one in _named(objects):
        if name in saved:
            yield one, saved[name]
        elif saved:  # no warning if none were saved: that is intended
            warnings.warn(f"the checkpoint has no {key}/{name}: it stays as it is", stacklevel=3)


def _check_weights(module: Any, weights: Mapping[str, Any], strict: bool) -> None:
    """Finds the errors that load_state_dict would find half way through."""
    own = module.state_dict()
    complaints = []
    if strict:
        complaints += [f"no {name!r}" for name in own if name not in weights]
        complaints += [f"{name!r}, which the model lacks" for name in weights if name not in own]
    for name, tensor in own.items():
        saved = weights.get(name, tensor)
        if isinstance(saved, torch.Tensor) and saved.shape != tensor.shape:
            complaints.append(f"{name!r} of {list(saved.shape)}, not {list(tensor.shape)}")
    if complaints:
        more = "" if len(complaints) <= 5 else f" and {len(complaints) - 5} more"
        raise StateMismatchError(
            f"the checkpoint's weights do not fit: it has {'; '.join(complaints[:5])}{more}"
        )


def _by_position(module: Any, optimizer: Any, saved: Mapping[str, Any]) -> Mapping[str, Any]:
    """``saved`` with parameters by position, as torch saves them. Composer saves them by name.

    Raises:
        StateMismatchError: The optimizer's parameters are not those of ``saved``.
    """
    groups, own = saved["param_groups"], optimizer.param_groups
    if [len(g["params"]) for g in groups] != [len(g["params"]) for g in own]:
        raise StateMismatchError(
            f"{type(optimizer).__qualname__} has {[len(g['params']) for g in own]} parameters by "
            f"group, the checkpoint {[len(g['params']) for g in groups]}"
        )
    if not any(isinstance(one, str) for group in groups for one in group["params"]):
        return saved
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    order = [names[id(parameter)] for group in own for parameter in group["params"]]
    positions = {name: position for position, name in enumerate(order)}
    unknown = sorted(one for g in groups for one in g["params"] if one not in positions)
    if unknown:
        raise StateMismatchError(
            f"{type(optimizer).__qualname__} does not have the checkpoint's {unknown[0]!r}"
        )
    starts = [sum(len(g["params"]) for g in own[:index]) for index in range(len(own))]
    return {
        "state": {positions[name]: value for name, value in saved["state"].items()},
        "param_groups": [
            {**group, "params": list(range(start, start + len(group["params"])))}
            for group, start in zip(groups, starts, strict=True)
        ],
    }


def is_deepspeed_engine(model: Any) -> bool:
    """Whether ``model`` is a DeepSpeedEngine. Does not import deepspeed."""
    deepspeed = sys.modules.get("deepspeed")
    return deepspeed is not None and isinstance(model, deepspeed.DeepSpeedEngine)


def model_state_dict(state: TrainingState) -> Any:
    """The weights of ``state`` alone."""
    getter = getattr(state, "get_model_state_dict", None)
    return getter() if getter is not None else state.model.state_dict()


def restore(state: Any, state_dict: dict[str, Any], *, strict: bool) -> None:
    """Calls ``state.load_state_dict``. Composer's needs a logger too."""
    composer = sys.modules.get("composer.core")
    if composer is not None and isinstance(state, composer.State):
        from composer.loggers import Logger

        state.load_state_dict(state_dict, Logger(state=state), strict=strict)
    else:
        state.load_state_dict(state_dict, strict=strict)
