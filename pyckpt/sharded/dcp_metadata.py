"""The file ``.metadata`` of torch.distributed.checkpoint: which shards there are, and where.

It is a pickle, as torch's own readers expect it. Here it is unpickled without running anything but
the constructors of the classes that such a file needs.
"""

from __future__ import annotations

import io
import pathlib
import pickle
from collections import OrderedDict
from typing import Any

import torch
from torch.distributed.checkpoint import filesystem, metadata
from torch.distributed.checkpoint.metadata import Metadata

from pyckpt import _core
from pyckpt.errors import CorruptArchiveError
from pyckpt.storage.urls import Location

__all__ = ["dump_metadata", "load_metadata"]

_CLASSES: dict[str, tuple[type[Any], ...]] = {
    metadata.__name__: (
        Metadata,
        metadata.BytesStorageMetadata,
        metadata.ChunkStorageMetadata,
        metadata.MetadataIndex,
        metadata.StorageMeta,
        metadata.TensorProperties,
        metadata.TensorStorageMetadata,
        metadata._MEM_FORMAT_ENCODING,
    ),
    filesystem.__name__: (filesystem._StorageInfo,),
}
_PATHS = ("Path", "PosixPath", "WindowsPath", "PurePath", "PurePosixPath", "PureWindowsPath")


def dump_metadata(data: Metadata) -> bytes:
    """The contents of the file, with torch's version of the format."""
    if hasattr(data, "version"):  # since torch 2.9
        data.version = getattr(filesystem, "CURRENT_DCP_VERSION", None)
    return pickle.dumps(data)


def load_metadata(raw: bytes, path: Location) -> Metadata:
    """The metadata in the bytes of the file.

    Args:
        path: Where they are from, for messages.

    Raises:
        CorruptArchiveError: They are damaged, or name something that is not in such a file.
    """
    before = {kind: dict(vars(kind)) for kinds in _CLASSES.values() for kind in kinds}
    try:
        _core.check_pickle(raw)  # Python's unpickler believes the numbers in a pickle
        found = _Unpickler(io.BytesIO(raw)).load()
    except Exception as error:
        raise CorruptArchiveError(
            f"{path} is damaged, or is not of torch.distributed.checkpoint: {error}",
            path=str(path),
        ) from error
    finally:
        _undo_changes(before)
    if not isinstance(found, Metadata) or not isinstance(found.state_dict_metadata, dict):
        raise CorruptArchiveError(
            f"{path} is not the metadata of a checkpoint: it holds {type(found).__name__}",
            path=str(path),
        )
    return found


class _Unpickler(pickle.Unpickler):
    """Knows only what a Metadata is made of. None of it runs code of others."""

    def find_class(self, module: str, name: str) -> Any:
        for kind in _CLASSES.get(module, ()):
            if kind.__name__ == name:
                return kind
        found = _other(module, name)
        if found is None:
            raise pickle.UnpicklingError(f"{module}.{name} has no place in it")
        return found


def _other(module: str, name: str) -> Any:
    if module == "torch":
        value = getattr(torch, name, None)
        return value if value is torch.Size or isinstance(value, torch.dtype) else None
    if (module, name) == ("torch.serialization", "_get_layout"):
        return _layout
    if (module, name) == ("collections", "OrderedDict"):
        return OrderedDict
    if module in ("builtins", "__builtin__") and name in ("set", "frozenset", "slice", "complex"):
        return {"set": set, "frozenset": frozenset, "slice": slice, "complex": complex}[name]
    if module.partition(".")[0] == "pathlib" and name in _PATHS:
        return _path
    return None


def _layout(name: str) -> torch.layout:
    value = getattr(torch, name.removeprefix("torch."))
    if not isinstance(value, torch.layout):
        raise pickle.UnpicklingError(f"{name!r} is no layout")
    return value


def _path(*parts: str) -> str:
    return str(pathlib.PurePath(*parts))


def _undo_changes(before: dict[type[Any], dict[str, Any]]) -> None:
    """Takes back what a hostile pickle has set on classes, as their instances' state."""
    for kind, attributes in before.items():
        for name in [*vars(kind)]:
            if name not in attributes:
                delattr(kind, name)
        for name, value in attributes.items():
            if vars(kind).get(name) is not value:
                setattr(kind, name, value)
