"""Reads the object from torch's zip file: the reverse of serialize.py.

Storages use the memory that the archive was decoded to, so no tensor is copied. Before the pickle
runs, all storages are decoded and all checksums are compared.
"""

from __future__ import annotations

import io
import pickle
import struct
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.serialization import default_restore_location

from pyckpt.errors import CorruptArchiveError
from pyckpt.memory import require_memory
from pyckpt.stream import Damage, StreamReader, describe
from pyckpt.torch_format.admitted_types import admitted, state_types
from pyckpt.torch_format.pickle_cut import cut_pickle
from pyckpt.torch_format.tensor_index import tensors_in
from pyckpt.torch_format.torch_file import StoredRecord, TorchFile
from pyckpt.torch_format.torch_internals import (
    WeightsUnpickler,
    rebuilding_at,
    validate_sparse_tensors,
)

__all__ = [
    "BrokenRecord",
    "broken_records",
    "can_deserialize",
    "deserialize",
]

_PICKLE = "data.pkl"
_STORAGES = "data/"
_BYTEORDER = "byteorder"
# torch aligns its own allocations to this, for vector instructions.
_ALIGNMENT = 64
_MOST_NAMED = 5


def can_deserialize(file: TorchFile) -> bool:
    """Whether ``file`` has torch.save's usual layout and this machine's byte order."""
    if not file.is_plain:
        return False
    return _BYTEORDER not in file.records or file.read(_BYTEORDER) == sys.byteorder.encode()


