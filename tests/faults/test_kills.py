"""A sample of the campaign of saves that are killed."""

import pytest

from tests.faults.samples import run_sample


@pytest.mark.timeout(200)
def test_a_sample_of_kills() -> None:
    run_sample("kills", 24, timeout=190)
