"""What a rank has of a model, as it tells the others before a load."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import torch

from pyckpt.state import State, named_objects
from pyckpt.tensor_kinds import is_dtensor
from pyckpt.training.named_state import parameter_names
from pyckpt.training.shards import sharding_modules

__all__ = ["Holding", "holding_of"]

# For each optimizer, by its name, the names of the parameters in each of its groups.
Groups = dict[str, list[list[str]]]


@dataclass(frozen=True)
class Holding:
    """What a rank has of a model, as it tells the others.

    Attributes:
        has_shards: Whether it has parts of tensors.
        names: Of the weights, in order; a digest of them tells whether ranks have the same.
        groups: The parameters of the optimizers.
    """

    has_shards: bool
    names: tuple[str, ...]
    groups: Groups

    @property
    def digest(self) -> str:
        """Equal for ranks with the same names."""
        return hashlib.sha256(repr((self.names, self.groups)).encode()).hexdigest()


def holding_of(state: Any) -> Holding:
    """What this rank has. Not collective."""
    model = state.model
    if not isinstance(model, torch.nn.Module):
        return Holding(False, (), {})
    has_shards = bool(sharding_modules(model)) or any(map(is_dtensor, model.parameters()))
    if not isinstance(state, State):
        return Holding(has_shards, (), {})
    names = parameter_names(state)
    groups = {
        label: [[names.get(id(one), "") for one in group["params"]] for group in groups]
        for label, optimizer in named_objects(state.optimizers)
        if (groups := getattr(optimizer, "param_groups", None)) is not None
    }
    return Holding(has_shards, tuple(names.values()), groups)
