"""A sample of the campaign: a system call fails, and everything holds."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.timeout(300)
def test_a_sample() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "faults.system_calls", "--sample", "100"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
