"""A sample of faults.damage."""

import pytest

from tests.faults.samples import run_sample


@pytest.mark.timeout(200)
def test_damaged_files() -> None:
    """No wrong tensor, no crash, no hang."""
    printed = run_sample("damage", 400, timeout=190)
    assert printed.splitlines()[-1].split() == ["all", "400", "400"]
