"""Lists the tensors in a pickle of torch.save, without running anything that it names."""

from __future__ import annotations

import functools
import pickle
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from pyckpt.key_paths import join_path
from pyckpt.torch_format.pickle_tree import Inert, StoredStorage, Way, read_tree

__all__ = ["StorageInfo", "TensorInfo", "tensors_in"]


@dataclass(frozen=True)
class StorageInfo:
    """A storage as the pickle names it.

    Attributes:
        key: The record's name is ``data/<key>``.
        dtype: The type of its elements; uint8 for an untyped storage.
        numel: Number of elements.
        location: The device that it was on, for example ``"cuda:0"``.
    """

    key: str
    dtype: torch.dtype
    numel: int
    location: str


@dataclass(frozen=True)
class TensorInfo:
    """A tensor in a pickle.

    Parts of a tensor (a sparse tensor's indices) are listed as tensors with the same path.

    Attributes:
        key_path: For example ``state/model/0.weight``.
        shape: In elements.
        stride: In elements.
        offset: Start in the storage, in elements.
    """

    key_path: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int
    storage: StorageInfo

    @property
    def nbytes(self) -> int:
        """Size of the elements. The storage may be larger."""
        nbytes = self.dtype.itemsize
        for n in self.shape:
            nbytes *= n
        return nbytes

    def __str__(self) -> str:
        return f"tensor {self.key_path!r} ({self.dtype}, {list(self.shape)})"


def tensors_in(data: bytes) -> list[TensorInfo]:
    """The tensors of the pickle ``data`` (record ``data.pkl``), in the order of the object.

    A tensor with two paths is listed under both.

    Raises:
        pickle.UnpicklingError: torch.save does not write this pickle.
    """
    tree = read_tree(data)
    try:
        return list(_Walk(len(data)).tensors(tree, ""))
    except pickle.UnpicklingError:
        raise
    # Values of unexpected types raise any exception.
    except Exception as error:
        raise pickle.UnpicklingError(f"{type(error).__name__}: {error}") from error


@functools.cache
def _storage_dtypes() -> dict[str, torch.dtype]:
    """The dtype for each class name that stands for one in a pickle, such as ``FloatStorage``."""
    dtypes = {name: dtype for dtype, name in torch.storage._dtype_to_storage_type_map().items()}
    return {**dtypes, "UntypedStorage": torch.uint8}


class _Walk:
    def __init__(self, data_nbytes: int) -> None:
        self._way = Way(data_nbytes)

    def tensors(self, node: Any, path: str) -> Iterator[TensorInfo]:
        if node is None or isinstance(node, str | bytes | int | float):
            return
        if not self._way.enter(node):
            return
        if isinstance(node, Inert):
            yield from self._of_inert(node, path)
        elif isinstance(node, dict):
            for key, value in node.items():
                yield from self.tensors(value, join_path(path, key))
        elif isinstance(node, list | tuple | set | frozenset):
            for index, value in enumerate(node):
                yield from self.tensors(value, join_path(path, index))
        self._way.leave(node)

    def _of_inert(self, node: Inert, path: str) -> Iterator[TensorInfo]:
        storage = next((arg for arg in node.args if isinstance(arg, StoredStorage)), None)
        if storage is not None and type(node).__name__.startswith("_rebuild_"):
            yield _tensor(node.args, _storage_info(storage), path)
            return
        # Parameters, subclasses and sparse tensors are made of tensors, which get the same path.
        for arg in node.args:
            for part in arg if isinstance(arg, tuple) else (arg,):
                yield from self.tensors(part, path)
        for part in (node.items, node.members, node.state):
            yield from self.tensors(part, path)


def _storage_info(stored: StoredStorage) -> StorageInfo:
    kind, storage_type, key, location, numel = stored.saved_id
    if kind != "storage" or not isinstance(numel, int) or numel < 0:
        raise pickle.UnpicklingError(f"a persistent id that is not a storage: {stored.saved_id!r}")
    return StorageInfo(str(key), _storage_dtypes()[storage_type.__name__], numel, str(location))


def _tensor(args: tuple[Any, ...], storage: StorageInfo, path: str) -> TensorInfo:
    """Reads the arguments of torch's rebuild functions: storage, offset, size, stride, ..."""
    offset, shape, stride = args[1:4]
    # A dtype that has no storage class is a later argument, as torch.<dtype>.
    names = [type_.__name__ for type_ in args[4:] if isinstance(type_, type)]
    dtypes = [getattr(torch, name, None) for name in names]
    dtype = next((d for d in dtypes if isinstance(d, torch.dtype)), storage.dtype)
    return TensorInfo(path, dtype, tuple(shape), tuple(stride), int(offset), storage)
