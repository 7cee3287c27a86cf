"""Reads the object from torch's file: the reverse of serialize.py.

Storages use the memory that the archive was decoded to, so no tensor is copied. Before the pickle
runs, all storages are decoded and all checksums are compared.
"""

from __future__ import annotations

import io
import pickle
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.serialization import LoadEndianness, default_restore_location

from pyckpt import _core
from pyckpt.errors import CheckpointError, CorruptArchiveError, OptionError
from pyckpt.memory import require_memory
from pyckpt.stream import Damage, StreamReader, describe
from pyckpt.torch_format.hollow import hollow_storages
from pyckpt.torch_format.legacy_file import LegacyFile, LegacyRecord
from pyckpt.torch_format.pickle_cut import cut_pickle
from pyckpt.torch_format.pickle_machine import BrokenPickleError
from pyckpt.torch_format.pickle_tree import read_tree
from pyckpt.torch_format.tensor_index import storage_dtype, tensors_in
from pyckpt.torch_format.torch_file import (
    PICKLE,
    STORAGES,
    OpenedRecords,
    StoredRecord,
    TorchFile,
)
from pyckpt.torch_format.torch_internals import rebuilding_at, validate_sparse_tensors
from pyckpt.torch_format.weights_unpickler import WeightsUnpickler

__all__ = ["BrokenRecord", "Outlined", "broken_records", "byte_order", "deserialize", "outlined"]

_BYTEORDER = "byteorder"
# torch aligns its own allocations to this, for vector instructions.
_ALIGNMENT = 64
_MOST_NAMED = 5

_Record = StoredRecord | LegacyRecord


def deserialize(
    file: TorchFile | LegacyFile,
    *,
    map_location: Any,
    weights_only: bool,
    verify: bool,
    keys: Sequence[str] | None = None,
) -> Any:
    """The object that ``file`` holds.

    Args:
        map_location: As in torch.load.
        weights_only: As in torch.load.
        verify: Whether to compare the checksums of the loaded records. Without ``keys``, also
            those of the whole stream, if no member of the archive follows this one.
        keys: Globs over key paths. What no glob matches is not unpickled. It is left out, or
            replaced by None in lists and tuples.

    Raises:
        CorruptArchiveError: Something is damaged. If it is a tensor, the message names it where
            possible.
        CheckpointError: There is not enough memory.
        OptionError: ``file`` should be mapped, and has compressed records.
        pickle.UnpicklingError: ``weights_only`` forbids something.
    """
    if isinstance(file, TorchFile) and file.others:
        path, name = file.stream.path, min(file.others).removeprefix("../")
        raise CorruptArchiveError(
            f"{path} has a record {name!r} outside of the folder of the other records, which torch "
            "refuses",
            path=str(path),
        )
    data = file.read(PICKLE, verify=verify)
    records: list[Any] = [r for r in file.records.values() if r.name.startswith(STORAGES)]
    if keys is not None:
        data, wanted = _cut(file, data, keys)
        records = [r for r in records if r.name.removeprefix(STORAGES) in wanted]
    nbytes = sum(record.nbytes for record in records)
    if not file.stream.mapped:
        require_memory(nbytes, file.stream.path)
    if file.stream.wanted_nbytes is None:
        file.stream.wanted_nbytes = nbytes
    if isinstance(file, TorchFile):
        file.expect(records)
        file.bring(records)
    groups = file.opened(records)
    _decode_storages(file, groups, data, verify)
    if verify and keys is None:
        file.stream.check_rest()  # before bytes are taken, because it may move them
    storages = {
        record.name.removeprefix(STORAGES): _storage(group.stream, place)
        for group in groups
        for record, place in zip(group.records, group.places, strict=True)
    }
    is_foreign = isinstance(file, TorchFile) and byte_order(file) != sys.byteorder
    storage_of = _StorageOf(file.stream, storages, _restorer(map_location), is_foreign)
    return _object(file, data, storage_of, map_location, weights_only)


@dataclass(frozen=True)
class Outlined:
    """An object whose tensors are hollow: see hollow.py.

    Attributes:
        obj: The object.
        keys: For each hollow storage, by its ``_cdata``, the key of its record.
        storages: Keeps them.
    """

    obj: Any
    keys: dict[int, str]
    storages: Sequence[torch.UntypedStorage]


