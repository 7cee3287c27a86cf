"""Reads a pickle as a tree, without running anything that it names.

Every class, function, object, dict and set becomes an inert stand-in, which only records what it
would be made from. So pickles from untrusted sources can be inspected, and a part of one can be
pickled again. No key of the pickle is hashed, because hashing one of a few bytes can take forever.

Time and memory grow with the size of the pickle: a tree of at most ``16 * size + 64 MiB``, and
walks of at most two steps for each of its bytes, or 2^20.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pyckpt.key_paths import key_name
from pyckpt.torch_format.pickle_machine import BrokenPickleError, HashBudget, PickleMachine

__all__ = [
    "Inert",
    "InertDict",
    "InertName",
    "InertSet",
    "PickleTree",
    "StoredStorage",
    "Way",
    "key_text",
    "read_tree",
]

_TREE_NBYTES = 64 << 20
_TREE_FACTOR = 16
_FEWEST_STEPS = 1 << 20
_STEPS_A_BYTE = 2
_CHARACTERS_A_STEP = 256
_KEPT_CHARACTERS_A_STEP = 16
_CHILDREN_A_STEP = 4
_MOST_KEY_PARTS = 64
_MOST_KEY_CHARACTERS = 4096


@dataclass(frozen=True)
class PickleTree:
    """A pickle as a tree.

    Attributes:
        root: Its object: lists, tuples, plain values, and stand-ins.
        storages: The storages in it, in the order of the pickle. One may be there several times.
        end: Where the pickle ends.
    """

    root: Any
    storages: Sequence[StoredStorage]
    end: int


def read_tree(data: bytes, begin: int = 0) -> PickleTree:
    """The tree of the pickle that begins at ``begin`` in ``data``.

    Raises:
        pickle.UnpicklingError: torch.save does not write this pickle.
    """
    machine = _TreeMachine(data, begin)
    root = machine.run()
    return PickleTree(root, machine.storages, machine.end)


class InertName:
    """Stands for a class or a function that a pickle names."""

    __slots__ = ("module", "name")

    def __init__(self, module: str, name: str) -> None:
        self.module = module
        self.name = name

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


class InertDict:
    """Stands for a dict.

    Attributes:
        flat: key, value, key, value, ..., as the pickle sets them.
    """

    __slots__ = ("flat",)

    def __init__(self, flat: list[Any]) -> None:
        self.flat = flat

    def items(self) -> Iterator[tuple[Any, Any]]:
        """Its keys and values."""
        return zip(self.flat[::2], self.flat[1::2], strict=True)


class InertSet:
    """Stands for a set or, if ``is_frozen``, a frozenset."""

    __slots__ = ("is_frozen", "values")

    def __init__(self, values: list[Any], is_frozen: bool) -> None:
        self.values = values
        self.is_frozen = is_frozen


class Inert:
    """Stands for an object, and holds what the object would be made from.

    Attributes:
        opcode: The opcode that makes it.
        maker: What makes it: a class, a function, or another object.
        args: Arguments for the maker.
        kwargs: Keyword arguments for ``__new__``; None without any.
        state: Argument of ``__setstate__``; None if it is not called.
        flat: Items that are set by key: key, value, key, value, ...
        members: Values that are appended.
        added: Values that are added as to a set.
    """

    __slots__ = ("added", "args", "flat", "kwargs", "maker", "members", "opcode", "state")

    def __init__(
        self, opcode: bytes, maker: Any, args: tuple[Any, ...], kwargs: Any = None
    ) -> None:
        self.opcode = opcode
        self.maker = maker
        self.args = args
        self.kwargs = kwargs
        self.state: Any = None
        # Most objects have none of these.
        self.flat: Sequence[Any] = ()
        self.members: Sequence[Any] = ()
        self.added: Sequence[Any] = ()

    @property
    def name(self) -> str:
        """The name of its maker, without the module; empty if an object makes it."""
        return self.maker.name if isinstance(self.maker, InertName) else ""

    def items(self) -> Iterator[tuple[Any, Any]]:
        """The items that are set by key."""
        return zip(self.flat[::2], self.flat[1::2], strict=True)

    def with_items(self, flat: list[Any]) -> Inert:
        """A copy of this object with different items."""
        twin = Inert(self.opcode, self.maker, self.args, self.kwargs)
        twin.state, twin.members, twin.added = self.state, self.members, self.added
        twin.flat = flat
        return twin


class StoredStorage:
    """Stands for a storage, whose bytes are in a separate record.

    Attributes:
        saved_id: The persistent id. torch.save writes ``("storage", type, key, location, numel)``.
    """

    __slots__ = ("saved_id",)

    def __init__(self, saved_id: Any) -> None:
        self.saved_id = saved_id


# About how many bytes these take in memory, with what refers to them.
_NAME_NBYTES = 250
_DICT_NBYTES = 120
_OBJECT_NBYTES = 120
_STORAGE_NBYTES = 48


# Before torch 1.6, a class was saved with its source code: ("module", class, file, source).
_MODULE = ("module", b"module")
_NO_KEYS = (list, bytearray, InertDict)


class _TreeMachine(PickleMachine):
    """Builds lists, tuples and plain values, and stand-ins for everything else."""

    old_string_errors = "surrogateescape"

    def __init__(self, data: bytes, begin: int) -> None:
        super().__init__(data, begin)
        self.storages: list[StoredStorage] = []
        self._names: dict[tuple[str, str], InertName] = {}
        # Keys are not hashed here, but whoever unpickles them would not end.
        self._hashing = HashBudget(len(data) - begin)
        self._begin = begin
        self._nbytes = 0

    def made(self, nbytes: int) -> None:
        self._nbytes += nbytes
        if self._nbytes > _TREE_NBYTES + _TREE_FACTOR * (self.end - self._begin):
            raise pickle.UnpicklingError("the pickle makes too many objects for its size")

    def find_global(self, module: str, name: str) -> InertName:
        key = (module, name)
        found = self._names.get(key)
        if found is None:
            self.made(_NAME_NBYTES)
            found = self._names[key] = InertName(module, name)
        return found

    def persistent(self, saved_id: Any) -> Any:
        if isinstance(saved_id, tuple) and len(saved_id) > 1 and saved_id[0] in _MODULE:
            return saved_id[1]
        self.made(_STORAGE_NBYTES)
        stored = StoredStorage(saved_id)
        self.storages.append(stored)
        return stored

    def call(self, function: Any, args: Any) -> Any:
        if isinstance(function, InertName):
            raw = _bytes_of(function, args)
            if raw is not None:
                self.made(len(raw))
                return raw
        return self._object_of(pickle.REDUCE, function, args)

    def new(self, cls: Any, args: Any, kwargs: Any) -> Inert:
        opcode = pickle.NEWOBJ_EX if kwargs else pickle.NEWOBJ
        return self._object_of(opcode, cls, args, kwargs or None)

    def instance(self, cls: Any, args: list[Any]) -> Inert:
        return self._object_of(pickle.OBJ, cls, tuple(args))

    def _object_of(self, opcode: bytes, maker: Any, args: Any, kwargs: Any = None) -> Inert:
        if not isinstance(maker, InertName | Inert) or not isinstance(args, tuple):
            raise BrokenPickleError("a call of what is no class or function")
        self.made(_OBJECT_NBYTES)
        return Inert(opcode, maker, args, kwargs)

    def build(self, obj: Any, state: Any) -> Any:
        if not isinstance(obj, Inert):
            raise BrokenPickleError("a state is set on what is no object")
        obj.state = state
        return obj

    def append(self, target: Any, values: list[Any]) -> None:
        if isinstance(target, Inert):
            self._own(target, "members").extend(values)
        elif isinstance(target, list):
            target.extend(values)
        else:
            raise BrokenPickleError("a value is appended to what is no list")

    def set_items(self, target: Any, flat: list[Any]) -> None:
        if any(type(key) in _NO_KEYS for key in flat[::2]):
            raise BrokenPickleError("a key of a dict that Python does not allow")
        self._hashing.charge_keys(flat)
        if isinstance(target, Inert):
            self._own(target, "flat").extend(flat)
        elif isinstance(target, InertDict):
            target.flat.extend(flat)
        else:
            raise BrokenPickleError("an item is set in what is no dict")

    def add(self, target: Any, values: list[Any]) -> None:
        self._hashing.charge(values)
        if isinstance(target, Inert):
            self._own(target, "added").extend(values)
        elif isinstance(target, InertSet) and not target.is_frozen:
            target.values.extend(values)
        else:
            raise BrokenPickleError("a value is added to what is no set")

    def _own(self, target: Inert, name: str) -> list[Any]:
        """The list ``name`` of an object, made when it is first needed."""
        held = getattr(target, name)
        if isinstance(held, list):
            return held
        self.made(_DICT_NBYTES)
        made: list[Any] = []
        setattr(target, name, made)
        return made

    def new_dict(self) -> InertDict:
        self.made(_DICT_NBYTES)
        return InertDict([])

    def new_set(self) -> InertSet:
        self.made(_DICT_NBYTES)
        return InertSet([], is_frozen=False)

    def frozen_set(self, values: list[Any]) -> InertSet:
        self.made(_DICT_NBYTES)
        self._hashing.charge(values)
        return InertSet(values, is_frozen=True)


def _bytes_of(function: InertName, args: Any) -> bytes | None:
    """The bytes that a call makes, as protocols below 3 write them; None if it makes none."""
    if function.module != "_codecs" or function.name != "encode" or not isinstance(args, tuple):
        return None
    if len(args) != len(("text", "latin1")) or args[1] != "latin1" or not isinstance(args[0], str):
        return None
    try:
        return args[0].encode("latin-1")
    except UnicodeEncodeError as error:
        raise BrokenPickleError(f"bytes are not valid: {error}") from error


def key_text(key: Any) -> str:
    """A key of a dict as a part of a key path, as its ``str()`` is; shortened if that is long."""
    if isinstance(key, str):
        return key
    if isinstance(key, bytes):
        return key_name(key)
    return _text(key, [_MOST_KEY_PARTS])


def _text(key: Any, parts_left: list[int]) -> str:
    parts_left[0] -= 1
    if parts_left[0] < 0:
        return "..."
    if isinstance(key, tuple):
        parts = [_text(part, parts_left) for part in key[: parts_left[0] + 1]]
        return f"({', '.join(parts)}{',' if len(key) == 1 else ''})"
    if isinstance(key, InertName):
        return str(key)
    if isinstance(key, Inert):
        return f"{key.name}(...)"
    if isinstance(key, int) and key.bit_length() > _MOST_KEY_CHARACTERS:
        return "..."  # Python refuses to print it, or takes long
    if isinstance(key, str | bytes):
        return repr(key[:_MOST_KEY_CHARACTERS])
    return str(key) if isinstance(key, int | float | None) else f"<{type(key).__name__}>"


def _children(node: Any) -> int:
    """How many values a node holds, with those of the tuples among an object's arguments."""
    if isinstance(node, list | tuple):
        return len(node)
    if isinstance(node, InertDict):
        return len(node.flat)
    if isinstance(node, InertSet):
        return len(node.values)
    if not isinstance(node, Inert):
        return 0
    inner = sum(len(arg) for arg in node.args if isinstance(arg, tuple))
    return len(node.args) + inner + len(node.flat) + len(node.members) + len(node.added)


