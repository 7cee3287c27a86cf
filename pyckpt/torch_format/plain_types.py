"""The types that a training state holds besides those that torch's ``weights_only`` allows.

A pickle never calls such a type, nor its ``__setstate__``: numpy's believes any state, and then
reads memory of the pickle's choice. Instead each type has a stand-in here. It checks the arguments
and the state, and makes the real object only of values that it knows: numbers of fixed size, and
bytes that are exactly as many as the shape says.
"""

from __future__ import annotations

import datetime
import math
import pickle
import re
from collections.abc import Callable, Mapping
from typing import Any

import torch

__all__ = ["PlainType", "Unfinished", "plain_type", "register_attributes", "register_enum"]


class PlainType:
    """Stands for a type or a function.

    Args:
        name: For messages.
        make: Makes the object of arguments. Raises ValueError, TypeError or OverflowError if no
            pickler writes such arguments, and UnpicklingError if it does not allow them. It may
            return an Unfinished.
    """

    def __init__(self, name: str, make: Callable[..., Any]) -> None:
        self.name = name
        self.make = make


class Unfinished:
    """Stands for an object until the pickle has told its state.

    Attributes:
        result: The object, once there is one.
    """

    result: Any = None

    def __init__(self, finish: Callable[[Any], Any]) -> None:
        self._finish = finish

    def build(self, state: Any) -> Any:
        """Makes the object. Raises as PlainType.make does."""
        if self.result is not None:
            raise ValueError("a state is set twice")
        self.result = self._finish(state)
        return self.result


def plain_type(module: str, name: str) -> Any:
    """What stands for a global of a pickle; None if it is not a plain type."""
    return _PLAIN_TYPES.get((module, name)) or _numpy_types().get((module, name))


def register_attributes(cls: type) -> None:
    """Lets pickles make objects of ``cls`` whose attributes are numbers, texts and dtypes."""

    def make() -> Unfinished:
        return Unfinished(lambda state: _with_attributes(cls, state))

    _register(cls, make)


def register_enum(cls: type) -> None:
    """Lets pickles name members of the enum ``cls``."""
    _register(cls, lambda value: cls(_plain(value)))


def _register(cls: type, make: Callable[..., Any]) -> None:
    name = f"{cls.__module__}.{cls.__qualname__}"
    _PLAIN_TYPES[(cls.__module__, cls.__qualname__)] = PlainType(name, make)


def _with_attributes(cls: type, state: Any) -> Any:
    if type(state) is not dict:
        raise TypeError(f"the state of a {cls.__name__} is not a dict")
    made: Any = object.__new__(cls)
    for name, value in state.items():
        there = getattr(cls, name, None)
        if name.startswith("__") or callable(there) or isinstance(there, property):
            raise ValueError(f"{name!r} is not an attribute of a {cls.__name__}")
        made.__dict__[name] = _plain(value)
    return made


def _plain(value: Any) -> Any:
    if value is None or type(value) in (bool, int, float, str) or isinstance(value, torch.dtype):
        return value
    raise pickle.UnpicklingError(
        f"weights_only allows only plain values here, not a {type(value).__name__}"
    )


def _time_delta(days: Any = 0, seconds: Any = 0, microseconds: Any = 0) -> datetime.timedelta:
    if any(type(part) is not int for part in (days, seconds, microseconds)):
        raise TypeError("a timedelta is not made of whole numbers")
    return datetime.timedelta(days, seconds, microseconds)


def _torch_version(text: Any) -> Any:
    if type(text) is not str:
        raise TypeError("a version is not a text")
    return torch.torch_version.TorchVersion(text)


def _no_bytes(*args: Any) -> bytes:
    if args:
        raise TypeError("bytes of a size")
    return b""


def _encoded(text: Any, encoding: Any) -> bytes:
    if type(text) is not str or encoding != "latin1":
        raise TypeError("bytes are not made of a text in latin1")
    return text.encode("latin1")