def outlined(file: TorchFile, *, weights_only: bool) -> Outlined:
    """The object that ``file`` holds, without the bytes of its tensors. Raises as deserialize()."""
    data = file.read(PICKLE)
    records = [r for r in file.records.values() if r.name.startswith(STORAGES)]
    made = hollow_storages([record.nbytes for record in records])
    keys = [record.name.removeprefix(STORAGES) for record in records]
    storage_of = _StorageOf(
        file.stream, dict(zip(keys, made, strict=True)), _restorer("cpu"), is_foreign=False
    )
    obj = _object(file, data, storage_of, "cpu", weights_only)
    return Outlined(obj, {s._cdata: key for s, key in zip(made, keys, strict=True)}, made)


def _object(
    file: TorchFile | LegacyFile,
    data: bytes,
    storage_of: _StorageOf,
    map_location: Any,
    weights_only: bool,
) -> Any:
    """Runs the pickle ``data`` of the file."""
    try:
        with rebuilding_at(map_location):
            obj = _unpickled(data, storage_of, weights_only)
            _validate_sparse_tensors(weights_only)
        storage_of.check_sizes()
    except BrokenPickleError as error:
        # Damage was found by the checksums before, so torch.save never wrote this pickle.
        raise _broken_pickle(file, error) from error
    except pickle.UnpicklingError as error:
        if not weights_only:
            raise
        raise pickle.UnpicklingError(
            f"{file.stream.path}: {error} (weights_only=False allows it, and runs code of the file)"
        ) from error
    finally:
        # torch's list for all loads. What a failed load leaves would fail the next one.
        torch._utils._sparse_tensors_to_validate.clear()
    return obj


def byte_order(file: TorchFile) -> str:
    """The order of the bytes in the numbers of a file: "little" or "big", as torch.load takes it.

    Raises:
        CorruptArchiveError: The file names another one.
    """
    if _BYTEORDER in file.records:
        named = file.read(_BYTEORDER).decode("ascii", "replace")
        if named not in ("little", "big"):
            path = file.stream.path
            raise CorruptArchiveError(
                f"{path} has numbers of the byte order {named!r}", path=str(path)
            )
        return named
    usual = torch.serialization.get_default_load_endianness()
    if usual is LoadEndianness.NATIVE:
        return sys.byteorder
    return "big" if usual is LoadEndianness.BIG else "little"


def _cut(file: TorchFile | LegacyFile, data: bytes, keys: Sequence[str]) -> tuple[bytes, set[str]]:
    try:
        return cut_pickle(data, keys)
    except pickle.UnpicklingError as error:
        raise _broken_pickle(file, error) from error


def _broken_pickle(file: TorchFile | LegacyFile, error: Exception) -> CorruptArchiveError:
    path = file.stream.path
    return CorruptArchiveError(f"{path} has a broken pickle: {error}", path=str(path))


def _unpickled(data: bytes, storage_of: _StorageOf, weights_only: bool) -> Any:
    """Runs the pickle.

    Raises:
        BrokenPickleError: The pickle is broken.
        Exception: With ``weights_only=False``, whatever the classes that it names raise.
    """
    if weights_only:
        return WeightsUnpickler(data, storage_of).run()
    try:
        # Python's unpickler believes the numbers in a pickle.
        _core.check_pickle(data)
    except _core.CorruptError as error:
        raise BrokenPickleError(str(error)) from error
    try:
        return _AnyUnpickler(io.BytesIO(data), storage_of).load()
    except (CheckpointError, BrokenPickleError):
        raise
    except Exception as error:
        if error is not storage_of.error:
            _require_valid(data, error)
        raise


def _require_valid(data: bytes, cause: Exception) -> None:
    """Raises BrokenPickleError if ``data`` is not even a pickle, whatever its classes are."""
    try:
        read_tree(data)
    except BrokenPickleError as error:
        raise BrokenPickleError(str(error)) from cause
    except pickle.UnpicklingError:
        return


def _validate_sparse_tensors(weights_only: bool) -> None:
    try:
        validate_sparse_tensors(weights_only)
    except Exception as error:
        raise BrokenPickleError(f"{type(error).__name__}: {error}") from error


