"""What importing pyckpt costs."""

from __future__ import annotations

import subprocess
import sys

import pytest

import pyckpt.sharded


def test_torchs_checkpoints_are_imported_when_they_are_needed() -> None:
    program = (
        "import sys, pyckpt, pyckpt.sharded\n"
        "assert 'torch.distributed.checkpoint' not in sys.modules\n"
        "from pyckpt.sharded import StorageReader, StorageWriter\n"
        "assert 'torch.distributed.checkpoint' in sys.modules\n"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", program], check=True, timeout=120)


def test_other_names_are_errors() -> None:
    assert all(hasattr(pyckpt.sharded, name) for name in pyckpt.sharded.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'Reader'"):
        pyckpt.sharded.Reader  # noqa: B018
