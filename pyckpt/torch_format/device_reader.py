"""Reads the bytes of a storage on a device, piece by piece."""

from __future__ import annotations

import ctypes

import torch

from pyckpt.torch_format.records import Record

__all__ = ["DeviceReader", "mark", "memory_of", "queued_so_far"]


class DeviceReader:
    """Reads a storage that is not in host memory.

    CUDA memory is copied through pinned buffers on side streams. torch keeps both in pools. So a
    save holds one pinned buffer for each worker thread, as large as the pieces that it reads, and
    no more of the model. If the target memory is itself pinned, the copy goes to it directly.
    """

    def __init__(
        self, storage: torch.UntypedStorage, start: int = 0, ready: torch.cuda.Event | None = None
    ) -> None:
        """``read()`` counts offsets from byte ``start`` of the storage.

        Reads of CUDA memory wait for the event ``ready``: see ``queued_so_far``.
        """
        self._storage = storage
        self.start = start
        self._ready = ready

    @property
    def bytes(self) -> torch.Tensor:
        """The storage from ``start`` on, as uint8."""
        whole = torch.empty(0, dtype=torch.uint8, device=self._storage.device).set_(self._storage)
        return whole[self.start :]

    def read(self, offset: int, nbytes: int, address: int) -> None:
        """Copies ``nbytes`` at ``offset`` to the host memory at ``address``. Any thread."""
        piece = self.bytes[offset : offset + nbytes]
        memory = (ctypes.c_uint8 * nbytes).from_address(address)
        out = torch.frombuffer(memory, dtype=torch.uint8)
        if not piece.is_cuda:
            out.copy_(piece)
            return
        direct = out.is_pinned()
        pinned = (
            out if direct else torch.empty(nbytes, dtype=torch.uint8, pin_memory=True, device="cpu")
        )
        stream = torch.cuda.Stream(piece.device)
        with torch.cuda.stream(stream):
            if self._ready is not None:
                stream.wait_event(self._ready)
            pinned.copy_(piece, non_blocking=True)
        mark(stream).synchronize()
        if not direct:
            out.copy_(pinned)


def memory_of(record: Record) -> tuple[int, int, int]:
    """Which memory a record reads: equal for records of the same bytes of a living storage."""
    start = record.reader.start if isinstance(record.reader, DeviceReader) else record.address
    return record.owner._cdata, start, record.nbytes


def queued_so_far(device: torch.device) -> torch.cuda.Event | None:
    """Marks the work that training has queued on a device, which belongs to the saved state.

    None if the device is not a CUDA device.
    """
    if device.type != "cuda":
        return None
    event = torch.cuda.Event()
    event.record(torch.cuda.current_stream(device))
    return event


def mark(stream: torch.cuda.Stream) -> torch.cuda.Event:
    """Records an event after all work queued on the stream. Waiting for it does not use the CPU."""
    event = torch.cuda.Event(blocking=True)
    event.record(stream)
    return event
