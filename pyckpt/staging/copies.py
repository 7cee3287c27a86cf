"""Tensor bytes to the host: piece by piece for a save that blocks, else all at once.

Host memory for copies comes from a pool and is kept from save to save, for to make fresh pages
takes longer than to fill them.
"""

from __future__ import annotations

import ctypes
import threading
import weakref
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

import torch

from pyckpt import _core

if TYPE_CHECKING:
    from pyckpt.torch_format.serialize import Record

__all__ = ["BufferPool", "Copies", "DeviceReader", "HostBuffer"]

_ALIGNMENT = 64
_PORTABLE = 1  # cudaHostRegisterPortable: pinned for every device


class DeviceReader:
    """Reads a storage that is not in host memory.

    CUDA memory goes through pinned buffers on side streams. torch keeps both in pools, so a save
    holds one pinned buffer a worker thread, as large as the pieces that are read, and never more
    of the model. Memory that is pinned itself is read to directly.
    """

    def __init__(self, storage: torch.UntypedStorage, start: int = 0) -> None:
        """Offsets will count from byte ``start`` of the storage."""
        self.bytes = torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)[start:]
        # What training has queued so far belongs to the state that is saved.
        self._ready: torch.cuda.Event | None = None
        if storage.device.type == "cuda":
            self._ready = torch.cuda.Event()
            self._ready.record(torch.cuda.current_stream(storage.device))

    def read(self, offset: int, nbytes: int, address: int) -> None:
        """Copies ``nbytes`` at ``offset`` to the host memory at ``address``. Any thread."""
        piece = self.bytes[offset : offset + nbytes]
        memory = (ctypes.c_uint8 * nbytes).from_address(address)
        out = torch.frombuffer(memory, dtype=torch.uint8)
        if self._ready is None:
            out.copy_(piece)
            return
        direct = out.is_pinned()
        pinned = out if direct else torch.empty(nbytes, dtype=torch.uint8, pin_memory=True)
        stream = torch.cuda.Stream(piece.device)
        with torch.cuda.stream(stream):
            stream.wait_event(self._ready)
            pinned.copy_(piece, non_blocking=True)
        _mark(stream).synchronize()
        if not direct:
            out.copy_(pinned)


class HostBuffer:
    """Host memory, pinned if asked.

    Pinned by registration, for torch's own allocator of pinned memory rounds up to powers of two.
    """

    def __init__(self, nbytes: int, pinned: bool) -> None:
        self.bytes = torch.empty(nbytes, dtype=torch.uint8)
        self.pinned = pinned
        if pinned and nbytes:
            _register(self.bytes)
            # The memory lives as long as this call needs it: the tensor is an argument too.
            weakref.finalize(self, _unregister, self.bytes).atexit = False


def _register(memory: torch.Tensor) -> None:
    cudart = torch.cuda.cudart()
    try:
        address, nbytes = memory.data_ptr(), memory.nbytes
        torch.cuda.check_error(cudart.cudaHostRegister(address, nbytes, _PORTABLE))
    except RuntimeError:
        # CUDA would report this again, after the next kernel: that is not to be one of training's.
        with suppress(RuntimeError):
            torch.zeros(1, device="cuda")
        raise


def _unregister(memory: torch.Tensor) -> None:
    torch.cuda.cudart().cudaHostUnregister(memory.data_ptr())


class BufferPool:
    """Buffers that are used again. Holds as many as were in use at one time, and no more."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._free: list[HostBuffer] = []

    def take(self, nbytes: int, *, pinned: bool) -> HostBuffer:
        """At least so many bytes; the smallest buffer that fits, else a new one for the largest."""
        with self._lock:
            alike = sorted(
                (buffer for buffer in self._free if buffer.pinned == pinned),
                key=lambda buffer: buffer.bytes.nbytes,
            )
            chosen = next((b for b in alike if b.bytes.nbytes >= nbytes), None)
            # One that is too small makes room for its successor.
            gone = chosen or (alike[-1] if alike else None)
            if gone is not None:
                self._free.remove(gone)
        del alike, gone
        return chosen or HostBuffer(nbytes, pinned)

    def give_back(self, buffer: HostBuffer) -> None:
        """Nobody uses the buffer any more."""
        with self._lock:
            self._free.append(buffer)


class Copies:
    """Records whose bytes are copied to the host at once.

    Host memory is copied by several threads before the constructor returns. CUDA memory is copied
    on a side stream: whatever the calling thread queues later on its current stream waits for that,
    and so does ``wait()``. The copies need the bytes of all records, each rounded up to 64.

    Attributes:
        records: The same records, read from the copies; valid until ``close()``.
    """

    def __init__(self, records: Sequence[Record], pool: BufferPool, threads: int) -> None:
        self.records: list[Record] = []
        self._pool = pool
        self._sources = list(records)  # alive until the devices have read them
        self._events: list[torch.cuda.Event] = []
        self._buffer: HostBuffer | None = pool.take(
            sum(_padded(record.nbytes) for record in records),
            pinned=any(_device(record).type == "cuda" for record in records),
        )
        memory = self._buffer.bytes
        offset = 0
        for record in records:
            address = memory.data_ptr() + offset
            self.records.append(record._replace(address=address, reader=None, owner=memory))
            offset += _padded(record.nbytes)
        try:
            self._copy(threads)
        except BaseException:
            self.close()
            raise

    @property
    def is_complete(self) -> bool:
        """Whether there is nothing to wait for."""
        return not self._events

    def wait(self) -> None:
        """Returns when all bytes are copied."""
        for event in self._events:
            event.synchronize()
        self._sources.clear()

    def close(self) -> None:
        """Gives the memory back; nobody reads the copies any more."""
        self.wait()
        self.records.clear()
        if self._buffer is not None:
            self._pool.give_back(self._buffer)
            self._buffer = None

    def _copy(self, threads: int) -> None:
        pairs = list(zip(self._sources, self.records, strict=True))
        by_device: dict[torch.device, list[tuple[Record, Record]]] = {}
        for source, copy in pairs:
            if source.reader is not None:
                by_device.setdefault(_device(source), []).append((source, copy))
        for device, group in by_device.items():
            self._copy_from_device(device, group)
        _core.parallel_copy(
            [
                (copy.address, source.address, source.nbytes)
                for source, copy in pairs
                if source.reader is None
            ],
            threads,
        )

    def _copy_from_device(
        self, device: torch.device, pairs: Sequence[tuple[Record, Record]]
    ) -> None:
        if device.type != "cuda":
            for source, copy in pairs:
                assert source.reader is not None
                source.reader.read(0, source.nbytes, copy.address)
            return
        current, side = torch.cuda.current_stream(device), torch.cuda.Stream(device)
        side.wait_stream(current)
        try:
            with torch.cuda.stream(side):
                for source, copy in pairs:
                    assert isinstance(source.reader, DeviceReader)
                    start = copy.address - copy.owner.data_ptr()
                    out = copy.owner[start : start + copy.nbytes]
                    out.copy_(source.reader.bytes[: source.nbytes], non_blocking=True)
        finally:  # neither end of a copy that has begun may be used again before it has ended
            event = _mark(side)
            self._events.append(event)
        current.wait_event(event)


def _mark(stream: torch.cuda.Stream) -> torch.cuda.Event:
    """An event behind all that is queued on the stream. Who waits for it leaves the CPU alone."""
    event = torch.cuda.Event(blocking=True)
    event.record(stream)
    return event


def _padded(nbytes: int) -> int:
    return -(-nbytes // _ALIGNMENT) * _ALIGNMENT


def _device(record: Record) -> torch.device:
    device: torch.device = record.owner.device
    return device
