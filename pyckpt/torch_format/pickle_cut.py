"""Cuts out the part of a pickle that globs over key paths match, as a new pickle.

Only that part is then unpickled. The rest takes no time and cannot run code.
"""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from typing import Any

from pyckpt.deep_calls import Deep, run_deep
from pyckpt.key_paths import Globs
from pyckpt.torch_format.pickle_tree import Inert, InertDict, Way, read_tree
from pyckpt.torch_format.tree_pickler import TreePickler

__all__ = ["cut_pickle"]

_OLDEST_PROTOCOL = 2  # the oldest that torch reads
# Keys whose text in a key path is the same as in the unpickled object.
_KEYS = str | bytes | int | float | None
_NOTHING = object()
_INNER = (InertDict, list, tuple, Inert)  # what has parts with names


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
    part = run_deep(_Cut(globs, tree.end).below(tree.root, ""))
    pickler = TreePickler(_protocol(data))
    cut = pickler.dumps(None if part is _NOTHING else part)
    return cut, pickler.storage_keys


def _protocol(data: bytes) -> int:
    """The protocol for the new pickle: the old one's, because names depend on the protocol."""
    return max(_OLDEST_PROTOCOL, data[1]) if data.startswith(pickle.PROTO) else _OLDEST_PROTOCOL


class _Cut:
    def __init__(self, globs: Sequence[str], data_nbytes: int) -> None:
        self._globs = Globs(globs)
        self._way = Way(data_nbytes)

    def below(self, node: Any, path: str) -> Deep[Any]:
        """What is left of a node that no glob matches itself; _NOTHING if nothing is left."""
        if not isinstance(node, _INNER) or not self._globs.may_match_below(path):
            return _NOTHING
        if not self._way.enter(node, len(path)):
            return _NOTHING
        if isinstance(node, Inert):
            left = yield self._of_object(node, path)
        elif isinstance(node, InertDict):
            flat = yield self._of_items(node.flat, path)
            left = InertDict(flat) if flat else _NOTHING
        else:
            left = yield self._of_sequence(node, path)
        self._way.leave(node)
        return left

    def _of_sequence(self, node: list[Any] | tuple[Any, ...], path: str) -> Deep[Any]:
        left = []
        for index, value in enumerate(node):
            inner_path = self._way.join(path, index)
            if self._globs.match(inner_path):
                left.append(value)
            elif isinstance(value, _INNER):
                left.append((yield self.below(value, inner_path)))
            else:
                left.append(_NOTHING)
        if all(one is _NOTHING for one in left):
            return _NOTHING
        return type(node)(None if one is _NOTHING else one for one in left)

    def _of_object(self, node: Inert, path: str) -> Deep[Any]:
        flat = yield self._of_items(node.flat, path)
        if flat:
            return node.with_items(flat)
        # Only its class knows what the object becomes and where its parts then are.
        for one in (*node.args, list(node.members), list(node.added), node.state):
            left = yield self.below(one, path)
            if left is not _NOTHING:
                return node
        return _NOTHING

    def _of_items(self, flat: Sequence[Any], path: str) -> Deep[list[Any]]:
        left = []
        for key, value in zip(flat[::2], flat[1::2], strict=True):
            if isinstance(key, _KEYS):
                inner_path = self._way.join(path, key)
                if not self._globs.match(inner_path):
                    value = yield self.below(value, inner_path)
            if value is not _NOTHING:
                left += [key, value]
        return left
