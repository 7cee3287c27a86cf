"""The random states of this process, as Composer stores them."""

from __future__ import annotations

import random
from typing import Any

import torch

__all__ = ["rng_state"]


def rng_state() -> dict[str, Any]:
    """``python``, ``numpy``, ``torch`` and, once CUDA is in use, ``cuda``; in this order."""
    state: dict[str, Any] = {"python": random.getstate()}
    try:
        import numpy as np
    except ImportError:  # then there is no state to lose
        pass
    else:
        state["numpy"] = np.random.get_state()
    state["torch"] = torch.random.get_rng_state()
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        state["cuda"] = torch.cuda.get_rng_state()
    return state
