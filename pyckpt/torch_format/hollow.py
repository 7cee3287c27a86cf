"""Tensors that have an address and a shape, and no memory yet.

They stand for tensors whose bytes come from elsewhere: pickles and torch's functions take them for
ordinary tensors. The system gives a page of memory only when it is touched.
"""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from typing import Any

import torch

__all__ = ["hollow_storages", "hollow_tensor"]

_ALIGNMENT = 64  # as torch's own allocations


def hollow_storages(sizes: Sequence[int]) -> list[torch.UntypedStorage]:
    """Storages on the CPU of the given sizes in bytes.

    Raises:
        OSError: The address space is exhausted.
    """
    starts, end = [], 0
    for nbytes in sizes:
        starts.append(end)
        end += -(-nbytes // _ALIGNMENT) * _ALIGNMENT
    if not end:
        return [torch.UntypedStorage(0) for _ in sizes]
    # Without a reserve: most of it is never touched.
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)
    memory = mmap.mmap(-1, end, flags=flags)
    return [
        torch.frombuffer(memory, dtype=torch.uint8, count=nbytes, offset=start).untyped_storage()
        if nbytes
        else torch.UntypedStorage(0)
        for start, nbytes in zip(starts, sizes, strict=True)
    ]


def hollow_tensor(
    storage: torch.UntypedStorage, dtype: torch.dtype, shape: Sequence[int]
) -> torch.Tensor:
    """A contiguous tensor in a hollow storage."""
    empty: Any = torch.empty(0, dtype=dtype, device="cpu")
    tensor: torch.Tensor = empty.set_(storage, 0, torch.Size(shape))
    return tensor
