"""How far a save or a load has come: a bar, or calls of a function."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from pyckpt.ranks.exchange import current_ranks
from pyckpt.terminal import printable

__all__ = ["ProgressHook", "Report", "of_group", "reporting"]

Report = Callable[[int, int | None], None]
"""Takes the bytes done, and the bytes in total, or None if that is not known."""

ProgressHook = bool | Report
"""True for a bar, or a function that is called some 20 times a second.

The bar is tqdm's, on standard error. Without a standard error there is none. The function takes the
bytes done and in total, before compression. If it raises, the work ends with its exception. Only on
rank 0.
"""


def of_group(hook: ProgressHook, place: int) -> ProgressHook:
    """What ``hook`` is for the ranks of a group: it counts on the first one, and not on rank 0.

    Args:
        place: This rank's, in its group.
    """
    if isinstance(hook, bool) or callable(hook):
        return _Here(hook if place == 0 else False)
    return hook  # WriteOptions refuses it


@dataclass(frozen=True)
class _Here:
    """A hook that counts on this rank, whatever its number."""

    hook: ProgressHook

    def __call__(self, done: int, total: int | None) -> None:
        """Makes it a ProgressHook. ``reporting`` calls what is inside."""
        raise NotImplementedError


@contextmanager
def reporting(hook: ProgressHook, doing: str) -> Iterator[Report | None]:
    """Gives the function to call with the progress, or None. ``doing`` stands before the bar."""
    if isinstance(hook, _Here):
        hook = hook.hook
    elif current_ranks().rank != 0:
        hook = False
    if hook is False:
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
