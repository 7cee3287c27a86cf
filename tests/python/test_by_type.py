"""by_type: which of several functions is called for an object."""

from __future__ import annotations

from typing import Any

import pytest

from pyckpt import _core


class Derived(int):
    pass


class Poser:
    @property
    def __class__(self) -> type:  # type: ignore[override]
        return int


def doubled(number: int) -> int:
    return 2 * number


def failing(obj: Any) -> str:
    raise LookupError(f"nothing for {obj}")


@pytest.fixture
def function() -> Any:
    return _core.by_type({int: doubled, str: None, list: failing}, lambda obj: ("other", obj))


def test_the_very_type_decides(function: Any) -> None:
    poser = Poser()
    assert function(4) == 8
    assert function("text") is None
    assert function(Derived(4)) == ("other", 4)
    assert function(True) == ("other", True)
    assert function(poser) == ("other", poser)
    assert function({}) == ("other", {}), "an object need not be hashable"


def test_none_for_other_types_returns_none() -> None:
    assert _core.by_type({}, None)(1) is None


def test_what_a_function_raises_comes_out(function: Any) -> None:
    with pytest.raises(LookupError, match="nothing for"):
        function([])


class Unhashable(type):
    def __hash__(cls) -> int:
        raise TypeError("a type without a hash")


def test_a_type_without_a_hash(function: Any) -> None:
    with pytest.raises(TypeError, match="without a hash"):
        function(Unhashable("Odd", (), {})())
