"""Paths through nested dicts and lists (``state/model/fc.weight``), and choice by glob."""

from __future__ import annotations

import copy
import fnmatch
import warnings
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from typing import Any

from pyckpt.errors import OptionError

__all__ = ["IgnoreKeys", "matches", "only", "without_ignored"]

IgnoreKeys = str | Sequence[str] | Callable[[dict[str, Any]], Any] | None


def without_ignored(tree: dict[str, Any], ignore_keys: IgnoreKeys) -> dict[str, Any]:
    """``tree`` less what ``ignore_keys`` names. ``tree`` itself stays as it is.

    Dicts and lists are copied, what they hold is not.

    Args:
        ignore_keys: Globs over key paths: ``*`` also matches across ``/``, list items are numbers
            as they are in ``tree``, and a match takes all that lies below. Or a callable that edits
            the dict it is given.

    Raises:
        OptionError: ``ignore_keys`` is something else.
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
            # As Composer does: a glob may be meant for another kind of run.
            warnings.warn(f"ignore_keys: nothing matches {glob!r}", stacklevel=3)
        removed.update(matches)
    left: dict[str, Any] = _copy_without(tree, removed)
    return left


def matches(path: str, globs: Sequence[str]) -> bool:
    """Whether a glob matches the path, or one that it lies below."""
    parts = path.split("/")
    above = ["/".join(parts[: n + 1]) for n in range(len(parts))]
    return any(fnmatch.fnmatchcase(one, glob) for glob in globs for one in above)


def only(tree: Any, globs: Sequence[str]) -> Any:
    """What globs name of ``tree``, in the dicts, lists and tuples that hold it.

    ``tree`` stays as it is. Globs are as in :func:`without_ignored`; lists lose what is not named,
    and so do tuples.

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
    left = {path for path in paths if matches(path, globs)}
    for path in kept:
        parts = path.split("/")
        left.update("/".join(parts[:n]) for n in range(1, len(parts)))
    return _copy_without(tree, set(paths) - left, _LISTS_AND_TUPLES)


_LISTS = (list,)  # what globs look into besides dicts
_LISTS_AND_TUPLES = (list, tuple)


def _paths(node: Any, kinds: tuple[type, ...] = _LISTS, prefix: str = "") -> Iterator[str]:
    """Of all that lies below ``node``."""
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
    """Copies dicts and what is of ``kinds``, less the paths that are removed."""
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
