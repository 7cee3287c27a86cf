"""Where DeepSpeed compiles, which it does once.

A process that is killed meanwhile leaves a lock, for which all later ones that compile in the same
folder wait for ever. So these tests have a folder of their own, and those that kill ranks a copy.
"""

import os
import shutil
import sys
from pathlib import Path

import pytest

os.environ.setdefault("DS_ACCELERATOR", "cpu")
EXTENSIONS = os.environ.setdefault(
    "TORCH_EXTENSIONS_DIR", str(Path(sys.prefix) / "torch-extensions")
)


@pytest.fixture
def extensions(tmp_path: Path) -> Path:
    """A copy of the folder, without a lock."""
    copy = tmp_path / "extensions"
    shutil.copytree(EXTENSIONS, copy, ignore=shutil.ignore_patterns("lock"))
    return copy
