"""Runs the code of a page, as a reader would, in a folder of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
WORKER = ROOT / "tests" / "workers" / "document_worker.py"


def frameworks() -> set[str]:
    """The frameworks with an environment and a page of their own; see `make test-frameworks`."""
    return {path.parent.name for path in (ROOT / "tests" / "integrations").glob("*/*.txt")}


def run_page(page: Path, folder: Path) -> None:
    """Runs all blocks of a page in ``folder``. Fails if one does."""
    done = subprocess.run(
        [sys.executable, str(WORKER), str(page)],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
