"""A sample of the campaign of saves that are killed."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.timeout(200)
def test_a_sample_of_kills() -> None:
    command = [sys.executable, "-m", "faults.kills", "--sample", "24"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=190, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
