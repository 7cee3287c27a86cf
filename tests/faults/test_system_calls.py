"""A sample of the campaign: a system call fails, and everything holds."""

import pytest

from tests.faults.samples import run_sample


@pytest.mark.timeout(300)
def test_a_sample() -> None:
    run_sample("system_calls", 100, timeout=280)
