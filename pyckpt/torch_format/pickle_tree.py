"""What a pickle says, as a tree, found out without running anything that it names.

The pickle is read by a machine for which every class and function is an inert stand-in: what
would be called is noted with its arguments. So any pickle can be looked at, whoever wrote it, and
a part of it written again.
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
        pickle.UnpicklingError: It is no pickle that torch.save writes.
    """
    try:
        _core.check_pickle(data)
        return _InertUnpickler(io.BytesIO(data)).load()
    except pickle.UnpicklingError:
        raise
    # Whatever a broken pickle can do to the machine.
    except Exception as error:
        raise pickle.UnpicklingError(f"{type(error).__name__}: {error}") from error


class InertClass(type):
    """Stands for a class or a function that a pickle names: what is called makes an Inert."""

    def __call__(cls, *args: Any) -> Inert:
        made: Inert = super().__call__()
        made.maker, made.args = cls, args
        return made


class Inert(metaclass=InertClass):
    """Stands for an object: what it would be made of.

    Attributes:
        maker: What is called; None where its class makes it without being called.
        args: What the maker, or the class's ``__new__``, gets.
        kwargs: The same.
        state: What ``__setstate__`` gets; None if it is not called.
        items: What is set by key.
        members: What is appended.
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
        made.maker = self  # an attribute that getattr found, say
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
        """The same with other items."""
        twin = type(self).__new__(type(self), *self.args, **self.kwargs)
        twin.maker, twin.state, twin.members = self.maker, self.state, self.members
        twin.items = items
        return twin


class StoredStorage:
    """Stands for what lies in a record of its own.

    Attributes:
        saved_id: The persistent id: by torch.save ``("storage", type, key, location, numel)``.
    """

    __slots__ = ("saved_id",)

    def __init__(self, saved_id: Any) -> None:
        self.saved_id = saved_id


class _InertUnpickler(pickle.Unpickler):
    """Builds containers, and stand-ins for everything else."""

    def __init__(self, file: io.BytesIO) -> None:
        # Python 2's strings are whatever they are.
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
    """One way through a tree: it comes to an end, whatever the tree.

    Args:
        data_nbytes: Of the pickle that it was read from.
    """

    def __init__(self, data_nbytes: int) -> None:
        # A few bytes can name a tree without end, by the same branch twice on every level.
        self._steps_left = max(1 << 20, 16 * data_nbytes)
        self._above: set[int] = set()

    def enter(self, node: Any) -> bool:
        """Goes into ``node``; False if the way is in it already: a structure can contain itself.

        Raises:
            pickle.UnpicklingError: The way is too long.
        """
        self._steps_left -= 1
        if self._steps_left < 0:
            raise pickle.UnpicklingError("a structure too large for its pickle")
        if id(node) in self._above:
            return False
        self._above.add(id(node))
        return True

    def leave(self, node: Any) -> None:
        """Goes out of ``node`` again."""
        self._above.remove(id(node))
