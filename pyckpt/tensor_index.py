"""Which tensors a pickle of torch.save holds, found out without running anything that it names.

The pickle is read by a machine for which every class and function is an inert stand-in: what
would be called is noted with its arguments. So any pickle can be looked at, whoever wrote it.
"""

from __future__ import annotations

import functools
import io
import pickle
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

__all__ = ["StorageInfo", "TensorInfo", "tensors_in"]


@dataclass(frozen=True)
class StorageInfo:
    """A storage as the pickle names it.

    Attributes:
        key: The record's name is ``data/<key>``.
        dtype: Of its elements; uint8 where it has no type.
        numel: How many elements it has.
        location: The device it was on, ``"cuda:0"``.
    """

    key: str
    dtype: torch.dtype
    numel: int
    location: str


@dataclass(frozen=True)
class TensorInfo:
    """A tensor in a pickle. Parts of one (a sparse tensor's indices) count as tensors of its path.

    Attributes:
        key_path: Such as ``state/model/0.weight``.
        shape: In elements.
        stride: In elements.
        offset: In its storage, in elements.
    """

    key_path: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int
    storage: StorageInfo

    @property
    def nbytes(self) -> int:
        """What the elements take, whether or not the storage has more."""
        nbytes = self.dtype.itemsize
        for n in self.shape:
            nbytes *= n
        return nbytes

    def __str__(self) -> str:
        return f"tensor {self.key_path!r} ({self.dtype}, {list(self.shape)})"


def tensors_in(data: bytes) -> list[TensorInfo]:
    """The tensors of the pickle ``data`` (record ``data.pkl``), in the order of the object.

    A tensor that is reached by two paths is listed under both.

    Raises:
        pickle.UnpicklingError: It is no pickle that torch.save writes.
    """
    try:
        tree = _InertUnpickler(io.BytesIO(data)).load()
        return list(_Walk(len(data)).tensors(tree, ""))
    except pickle.UnpicklingError:
        raise
    # Whatever a broken pickle can do to the machine.
    except Exception as error:
        raise pickle.UnpicklingError(f"{type(error).__name__}: {error}") from error


class _Inert:
    """Stands for an object: what it would be made of."""

    args: tuple[Any, ...]
    items: dict[Any, Any]
    members: list[Any]
    state: Any

    def __new__(cls, *args: Any, **_: Any) -> _Inert:
        self = super().__new__(cls)
        self.args = args
        self.items = {}
        self.members = []
        self.state = None
        return self

    def __init__(self, *args: Any, **_: Any) -> None:
        pass

    def __call__(self, *args: Any, **_: Any) -> _Inert:
        return _Inert(self, *args)  # as an attribute that getattr found would be

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        self.items[key] = value

    def append(self, value: Any) -> None:
        self.members.append(value)

    def extend(self, values: Any) -> None:
        self.members.extend(values)

    def add(self, value: Any) -> None:
        self.members.append(value)


# The machine in Python: the one in C makes room for whatever numbers a pickle has.
class _InertUnpickler(pickle._Unpickler):
    """Builds containers, and stand-ins for everything else."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, encoding="bytes")
        self._classes: dict[tuple[str, str], type[_Inert]] = {}

    def find_class(self, module: str, name: str) -> Any:
        key = (module, name)
        if key not in self._classes:
            self._classes[key] = type(name, (_Inert,), {"__module__": module})
        return self._classes[key]

    def persistent_load(self, pid: Any) -> StorageInfo:
        kind, storage_type, key, location, numel = pid
        if _text(kind) != "storage" or not isinstance(numel, int) or numel < 0:
            raise pickle.UnpicklingError(f"a persistent id that is no storage's: {pid!r}")
        return StorageInfo(
            _text(key), _storage_dtypes()[storage_type.__name__], numel, _text(location)
        )


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


@functools.cache
def _storage_dtypes() -> dict[str, torch.dtype]:
    """The type of each class that stands for one in a pickle, such as torch.FloatStorage."""
    dtypes = {name: dtype for dtype, name in torch.storage._dtype_to_storage_type_map().items()}
    return {**dtypes, "UntypedStorage": torch.uint8}


class _Walk:
    """One way through the tree of a pickle."""

    def __init__(self, data_nbytes: int) -> None:
        # A few bytes can name a tree without end, by the same branch twice on every level.
        self._steps_left = max(1 << 20, 16 * data_nbytes)
        self._above: set[int] = set()

    def tensors(self, node: Any, path: str) -> Iterator[TensorInfo]:
        if node is None or isinstance(node, str | bytes | int | float):
            return
        if id(node) in self._above:  # a structure that contains itself
            return
        self._steps_left -= 1
        if self._steps_left < 0:
            raise pickle.UnpicklingError("a structure too large for its pickle")
        self._above.add(id(node))
        if isinstance(node, _Inert):
            yield from self._of_inert(node, path)
        elif isinstance(node, dict):
            for key, value in node.items():
                yield from self.tensors(value, _join(path, key))
        elif isinstance(node, list | tuple | set | frozenset):
            for index, value in enumerate(node):
                yield from self.tensors(value, _join(path, index))
        self._above.remove(id(node))

    def _of_inert(self, node: _Inert, path: str) -> Iterator[TensorInfo]:
        storage = next((arg for arg in node.args if isinstance(arg, StorageInfo)), None)
        if storage is not None and type(node).__name__.startswith("_rebuild_"):
            yield _tensor(node.args, storage, path)
            return
        # Parameters, subclasses and sparse tensors are made of tensors, which have their path.
        for arg in node.args:
            for part in arg if isinstance(arg, tuple) else (arg,):
                yield from self.tensors(part, path)
        for part in (node.items, node.members, node.state):
            yield from self.tensors(part, path)


def _tensor(args: tuple[Any, ...], storage: StorageInfo, path: str) -> TensorInfo:
    """Of the arguments of torch's functions that rebuild: storage, offset, size, stride."""
    offset, shape, stride = args[1:4]
    # Types without storages of their own come last, as torch.<dtype>.
    names = [type_.__name__ for type_ in args[4:] if isinstance(type_, type)]
    dtypes = [getattr(torch, name, None) for name in names]
    dtype = next((d for d in dtypes if isinstance(d, torch.dtype)), storage.dtype)
    return TensorInfo(path, dtype, tuple(shape), tuple(stride), int(offset), storage)


def _join(path: str, key: Any) -> str:
    return f"{path}/{_text(key)}" if path else _text(key)
