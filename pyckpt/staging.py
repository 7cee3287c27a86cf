"""Tensor bytes from a device's memory to the host, one bounded piece at a time."""

from __future__ import annotations

import ctypes

import torch

__all__ = ["DeviceReader"]


class DeviceReader:
    """Reads a storage that is not in host memory.

    CUDA memory goes through pinned buffers on side streams. torch keeps both in pools, so a save
    holds one pinned buffer a worker thread, as large as the pieces that are read, and never more
    of the model.
    """

    def __init__(self, storage: torch.UntypedStorage, start: int = 0) -> None:
        """Offsets will count from byte ``start`` of the storage."""
        self._bytes = torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)[start:]
        # What training has queued so far belongs to the state that is saved.
        self._ready: torch.cuda.Event | None = None
        if storage.device.type == "cuda":
            self._ready = torch.cuda.Event()
            self._ready.record(torch.cuda.current_stream(storage.device))

    def read(self, offset: int, nbytes: int, address: int) -> None:
        """Copies ``nbytes`` at ``offset`` to the host memory at ``address``. Any thread."""
        piece = self._bytes[offset : offset + nbytes]
        memory = (ctypes.c_uint8 * nbytes).from_address(address)
        out = torch.frombuffer(memory, dtype=torch.uint8)
        if self._ready is None:
            out.copy_(piece)
            return
        pinned = torch.empty(nbytes, dtype=torch.uint8, pin_memory=True)
        stream = torch.cuda.Stream(piece.device)
        with torch.cuda.stream(stream):
            stream.wait_event(self._ready)
            pinned.copy_(piece, non_blocking=True)
        stream.synchronize()
        out.copy_(pinned)
