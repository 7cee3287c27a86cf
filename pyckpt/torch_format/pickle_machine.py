"""Runs the opcodes of a pickle. Subclasses say what the opcodes make.

Python's own unpicklers trust a pickle: they hash any key, and keep whatever it makes. This one
leaves all such decisions to its subclass. It is as fast as torch's own ``weights_only`` unpickler,
which is written in Python too, and like that one it hears Ctrl-C.
"""

from __future__ import annotations

import codecs
import pickle
import struct
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

__all__ = ["BrokenPickleError", "HashBudget", "PickleMachine", "ShortPickleError"]

_NEWEST_PROTOCOL = 5
# Python limits the digits of a number in text too. Longer ones take quadratic time.
_MOST_DIGITS = 4300
_FEWEST_STEPS = 1 << 20
_BYTES_A_STEP = 64
_LARGE = (tuple, list, dict, str, bytes, int)  # what can take many steps


class BrokenPickleError(pickle.UnpicklingError):
    """No pickler writes this."""


class ShortPickleError(BrokenPickleError):
    """The data ends before the pickle does."""


class HashBudget:
    """Limits the time that it takes to hash, compare or print what a pickle holds.

    A few bytes can describe a tuple that is hashed forever, if every level holds the level below
    twice.

    Args:
        nbytes: Size of the pickle.
    """

    def __init__(self, nbytes: int) -> None:
        self._steps_left = max(_FEWEST_STEPS, nbytes)

    def charge(self, values: Any) -> None:
        """Counts the steps for ``values``.

        Raises:
            BrokenPickleError: All values together take more steps than the pickle has bytes.
        """
        left = [values]
        while left:
            value = left.pop()
            if isinstance(value, dict):
                value = [*value.keys(), *value.values()]
            if isinstance(value, tuple | list):
                self._steps_left -= len(value)
                if self._steps_left >= 0:
                    left += [part for part in value if isinstance(part, _LARGE)]
            elif isinstance(value, str | bytes):
                self._steps_left -= len(value) // _BYTES_A_STEP
            elif isinstance(value, int):
                self._steps_left -= value.bit_length() // (8 * _BYTES_A_STEP)
            if self._steps_left < 0:
                raise BrokenPickleError("the keys or arguments are too large for the pickle's size")

    def charge_keys(self, flat: list[Any]) -> None:
        """Like charge(), for the keys of a dict: key, value, key, value, ..."""
        for key in flat[::2]:
            if not isinstance(key, str) or len(key) > _BYTES_A_STEP:
                self.charge(key)


