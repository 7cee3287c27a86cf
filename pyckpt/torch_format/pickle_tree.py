"""Reads a pickle as a tree, without running anything that it names.

The unpickler replaces every class and function by an inert stand-in, which only records the
arguments of calls. So pickles from untrusted sources can be inspected, and a part of one can be
pickled again.
"""

from __future__ import annotations

import io
import pickle
from typing import Any

from pyckpt import _core

__all__ = ["Inert", "InertClass", "StoredStorage", "Way", "read_tree"]


def read_tree(data: bytes) -> Any:
    """The tree of the pickle ``data``: dicts, lists, tuples, sets, plain values, and stand-ins.

    Raises:
        pickle.UnpicklingError: torch.save does not write this pickle.
    """
    try:
        _core.check_pickle(data)
        return _InertUnpickler(io.BytesIO(data)).load()
    except pickle.UnpicklingError:
        raise
    # A broken pickle can raise any exception.
    except Exception as error:
        raise pickle.UnpicklingError(f"{type(error).__name__}: {error}") from error


class InertClass(type):
    """Stands for a class or a function that a pickle names. Calling it makes an Inert."""

    def __call__(cls, *args: Any) -> Inert:
        made: Inert = super().__call__()
        made.maker, made.args = cls, args
        return made


class Inert(metaclass=InertClass):
    """Stands for an object, and holds what the object would be made from.

    Attributes:
        maker: The callable that makes the object; None if ``__new__`` of its class does.
        args: Arguments for the maker, or for ``__new__``.
        kwargs: Keyword arguments for ``__new__``.
        state: Argument of ``__setstate__``; None if it is not called.
        items: Items that are set by key.
        members: Values that are appended.
    """

    maker: InertClass | Inert | None
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    state: Any
    items: dict[Any, Any]
    members: list[Any]

    def __new__(cls, *args: Any, **kwargs: Any) -> Inert:
        self = super().__new__(cls)
        self.maker = None
        self.args = args
        self.kwargs = kwargs
        self.state = None
        self.items = {}
        self.members = []
        return self

    def __call__(self, *args: Any) -> Inert:
        made = Inert.__new__(Inert, *args)
        made.maker = self  # for example an attribute that getattr found
        return made

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        self.items[key] = value

    def append(self, value: Any) -> None:
        self.members.append(value)

    def extend(self, values: Any) -> None:
        self.members.extend(values)

    def with_items(self, items: dict[Any, Any]) -> Inert:
        """A copy of this object with different items."""
        twin = type(self).__new__(type(self), *self.args, **self.kwargs)
        twin.maker, twin.state, twin.members = self.maker, self.state, self.members
        twin.items = items
        return twin


class StoredStorage:
    """Stands for a storage, whose bytes are in a separate record.

    Attributes:
        saved_id: The persistent id. torch.save writes ``("storage", type, key, location, numel)``.
    """

    __slots__ = ("saved_id",)

    def __init__(self, saved_id: Any) -> None:
        self.saved_id = saved_id


class _InertUnpickler(pickle.Unpickler):
    """Builds containers and plain values, and stand-ins for everything else."""

    def __init__(self, file: io.BytesIO) -> None:
        # Strings of Python 2 may hold any bytes.
        super().__init__(file, encoding="utf-8", errors="surrogateescape")
        self._classes: dict[tuple[str, str], InertClass] = {}

    def find_class(self, module: str, name: str) -> Any:
        key = (module, name)
        if key not in self._classes:
            self._classes[key] = InertClass(name, (Inert,), {"__module__": module})
        return self._classes[key]

    def persistent_load(self, pid: Any) -> StoredStorage:
        return StoredStorage(pid)


class Way:
    """Guards one walk through a tree, so that it always ends.

    Args:
        data_nbytes: Size of the pickle that the tree was read from.
    """

    def __init__(self, data_nbytes: int) -> None:
        # A few bytes can describe a huge tree, if every level holds the level below twice.
        self._steps_left = max(1 << 20, 16 * data_nbytes)
        self._above: set[int] = set()

    def enter(self, node: Any) -> bool:
        """Enters ``node``. False if the walk is inside it already: a structure can contain itself.

        Raises:
            pickle.UnpicklingError: The walk is too long.
        """
        self._steps_left -= 1
        if self._steps_left < 0:
            raise pickle.UnpicklingError("the structure is too large for the size of its pickle")
        if id(node) in self._above:
            return False
        self._above.add(id(node))
        return True

    def leave(self, node: Any) -> None:
        """Leaves ``node``."""
        self._above.remove(id(node))
