"""Settings and fixtures that several test modules share."""

import signal
from collections.abc import Iterator
from types import SimpleNamespace

import hypothesis
import pytest
import torch

from pyckpt.archive import writer

# Tests run in parallel. With more threads than CPUs, torch is slower than with one thread.
torch.set_num_threads(1)

hypothesis.settings.register_profile(
    "pyckpt",
    deadline=None,
    max_examples=50,
    suppress_health_check=[
        hypothesis.HealthCheck.function_scoped_fixture,  # tests overwrite their files
        hypothesis.HealthCheck.too_slow,
    ],
)
hypothesis.settings.load_profile("pyckpt")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Applies what the machine and the command line say.

    A time limit from the command line replaces the tests' own: it is for slower code. Tests marked
    `cuda` are skipped where there is no GPU.
    """
    limit = config.getoption("timeout")
    if limit is not None:
        for item in items:
            item.add_marker(pytest.mark.timeout(limit), append=False)
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("cuda") is not None:
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture
def frozen_time(monkeypatch: pytest.MonkeyPatch) -> int:
    """Sets the time of every tar member to a constant, and returns it."""
    now = 1_700_000_000
    monkeypatch.setattr(writer, "time", SimpleNamespace(time=lambda: float(now)))
    return now


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """Lets SIGINT raise KeyboardInterrupt here, whatever was set before.

    torch's launcher, which starts ranks, leaves a handler of its own. A shell starts what runs in
    the background so that it ignores the signal.
    """
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
