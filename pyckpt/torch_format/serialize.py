"""Turns an object into the records that torch.save would write.

The layout is torch's zip file (torch.serialization, format version 1): a pickle of protocol 2 in
which every storage is a persistent id, then the storages, each once. No storage is copied here.
"""

from __future__ import annotations

import hashlib
import io
import pickle
import sys
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from operator import itemgetter
from types import BuiltinFunctionType, FunctionType
from typing import Any

import torch
from torch._utils import _rebuild_tensor_v2, _rebuild_tensor_v3
from torch.serialization import location_tag, normalize_storage_type

from pyckpt import _core
from pyckpt.key_paths import path_of
from pyckpt.torch_format.device_reader import DeviceReader, queued_so_far
from pyckpt.torch_format.records import Record, bytes_record

__all__ = ["serialize", "spanned_records"]

_ROOT = "archive"
# Later protocols fail under torch.load(weights_only=True).
_PICKLE_PROTOCOL = 2
_FORMAT_VERSION = b"1"
_STORAGE_ALIGNMENT = b"64"
_FILE_VERSION = b"3\n"
_ID_DIGITS = 40
_HOST = torch.device("cpu")
# Frequent types in states that are never storages: values, and the callables that make them.
_FREQUENT = (
    *(bool, dict, float, int, list, str, tuple, torch.Tensor, OrderedDict),
    *(type, FunctionType, type(torch.FloatStorage)),
)
# The dtypes of plain tensors, and the class that stands for each in a pickle.
_PLAIN_DTYPES = {
    torch.bool: torch.BoolStorage,
    torch.uint8: torch.ByteStorage,
    torch.int8: torch.CharStorage,
    torch.int16: torch.ShortStorage,
    torch.int32: torch.IntStorage,
    torch.int64: torch.LongStorage,
    torch.float16: torch.HalfStorage,
    torch.bfloat16: torch.BFloat16Storage,
    torch.float32: torch.FloatStorage,
    torch.float64: torch.DoubleStorage,
}


def serialize(
    obj: Any, *, compact_views: bool = False, named: list[Any] | None = None
) -> list[Record]:
    """The records of ``obj`` in the order of torch's zip file.

    They refer to the object's memory, which must not change until the records are written.

    Args:
        compact_views: Save only the memory that each tensor spans, as if it were cloned first.
            Tensors of one type that span exactly the same memory still share it after loading.
            Other tensors no longer share memory.
        named: Gets the classes and functions that the pickle names. Not with ``compact_views``.

    Raises:
        pickle.PicklingError, TypeError, AttributeError: ``obj`` cannot be pickled.
        RuntimeError: Storages of different types share memory (torch.save refuses it too), or
            their device cannot be stored.
        ValueError: A tensor needs more bytes than its storage has (it was freed, for example), or
            a storage is not a whole number of elements, so that nobody could read it.
    """
    buffer = io.BytesIO()
    storages = _Storages()
    pickler = (_CompactPickler if compact_views else _StoragePickler)(buffer, storages)
    try:
        pickler.dump(obj)
    except _WrongStorageError as error:
        raise ValueError(f"{_place(obj, error.storage)}: {error}") from None
    if named is not None:
        named += pickler.named
    data = buffer.getvalue()
    head = [
        bytes_record(f"{_ROOT}/data.pkl", data),
        bytes_record(f"{_ROOT}/.format_version", _FORMAT_VERSION),
        bytes_record(f"{_ROOT}/.storage_alignment", _STORAGE_ALIGNMENT),
        bytes_record(f"{_ROOT}/byteorder", sys.byteorder.encode()),
    ]
    ready = {device: queued_so_far(device) for device in storages.devices}
    tensors = [_storage_record(extent, *kept, ready) for extent, kept in storages.extents.items()]
    tail = [
        bytes_record(f"{_ROOT}/version", _FILE_VERSION),
        bytes_record(f"{_ROOT}/.data/serialization_id", _serialization_id(data, tensors)),
    ]
    return head + tensors + tail


def spanned_records(tensors: Sequence[torch.Tensor]) -> list[Record]:
    """For each strided tensor, a record of its memory from the first element to the last.

    Gaps between the elements are included.

    Raises:
        ValueError: A tensor needs more bytes than its storage has.
    """
    ready = {device: queued_so_far(device) for device in {tensor.device for tensor in tensors}}
    return [_spanned_record(tensor, ready) for tensor in tensors]


def _spanned_record(
    tensor: torch.Tensor, ready: Mapping[torch.device, torch.cuda.Event | None]
) -> Record:
    storage, itemsize = tensor.untyped_storage(), tensor.dtype.itemsize
    start, span = int(tensor.storage_offset()), _span(tensor.shape, tensor.stride())
    try:
        _check_size(storage, start, span, tensor.dtype)
    except _WrongStorageError as error:
        raise ValueError(str(error)) from None
    extent = (storage._cdata, start * itemsize, span * itemsize, tensor.dtype)
    return _storage_record(extent, "0", storage, ready)


