"""How far a save or a load has come, told to people or to a function."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pyckpt.ranks.exchange import current_ranks

__all__ = ["ProgressHook", "Report", "reporting"]

Report = Callable[[int, int | None], None]
"""Takes the bytes that are done, and how many there are in all, or None where nobody knows."""

ProgressHook = bool | Report
"""True for a bar (tqdm, on standard error), or a function that is called some 20 times a second.

It takes the bytes done and those in all, before compression. What it raises ends the work. On rank
0 alone.
"""


@contextmanager
def reporting(hook: ProgressHook, doing: str) -> Iterator[Report | None]:
    """What to call with the progress, if anything. ``doing`` stands before the bar."""
    if hook is False or current_ranks().rank != 0:
        yield None
    elif hook is not True:
        yield hook
    else:
        from tqdm import tqdm

        with tqdm(desc=doing, unit="B", unit_scale=True, leave=False) as bar:

            def report(done: int, total: int | None) -> None:
                bar.total = total
                bar.update(max(0, done - bar.n))

            yield report