def _decode_storages(
    file: TorchFile | LegacyFile, groups: Sequence[OpenedRecords], data: bytes, verify: bool
) -> None:
    """Decodes and checks records."""
    path = file.stream.path
    if file.stream.mapped and any(not group.stream.mapped for group in groups):
        raise OptionError(
            f"{path} has compressed records, which cannot be mapped: load it without mmap=True"
        )
    broken: list[BrokenRecord] = []
    for group in groups:
        crcs, damages = group.stream.fill(group.places, keep=True, checksums=verify)
        broken += broken_records(group.places, crcs if verify else None, group.records, damages)
    if broken:
        report = _damage_report(broken, data)
        raise CorruptArchiveError(f"{path} is damaged: {report}", path=str(path))


def _storage(stream: StreamReader, place: tuple[int, int]) -> torch.UntypedStorage:
    if place[1] == 0:
        return torch.UntypedStorage(0)
    tensor = torch.frombuffer(stream.image.take(place), dtype=torch.uint8)
    if tensor.data_ptr() % _ALIGNMENT:  # not in files with torch.save's default alignment
        tensor = tensor.clone()
    return tensor.untyped_storage()


@dataclass(frozen=True)
class BrokenRecord:
    """A record whose bytes are not the ones that were saved.

    Attributes:
        offset: Where it begins in the decompressed stream.
        damage: What cannot be decoded; None if only the checksum does not match.
    """

    record: _Record
    offset: int
    damage: Damage | None

    def __str__(self) -> str:
        return "its checksum does not match" if self.damage is None else describe(self.damage)


def broken_records(
    places: Sequence[tuple[int, int]],
    crcs: Sequence[int] | None,
    records: Sequence[_Record],
    damages: Sequence[Damage],
) -> list[BrokenRecord]:
    """The damaged records, found from the results of StreamReader.fill."""
    broken = []
    for index, (record, (offset, nbytes)) in enumerate(zip(records, places, strict=True)):
        hit = next((d for d in damages if d.hits(offset, nbytes)), None)
        differs = crcs is not None and record.has_checksum and crcs[index] != record.crc
        if hit is not None or differs:
            broken.append(BrokenRecord(record, offset, hit))
    return broken


def _damage_report(broken: Sequence[BrokenRecord], data: bytes) -> str:
    """Describes broken records, with the tensors in them if the pickle ``data`` names those."""
    try:
        tensors = tensors_in(data)
    except pickle.UnpicklingError:
        tensors = []
    lines = []
    for one in broken[:_MOST_NAMED]:
        key = one.record.name.removeprefix(STORAGES)
        names = [str(tensor) for tensor in tensors if tensor.storage.key == key]
        what = " and ".join(names[:_MOST_NAMED]) or "a record"
        lines.append(f"{what} in {one.record.name!r}: {one}")
    if len(broken) > _MOST_NAMED:
        lines.append(f"and {len(broken) - _MOST_NAMED} more")
    return "; ".join(lines)


Restorer = Callable[[torch.UntypedStorage, str], Any]


def _restorer(map_location: Any) -> Restorer:
    """Returns a function that moves a storage to its ``map_location``, as in torch.load."""
    if map_location is None:
        return default_restore_location
    if isinstance(map_location, str | torch.device):
        return lambda storage, _: default_restore_location(storage, str(map_location))
    if isinstance(map_location, Mapping):
        return lambda storage, location: default_restore_location(
            storage, map_location.get(location, location)
        )

    def restore(storage: torch.UntypedStorage, location: str) -> Any:
        result = map_location(storage, location)
        return default_restore_location(storage, location) if result is None else result

    return restore


