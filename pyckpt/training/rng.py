"""The random states of this process, as Composer stores them."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

__all__ = ["RandomStates", "rng_state", "set_rng_state"]


class RandomStates(list[dict[str, Any]]):
    """The random states of all ranks. Its repr is short, for the end of a notebook's cell."""

    def __repr__(self) -> str:
        return f"<random states of {len(self)} rank{'' if len(self) == 1 else 's'}>"


def rng_state() -> dict[str, Any]:
    """The states of ``python``, ``numpy``, ``torch`` and, if CUDA is in use, ``cuda``."""
    state: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": np.random.get_state(),
        "torch": torch.random.get_rng_state(),
    }
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_rng_state(state: Mapping[str, Any]) -> None:
    """Restores the generators that ``state`` names, as :func:`rng_state` found them.

    Without CUDA, its state is ignored. If CUDA is not in use yet, the state is set when it is.
    """
    if "python" in state:
        random.setstate(state["python"])
    if "numpy" in state:
        np.random.set_state(state["numpy"])
    if "torch" in state:
        torch.random.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
