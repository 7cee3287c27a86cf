"""Whether what was read back is what was saved, bit by bit."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

__all__ = ["differences"]


def differences(saved: Any, loaded: Any, path: str = "") -> Iterator[str]:
    """The key paths at which the two differ; tensors and arrays are compared by their bits."""
    if type(saved) is not type(loaded):
        yield f"{path}: {type(saved).__name__} became {type(loaded).__name__}"
    elif isinstance(saved, torch.Tensor):
        if not _same_bits(saved, loaded):
            yield f"{path}: the tensors differ"
    elif isinstance(saved, np.ndarray):
        if saved.dtype != loaded.dtype or saved.tobytes() != loaded.tobytes():
            yield f"{path}: the arrays differ"
    elif isinstance(saved, dict):
        if list(saved) != list(loaded):
            yield f"{path}: the keys differ"
            return
        for key, value in saved.items():
            yield from differences(value, loaded[key], f"{path}/{key}")
    elif isinstance(saved, list | tuple):
        if len(saved) != len(loaded):
            yield f"{path}: {len(saved)} items became {len(loaded)}"
            return
        for index, value in enumerate(saved):
            yield from differences(value, loaded[index], f"{path}/{index}")
    elif saved != loaded:
        yield f"{path}: {saved!r} became {loaded!r}"


def _same_bits(saved: torch.Tensor, loaded: torch.Tensor) -> bool:
    if saved.dtype != loaded.dtype or saved.shape != loaded.shape:
        return False
    return torch.equal(
        *(t.detach().contiguous().view(-1).view(torch.uint8) for t in (saved, loaded))
    )