class PickleMachine(ABC):
    """Runs one pickle.

    Args:
        data: The pickle; more may follow it.
        begin: Where it begins in ``data``.

    Attributes:
        end: Where it ends in ``data``, after ``run()``.
    """

    # How strings of Python 2, which may hold any bytes, are decoded.
    old_string_errors = "strict"

    def __init__(self, data: bytes, begin: int = 0) -> None:
        self.end = begin
        self._data = data
        self._stack: list[Any] = []
        self._below: list[list[Any]] = []  # the stacks below each mark
        self._memo: list[Any] = []
        self._far_memo: dict[int, Any] = {}  # indices that leave a gap
        self._stopped = False

    def run(self) -> Any:
        """Runs the pickle and returns its object.

        Raises:
            BrokenPickleError: It is no valid pickle.
            pickle.UnpicklingError: The subclass refuses something.
        """
        data, size = self._data, len(self._data)
        while not self._stopped:
            if self.end >= size:
                raise ShortPickleError("a pickle ends before it should")
            opcode = data[self.end]
            self.end += 1
            run = _OPCODES[opcode]
            if run is None:
                raise BrokenPickleError(f"a pickle has an unknown opcode {opcode}")
            run(self)
        return self._pop()

    # What the subclass decides.

    @abstractmethod
    def find_global(self, module: str, name: str) -> Any:
        """What a class or function that the pickle names becomes."""

    @abstractmethod
    def persistent(self, saved_id: Any) -> Any:
        """What a persistent id stands for."""

    @abstractmethod
    def call(self, function: Any, args: Any) -> Any:
        """The result of a call."""

    @abstractmethod
    def new(self, cls: Any, args: Any, kwargs: Any) -> Any:
        """The result of ``cls.__new__``."""

    @abstractmethod
    def instance(self, cls: Any, args: list[Any]) -> Any:
        """The object that protocol 0 makes of a class."""

    @abstractmethod
    def build(self, obj: Any, state: Any) -> Any:
        """``obj`` after ``__setstate__``. It may be another object."""

    @abstractmethod
    def append(self, target: Any, values: list[Any]) -> None:
        """Appends to a list, or to an object that is like one."""

    @abstractmethod
    def set_items(self, target: Any, flat: list[Any]) -> None:
        """Sets items of a dict, or of an object that is like one: key, value, key, value, ..."""

    @abstractmethod
    def add(self, target: Any, values: list[Any]) -> None:
        """Adds to a set."""

    @abstractmethod
    def new_dict(self) -> Any:
        """An empty dict."""

    @abstractmethod
    def new_set(self) -> Any:
        """An empty set."""

    @abstractmethod
    def frozen_set(self, values: list[Any]) -> Any:
        """A frozenset."""

    def remembered(self, obj: Any) -> Any:
        """What the pickle gets when it asks again for an object that it has stored."""
        return obj

    @abstractmethod
    def made(self, nbytes: int) -> None:
        """Told about how many bytes an object takes in memory, where it is more than a few."""

    # Parts of opcodes.

    def _pop(self) -> Any:
        if not self._stack:
            raise BrokenPickleError("a pickle takes from an empty stack")
        return self._stack.pop()

    def _top(self) -> Any:
        if not self._stack:
            raise BrokenPickleError("a pickle takes from an empty stack")
        return self._stack[-1]

    def _pop_mark(self) -> list[Any]:
        if not self._below:
            raise BrokenPickleError("a pickle takes up to a mark that is not there")
        values = self._stack
        self._stack = self._below.pop()
        return values

    def _take(self, nbytes: int) -> bytes:
        begin = self.end
        self.end += nbytes
        if nbytes < 0 or self.end > len(self._data):
            raise ShortPickleError("a pickle ends before it should")
        return self._data[begin : self.end]

    def _byte(self) -> int:
        try:
            byte = self._data[self.end]
        except IndexError:
            raise ShortPickleError("a pickle ends before it should") from None
        self.end += 1
        return byte

    def _number(self, nbytes: int) -> int:
        return int.from_bytes(self._take(nbytes), "little")

    def _line(self) -> bytes:
        end = self._data.find(b"\n", self.end)
        if end < 0:
            raise ShortPickleError("a pickle ends before it should")
        line = self._data[self.end : end]
        self.end = end + 1
        return line

    def _digits(self) -> int:
        return _int(self._line())

    def _text(self, raw: bytes, encoding: str = "utf-8", errors: str = "surrogatepass") -> str:
        try:
            return raw.decode(encoding, errors)
        except UnicodeDecodeError as error:
            raise BrokenPickleError(f"a text is not valid: {error}") from error

    def _old_text(self, raw: bytes) -> str:
        return self._text(raw, errors=self.old_string_errors)

    def _store(self, index: int) -> None:
        memo, value = self._memo, self._top()
        if not 0 <= index <= len(self._data):
            raise BrokenPickleError("a memo index is too large")
        if index == len(memo):
            memo.append(value)
        elif index < len(memo):
            memo[index] = value
        else:
            self.made(_FAR_MEMO_NBYTES)
            self._far_memo[index] = value

    def _get(self, index: int) -> None:
        if 0 <= index < len(self._memo):
            value = self._memo[index]
        elif index in self._far_memo:
            value = self._far_memo[index]
        else:
            raise BrokenPickleError(f"a pickle uses memo {index}, which it has not stored")
        self._stack.append(self.remembered(value))

    def _put_made(self, value: Any, nbytes: int) -> None:
        self.made(nbytes)
        self._stack.append(value)

    def _tuple(self, count: int) -> None:
        stack = self._stack
        if len(stack) < count:
            raise BrokenPickleError("a pickle takes from an empty stack")
        self.made(_TUPLE_NBYTES)
        stack[-count:] = [tuple(stack[-count:])]

    # Opcodes of more than an expression.

    def _stop(self) -> None:
        self._stopped = True

    def _protocol(self) -> None:
        if self._number(1) > _NEWEST_PROTOCOL:
            raise BrokenPickleError("a pickle has an unknown protocol")

    def _mark(self) -> None:
        self.made(_MARK_NBYTES)
        self._below.append(self._stack)
        self._stack = []

    def _pop_any(self) -> None:
        if self._stack:
            self._stack.pop()
        else:
            self._pop_mark()

    def _mark_tuple(self) -> None:
        values = self._pop_mark()
        self._put_made(tuple(values), _TUPLE_NBYTES)

    def _mark_list(self) -> None:
        values = self._pop_mark()
        self._put_made(values, _LIST_NBYTES)

    def _mark_dict(self) -> None:
        flat = self._pop_mark()
        made = self.new_dict()
        self._set_items(made, flat)
        self._stack.append(made)

    def _set_items(self, target: Any, flat: list[Any]) -> None:
        if len(flat) % 2:
            raise BrokenPickleError("a pickle has a key without a value")
        self.set_items(target, flat)

    def _set_item(self) -> None:
        value, key = self._pop(), self._pop()
        self.set_items(self._top(), [key, value])

    def _set_mark_items(self) -> None:
        flat = self._pop_mark()
        self._set_items(self._top(), flat)

    def _append(self) -> None:
        value = self._pop()
        self.append(self._top(), [value])

    def _append_mark(self) -> None:
        values = self._pop_mark()
        self.append(self._top(), values)

    def _add_mark(self) -> None:
        values = self._pop_mark()
        self.add(self._top(), values)

    def _frozen_set(self) -> None:
        values = self._pop_mark()
        self._stack.append(self.frozen_set(values))

    def _global(self) -> None:
        module = self._text(self._line())
        name = self._text(self._line())
        self._stack.append(self.find_global(module, name))

    def _stack_global(self) -> None:
        name, module = self._pop(), self._pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise BrokenPickleError("the name of a class is not a text")
        self._stack.append(self.find_global(module, name))

    def _reduce(self) -> None:
        args, function = self._pop(), self._pop()
        self._stack.append(self.call(function, args))

    def _new(self) -> None:
        args, cls = self._pop(), self._pop()
        self._stack.append(self.new(cls, args, {}))

    def _new_with_keywords(self) -> None:
        kwargs, args, cls = self._pop(), self._pop(), self._pop()
        self._stack.append(self.new(cls, args, kwargs))

    def _build(self) -> None:
        state, obj = self._pop(), self._pop()
        self._stack.append(self.build(obj, state))

    def _old_instance(self) -> None:
        self._global()
        cls = self._pop()
        args = self._pop_mark()
        self._stack.append(self.instance(cls, args))

    def _object(self) -> None:
        values = self._pop_mark()
        if not values:
            raise BrokenPickleError("a pickle takes from an empty stack")
        self._stack.append(self.instance(values[0], values[1:]))

    def _old_int(self) -> None:
        line = self._line()
        booleans = {b"00": False, b"01": True}
        self._stack.append(booleans[line] if line in booleans else _int(line))

    def _old_float(self) -> None:
        try:
            self._stack.append(float(self._line()))
        except ValueError as error:
            raise BrokenPickleError(str(error)) from error

    def _quoted(self) -> None:
        line = self._line().strip()
        if len(line) < len(b"''") or line[:1] != line[-1:] or line[:1] not in (b"'", b'"'):
            raise BrokenPickleError("a text has no quotes")
        try:
            raw = codecs.escape_decode(line[1:-1])[0]
        except ValueError as error:
            raise BrokenPickleError(f"a text is not valid: {error}") from error
        self._stack.append(self._old_text(raw))


