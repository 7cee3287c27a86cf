"""Files without a name, which go when they are closed."""

from __future__ import annotations

import io
import os
import tempfile
from typing import Any

__all__ = ["memory_file"]


def memory_file() -> Any:
    """A file without a name: in memory, where the system has such files."""
    if hasattr(os, "memfd_create"):
        return io.FileIO(os.memfd_create("pyckpt", os.MFD_CLOEXEC), "r+")
    return tempfile.TemporaryFile(buffering=0)
