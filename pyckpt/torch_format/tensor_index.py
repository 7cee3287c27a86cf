"""Lists the tensors in a pickle of torch.save, without running anything that it names."""

from __future__ import annotations

import functools
import pickle
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from pyckpt.torch_format.pickle_tree import (
    Inert,
    InertDict,
    InertName,
    InertSet,
    PickleTree,
    StoredStorage,
    Way,
    read_tree,
)

__all__ = [
    "StorageInfo",
    "TensorInfo",
    "lone_tensor",
    "storage_dtype",
    "storage_info",
    "storages_of",
    "tensors_in",
    "tensors_of",
]


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

    @property
    def nbytes(self) -> int:
        """Size of the storage."""
        return self.numel * self.dtype.itemsize


@dataclass(frozen=True)
class TensorInfo:
    """A tensor in a pickle.

    Parts of a tensor (a sparse tensor's indices) are listed as tensors with the same path. Those
    that have names of their own (a nested tensor's ``values``, a tensor that is an attribute of a
    tensor) are listed below it.

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

    @property
    def spanned_nbytes(self) -> int:
        """How many bytes of the storage there must be, up to the tensor's last element."""
        if 0 in self.shape:
            return 0
        steps = zip(self.shape, self.stride, strict=True)
        last = self.offset + sum((n - 1) * step for n, step in steps)
        return (last + 1) * self.dtype.itemsize

    def __str__(self) -> str:
        return f"tensor {self.key_path!r} ({self.dtype}, {list(self.shape)})"


def tensors_in(data: bytes) -> list[TensorInfo]:
    """The tensors of the pickle ``data`` (record ``data.pkl``), in the order of the object.

    A tensor with two paths is listed under both.

    Raises:
        pickle.UnpicklingError: torch.save does not write this pickle.
    """
    return tensors_of(read_tree(data))


def tensors_of(tree: PickleTree) -> list[TensorInfo]:
    """Like :func:`tensors_in`, for the tree of a pickle."""
    return list(_tensors(tree.root, Way(tree.end)))


def lone_tensor(tree: PickleTree) -> TensorInfo | None:
    """The tensor that the whole pickle is; None if it is not one of plain numbers in a storage.

    A parameter, a tensor of another layout, or one with a conjugation to be computed is not plain.

    Raises:
        pickle.UnpicklingError: torch.save does not write this pickle.
    """
    root = tree.root
    if not isinstance(root, Inert) or root.state is not None or root.flat:
        return None
    if _PLAIN_ARGS.get(str(root.maker)) != len(root.args):
        return None
    return _tensor_of(root, "", Way(tree.end))


# torch's functions that make plain tensors. With one argument more, there is something to set.
_PLAIN_ARGS = {"torch._utils._rebuild_tensor_v2": 6, "torch._utils._rebuild_tensor_v3": 7}


def storages_of(tree: PickleTree) -> dict[str, StorageInfo]:
    """The storages that a pickle names, by key, in its order.

    Raises:
        pickle.UnpicklingError: torch.save does not write this pickle.
    """
    storages: dict[str, StorageInfo] = {}
    for stored in tree.storages:
        info = storage_info(stored)
        storages.setdefault(info.key, info)
    return storages


def storage_info(stored: StoredStorage) -> StorageInfo:
    """What the pickle tells of a storage.

    Raises:
        pickle.UnpicklingError: torch.save does not write this.
    """
    saved = stored.saved_id
    # Before torch 1.6, there was also the part of another storage that this one is.
    if isinstance(saved, tuple) and len(saved) in (5, 6) and _ascii(saved[0]) == "storage":
        kind, key, location, numel = saved[1], _ascii(saved[2]), _ascii(saved[3]), saved[4]
        dtype = storage_dtype(kind.name) if isinstance(kind, InertName) else None
        is_named = (isinstance(key, str) or _is_number(key)) and isinstance(location, str)
        if dtype is not None and is_named and type(numel) is int and numel >= 0:
            return StorageInfo(str(key), dtype, numel, location)
    raise pickle.UnpicklingError("a persistent id that is not a storage's")


def storage_dtype(class_name: str) -> torch.dtype | None:
    """The dtype for which a class name such as ``FloatStorage`` stands in a pickle; None if none.

    Like torch, this does not look at the class's module.
    """
    return _storage_dtypes().get(class_name)


