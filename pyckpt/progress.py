"""How far a save or a load has come: a bar, or calls of a function."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pyckpt.ranks.exchange import current_ranks
from pyckpt.terminal import printable

__all__ = ["ProgressHook", "Report", "reporting"]

Report = Callable[[int, int | None], None]
"""Takes the bytes done, and the bytes in total, or None if that is not known."""

ProgressHook = bool | Report
"""True for a bar, or a function that is called some 20 times a second.

The bar is tqdm's, on standard error. Without a standard error there is none. The function takes the
bytes done and in total, before compression. If it raises, the work ends with its exception. Only on
rank 0.
"""


@contextmanager
def reporting(hook: ProgressHook, doing: str) -> Iterator[Report | None]:
    """Gives the function to call with the progress, or None. ``doing`` stands before the bar."""
    if hook is False or current_ranks().rank != 0:
        yield None
    elif hook is not True:
        yield hook
    else:
        from tqdm import tqdm

        nowhere = sys.stderr is None  # pythonw, and some services
        with tqdm(
            desc=printable(doing), unit="B", unit_scale=True, leave=False, disable=nowhere
        ) as bar:

            def report(done: int, total: int | None) -> None:
                bar.total = total
                bar.update(max(0, done - bar.n))

            yield report
