"""What save_checkpoint saves: a small protocol, and a State for those without Composer."""

from __future__ import annotations

import datetime
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch

__all__ = ["State", "Timestamp", "TrainingState", "is_deepspeed_engine", "model_state_dict"]


class TrainingTime(Protocol):
    """How far the training has come. Counts are convertible by ``int()``."""

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
    """What save_checkpoint needs of a state. Composer's ``State`` has it all.

    A state may also have ``get_model_state_dict()``; it is then asked for the weights alone.
    """

    model: Any
    run_name: Any
    timestamp: Any

    def state_dict(self) -> dict[str, Any]:
        """All that training needs to go on."""
        ...


@dataclass
class Timestamp:
    """How far the training has come; times are wall-clock."""

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
        """Takes over the fields that ``state_dict`` has."""
        for name in self.__dataclass_fields__:
            if name in state_dict:
                setattr(self, name, state_dict[name])


@dataclass
class State:
    """A training state for those who do not use Composer; saved in Composer's shape.

    Attributes:
        model: The module that is trained, or a DeepSpeedEngine.
        optimizers: One optimizer or several; saved by class name, as Composer does.
        schedulers: One learning-rate scheduler or several; likewise.
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
        """The weights, under the names that the unwrapped model gives them."""
        state_dict: dict[str, Any] = _unwrapped(self.model).state_dict()
        return state_dict

    def state_dict(self) -> dict[str, Any]:
        """All that training needs to go on.

        Under DeepSpeed the engine saves model, optimizer and its scheduler in files of its own.
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


def _unwrapped(model: Any) -> Any:
    """The module inside what parallelism and torch.compile put around it."""
    while True:
        if isinstance(model, torch.nn.DataParallel | torch.nn.parallel.DistributedDataParallel):
            model = model.module
        elif isinstance(model, torch.nn.Module) and hasattr(model, "_orig_mod"):
            # torch.compile's, whose class cannot be named without importing it.
            model = model._orig_mod
        else:
            return model


def _by_class(objects: Any) -> dict[str, Any]:
    """State dicts by class name; a second object of a class gets a number."""
    several = objects if isinstance(objects, Sequence) else (objects,)
    out: dict[str, Any] = {}
    for one in several:
        name = type(one).__qualname__
        if name in out:
            name = f"{name}-{sum(key.split('-')[0] == name for key in out)}"
        out[name] = one.state_dict()
    return out


def is_deepspeed_engine(model: Any) -> bool:
    """Whether ``model`` is a DeepSpeedEngine; never imports deepspeed."""
    deepspeed = sys.modules.get("deepspeed")
    return deepspeed is not None and isinstance(model, deepspeed.DeepSpeedEngine)


def model_state_dict(state: TrainingState) -> Any:
    """The weights of ``state`` alone."""
    getter = getattr(state, "get_model_state_dict", None)
    return getter() if getter is not None else state.model.state_dict()
