"""Lets functions call themselves to any depth: Python's own stack ends after about 1000 calls."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, TypeVar

__all__ = ["Deep", "run_deep"]

_Result = TypeVar("_Result")

Deep = Generator[Any, Any, _Result]
"""A function that says ``result = yield f(...)`` where it would call ``f(...)``, itself a Deep."""


def run_deep(call: Deep[_Result]) -> _Result:
    """Runs a call, and all that it calls, and returns its result."""
    calls: list[Deep[Any]] = [call]
    result: Any = None
    while calls:
        try:
            called = calls[-1].send(result)
        except StopIteration as stop:
            calls.pop()
            result = stop.value
        else:
            calls.append(called)
            result = None
    final: _Result = result
    return final
