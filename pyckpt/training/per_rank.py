"""What differs by rank beside the model: ``State(per_rank={...})``.

The contents of a checkpoint have it under "per_rank", beside "state" and "rng": a list with the
dict of each rank, in the order of the ranks that saved. It is left out if no rank has anything
there. Any training state with an attribute ``per_rank`` takes part.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from pyckpt.errors import OptionError, StateMismatchError
from pyckpt.warn import warn

__all__ = ["Parts", "add_parts", "chosen_parts", "pack_part", "restore_part"]

KEY = "per_rank"
"""Its key in the contents of a checkpoint."""

Parts = Sequence[Mapping[str, Any]]
"""What each rank has there."""


def pack_part(state: Any) -> dict[str, bytes]:
    """What this rank has there, by key, to be sent to the rank that writes.

    Raises:
        OptionError: It is no dict with strings as keys. Or a value cannot be pickled, or has a
            tensor that is not on the CPU.
    """
    part = getattr(state, KEY, None)
    if part is None:
        return {}
    if not isinstance(part, Mapping) or not all(isinstance(key, str) for key in part):
        raise OptionError("per_rank must be a dict with strings as keys")
    return {key: _pack(key, value) for key, value in part.items()}


def add_parts(contents: dict[str, Any], packed: Sequence[Mapping[str, bytes]]) -> None:
    """Adds what all ranks have packed to the contents of a checkpoint."""
    if any(packed):
        contents[KEY] = [
            {key: pickle.loads(value) for key, value in part.items()} for part in packed
        ]


def chosen_parts(contents: Mapping[str, Any], left: dict[str, Any]) -> Parts:
    """What ``ignore_keys`` has left of the parts. Removes an empty list from ``left``.

    Args:
        contents: All that there is.
        left: What is left of it.

    Raises:
        OptionError: The parts of some ranks are left out whole, so others have lost their place.
        StateMismatchError: It is no list of dicts.
    """
    parts = left.get(KEY, [])
    if not isinstance(parts, list) or not all(isinstance(part, dict) for part in parts):
        raise StateMismatchError("'per_rank' is no list of dicts")
    if parts and len(parts) != len(contents.get(KEY, parts)):
        raise OptionError(
            "ignore_keys leaves out what some ranks have in 'per_rank': name a key of all, as in "
            "'per_rank/*/loader', or leave out 'per_rank'"
        )
    if not parts:
        left.pop(KEY, None)
    return parts


def restore_part(state: Any, parts: Parts, place: int, size: int, path: str) -> None:
    """Gives the state the part of its rank. A rank without one keeps what it has.

    Args:
        place: Of this rank among those that load.
        size: How many ranks load.
        path: The checkpoint, for messages.
    """
    if not parts:
        return
    if not hasattr(state, KEY):
        warn(f"{path} has per_rank, and a {type(state).__qualname__} takes none: it is left out")
        return
    if len(parts) != size:
        warn(
            f"{path} has the per_rank of {len(parts)} ranks, and there are {size}: ranks without "
            "one keep what they have"
        )
    if place < len(parts):
        state.per_rank = parts[place]


class _Packer(pickle.Pickler):
    def persistent_id(self, obj: Any) -> None:  # pickle asks for every object
        if isinstance(obj, torch.Tensor) and not obj.is_cpu:
            raise TypeError(f"it has a tensor on {obj.device}, not on the CPU")


def _pack(key: str, value: Any) -> bytes:
    buffer = io.BytesIO()
    try:
        _Packer(buffer).dump(value)
    except Exception as error:
        raise OptionError(
            f"per_rank[{key!r}] cannot be sent to the rank that writes: "
            f"{type(error).__name__}: {error}"
        ) from error
    return buffer.getvalue()
