"""The internals of torch that pyckpt uses, alike in all versions of torch from 2.4 on.

torch has no public function that unpickles from decoded memory. Where a version differs from the
newest one, the difference is dealt with here, and only here.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

__all__ = [
    "dtensor_like",
    "rebuilding_at",
    "validate_sparse_tensors",
    "wrapped_step",
]

_VERSION = tuple(map(int, torch.__version__.split(".")[:2]))
# Their attributes differ between versions, and few have types.
_utils: Any = torch._utils


def dtensor_like(local: torch.Tensor, like: Any) -> Any:
    """A DTensor of another local tensor, which may be on another device, with the same layout.

    ``DTensor.from_local`` would move it to the mesh's device.
    """
    spec = copy.copy(like._spec)
    spec.tensor_meta = spec.tensor_meta._replace(dtype=local.dtype)
    return type(like)(local, spec, requires_grad=False)


def validate_sparse_tensors(weights_only: bool) -> None:
    """Checks the indices of the sparse tensors that were just unpickled.

    Wrong indices would make torch read other memory. Some versions of torch check only if users
    have asked for it. ``weights_only`` checks always, since the file need not be trusted.

    Raises:
        RuntimeError, ValueError: Indices are wrong.
    """
    checks: Any = torch.sparse.check_sparse_tensor_invariants
    with checks(enable=weights_only or checks.is_enabled()):
        _utils._validate_loaded_sparse_tensors()


@contextmanager
def rebuilding_at(map_location: Any) -> Iterator[None]:
    """Tells torch the location for tensors that have no storages (XLA, for example)."""
    known = _VERSION >= (2, 5)
    local = torch.serialization._serialization_tls if known else _utils._thread_local_state
    local.map_location = map_location
    try:
        yield
    finally:
        local.map_location = None


def wrapped_step(step: Any) -> Any:
    """The function that ``step``, of an optimizer, is wrapped around; None if there is none.

    Before torch 2.5, what a learning rate scheduler makes of a step does not tell it.
    """
    if getattr(step, "_wrapped_by_lr_sched", False) and not hasattr(step, "__wrapped__"):
        return inspect.getclosurevars(step).nonlocals.get("func")
    return getattr(step, "__wrapped__", None)