def deserialize(
    file: TorchFile,
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
        pickle.UnpicklingError: ``weights_only`` forbids something.
    """
    data = file.read(_PICKLE, verify=verify)
    records = [r for r in file.records.values() if r.name.startswith(_STORAGES)]
    if keys is not None:
        data, wanted = _cut(file, data, keys)
        records = [r for r in records if r.name.removeprefix(_STORAGES) in wanted]
    places = _decode_storages(file, records, data, verify)
    if verify and keys is None:
        file.stream.check_rest()
    storages = {
        record.name.removeprefix(_STORAGES): _storage(file.stream, place)
        for record, place in zip(records, places, strict=True)
    }
    storage_of = _StorageOf(file, storages, _restorer(map_location))
    unpickler: Any = (_WeightsUnpickler if weights_only else _AnyUnpickler)(
        io.BytesIO(data), storage_of
    )
    with rebuilding_at(map_location), admitted(state_types() if weights_only else []):
        obj = _unpickle(unpickler, storage_of, weights_only)
    storage_of.check_sizes()
    return obj


def _unpickle(unpickler: Any, storage_of: _StorageOf, weights_only: bool) -> Any:
    path = storage_of.path
    try:
        obj = unpickler.load()
        validate_sparse_tensors(weights_only)
        return obj
    except pickle.UnpicklingError as error:
        if not weights_only:
            raise
        raise pickle.UnpicklingError(
            f"{path}: {error} (weights_only=False allows it, and runs code of the file)"
        ) from error
    except CorruptArchiveError:
        raise
    except _BROKEN as error:
        # Damage was found by the checksums before, so torch.save never wrote this pickle. What the
        # user's own classes or map_location raise is passed on unchanged.
        if not weights_only or error is storage_of.error:
            raise
        raise CorruptArchiveError(
            f"{path} has a broken pickle: {type(error).__name__}: {error}", path=str(path)
        ) from error


# What torch's unpickler raises for an invalid pickle.
_BROKEN = (
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
    struct.error,
)


def _cut(file: TorchFile, data: bytes, keys: Sequence[str]) -> tuple[bytes, set[str]]:
    try:
        return cut_pickle(data, keys)
    except pickle.UnpicklingError as error:
        path = file.stream.path
        raise CorruptArchiveError(f"{path} has a broken pickle: {error}", path=str(path)) from error


def _decode_storages(
    file: TorchFile, records: Sequence[StoredRecord], data: bytes, verify: bool
) -> list[tuple[int, int]]:
    """Decodes and checks the records. Returns where they are in the stream: (offset, nbytes)."""
    places = file.locate(records)
    nbytes = sum(nbytes for _, nbytes in places)
    if not file.stream.mapped:
        require_memory(nbytes, file.stream.path)
    if file.stream.wanted_nbytes is None:
        file.stream.wanted_nbytes = nbytes
    crcs, damages = file.stream.fill(places, keep=True, checksums=verify)
    broken = broken_records(places, crcs if verify else None, records, damages)
    if broken:
        report = _damage_report(broken, data)
        path = file.stream.path
        raise CorruptArchiveError(f"{path} is damaged: {report}", path=str(path))
    return places


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

    record: StoredRecord
    offset: int
    damage: Damage | None

    def __str__(self) -> str:
        return "its checksum does not match" if self.damage is None else describe(self.damage)


def broken_records(
    places: Sequence[tuple[int, int]],
    crcs: Sequence[int] | None,
    records: Sequence[StoredRecord],
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
        key = one.record.name.removeprefix(_STORAGES)
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

    Attributes:
        path: The file that holds them.
        error: The exception raised when a storage was moved to its device, or None. It is not the
            fault of the pickle.
    """

    error: Exception | None = None

    def __init__(
        self,
        file: TorchFile,
        storages: Mapping[str, torch.UntypedStorage],
        restore: Restorer,
    ) -> None:
        self.path = file.stream.path
        self._storages = storages
        self._restore = restore
        self._done: dict[str, torch.storage.TypedStorage] = {}
        self._nbytes: dict[str, int] = {}

    def __call__(self, saved_id: Any) -> torch.storage.TypedStorage:
        kind, storage_type, key, location, numel = saved_id
        if kind != "storage":
            raise pickle.UnpicklingError(f"a persistent id that is not a storage: {kind!r}")
        if key in self._done:
            return self._done[key]
        dtype = torch.uint8 if storage_type is torch.UntypedStorage else storage_type.dtype
        nbytes = numel * dtype.itemsize
        storage = self._storages.get(key)
        if storage is None or storage.nbytes() != nbytes:
            has = "none" if storage is None else f"one of {storage.nbytes()}"
            raise CorruptArchiveError(
                f"{self.path} needs a storage {key!r} of {nbytes} bytes, but has {has}",
                path=str(self.path),
            )
        try:
            restored = self._restore(storage, location)
            typed = torch.storage.TypedStorage(wrap_storage=restored, dtype=dtype, _internal=True)
        except Exception as error:
            self.error = error
            raise
        self._done[key] = typed
        self._nbytes[key] = restored.nbytes()
        return typed

    def check_sizes(self) -> None:
        """Checks that no storage has grown.

        torch enlarges a storage that is too small for a tensor's shape.

        Raises:
            CorruptArchiveError: A storage has grown, so a tensor has bytes that were never saved.
        """
        for key, typed in self._done.items():
            if typed._untyped_storage.nbytes() > self._nbytes[key]:
                raise CorruptArchiveError(
                    f"{self.path} has a tensor that is larger than its storage {key!r}",
                    path=str(self.path),
                )


class _WeightsUnpickler(WeightsUnpickler):
    """The unpickler of ``weights_only``, with our storages."""

    def __init__(self, file: io.BytesIO, storage_of: _StorageOf) -> None:
        super().__init__(file, encoding="utf-8")
        self._storage_of = storage_of

    def persistent_load(self, pid: Any) -> Any:
        return self._storage_of(pid)


class _AnyUnpickler(pickle.Unpickler):
    """Python's unpickler, which runs any code that the pickle names."""

    def __init__(self, file: io.BytesIO, storage_of: _StorageOf) -> None:
        super().__init__(file, encoding="utf-8")
        self._storage_of = storage_of

    def persistent_load(self, pid: Any) -> Any:
        return self._storage_of(pid)

    def find_class(self, module: str, name: str) -> Any:
        if module.startswith("torch") and name.endswith("Storage") and name != "UntypedStorage":
            return torch.serialization.StorageType(name)
        # Before torch 1.8, Tensor was in torch.tensor.
        return super().find_class("torch._tensor" if module == "torch.tensor" else module, name)
