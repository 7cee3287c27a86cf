"""Cuts out the part of a pickle that globs over key paths match, as a new pickle.

Only that part is then unpickled. The rest takes no time and cannot run code.
"""

from __future__ import annotations

import copyreg
import io
import pickle
from collections.abc import Iterator, Sequence
from typing import Any, cast

from pyckpt.key_paths import Globs, join_path
from pyckpt.torch_format.pickle_tree import Inert, InertClass, StoredStorage, Way, read_tree

__all__ = ["cut_pickle"]

_OLDEST_PROTOCOL = 2  # the oldest that torch reads
_KEYS = str | int | float | None  # keys whose str() is the same as in the unpickled object
_NOTHING = object()
# pickle recognizes these two functions by their names.
_NEW: Any = copyreg.__dict__["__newobj__"]
_NEW_WITH_KEYWORDS: Any = copyreg.__dict__["__newobj_ex__"]


def cut_pickle(data: bytes, globs: Sequence[str]) -> tuple[bytes, set[str]]:
    """The pickle ``data`` (record ``data.pkl``) without the parts that no glob matches.

    In lists and tuples, None replaces what is left out, so that the indices do not change. An
    object stays whole if a glob may match something in it. Only the items that it holds by key are
    cut.

    Returns:
        The new pickle, and the keys of the storages in it.

    Raises:
        pickle.UnpicklingError: torch.save does not write this pickle.
    """
    tree = read_tree(data)
    try:
        part = _Cut(globs, len(data)).below(tree, "")
        buffer = io.BytesIO()
        pickler = _TreePickler(buffer, _protocol(data))
        pickler.dump(None if part is _NOTHING else part)
    except pickle.UnpicklingError:
        raise
    # Values of unexpected types raise any exception.
    except Exception as error:
        raise pickle.UnpicklingError(f"{type(error).__name__}: {error}") from error
    return buffer.getvalue(), pickler.storage_keys


def _protocol(data: bytes) -> int:
    """The protocol for the new pickle: the old one's, because names depend on the protocol."""
    return max(_OLDEST_PROTOCOL, data[1]) if data.startswith(pickle.PROTO) else _OLDEST_PROTOCOL


class _Cut:
    def __init__(self, globs: Sequence[str], data_nbytes: int) -> None:
        self._globs = Globs(globs)
        self._way = Way(data_nbytes)

    def below(self, node: Any, path: str) -> Any:
        """What is left of a node that no glob matches itself; _NOTHING if nothing is left."""
        if not isinstance(node, dict | list | tuple | Inert):
            return _NOTHING
        if not self._globs.may_match_below(path) or not self._way.enter(node):
            return _NOTHING
        left = self._of_inert(node, path) if isinstance(node, Inert) else self._of(node, path)
        self._way.leave(node)
        return left

    def _of(self, node: dict[Any, Any] | list[Any] | tuple[Any, ...], path: str) -> Any:
        if isinstance(node, dict):
            return dict(self._items(node, path)) or _NOTHING
        left = [self._named(value, join_path(path, index)) for index, value in enumerate(node)]
        if all(one is _NOTHING for one in left):
            return _NOTHING
        return type(node)(None if one is _NOTHING else one for one in left)

    def _of_inert(self, node: Inert, path: str) -> Any:
        items = dict(self._items(node.items, path))
        if items:
            return node.with_items(items)
        # Only its class knows what the object becomes and where its parts then are.
        inside = (*node.args, node.members, node.state)
        return node if any(self.below(one, path) is not _NOTHING for one in inside) else _NOTHING

    def _items(self, items: dict[Any, Any], path: str) -> Iterator[tuple[Any, Any]]:
        for key, value in items.items():
            is_plain = isinstance(key, _KEYS)
            left = self._named(value, join_path(path, key)) if is_plain else value
            if left is not _NOTHING:
                yield key, left

    def _named(self, node: Any, path: str) -> Any:
        return node if self._globs.match(path) else self.below(node, path)


# Based on the pickler in Python: the one in C checks that every named class and function exists.
# The cast is needed because only the pickler in C has type stubs.
class _TreePickler(cast(type[Any], pickle._Pickler)):  # type: ignore[misc]
    """Pickles a tree of stand-ins as the objects that they stand for.

    Attributes:
        storage_keys: The keys of the storages that were written.
    """

    def __init__(self, buffer: io.BytesIO, protocol: int) -> None:
        super().__init__(buffer, protocol)
        self.storage_keys: set[str] = set()

    def persistent_id(self, obj: Any) -> Any:
        if not isinstance(obj, StoredStorage):
            return None
        self.storage_keys.add(str(obj.saved_id[2]))
        return obj.saved_id

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, InertClass):
            return obj.__name__
        if not isinstance(obj, Inert):
            return NotImplemented
        return (*_call(obj), obj.state, iter(obj.members), iter(obj.items.items()))

    def save_global(self, obj: Any, name: str | None = None) -> None:
        self.write(pickle.GLOBAL + f"{obj.__module__}\n{name}\n".encode())
        self.memoize(obj)


def _call(obj: Inert) -> tuple[Any, tuple[Any, ...]]:
    """The function that makes an object, and its arguments, as pickle wants them."""
    if obj.maker is not None:
        return obj.maker, obj.args
    if obj.kwargs:
        return _NEW_WITH_KEYWORDS, (type(obj), obj.args, obj.kwargs)
    return _NEW, (type(obj), *obj.args)
