"""Host memory for copies, kept from save to save.

Fresh pages cost more to allocate than to fill, so buffers are used again.
"""

from __future__ import annotations

import threading
import weakref
from contextlib import suppress

import torch

__all__ = ["BufferPool", "HostBuffer"]

_PORTABLE = 1  # cudaHostRegisterPortable: pinned for every device


class HostBuffer:
    """Host memory, pinned if asked for.

    It is pinned by registration, because torch's allocator of pinned memory rounds up to powers of
    two.
    """

    def __init__(self, nbytes: int, pinned: bool) -> None:
        self.bytes = torch.empty(nbytes, dtype=torch.uint8)
        self.pinned = pinned
        if pinned and nbytes:
            _register(self.bytes)
            # The tensor is an argument, so the memory lives until it is unregistered.
            weakref.finalize(self, _unregister, self.bytes).atexit = False


def _register(memory: torch.Tensor) -> None:
    cudart = torch.cuda.cudart()
    try:
        address, nbytes = memory.data_ptr(), memory.nbytes
        torch.cuda.check_error(cudart.cudaHostRegister(address, nbytes, _PORTABLE))
    except RuntimeError:
        # CUDA would report this error again after the next kernel. Provoke that here, so that no
        # kernel of training gets it.
        with suppress(RuntimeError):
            torch.zeros(1, device="cuda")
        raise


def _unregister(memory: torch.Tensor) -> None:
    torch.cuda.cudart().cudaHostUnregister(memory.data_ptr())


class BufferPool:
    """Buffers that are used again. Thread-safe.

    Of each kind, pinned or not, it holds at most as many as were in use at the same time.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._free: list[HostBuffer] = []

    def take(self, nbytes: int, *, pinned: bool) -> HostBuffer:
        """A buffer of at least ``nbytes``: the smallest free one that fits, else a new one."""
        with self._lock:
            alike = sorted(
                (buffer for buffer in self._free if buffer.pinned == pinned),
                key=lambda buffer: buffer.bytes.nbytes,
            )
            chosen = next((b for b in alike if b.bytes.nbytes >= nbytes), None)
            # If none fits, the largest free one is freed before the new one is allocated.
            gone = chosen or (alike[-1] if alike else None)
            if gone is not None:
                self._free.remove(gone)
        del alike, gone
        return chosen or HostBuffer(nbytes, pinned)

    def give_back(self, buffer: HostBuffer) -> None:
        """Takes back a buffer that is no longer used."""
        with self._lock:
            self._free.append(buffer)
