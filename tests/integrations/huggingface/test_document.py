"""The code of docs/huggingface.md runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.documents import ROOT, run_page


@pytest.mark.timeout(120)
def test_code_runs(tmp_path: Path) -> None:
    run_page(ROOT / "docs" / "huggingface.md", tmp_path)
