"""The storage under torch.distributed.checkpoint: for ``dcp.save``, ``dcp.load`` and the like."""

from __future__ import annotations

from pyckpt.sharded.stager import Stager
from pyckpt.sharded.storage_reader import StorageReader
from pyckpt.sharded.storage_writer import StorageWriter

__all__ = ["Stager", "StorageReader", "StorageWriter"]
