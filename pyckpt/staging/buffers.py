"""Host memory for copies, kept from save to save.

Fresh pages cost more to allocate than to fill, so buffers are used again.

There is no lock: a signal handler may save in the thread that is just here, and wait for another
thread that wants to give a buffer back. Python's operations on lists are atomic.
"""

from __future__ import annotations

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
        self.bytes = torch.empty(nbytes, dtype=torch.uint8, device="cpu")
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
    """Buffers that are used again. Any thread and any signal handler may use it.

    Of each kind, pinned or not, it holds at most as many as were in use at the same time.
    """

    def __init__(self) -> None:
        self._free: list[HostBuffer] = []

    def take(self, nbytes: int, *, pinned: bool) -> HostBuffer:
        """A buffer of at least ``nbytes``: the smallest free one that fits, else a new one."""
        while True:
            alike = sorted(
                (buffer for buffer in list(self._free) if buffer.pinned == pinned),
                key=lambda buffer: buffer.bytes.nbytes,
            )
            if not alike:
                return HostBuffer(nbytes, pinned)
            fitting = next((b for b in alike if b.bytes.nbytes >= nbytes), None)
            # If none fits, the largest free one is freed before the new one is allocated.
            gone = fitting or alike.pop()
            try:
                self._free.remove(gone)
            except ValueError:  # another thread took it
                continue
            del alike, gone
            return fitting or HostBuffer(nbytes, pinned)

    def give_back(self, buffer: HostBuffer) -> None:
        """Takes back a buffer that is no longer used."""
        self._free.append(buffer)