class _WrongStorageError(Exception):
    """A storage that nobody could read."""

    def __init__(self, storage: torch.UntypedStorage, message: str) -> None:
        super().__init__(message)
        self.storage = storage


def _place(obj: Any, storage: torch.UntypedStorage) -> str:
    """Where a storage is used in ``obj``, for a message."""

    def uses(value: Any) -> bool:
        if not isinstance(value, torch.Tensor) or value.layout is not torch.strided:
            return False
        return bool(value.untyped_storage()._cdata == storage._cdata)

    path = path_of(obj, uses)
    return "a tensor cannot be saved" if path is None else f"tensor {path!r} cannot be saved"


# The part of a storage that becomes one record, usually all of it: the storage's _cdata, start and
# size in bytes, and the dtype. A record is loaded with one dtype, so two dtypes need two records.
# A plain tuple, like _Stored: making a NamedTuple takes as long as getting a tensor's storage.
_Extent = tuple[int, int, int, torch.dtype]


class _Stored(tuple[tuple[Any, ...]]):
    """Stands for a storage in a pickle, and holds its persistent id."""

    __slots__ = ()


# How to get the persistent id of a type. None: it has none. Other types are checked for storages.
_PERSISTENT_IDS: dict[type, Callable[[Any], Any] | None] = {
    **dict.fromkeys(_FREQUENT),
    _Stored: itemgetter(0),
}


