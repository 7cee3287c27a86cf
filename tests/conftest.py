"""Settings and fixtures that several test modules share."""

from types import SimpleNamespace

import hypothesis
import pytest
import torch

from pyckpt.archive import writer

# Tests run beside each other, and threads that wait for others' time are slower than one.
torch.set_num_threads(1)

hypothesis.settings.register_profile(
    "pyckpt",
    deadline=None,
    max_examples=50,
    suppress_health_check=[
        hypothesis.HealthCheck.function_scoped_fixture,  # files are overwritten
        hypothesis.HealthCheck.too_slow,
    ],
)
hypothesis.settings.load_profile("pyckpt")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """A limit from the command line replaces the tests' own: it is for slower code."""
    limit = config.getoption("timeout")
    if limit is not None:
        for item in items:
            item.add_marker(pytest.mark.timeout(limit), append=False)


@pytest.fixture
def frozen_time(monkeypatch: pytest.MonkeyPatch) -> int:
    """The time that every tar member will bear."""
    now = 1_700_000_000
    monkeypatch.setattr(writer, "time", SimpleNamespace(time=lambda: float(now)))
    return now
