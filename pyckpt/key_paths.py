"""Paths through nested dicts and lists (``state/model/fc.weight``), and globs over them."""

from __future__ import annotations

import copy
import fnmatch
import re
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from typing import Any

from pyckpt.errors import OptionError
from pyckpt.warn import warn

__all__ = ["Globs", "IgnoreKeys", "join_path", "only", "without_ignored"]

IgnoreKeys = str | Sequence[str] | Callable[[dict[str, Any]], Any] | None


def without_ignored(tree: dict[str, Any], ignore_keys: IgnoreKeys) -> dict[str, Any]:
    """A copy of ``tree`` without what ``ignore_keys`` names; ``tree`` itself if that is None.

    Dicts and lists are copied. Other values, such as tensors, are not. ``tree`` does not change.

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
        copied: dict[str, Any] = _copy_without(tree, set())
        ignore_keys(copied)
        return copied
    globs = [ignore_keys] if isinstance(ignore_keys, str) else ignore_keys
    if not isinstance(globs, Sequence) or not all(isinstance(glob, str) for glob in globs):
        raise OptionError(f"ignore_keys takes globs or a callable, not {ignore_keys!r}")
    paths = list(_paths(tree))
    removed: set[str] = set()
    for glob in globs:
        matches = fnmatch.filter(paths, glob)
        if not matches:
            # A warning, as in Composer: the glob may be meant for a different kind of run.
            warn(f"ignore_keys: nothing matches {glob!r}")
        removed.update(matches)
    left: dict[str, Any] = _copy_without(tree, removed)
    return left


def join_path(path: str, key: Any) -> str:
    """The path of the item ``key`` of the object at ``path``. The root's path is empty."""
    name = key.decode() if isinstance(key, bytes) else str(key)
    return f"{path}/{name}" if path else name


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


def _left_out(
    node: Any, kept: Container[str], holding: Container[str], prefix: str = ""
) -> Iterator[str]:
    """The paths below ``node`` that are not kept and hold nothing that is kept."""
    for key, value in _items(node, _LISTS_AND_TUPLES):
        path = f"{prefix}{key}"
        if path in kept:
            continue
        if path in holding:
            yield from _left_out(value, kept, holding, f"{path}/")
        else:
            yield path


_LISTS = (list,)  # what globs look into, besides dicts
_LISTS_AND_TUPLES = (list, tuple)


def _paths(node: Any, kinds: tuple[type, ...] = _LISTS, prefix: str = "") -> Iterator[str]:
    """The paths of everything below ``node``."""
    for key, value in _items(node, kinds):
        path = f"{prefix}{key}"
        yield path
        yield from _paths(value, kinds, f"{path}/")


def _items(node: Any, kinds: tuple[type, ...]) -> Iterable[tuple[Any, Any]]:
    if isinstance(node, dict):
        return node.items()
    if type(node) in kinds:
        return enumerate(node)
    return ()


def _copy_without(
    node: Any, removed: Container[str], kinds: tuple[type, ...] = _LISTS, prefix: str = ""
) -> Any:
    """Copies dicts and containers of ``kinds``, without the removed paths."""
    if isinstance(node, dict):
        out = copy.copy(node)  # keeps the class and its attributes
        for key, value in node.items():
            path = f"{prefix}{key}"
            if path in removed:
                del out[key]
            else:
                out[key] = _copy_without(value, removed, kinds, f"{path}/")
        return out
    if type(node) in kinds:
        return type(node)(
            _copy_without(value, removed, kinds, f"{prefix}{index}/")
            for index, value in enumerate(node)
            if f"{prefix}{index}" not in removed
        )
    return node
