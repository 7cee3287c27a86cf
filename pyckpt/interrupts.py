"""Exceptions that end the work from outside: Ctrl-C, and what the user's signal handlers raise."""

from __future__ import annotations

import functools
import signal
from collections.abc import Callable
from types import CodeType, TracebackType
from typing import Any

__all__ = ["interrupt_behind", "is_interrupt", "to_the_end"]


def is_interrupt(error: BaseException) -> bool:
    """Whether an exception has nothing to do with the work that it ended.

    True for KeyboardInterrupt, SystemExit and the like, and for what came out of a signal handler
    that is installed.
    """
    if not isinstance(error, Exception):
        return True
    codes = set(filter(None, map(_code, map(signal.getsignal, signal.valid_signals()))))
    traceback: TracebackType | None = error.__traceback__
    while traceback is not None:
        if traceback.tb_frame.f_code in codes:
            return True
        traceback = traceback.tb_next
    return False


def interrupt_behind(
    error: BaseException, before: BaseException | None = None
) -> BaseException | None:
    """The interrupt that an exception stands for; None if there is none.

    Libraries that catch every exception raise one of their own instead.

    Args:
        before: What was handled already when the work began. It did not end the work.
    """
    unseen: list[BaseException | None] = [error]
    seen = {before}
    while unseen:
        one = unseen.pop()
        if one is None or one in seen:
            continue
        # A generator that is closed is no reason to end the work.
        if not isinstance(one, GeneratorExit) and is_interrupt(one):
            return one
        seen.add(one)
        unseen += [one.__cause__, one.__context__]
    return None


def to_the_end(*steps: Callable[[], object]) -> None:
    """Takes all steps, also those behind one that an interrupt has ended.

    Raises:
        BaseException: The first interrupt, when all is done. Any other exception at once.
    """
    interrupt: BaseException | None = None
    for step in steps:
        try:
            step()
        except BaseException as error:
            if not is_interrupt(error):
                raise
            interrupt = interrupt or error
    if interrupt is not None:
        raise interrupt


def _code(handler: Any) -> CodeType | None:
    """The code that a signal handler runs, if it is written in Python."""
    while isinstance(handler, functools.partial):
        handler = handler.func
    handler = getattr(handler, "__func__", handler)  # of a method
    if callable(handler) and not hasattr(handler, "__code__"):
        handler = type(handler).__call__
    code = getattr(handler, "__code__", None)
    return code if isinstance(code, CodeType) else None