class _StorageOf:
    """Maps the persistent ids of a pickle to storages.

    Args:
        is_foreign: Whether the bytes of each number are in the other order.

    Attributes:
        error: The exception raised when a storage was moved to its device, or None.
    """

    error: Exception | None = None

    def __init__(
        self,
        stream: StreamReader,
        storages: Mapping[str, torch.UntypedStorage],
        restore: Restorer,
        is_foreign: bool,
    ) -> None:
        self._path = stream.path
        self._storages = storages
        self._restore = restore
        self._is_foreign = is_foreign
        self._done: dict[str, torch.storage.TypedStorage] = {}
        self._nbytes: dict[str, int] = {}
        self._views: dict[str, torch.storage.TypedStorage] = {}

    def __call__(self, saved_id: Any) -> Any:
        parts = [_ascii(one) for one in saved_id] if isinstance(saved_id, tuple) else []
        kind = parts[0] if parts else None
        if kind == "module" and len(parts) == _MODULE_ID_PARTS:
            return parts[1]  # a class; its source code follows
        if kind != "storage" or len(parts) not in (5, 6):
            raise BrokenPickleError("a persistent id that is not a storage's")
        storage_type, key, location, numel = parts[1:5]
        is_untyped = storage_type is torch.UntypedStorage
        dtype = torch.uint8 if is_untyped else getattr(storage_type, "dtype", None)
        if not isinstance(dtype, torch.dtype) or type(numel) is not int:
            raise BrokenPickleError("a storage without a type or a size")
        if not isinstance(key, str | int) or not isinstance(location, str):
            raise BrokenPickleError("a storage without a key or a location")
        whole = self._whole(str(key), dtype, location, numel)
        view = parts[5] if len(parts) > 5 else None
        return whole if view is None else self._view(whole, view)

    def _whole(
        self, key: str, dtype: torch.dtype, location: str, numel: int
    ) -> torch.storage.TypedStorage:
        if key in self._done:
            return self._done[key]
        nbytes = numel * dtype.itemsize
        storage = self._storages.get(key)
        if storage is None or storage.nbytes() != nbytes:
            has = "none" if storage is None else f"one of {storage.nbytes()}"
            raise CorruptArchiveError(
                f"{self._path} needs a storage {key!r} of {nbytes} bytes, but has {has}",
                path=str(self._path),
            )
        if self._is_foreign:
            storage.byteswap(dtype)
        try:
            restored = self._restore(storage, location)
        except Exception as error:
            self.error = error
            raise
        typed = torch.storage.TypedStorage(wrap_storage=restored, dtype=dtype, _internal=True)
        self._done[key] = typed
        self._nbytes[key] = restored.nbytes()
        return typed

    def _view(self, whole: torch.storage.TypedStorage, view: Any) -> torch.storage.TypedStorage:
        """A part of a storage, as before torch 1.6."""
        numbers = view[1:] if isinstance(view, tuple) else ()
        if len(numbers) != 2 or any(type(n) is not int or n < 0 for n in numbers):
            raise BrokenPickleError("a part of a storage without a place")
        start, numel = numbers
        if start + numel > whole._size():
            raise BrokenPickleError("a part of a storage that is not inside it")
        key = str(_ascii(view[0])) if isinstance(view[0], str | bytes | int) else ""
        if key not in self._views:
            itemsize = whole.dtype.itemsize
            self._views[key] = torch.storage.TypedStorage(
                wrap_storage=whole._untyped_storage[start * itemsize : (start + numel) * itemsize],
                dtype=whole.dtype,
                _internal=True,
            )
        return self._views[key]

    def check_sizes(self) -> None:
        """Checks that no storage has grown.

        torch enlarges a storage that is too small for a tensor's shape.

        Raises:
            CorruptArchiveError: A storage has grown, so a tensor has bytes that were never saved.
        """
        for key, typed in self._done.items():
            if typed._untyped_storage.nbytes() > self._nbytes[key]:
                raise CorruptArchiveError(
                    f"{self._path} has a tensor that is larger than its storage {key!r}",
                    path=str(self._path),
                )


_MODULE_ID_PARTS = 4


def _ascii(text: Any) -> Any:
    """Texts that Python 2 wrote may be bytes."""
    return text.decode("ascii", "replace") if isinstance(text, bytes) else text


class _AnyUnpickler(pickle.Unpickler):
    """Python's unpickler, which runs any code that the pickle names."""

    def __init__(self, file: io.BytesIO, storage_of: _StorageOf) -> None:
        super().__init__(file, encoding="utf-8")
        self._storage_of = storage_of

    def persistent_load(self, pid: Any) -> Any:
        return self._storage_of(pid)

    def find_class(self, module: str, name: str) -> Any:
        # Like torch, this does not look at the module: a class of anybody's named FloatStorage is
        # taken for torch's.
        if "Storage" in name and name != "UntypedStorage" and storage_dtype(name) is not None:
            return torch.serialization.StorageType(name)
        # Before torch 1.8, Tensor was in torch.tensor.
        return super().find_class("torch._tensor" if module == "torch.tensor" else module, name)
