"""An object as torch.save would store it: a pickle, and records that say where the bytes lie.

The layout is torch's zip file (torch.serialization, format version 1): a pickle of protocol 2 in
which every storage is a persistent id, then the storages, each once. Nothing is copied here.
"""

from __future__ import annotations

import hashlib
import io
import pickle
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch.serialization import location_tag, normalize_storage_type

from pyckpt.staging import DeviceReader

__all__ = ["Reader", "Record", "serialize"]

_ROOT = "archive"
# Later protocols fail under torch.load(weights_only=True).
_PICKLE_PROTOCOL = 2
_FORMAT_VERSION = b"1"
_STORAGE_ALIGNMENT = b"64"
_FILE_VERSION = b"3\n"
_ID_DIGITS = 40


class Reader(Protocol):
    """Bytes that are not in host memory."""

    def read(self, offset: int, nbytes: int, address: int) -> None:
        """Copies ``nbytes`` at ``offset`` to the host memory at ``address``. Any thread."""
        ...


@dataclass(frozen=True)
class Record:
    """One record of the zip file.

    Attributes:
        name: With its root folder, ``archive/data/0``.
        address: Where the bytes lie in host memory; 0 when there is a reader.
        nbytes: How many there are.
        element_nbytes: Size of the numbers in it: 4 for float32 and for complex64.
        reader: Fetches the bytes when they are not in host memory.
        owner: Keeps the memory alive.
    """

    name: str
    address: int
    nbytes: int
    element_nbytes: int = 1
    reader: Reader | None = None
    owner: Any = field(default=None, repr=False)


def serialize(obj: Any) -> Sequence[Record]:
    """The records of ``obj`` in the order of torch's zip file.

    They hold references to the object's memory, which must not change until they are written.

    Raises:
        pickle.PicklingError, TypeError, AttributeError: ``obj`` cannot be pickled.
        RuntimeError: Storages of different types share memory (torch.save refuses it too), or
            their device cannot be stored.
    """
    buffer = io.BytesIO()
    pickler = _StoragePickler(buffer)
    pickler.dump(obj)
    data = buffer.getvalue()
    head = [
        _bytes_record("data.pkl", data),
        _bytes_record(".format_version", _FORMAT_VERSION),
        _bytes_record(".storage_alignment", _STORAGE_ALIGNMENT),
        _bytes_record("byteorder", sys.byteorder.encode()),
    ]
    tensors = [storage.record(index) for index, storage in enumerate(pickler.storages)]
    tail = [
        _bytes_record("version", _FILE_VERSION),
        _bytes_record(".data/serialization_id", _serialization_id(data, tensors)),
    ]
    return head + tensors + tail


@dataclass(frozen=True)
class _Storage:
    storage: torch.UntypedStorage
    dtype: torch.dtype

    def record(self, index: int) -> Record:
        name = f"{_ROOT}/data/{index}"
        nbytes = self.storage.nbytes()
        element_nbytes = self.dtype.itemsize // (2 if self.dtype.is_complex else 1)
        if self.storage.device.type == "cpu":
            return Record(
                name, self.storage.data_ptr(), nbytes, element_nbytes, owner=self.storage
            )
        return Record(name, 0, nbytes, element_nbytes, reader=DeviceReader(self.storage))


class _StoragePickler(pickle.Pickler):
    """Replaces storages by persistent ids and collects them, first seen first."""

    def __init__(self, buffer: io.BytesIO) -> None:
        super().__init__(buffer, protocol=_PICKLE_PROTOCOL)
        self.storages: list[_Storage] = []
        self._index: dict[int, int] = {}  # by identity of the C++ storage
        self._dtypes: dict[int, torch.dtype] = {}  # by address

    def persistent_id(self, obj: Any) -> tuple[Any, ...] | None:
        if isinstance(obj, torch.storage.TypedStorage):
            storage = obj._untyped_storage
            dtype = obj.dtype
            storage_type = getattr(torch, obj._pickle_storage_type())
            numel = obj._size()
        elif isinstance(obj, torch.UntypedStorage):
            storage = obj
            dtype = torch.uint8
            storage_type = normalize_storage_type(type(obj))
            numel = storage.nbytes()
        else:
            return None
        index = self._index.get(storage._cdata)
        if index is None:
            index = self._index[storage._cdata] = len(self.storages)
            self.storages.append(_Storage(storage, dtype))
        self._check_dtype(storage, dtype)
        return ("storage", storage_type, str(index), location_tag(storage), numel)

    def _check_dtype(self, storage: torch.UntypedStorage, dtype: torch.dtype) -> None:
        """A storage is loaded with one type, so it must be saved with one."""
        if storage.device.type == "meta" or storage.data_ptr() == 0:
            return
        if self._dtypes.setdefault(storage.data_ptr(), dtype) != dtype:
            raise RuntimeError(
                "tensors or storages of different types that view the same memory cannot be saved: "
                f"{self._dtypes[storage.data_ptr()]} and {dtype}"
            )


def _bytes_record(name: str, data: bytes) -> Record:
    owner = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    return Record(f"{_ROOT}/{name}", owner.data_ptr(), len(data), owner=owner)


def _serialization_id(data: bytes, tensors: Sequence[Record]) -> bytes:
    """40 digits, as torch has them; equal for equal pickles and sizes."""
    digest = hashlib.sha256(data)
    for record in tensors:
        digest.update(f"{record.name} {record.nbytes}\n".encode())
    return str(int.from_bytes(digest.digest(), "big")).zfill(_ID_DIGITS)[-_ID_DIGITS:].encode()