def _int(line: bytes) -> int:
    try:
        if len(line) > _MOST_DIGITS:
            raise ValueError("too many digits")
        return int(line)
    except ValueError as error:
        raise BrokenPickleError(f"a number is not valid: {error}") from error


# About how many bytes these take in memory.
_TUPLE_NBYTES = 64
_LIST_NBYTES = 64
_MARK_NBYTES = 64
_FAR_MEMO_NBYTES = 150

_Opcode = Callable[[PickleMachine], None]


def _opcodes() -> list[_Opcode | None]:
    """What each opcode of the protocols 0 to 5 does, as Python's pickletools documents them.

    Not among them: the process's registry of extensions, and buffers outside of the pickle.
    """

    def push(value: Any) -> _Opcode:
        return lambda machine: machine._stack.append(value)

    def pushes(read: Callable[[PickleMachine], Any]) -> _Opcode:
        return lambda machine: machine._stack.append(read(machine))

    def counted(nbytes: int, decode: Callable[[PickleMachine, bytes], Any]) -> _Opcode:
        return lambda m: m._stack.append(decode(m, m._take(m._number(nbytes))))

    def signed(m: PickleMachine, raw: bytes) -> int:
        return int.from_bytes(raw, "little", signed=True)

    def plain(m: PickleMachine, raw: bytes) -> bytes:
        return raw

    def text(m: PickleMachine, raw: bytes) -> str:
        return m._text(raw)

    def old_text(m: PickleMachine, raw: bytes) -> str:
        return m._old_text(raw)

    table: dict[bytes, _Opcode] = {
        pickle.PROTO: PickleMachine._protocol,
        pickle.STOP: PickleMachine._stop,
        pickle.FRAME: lambda m: void(m._number(8)),
        # Values.
        pickle.NONE: push(None),
        pickle.NEWTRUE: push(True),
        pickle.NEWFALSE: push(False),
        pickle.INT: PickleMachine._old_int,
        pickle.BININT: pushes(lambda m: signed(m, m._take(4))),
        pickle.BININT1: pushes(PickleMachine._byte),
        pickle.BININT2: pushes(lambda m: m._number(2)),
        pickle.LONG: pushes(lambda m: _int(m._line().removesuffix(b"L"))),
        pickle.LONG1: counted(1, signed),
        pickle.LONG4: counted(4, signed),
        pickle.FLOAT: PickleMachine._old_float,
        pickle.BINFLOAT: pushes(lambda m: struct.unpack(">d", m._take(8))[0]),
        pickle.STRING: PickleMachine._quoted,
        pickle.BINSTRING: counted(4, old_text),
        pickle.SHORT_BINSTRING: counted(1, old_text),
        pickle.UNICODE: pushes(lambda m: m._text(m._line(), "raw-unicode-escape", "strict")),
        pickle.SHORT_BINUNICODE: counted(1, text),
        pickle.BINUNICODE: counted(4, text),
        pickle.BINUNICODE8: counted(8, text),
        pickle.SHORT_BINBYTES: counted(1, plain),
        pickle.BINBYTES: counted(4, plain),
        pickle.BINBYTES8: counted(8, plain),
        pickle.BYTEARRAY8: counted(8, lambda m, raw: bytearray(raw)),
        # Containers.
        pickle.EMPTY_TUPLE: push(()),
        pickle.TUPLE1: lambda m: m._tuple(1),
        pickle.TUPLE2: lambda m: m._tuple(2),
        pickle.TUPLE3: lambda m: m._tuple(3),
        pickle.TUPLE: PickleMachine._mark_tuple,
        pickle.EMPTY_LIST: lambda m: m._put_made([], _LIST_NBYTES),
        pickle.LIST: PickleMachine._mark_list,
        pickle.APPEND: PickleMachine._append,
        pickle.APPENDS: PickleMachine._append_mark,
        pickle.EMPTY_DICT: pushes(lambda m: m.new_dict()),
        pickle.DICT: PickleMachine._mark_dict,
        pickle.SETITEM: PickleMachine._set_item,
        pickle.SETITEMS: PickleMachine._set_mark_items,
        pickle.EMPTY_SET: pushes(lambda m: m.new_set()),
        pickle.ADDITEMS: PickleMachine._add_mark,
        pickle.FROZENSET: PickleMachine._frozen_set,
        # Objects.
        pickle.GLOBAL: PickleMachine._global,
        pickle.STACK_GLOBAL: PickleMachine._stack_global,
        pickle.REDUCE: PickleMachine._reduce,
        pickle.NEWOBJ: PickleMachine._new,
        pickle.NEWOBJ_EX: PickleMachine._new_with_keywords,
        pickle.BUILD: PickleMachine._build,
        pickle.INST: PickleMachine._old_instance,
        pickle.OBJ: PickleMachine._object,
        pickle.PERSID: pushes(lambda m: m.persistent(m._text(m._line()))),
        pickle.BINPERSID: pushes(lambda m: m.persistent(m._pop())),
        # The stack and the memo.
        pickle.MARK: PickleMachine._mark,
        pickle.POP: PickleMachine._pop_any,
        pickle.POP_MARK: lambda m: void(m._pop_mark()),
        pickle.DUP: pushes(lambda m: m._top()),
        pickle.GET: lambda m: m._get(m._digits()),
        pickle.BINGET: lambda m: m._get(m._byte()),
        pickle.LONG_BINGET: lambda m: m._get(m._number(4)),
        pickle.PUT: lambda m: m._store(m._digits()),
        pickle.BINPUT: lambda m: m._store(m._byte()),
        pickle.LONG_BINPUT: lambda m: m._store(m._number(4)),
        pickle.MEMOIZE: lambda m: m._store(len(m._memo) + len(m._far_memo)),
    }

    def void(_: Any) -> None:
        """Drops a result."""

    by_code: list[_Opcode | None] = [None] * 256
    for code, run in table.items():
        by_code[code[0]] = run
    return by_code


_OPCODES = _opcodes()
