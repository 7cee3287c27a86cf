"""Runs a sample of a campaign of faults, as people run it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def run_sample(campaign: str, number: int, *arguments: str, timeout: float) -> str:
    """What a campaign prints of about ``number`` of its cases. All of them must hold."""
    done = subprocess.run(
        [sys.executable, "-m", f"faults.{campaign}", "--sample", str(number), *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
