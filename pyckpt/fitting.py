"""Whether a saved state fits an object, asked before the object changes.

``load_state_dict`` finds many errors half way through. So weights are compared by names, shapes and
types first. A module may convert what it loads (by hooks, by methods of its own, by modules that
take their shapes from the checkpoint). Then its own word counts: a copy of it loads the weights.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Mapping
from typing import Any

import torch

from pyckpt.errors import StateMismatchError
from pyckpt.tensor_kinds import is_dtensor

__all__ = ["check_weights", "is_plain_optimizer", "parameters_by_position"]

_MOST_NAMED = 5
_WITHOUT_SHAPE = (torch.nn.UninitializedParameter, torch.nn.UninitializedBuffer)


def check_weights(module: Any, weights: Mapping[str, Any], strict: bool) -> None:
    """Checks that ``module.load_state_dict(weights, strict=strict)`` will succeed.

    Needs the memory of one more module on the CPU, if the module converts what it loads.

    Raises:
        StateMismatchError: It will not. Nothing was changed.
    """
    complaints = _complaints(module, weights, strict)
    if not complaints and (_loads_as_torch_does(module) or _is_sharded(module)):
        return
    refusal: Exception | None = None
    try:
        double = None if _is_sharded(module) else _copy_on_cpu(module)
    except Exception:  # some modules cannot be copied
        double = None
    if double is not None:
        try:
            double.load_state_dict(weights, strict=strict)
            return
        except Exception as error:
            refusal = error
    if complaints:
        more = len(complaints) - _MOST_NAMED
        text = "it has " + "; ".join(complaints[:_MOST_NAMED])
        text += f" and {more} more" if more > 0 else ""
    elif refusal is not None:
        text = f"{type(refusal).__name__}: {refusal}"
    else:
        return
    raise StateMismatchError(f"the checkpoint's weights do not fit: {text}") from refusal


def _complaints(module: Any, weights: Mapping[str, Any], strict: bool) -> list[str]:
    own = module.state_dict()
    complaints = []
    if strict:
        complaints += [f"no {name!r}" for name in own if name not in weights]
        complaints += [f"{name!r}, which the model lacks" for name in weights if name not in own]
    for name, tensor in own.items():
        saved = weights.get(name, tensor)
        if not isinstance(tensor, torch.Tensor):
            continue  # extra state, of any type
        if not isinstance(saved, torch.Tensor):
            complaints.append(f"{name!r} that is no tensor but {type(saved).__qualname__}")
        elif isinstance(tensor, _WITHOUT_SHAPE):
            complaints.append(f"{name!r}, whose shape the model does not know yet")
        elif saved.shape != tensor.shape:
            complaints.append(f"{name!r} of {list(saved.shape)}, not {list(tensor.shape)}")
        elif hasattr(tensor, "local_shards"):
            continue  # a ShardedTensor, which has nothing else to compare
        elif saved.layout != tensor.layout or saved.is_quantized != tensor.is_quantized:
            complaints.append(f"{name!r} of another layout")
    return complaints


def _loads_as_torch_does(module: Any) -> bool:
    """Whether nothing but torch's own code decides what the module and its parts accept."""
    plain = torch.nn.Module
    return type(module).load_state_dict is plain.load_state_dict and all(
        not part._load_state_dict_pre_hooks
        and not part._load_state_dict_post_hooks
        and type(part)._load_from_state_dict.__module__.startswith("torch.nn.modules.")
        and type(part).set_extra_state is plain.set_extra_state
        for part in module.modules()
    )


def _is_sharded(module: Any) -> bool:
    """Whether the module is spread over ranks, so that a copy of it would be a part."""
    fsdp = sys.modules.get("torch.distributed.fsdp")
    return any(map(is_dtensor, module.parameters())) or (
        fsdp is not None
        and any(isinstance(one, fsdp.FullyShardedDataParallel) for one in module.modules())
    )


def _copy_on_cpu(module: Any) -> Any:
    memo: dict[int, Any] = {}
    for part in module.modules():
        for tensor in (*part._parameters.values(), *part._buffers.values(), *vars(part).values()):
            kind = type(tensor)
            if kind is torch.nn.Parameter and not tensor.is_cpu:
                copied = tensor.detach().to("cpu", copy=True)
                memo[id(tensor)] = torch.nn.Parameter(copied, tensor.requires_grad)
            elif kind is torch.Tensor and not (tensor.is_cpu and tensor.is_leaf):
                memo[id(tensor)] = tensor.detach().to("cpu", copy=True)
    return copy.deepcopy(module, memo)


def is_plain_optimizer(optimizer: Any, saved: Any) -> bool:
    """Whether torch's own code loads ``saved``, so that comparing the groups is enough."""
    kind = torch.optim.Optimizer
    return (
        isinstance(optimizer, kind)
        and type(optimizer).load_state_dict is kind.load_state_dict
        and not optimizer._optimizer_load_state_dict_pre_hooks
        and isinstance(saved, Mapping)
        and {"state", "param_groups"} <= saved.keys()
    )


def parameters_by_position(
    module: Any, optimizer: Any, saved: Mapping[str, Any]
) -> Mapping[str, Any]:
    """``saved`` with parameters by position, as torch saves them. Composer saves them by name.

    Raises:
        StateMismatchError: The optimizer's parameters are not those of ``saved``.
    """
    groups, own = saved["param_groups"], list(optimizer.param_groups)
    if [len(g["params"]) for g in groups] != [len(g["params"]) for g in own]:
        raise StateMismatchError(
            f"{type(optimizer).__qualname__} has {[len(g['params']) for g in own]} parameters by "
            f"group, the checkpoint {[len(g['params']) for g in groups]}"
        )
    if not any(isinstance(one, str) for group in groups for one in group["params"]):
        return saved
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    order = [names.get(id(parameter)) for group in own for parameter in group["params"]]
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
