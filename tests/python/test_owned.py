"""Objects of the core, when memory runs out while Python gets them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.launch import WORKERS
from tests.preloads import preload

ROOT = WORKERS.parent.parent


@pytest.mark.timeout(250)
def test_nothing_is_freed_twice(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.workers.owned_worker", tmp_path],
        cwd=ROOT,
        env={**os.environ, **preload("allocations", tmp_path, ROOT / "faults" / "native")},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    made = dict(line.rsplit(" ", 1) for line in done.stdout.splitlines())
    assert all(int(count) > 1 for count in made.values()), made
