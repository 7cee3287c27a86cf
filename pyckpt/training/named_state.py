"""The state dict of a sharded state: shards as they are, optimizers by the names of parameters."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeGuard

import torch

from pyckpt.sharded.optimizer_names import by_name, by_position, is_by_position
from pyckpt.state import State, TrainingState, named_objects, unwrapped
from pyckpt.training.shards import sharding_modules

__all__ = ["has_fsdp1", "keeping_shards", "parameter_names", "with_names", "with_positions"]


@contextmanager
def keeping_shards(state: TrainingState) -> Iterator[None]:
    """While it lasts, FSDP1's modules in a State give shards, and do not gather whole tensors.

    Classes with a ``state_dict`` of their own decide that themselves.
    """
    if not has_fsdp1(state):
        yield
        return
    fsdp = sys.modules["torch.distributed.fsdp"]
    with fsdp.FullyShardedDataParallel.state_dict_type(
        state.model,
        fsdp.StateDictType.SHARDED_STATE_DICT,
        fsdp.ShardedStateDictConfig(offload_to_cpu=False),
        fsdp.ShardedOptimStateDictConfig(offload_to_cpu=False),
    ):
        yield


def with_names(state: TrainingState, saved: dict[str, Any]) -> dict[str, Any]:
    """``saved`` with the optimizers by name. Call it inside ``keeping_shards``.

    States whose class has a ``state_dict`` of its own stay as they are, and so do optimizers with
    parameters that the model does not have.

    Args:
        saved: ``state.state_dict()``.
    """
    if not _is_own_kind(state) or "optimizers" not in saved:
        return saved
    names = parameter_names(state)
    optimizers = dict(saved["optimizers"])
    for label, optimizer in named_objects(state.optimizers):
        if label not in optimizers:
            continue
        if has_fsdp1(state):
            fsdp = sys.modules["torch.distributed.fsdp"].FullyShardedDataParallel
            named = fsdp.optim_state_dict(state.model, optimizer)
            optimizers[label] = _unflattened(named, optimizer, list(saved.get("model", ())))
        elif is_by_position(optimizers[label]) and _are_named(optimizer, names):
            optimizers[label] = by_name(optimizers[label], optimizer, names)
    return {**saved, "optimizers": optimizers}


def with_positions(state: TrainingState, contents: dict[str, Any]) -> dict[str, Any]:
    """The whole state as one device would save it: ``with_names`` undone.

    Args:
        contents: The dict of a checkpoint, with all of the state.
    """
    saved = contents.get("state")
    if not isinstance(state, State) or not isinstance(saved, dict) or "optimizers" not in saved:
        return contents
    optimizers = {
        label: one if is_by_position(one) else by_position(one)
        for label, one in saved["optimizers"].items()
    }
    return {**contents, "state": {**saved, "optimizers": optimizers}}


def parameter_names(state: State) -> dict[int, str]:
    """The name of each parameter in the unwrapped model, by ``id()``."""
    model = unwrapped(state.model)
    return {id(one): _clean(name) for name, one in model.named_parameters()}


def _unflattened(named: dict[str, Any], optimizer: Any, order: list[str]) -> dict[str, Any]:
    """FSDP1's optimizer state in the order of the model, where FSDP1 has made parameters flat.

    It lists what is in a flat parameter one after another, with one count of steps for all. An
    optimizer of the unwrapped model numbers its parameters as the model does, and adds to the count
    of each of them.

    Args:
        order: The names of the unwrapped model's weights.
    """
    places = {name: place for place, name in enumerate(order)}
    groups = []
    for group, own in zip(named["param_groups"], optimizer.param_groups, strict=True):
        names = group["params"]
        if len(names) != len(own["params"]) and places.keys() >= set(names):
            group = {**group, "params": sorted(names, key=places.__getitem__)}
        groups.append(group)
    seen: set[int] = set()
    states = {
        name: {key: _unshared(value, seen) for key, value in kept.items()}
        for name, kept in named["state"].items()
    }
    return {**named, "state": states, "param_groups": groups}


def _unshared(value: Any, seen: set[int]) -> Any:
    """A copy of a tensor that was ``seen`` before."""
    if type(value) is not torch.Tensor:
        return value
    if id(value) in seen:
        return value.clone()
    seen.add(id(value))
    return value


def _are_named(optimizer: Any, names: Mapping[int, str]) -> bool:
    return all(id(one) in names for group in optimizer.param_groups for one in group["params"])


def _clean(name: str) -> str:
    """A name without what wrappers around a module's parts put into it."""
    for wrapper in ("_orig_mod.", "_checkpoint_wrapped_module.", "_fsdp_wrapped_module."):
        name = name.replace(wrapper, "")
    return name


def _is_own_kind(state: TrainingState) -> TypeGuard[State]:
    """Whether what ``state_dict`` returns is known."""
    return isinstance(state, State) and type(state).state_dict is State.state_dict


def has_fsdp1(state: TrainingState) -> bool:
    """Whether FSDP1 shards the state, in a way that pyckpt knows."""
    return _is_own_kind(state) and bool(sharding_modules(unwrapped(state.model)))


def as_fsdp1_loads(state: State, optimizers: dict[str, Any]) -> dict[str, Any]:
    """Optimizer states by name as FSDP1's optimizers load them. Collective.

    Call it inside ``keeping_shards``.
    """
    fsdp = sys.modules["torch.distributed.fsdp"].FullyShardedDataParallel
    return {
        **optimizers,
        **{
            label: fsdp.optim_state_dict_to_load(state.model, optimizer, optimizers[label])
            for label, optimizer in named_objects(state.optimizers)
            if label in optimizers
        },
    }
