"""The storage under torch.distributed.checkpoint: for ``dcp.save``, ``dcp.load`` and the like.

torch.distributed.checkpoint takes a second to import. So these names are imported when they are
used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pyckpt.sharded.stager import Stager
    from pyckpt.sharded.storage_reader import StorageReader
    from pyckpt.sharded.storage_writer import StorageWriter

__all__ = ["Stager", "StorageReader", "StorageWriter"]

_HOMES = {
    "Stager": "stager",
    "StorageReader": "storage_reader",
    "StorageWriter": "storage_writer",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"pyckpt.sharded.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'pyckpt.sharded' has no attribute {name!r}")
