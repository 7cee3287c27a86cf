"""The internals of torch that pyckpt uses, alike in all versions of torch from 2.4 on.

torch has no public function that unpickles from decoded memory. Where a version differs from the
newest one, the difference is dealt with here, and only here.
"""

from __future__ import annotations

import inspect
import pickle
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import _weights_only_unpickler as weights_only_unpickler

__all__ = [
    "WeightsUnpickler",
    "add_safe_globals",
    "rebuilding_at",
    "remove_safe_globals",
    "validate_sparse_tensors",
    "wrapped_step",
]

_VERSION = tuple(map(int, torch.__version__.split(".")[:2]))
# Their attributes differ between versions, and few have types.
_loader: Any = weights_only_unpickler
_utils: Any = torch._utils
_Unpickler: Any = weights_only_unpickler.Unpickler


class WeightsUnpickler(_Unpickler):  # type: ignore[misc]
    """torch's restricted unpickler, which builds only types that are known to be harmless."""

    def load(self) -> Any:
        """Returns the object.

        Raises:
            pickle.UnpicklingError: Something is not allowed.
            Exception: The pickle is broken, or what it calls raises an error.
        """
        try:
            return super().load()
        except RuntimeError as error:
            if not str(error).startswith(_REFUSALS_BEFORE_2_5):
                raise
            raise pickle.UnpicklingError(str(error)) from error


# torch 2.4 refuses with a RuntimeError, which torch.load turns into an UnpicklingError.
_REFUSALS_BEFORE_2_5 = (
    "Can only ",
    "Only persistent_load ",
    "String is too long",
    "Trying to ",
    "Unsupported ",
    "persistent_load id must ",
)


def add_safe_globals(allowed: Sequence[Any]) -> None:
    """Like torch.serialization.add_safe_globals: types and functions, or pairs with a name."""
    torch.serialization.add_safe_globals([_known_to_torch(one) for one in allowed])


def remove_safe_globals(allowed: Sequence[Any]) -> None:
    """Takes back what add_safe_globals has added."""
    gone = [_known_to_torch(one) for one in allowed]
    if _VERSION >= (2, 5):
        _loader._remove_safe_globals(gone)
    else:
        _loader._marked_safe_globals_list[:] = [
            one for one in torch.serialization.get_safe_globals() if one not in gone
        ]


def _known_to_torch(one: Any) -> Any:
    return _named(*one) if isinstance(one, tuple) and _VERSION < (2, 6) else one


@cache
def _named(function: Callable[..., Any], full_name: str) -> Callable[..., Any]:
    """``function`` under another name: torch < 2.6 knows functions only by their own."""

    def named(*args: Any) -> Any:
        return function(*args)

    named.__module__, _, named.__name__ = full_name.rpartition(".")
    return named


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