_PLAIN_TYPES: dict[tuple[str, str], PlainType] = {
    ("_codecs", "encode"): PlainType("bytes", _encoded),  # in protocol 2; torch 2.4 lacks it
    ("builtins", "bytes"): PlainType("bytes", _no_bytes),  # empty ones, in protocol 2
    ("datetime", "timedelta"): PlainType("datetime.timedelta", _time_delta),
    # Composer's metadata holds torch's version.
    ("torch.torch_version", "TorchVersion"): PlainType("TorchVersion", _torch_version),
}


# numpy. It is not needed before a file names it.

_NUMBER = re.compile(r"[<>=|]?(b1|[iu][1248]|f(2|4|8|16)|c(8|16|32))", re.ASCII)
# What numpy puts into the state of a dtype that is a number: no subarray, no names, no fields,
# and neither size nor alignment of its own, nor flags.
_NUMBER_STATE = (None, None, None, -1, -1, 0)
_LONGEST_SHAPE = 32


def _numpy_types() -> Mapping[tuple[str, str], Any]:
    if not _numpy:
        try:
            import numpy as np
        except ImportError:
            return {}
        _numpy[("numpy", "dtype")] = PlainType("numpy.dtype", _dtype)
        # Only an argument of _reconstruct. Pickles cannot call it.
        _numpy[("numpy", "ndarray")] = np.ndarray
        # A pickle has the module name of the numpy that wrote it. numpy 2 renamed the module.
        for module in ("numpy.core.multiarray", "numpy._core.multiarray"):
            _numpy[(module, "_reconstruct")] = PlainType("numpy.ndarray", _array)
            _numpy[(module, "scalar")] = PlainType("numpy's scalar", _scalar)
    return _numpy


_numpy: dict[tuple[str, str], Any] = {}


def _dtype(code: Any, align: Any = False, copy: Any = False) -> Unfinished:
    import numpy as np

    if type(code) is not str:
        raise TypeError("the name of a dtype is not a text")
    if not _NUMBER.fullmatch(code):
        raise pickle.UnpicklingError(
            f"weights_only allows only numbers in numpy arrays, not the dtype {code[:20]!r}"
        )
    return Unfinished(lambda state: np.dtype(code).newbyteorder(_byte_order(state)))


def _byte_order(state: Any) -> Any:
    if type(state) is not tuple or len(state) != 2 + len(_NUMBER_STATE):
        raise ValueError("the state of a dtype is not valid")
    _, order, *rest = state
    if any(type(one) is not type(usual) for one, usual in zip(rest, _NUMBER_STATE, strict=True)):
        raise ValueError("the state of a dtype is not that of a number")
    if tuple(rest) != _NUMBER_STATE or order not in ("<", ">", "=", "|"):
        raise ValueError("the state of a dtype is not valid")
    return order


def _array(cls: Any, shape: Any, typecode: Any) -> Unfinished:
    import numpy as np

    # The shape and the type code are those of an empty array, which the state replaces.
    if cls is not np.ndarray:
        raise TypeError("a subclass of numpy.ndarray")
    return Unfinished(_filled_array)


def _filled_array(state: Any) -> Any:
    if type(state) is not tuple or len(state) != len(("version", "shape", "dtype", "order", "raw")):
        raise ValueError("the state of an array is not valid")
    _, shape, dtype, is_fortran, raw = state
    if type(shape) is not tuple or len(shape) > _LONGEST_SHAPE:
        raise ValueError("the shape of an array is not valid")
    if any(type(n) is not int or n < 0 for n in shape) or type(is_fortran) not in (bool, int):
        raise ValueError("the shape of an array is not valid")
    return _numbers(dtype, raw, math.prod(shape)).reshape(shape, order="F" if is_fortran else "C")


def _scalar(dtype: Any, raw: Any) -> Any:
    return _numbers(dtype, raw, 1)[0]


def _numbers(dtype: Any, raw: Any, count: int) -> Any:
    """A new array of ``count`` numbers with the bytes ``raw``."""
    import numpy as np

    if not isinstance(dtype, np.dtype) or not _NUMBER.fullmatch(dtype.str):
        raise TypeError("an array has no dtype of numbers")
    if type(raw) is not bytes or len(raw) != count * dtype.itemsize:
        raise ValueError("an array does not have as many bytes as its shape says")
    return np.frombuffer(bytearray(raw), dtype) if raw else np.empty(0, dtype)
