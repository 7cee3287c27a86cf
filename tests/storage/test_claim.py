"""Hidden names beside a folder, and what becomes of them if a system call fails."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.launch import WORKERS
from tests.preloads import preload

ROOT = WORKERS.parent.parent


@pytest.mark.timeout(250)
def test_a_claim_that_fails_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "tests.workers.claim_worker", tmp_path / "files"],
        cwd=ROOT,
        env={**os.environ, **preload("system_calls", tmp_path, ROOT / "faults" / "native")},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
