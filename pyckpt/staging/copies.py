"""Copies of tensor bytes in host memory, made at once, so that training may change the tensors."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from pyckpt import _core
from pyckpt.staging.buffers import BufferPool, HostBuffer
from pyckpt.torch_format.device_reader import DeviceReader, mark
from pyckpt.torch_format.records import Record

__all__ = ["Copies"]

_ALIGNMENT = 64


class Copies:
    """Records whose bytes are copied to the host at once.

    Several threads copy host memory before the constructor returns. CUDA memory is copied on a side
    stream, behind the work that is queued already. ``hold_back()`` lets work that is queued later
    wait for it, and ``wait()`` waits. Memory: the bytes of all records, each rounded up to 64.

    Attributes:
        records: The same records, read from the copies; valid until ``close()``.
    """

    def __init__(self, records: Sequence[Record], pool: BufferPool, threads: int) -> None:
        self.records: list[Record] = []
        self._is_complete = False
        self._pool = pool
        self._sources = list(records)  # alive until the devices have read them
        self._events: list[tuple[torch.device, torch.cuda.Event]] = []
        self._buffer: HostBuffer | None = None
        if not records:
            self._is_complete = True
            return
        self._buffer = pool.take(
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
        """Whether all bytes are copied already, so that ``wait()`` does not wait."""
        return self._is_complete

    def hold_back(self) -> None:
        """Lets what the caller queues from now on, on its current streams, wait for the copies.

        The CPU does not wait. Any thread may call it, any number of times.
        """
        if not self.is_complete:
            for device, event in self._events:
                torch.cuda.current_stream(device).wait_event(event)

    def wait(self) -> None:
        """Waits until all bytes are copied. Any thread."""
        for _, event in self._events:
            event.synchronize()
        self._sources.clear()
        self._is_complete = True

    def close(self) -> None:
        """Gives the memory back. The copies must not be read any more."""
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
        self._is_complete = not self._events

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
        finally:  # a copy that has begun must end before its source or target is used again
            self._events.append((device, mark(side)))


def _padded(nbytes: int) -> int:
    return -(-nbytes // _ALIGNMENT) * _ALIGNMENT


def _device(record: Record) -> torch.device:
    device: torch.device = record.owner.device
    return device
