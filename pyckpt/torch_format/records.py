"""What torch's zip file is written from: records that say where their bytes lie."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

__all__ = ["Reader", "Record"]


class Reader(Protocol):
    """Bytes that are not in host memory."""

    def read(self, offset: int, nbytes: int, address: int) -> None:
        """Copies ``nbytes`` at ``offset`` to the host memory at ``address``. Any thread."""
        ...


class Record(NamedTuple):
    """One record of the zip file.

    Attributes:
        name: With its root folder, ``archive/data/0``.
        address: Where the bytes lie in host memory; 0 when there is a reader.
        nbytes: How many there are.
        element_nbytes: Size of the numbers in it: 4 for float32 and for complex64.
        reader: Fetches the bytes when they are not in host memory.
        owner: Keeps the memory alive.
        is_storage: Whether the bytes are the object's own, and not made for the file.
    """

    name: str
    address: int
    nbytes: int
    element_nbytes: int = 1
    reader: Reader | None = None
    owner: Any = None
    is_storage: bool = False
