"""A sample of the campaign of ranks that fail, die or stop."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.frameworks
@pytest.mark.timeout(300)
def test_a_sample_of_ranks_that_fail() -> None:
    command = [sys.executable, "-m", "faults.ranks", "--sample", "16", "--jobs", "4"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=290, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
