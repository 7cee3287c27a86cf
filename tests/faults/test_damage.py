"""A sample of faults.damage."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.timeout(200)
def test_damaged_files(tmp_path: Path) -> None:
    """No wrong tensor, no crash, no hang."""
    command = [sys.executable, "-m", "faults.damage", "--sample", "400"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=190)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1].split() == ["all", "400", "400"]
