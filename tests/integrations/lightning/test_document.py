"""The code of docs/lightning.md runs."""

from pathlib import Path

import pytest

from tests.documents import ROOT, run_page


@pytest.mark.timeout(100)
def test_the_page(tmp_path: Path) -> None:
    run_page(ROOT / "docs" / "lightning.md", tmp_path)
