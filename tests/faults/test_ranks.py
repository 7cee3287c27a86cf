"""A sample of the campaign of ranks that fail, die or stop."""

import pytest

from tests.faults.samples import run_sample


@pytest.mark.frameworks
@pytest.mark.timeout(300)
def test_a_sample_of_ranks_that_fail() -> None:
    run_sample("ranks", 16, "--jobs", "4", timeout=290)
