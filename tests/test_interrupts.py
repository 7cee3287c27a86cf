"""What came from outside, and what the work itself raised."""

from __future__ import annotations

import functools
import os
import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from pyckpt.interrupts import interrupt_behind, is_interrupt


class Preempted(Exception):
    """What a handler raises."""


def function(*_: Any) -> None:
    raise Preempted


class Handlers:
    """Handlers of other kinds."""

    def method(self, *_: Any) -> None:
        function()

    def __call__(self, *_: Any) -> None:
        raise Preempted


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    before = signal.getsignal(signal.SIGUSR1)
    yield
    signal.signal(signal.SIGUSR1, before)


def raised(call: Callable[[], Any]) -> BaseException:
    try:
        call()
    except BaseException as error:
        return error
    raise AssertionError("nothing was raised")


@pytest.mark.parametrize(
    "handler", [function, Handlers().method, Handlers(), functools.partial(function, 1)]
)
def test_what_a_handler_raises(handler: Any) -> None:
    signal.signal(signal.SIGUSR1, handler)
    assert is_interrupt(raised(lambda: os.kill(os.getpid(), signal.SIGUSR1)))
    assert not is_interrupt(raised(lambda: [][1]))


def test_what_is_no_error_of_the_work() -> None:
    assert is_interrupt(KeyboardInterrupt())
    assert is_interrupt(SystemExit(3))
    assert not is_interrupt(OSError(28, "No space left on device"))
    assert not is_interrupt(raised(function)), "it is no handler now"


def swallowed(error: BaseException) -> BaseException:
    """What a library raises that catches everything."""

    def call() -> None:
        try:
            try:
                raise error
            except BaseException:
                raise ValueError("in between")  # noqa: B904
        except ValueError as between:
            raise OSError("failed") from between

    return raised(call)


def test_interrupts_that_others_have_wrapped() -> None:
    signal.signal(signal.SIGUSR1, function)
    for error in (
        KeyboardInterrupt(),
        raised(lambda: os.kill(os.getpid(), signal.SIGUSR1)),
    ):
        assert interrupt_behind(error) is error
        assert interrupt_behind(swallowed(error)) is error
        assert interrupt_behind(swallowed(error), before=error) is None
    for other in (ValueError(), GeneratorExit()):
        assert interrupt_behind(swallowed(other)) is None
    loop = OSError()
    loop.__cause__ = loop.__context__ = loop
    assert interrupt_behind(loop) is None
