"""Reads an archive of many small members in every way; prints how much memory each took."""

import sys
from collections.abc import Callable
from pathlib import Path

import pyckpt
from tests.workers.peak_memory import forget_peak, peak_nbytes

source, target = Path(sys.argv[1]), Path(sys.argv[2])


def load() -> None:
    try:
        pyckpt.load(source, member="missing")
    except pyckpt.OptionError:
        return
    raise AssertionError("found what is not there")


WAYS: dict[str, Callable[[], object]] = {
    "load": load,
    "inspect": lambda: pyckpt.inspect(source, num_threads=2),
    "verify": lambda: pyckpt.verify(source, num_threads=2).raise_if_damaged(),
    "extract": lambda: pyckpt.extract(source, target, check=False, num_threads=2),
    "convert": lambda: pyckpt.convert(source, target / "y.tar", fsync=False, num_threads=2),
}

for name, run in WAYS.items():
    forget_peak()
    before = peak_nbytes()
    run()
    print(name, peak_nbytes() - before)