@functools.cache
def _storage_dtypes() -> dict[str, torch.dtype]:
    dtypes = {name: dtype for dtype, name in torch.storage._dtype_to_storage_type_map().items()}
    return {**dtypes, "UntypedStorage": torch.uint8}


def _ascii(text: Any) -> Any:
    """Texts that Python 2 wrote may be bytes."""
    return text.decode("ascii", "replace") if isinstance(text, bytes) else text


_Children = Iterator[tuple[Any, str]]
_INNER = (InertDict, Inert, list, tuple, InertSet)


def _tensors(tree: Any, way: Way) -> Iterator[TensorInfo]:
    # The nodes above the current one, and their children that are still to come.
    above: list[tuple[Any, _Children]] = [(None, iter([(tree, "")]))]
    while above:
        owner, children = above[-1]
        node, path = next(children, (None, None))
        if path is None:
            above.pop()
            if owner is not None:
                way.leave(owner)
        elif isinstance(node, _INNER) and way.enter(node, len(path)):
            if isinstance(node, Inert) and (tensor := _tensor_of(node, path, way)):
                yield tensor
            above.append((node, _children(node, path, way)))


def _children(node: Any, path: str, way: Way) -> _Children:
    if isinstance(node, InertDict):
        for key, value in node.items():
            yield value, way.join(path, key)
    elif isinstance(node, Inert):
        # Parameters, subclasses and sparse tensors are made of tensors, which get the same path.
        for arg in node.args:
            for part in arg if isinstance(arg, tuple) else (arg,):
                yield part, path
        for key, value in node.items():
            yield value, way.join(path, key)
        for values in (node.members, node.added):
            for index, value in enumerate(values):
                yield value, way.join(path, index)
        yield node.state, path
    else:
        values = node.values if isinstance(node, InertSet) else node
        for index, value in enumerate(values):
            if isinstance(value, _INNER):
                yield value, way.join(path, index)


def _tensor_of(node: Inert, path: str, way: Way) -> TensorInfo | None:
    """The tensor that an object is, if it has a storage of its own."""
    name, args = node.name, node.args
    if name == "_rebuild_from_type_v2" and len(args) >= _FROM_TYPE_ARGS:
        # A subclass, or a tensor with attributes: function, type, its arguments, state.
        name, args = getattr(args[0], "name", ""), args[2]
    elif isinstance(node.state, tuple) and name.endswith("Tensor"):
        name, args = "_rebuild_tensor", node.state  # before torch 0.2
    if not isinstance(args, tuple) or not name.startswith("_rebuild_"):
        return None
    if len(args) < _FEWEST_ARGS or not isinstance(args[0], StoredStorage):
        return None
    tensor = _tensor(args[:_MOST_ARGS], storage_info(args[0]), path)
    way.step(len(tensor.shape))
    return tensor


_FROM_TYPE_ARGS = 4
_FEWEST_ARGS = 4  # storage, offset, size, stride
_MOST_ARGS = 16
_MOST_DIMENSIONS = 1024


def _tensor(args: tuple[Any, ...], storage: StorageInfo, path: str) -> TensorInfo:
    """Reads the arguments of torch's rebuild functions: storage, offset, size, stride, ..."""
    # A dtype that has no storage class is a later argument, as torch.<dtype>.
    names = [arg.name for arg in args[4:] if isinstance(arg, InertName) and arg.module == "torch"]
    dtypes = [vars(torch).get(name) for name in names]
    dtype = next((d for d in dtypes if isinstance(d, torch.dtype)), storage.dtype)
    [offset] = _numbers(args[1:2], path)
    shape, stride = (_numbers(_sizes(arg), path) for arg in args[2:4])
    if len(shape) != len(stride):
        raise pickle.UnpicklingError(f"{path!r} has a shape and strides that do not match")
    return TensorInfo(path, dtype, shape, stride, offset, storage)


def _sizes(sizes: Any) -> Any:
    if isinstance(sizes, Inert) and sizes.name == "Size" and len(sizes.args) == 1:
        return sizes.args[0]
    return sizes


def _numbers(values: Sequence[Any], path: str) -> tuple[int, ...]:
    if not isinstance(values, tuple | list) or len(values) > _MOST_DIMENSIONS:
        raise pickle.UnpicklingError(f"{path!r} has a shape that is not made of a few numbers")
    if not all(_is_number(value) for value in values):
        raise pickle.UnpicklingError(f"{path!r} has a shape that is not made of numbers")
    return tuple(values)


def _is_number(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 63
