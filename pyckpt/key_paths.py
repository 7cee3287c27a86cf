"""Paths through nested dicts and lists (``state/model/fc.weight``), and globs over them."""

from __future__ import annotations

import copy
import fnmatch
import re
from collections.abc import Callable, Container, Iterator, Sequence
from typing import Any

from pyckpt.deep_calls import Deep, run_deep
from pyckpt.errors import OptionError
from pyckpt.warn import warn

__all__ = ["Globs", "IgnoreKeys", "join_path", "key_name", "only", "path_of", "without_ignored"]

IgnoreKeys = str | Sequence[str] | Callable[[dict[str, Any]], Any] | None


def without_ignored(tree: dict[str, Any], ignore_keys: IgnoreKeys) -> dict[str, Any]:
    """A copy of ``tree`` without what ``ignore_keys`` names; ``tree`` itself if that is None.

    Dicts and lists are copied. Other values, such as tensors, are not. ``tree`` does not change.
    What contains itself is looked into once, and contains its copy afterwards.

    Args:
        ignore_keys: Globs over key paths. ``*`` also matches ``/``. The key of a list item is its
            index in ``tree``. A match includes everything below it. Or a callable that edits the
            dict that it gets.

    Raises:
        OptionError: ``ignore_keys`` is neither globs nor a callable.
    """
    if ignore_keys is None:
        return tree
    if callable(ignore_keys):
        copied: dict[str, Any] = _copy_without(tree, set(), _LISTS)
        ignore_keys(copied)
        return copied
    globs = [ignore_keys] if isinstance(ignore_keys, str) else ignore_keys
    if not isinstance(globs, Sequence) or not all(isinstance(glob, str) for glob in globs):
        raise OptionError(f"ignore_keys takes globs or a callable, not {ignore_keys!r}")
    paths = list(_paths(tree, _LISTS))
    removed: set[str] = set()
    for glob in globs:
        matches = fnmatch.filter(paths, glob)
        if not matches:
            # A warning, as in Composer: the glob may be meant for a different kind of run.
            warn(f"ignore_keys: nothing matches {glob!r}")
        removed.update(matches)
    left: dict[str, Any] = _copy_without(tree, removed, _LISTS)
    return left


def join_path(path: str, key: Any) -> str:
    """The path of the item ``key`` of the object at ``path``. The root's path is empty."""
    name = key_name(key)
    return f"{path}/{name}" if path else name


def key_name(key: Any) -> str:
    """A key as a part of a path."""
    return key.decode("utf-8", "backslashreplace") if isinstance(key, bytes) else str(key)


class Globs:
    """Globs over key paths, as in :func:`without_ignored`."""

    def __init__(self, globs: Sequence[str]) -> None:
        self._match = [re.compile(fnmatch.translate(glob)).match for glob in globs]
        # The text of each before its first wildcard.
        self._starts = [re.split(r"[*?[]", glob, maxsplit=1)[0] for glob in globs]

    def match(self, path: str) -> bool:
        """Whether a glob matches the path."""
        return any(match(path) for match in self._match)

    def may_match_below(self, path: str) -> bool:
        """Whether a glob may match something below the path."""
        below = f"{path}/" if path else ""
        return any(start.startswith(below) or below.startswith(start) for start in self._starts)


def only(tree: Any, globs: Sequence[str]) -> Any:
    """A copy of ``tree`` with only what the globs name, and the containers around it.

    Globs are as in :func:`without_ignored`, but look into tuples too. Lists and tuples lose the
    items that no glob names. ``tree`` does not change.

    Raises:
        OptionError: A glob matches nothing.
    """
    paths = list(_paths(tree, _LISTS_AND_TUPLES))
    kept: set[str] = set()
    for glob in globs:
        named = fnmatch.filter(paths, glob)
        if not named:
            raise OptionError(f"keys: nothing matches {glob!r}")
        kept.update(named)
    holding: set[str] = set()
    for path in kept:
        parts = path.split("/")
        holding.update("/".join(parts[:n]) for n in range(1, len(parts)))
    return _copy_without(tree, set(_left_out(tree, kept, holding)), _LISTS_AND_TUPLES)


def path_of(tree: Any, is_wanted: Callable[[Any], bool]) -> str | None:
    """The path of the first value in ``tree`` that is wanted; None if there is none."""
    found = (path for path, value in _walk(tree, _LISTS_AND_TUPLES) if is_wanted(value))
    return next(found, None)


_LISTS = (list,)  # what globs look into, besides dicts
_LISTS_AND_TUPLES = (list, tuple)


def _left_out(tree: Any, kept: set[str], holding: set[str]) -> Iterator[str]:
    """The paths that are not kept and hold nothing that is kept."""
    inner = holding - kept
    for path, _ in _walk(tree, _LISTS_AND_TUPLES, inner.__contains__):
        if path not in kept and path not in holding:
            yield path


def _paths(tree: Any, kinds: tuple[type, ...]) -> Iterator[str]:
    """The paths of everything in ``tree``."""
    return (path for path, _ in _walk(tree, kinds))


def _walk(
    tree: Any, kinds: tuple[type, ...], goes_below: Callable[[str], bool] = lambda _: True
) -> Iterator[tuple[str, Any]]:
    """The paths and values in ``tree``; below those paths for which ``goes_below`` is true.

    What contains itself is not walked again inside itself.
    """
    above: list[tuple[int, Iterator[tuple[Any, Any]], str]] = [(id(tree), _items(tree, kinds), "")]
    inside = {id(tree)}
    while above:
        owner, items, prefix = above[-1]
        for key, value in items:
            path = f"{prefix}{key_name(key)}"
            yield path, value
            if _is_open(value, kinds) and id(value) not in inside and goes_below(path):
                inside.add(id(value))
                above.append((id(value), _items(value, kinds), f"{path}/"))
                break
        else:
            above.pop()
            inside.discard(owner)


def _is_open(node: Any, kinds: tuple[type, ...]) -> bool:
    """Whether globs look into a node."""
    return isinstance(node, dict) or type(node) in kinds


def _items(node: Any, kinds: tuple[type, ...]) -> Iterator[tuple[Any, Any]]:
    if isinstance(node, dict):
        return iter(node.items())
    return iter(enumerate(node) if _is_open(node, kinds) else ())


def _copy_without(tree: Any, removed: Container[str], kinds: tuple[type, ...]) -> Any:
    """Copies dicts and containers of ``kinds``, without the removed paths."""
    return run_deep(_copy(tree, removed, kinds, "", {}))


def _copy(
    node: Any,
    removed: Container[str],
    kinds: tuple[type, ...],
    prefix: str,
    copies: dict[int, Any],
) -> Deep[Any]:
    """Copies one node. ``copies`` has the copies of the nodes that it is inside, by id."""
    if not _is_open(node, kinds):
        return node
    if id(node) in copies:
        return copies[id(node)]
    # A tuple can be made only when its items are there. If one contains it, that keeps the tuple.
    out: Any = node if isinstance(node, tuple) else []
    if isinstance(node, dict):
        out = copy.copy(node)  # keeps the class and its attributes
    copies[id(node)] = out
    left = []
    for key, value in _items(node, kinds):
        path = f"{prefix}{key_name(key)}"
        if path not in removed:
            left.append((key, (yield _copy(value, removed, kinds, f"{path}/", copies))))
        elif isinstance(node, dict):
            del out[key]
    del copies[id(node)]
    if isinstance(node, dict):
        for key, value in left:
            out[key] = value
        return out
    if isinstance(node, tuple):
        return tuple(value for _, value in left)
    out.extend(value for _, value in left)
    return out
