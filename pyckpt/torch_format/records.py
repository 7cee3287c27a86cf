"""The records of which torch's zip file is written. Each says where its bytes are."""

from __future__ import annotations

import ctypes
from typing import Any, NamedTuple, Protocol

import torch

__all__ = ["Reader", "Record", "bytes_record"]


class Reader(Protocol):
    """Bytes that are not in host memory."""

    def read(self, offset: int, nbytes: int, address: int) -> None:
        """Copies ``nbytes`` at ``offset`` to the host memory at ``address``. Thread-safe."""
        ...


class Record(NamedTuple):
    """One record of the zip file.

    Attributes:
        name: Includes the root folder: ``archive/data/0``.
        address: Where the bytes are in host memory; 0 if there is a reader or no byte.
        nbytes: Number of bytes.
        element_nbytes: Size of one number in them: 4 for float32 and for complex64.
        reader: Fetches the bytes if they are not in host memory.
        owner: Keeps the memory alive.
        is_storage: Whether the bytes are the object's own memory, not bytes made for the file.
    """

    name: str
    address: int
    nbytes: int
    element_nbytes: int = 1
    reader: Reader | None = None
    owner: Any = None
    is_storage: bool = False

    def bytes(self) -> bytes:
        """A copy of its bytes."""
        raw = (ctypes.c_uint8 * self.nbytes)()
        if self.reader is not None:
            self.reader.read(0, self.nbytes, ctypes.addressof(raw))
        elif self.nbytes:
            ctypes.memmove(raw, self.address, self.nbytes)
        return bytes(raw)


def bytes_record(name: str, data: bytes) -> Record:
    """A record with these bytes."""
    owner = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    return Record(name, owner.data_ptr(), len(data), owner=owner)