class Way:
    """Guards one walk through a tree, so that it always ends.

    A few bytes can describe a huge tree, if every level holds the level below twice, or if every
    level adds a long key to the paths below.

    Args:
        data_nbytes: Size of the pickle that the tree was read from.
    """

    def __init__(self, data_nbytes: int) -> None:
        self._steps_left = max(_FEWEST_STEPS, _STEPS_A_BYTE * data_nbytes)
        self._above: set[int] = set()

    def join(self, path: str, key: Any) -> str:
        """The path of the item ``key`` of the node at ``path``, as pyckpt.key_paths.join_path.

        Raises:
            pickle.UnpicklingError: The walk is too long.
        """
        name = key if isinstance(key, str) else key_text(key)
        self.step(1 + (len(path) + len(name)) // _CHARACTERS_A_STEP)
        return f"{path}/{name}" if path else name

    def enter(self, node: Any, path_nbytes: int = 0) -> bool:
        """Enters ``node``. False if the walk is inside it already: a structure can contain itself.

        Args:
            path_nbytes: Length of the path to it, if that is kept while the walk is inside it.

        Raises:
            pickle.UnpicklingError: The walk is too long.
        """
        self.step(1 + _children(node) // _CHILDREN_A_STEP + path_nbytes // _KEPT_CHARACTERS_A_STEP)
        if id(node) in self._above:
            return False
        self._above.add(id(node))
        return True

    def leave(self, node: Any) -> None:
        """Leaves ``node``."""
        self._above.remove(id(node))

    def step(self, count: int) -> None:
        """Counts steps that take no other call.

        Raises:
            pickle.UnpicklingError: The walk is too long.
        """
        self._steps_left -= count
        if self._steps_left < 0:
            raise pickle.UnpicklingError("the structure is too large for the size of its pickle")