class _Storages:
    """Collects storages in the order in which they are first seen, and gives them persistent ids.

    Attributes:
        extents: For each extent its key in the pickle, and the storage, which is kept alive.
    """

    def __init__(self) -> None:
        self.extents: dict[_Extent, tuple[str, torch.UntypedStorage]] = {}
        self._dtypes: dict[int, torch.dtype] = {}  # by address
        self._locations: dict[torch.device, str] = {}

    @property
    def devices(self) -> list[torch.device]:
        """Where the storages are."""
        return list(self._locations)

    def persistent_id(self, obj: Any) -> tuple[Any, ...] | None:
        """The persistent id of a storage that is pickled alone or in a tensor that is not plain."""
        if isinstance(obj, torch.storage.TypedStorage):
            return self.whole(obj._untyped_storage, obj.dtype, _storage_type(obj))
        if isinstance(obj, torch.UntypedStorage):
            return self.whole(obj, torch.uint8, normalize_storage_type(type(obj)))
        return None

    def whole(
        self, storage: torch.UntypedStorage, dtype: torch.dtype, storage_type: Any
    ) -> tuple[Any, ...]:
        """The persistent id of all of ``storage``.

        Raises:
            RuntimeError: It was already seen with a different dtype. The two would no longer share
                memory after loading.
            _WrongStorageError: It is not a whole number of elements.
        """
        address, nbytes = storage.data_ptr(), storage.nbytes()
        if nbytes % dtype.itemsize:
            raise _WrongStorageError(
                storage, f"its storage of {nbytes} bytes is no multiple of {dtype.itemsize}"
            )
        # The address is 0 if the storage is empty or on the meta device.
        if address and (known := self._dtypes.setdefault(address, dtype)) != dtype:
            raise RuntimeError(
                "tensors or storages of different types that view the same memory cannot be saved: "
                f"{known} and {dtype}"
            )
        return self.part((storage._cdata, 0, nbytes, dtype), storage, storage_type)

    def part(
        self, extent: _Extent, storage: torch.UntypedStorage, storage_type: Any
    ) -> tuple[Any, ...]:
        """The persistent id of ``extent`` of ``storage``."""
        _, _, nbytes, dtype = extent
        # The same str object for every use: pickle writes an equal str again, but not the same one.
        kept = self.extents.get(extent)
        if kept is None:
            kept = self.extents[extent] = (str(len(self.extents)), storage)
        device = storage.device
        location = self._locations.get(device)
        if location is None:
            location = self._locations[device] = location_tag(storage)
        return ("storage", storage_type, kept[0], location, nbytes // dtype.itemsize)


class _StoragePickler(pickle.Pickler):
    """Replaces storages with their persistent ids."""

    def __init__(self, buffer: io.BytesIO, storages: _Storages) -> None:
        super().__init__(buffer, protocol=_PICKLE_PROTOCOL)
        self.named: list[Any] = []  # classes and functions
        self._storages = storages
        # A bound method of the pickler would be a cycle that keeps it, and its objects, alive.
        self.persistent_id = _core.by_type(  # type: ignore[method-assign]
            _PERSISTENT_IDS, storages.persistent_id
        )

    def reducer_override(self, obj: Any) -> Any:
        if type(obj) is OrderedDict and not obj and not obj.__dict__:  # every tensor's hooks
            return OrderedDict, ()
        if not _is_plain(obj):
            if isinstance(obj, type | FunctionType | BuiltinFunctionType):
                self.named.append(obj)
            return NotImplemented
        dtype, storage = obj.dtype, obj.untyped_storage()
        offset, shape, stride = obj.storage_offset(), tuple(obj.shape), obj.stride()
        _check_size(storage, offset, _span(shape, stride), dtype)
        # A view of a buffer of bytes. torch reads the storage as bytes too.
        is_odd = storage.nbytes() % dtype.itemsize != 0
        kind = (torch.uint8, torch.UntypedStorage) if is_odd else (dtype, _PLAIN_DTYPES[dtype])
        stored = _Stored((self._storages.whole(storage, *kind),))
        hooks: OrderedDict[int, Any] = OrderedDict()
        arguments = (stored, offset, shape, stride, obj.requires_grad, hooks)
        # The same result as torch's, in a third of the time: training waits for the pickle.
        if is_odd:
            return _rebuild_tensor_v3, (*arguments, dtype)
        return _rebuild_tensor_v2, arguments


class _CompactPickler(_StoragePickler):
    """Saves only the part of a storage that a tensor spans."""

    def reducer_override(self, obj: Any) -> Any:
        if not isinstance(obj, torch.Tensor):
            return NotImplemented
        reduced = obj.__reduce_ex__(_PICKLE_PROTOCOL)
        if reduced[0] is _rebuild_tensor_v2:
            typed, start, size, stride, *rest = reduced[1]
            storage, dtype, kind = typed._untyped_storage, typed.dtype, _storage_type(typed)
        elif reduced[0] is _rebuild_tensor_v3:  # of a dtype that has no storage class
            storage, start, size, stride, *rest = reduced[1]
            dtype, kind = obj.dtype, torch.UntypedStorage
        else:
            return reduced
        span, itemsize = _span(size, stride), dtype.itemsize
        _check_size(storage, start, span, dtype)
        if not span:  # it may begin behind the storage
            start = 0
        kept_as = torch.uint8 if kind is torch.UntypedStorage else dtype
        extent = (storage._cdata, start * itemsize, span * itemsize, kept_as)
        stored = self._storages.part(extent, storage, kind)
        return reduced[0], (_Stored((stored,)), 0, size, stride, *rest)


def _span(shape: Sequence[int], stride: Sequence[int]) -> int:
    """How many elements there are from the first to the last of a tensor, with gaps."""
    if 0 in shape:
        return 0
    return 1 + sum((n - 1) * step for n, step in zip(shape, stride, strict=True))


def _check_size(storage: torch.UntypedStorage, start: int, span: int, dtype: torch.dtype) -> None:
    """Raises _WrongStorageError if ``storage`` lacks some of the elements."""
    needed, nbytes = (start + span) * dtype.itemsize, storage.nbytes()
    if span and needed > nbytes:
        raise _WrongStorageError(
            storage, f"it needs {needed} bytes, but its storage has {nbytes}; was it freed?"
        )


def _is_plain(obj: Any) -> bool:
    """Whether it is a plain tensor, as most are: nothing but numbers in strided memory."""
    return (
        type(obj) is torch.Tensor
        and obj.dtype in _PLAIN_DTYPES
        and obj.layout is torch.strided
        and (obj.is_cpu or obj.is_cuda)
        and not (obj.is_nested or obj.is_neg() or obj.__dict__ or obj._backward_hooks)
    )


def _storage_type(storage: torch.storage.TypedStorage) -> Any:
    """The class that stands for the storage's dtype in a pickle, such as torch.FloatStorage."""
    return getattr(torch, storage._pickle_storage_type())


def _storage_record(
    extent: _Extent,
    key: str,
    storage: torch.UntypedStorage,
    ready: Mapping[torch.device, torch.cuda.Event | None],
) -> Record:
    _, start, nbytes, dtype = extent
    element_nbytes = dtype.itemsize // (2 if dtype.is_complex else 1)
    address, reader = 0, None
    if storage.device != _HOST:
        reader = DeviceReader(storage, start, ready[storage.device])
    elif nbytes:
        address = storage.data_ptr() + start
    return Record(f"{_ROOT}/data/{key}", address, nbytes, element_nbytes, reader, storage, True)


def _serialization_id(data: bytes, tensors: Sequence[Record]) -> bytes:
    """40 digits, as in torch's files. Equal pickles and sizes give equal ids."""
    digest = hashlib.sha256(data)
    digest.update("".join(f"{record.name} {record.nbytes}\n" for record in tensors).encode())
    return str(int.from_bytes(digest.digest(), "big")).zfill(_ID_DIGITS)[-_ID_DIGITS:].encode()
