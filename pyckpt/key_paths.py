"""Paths through nested dicts and lists (``state/model/fc.weight``), and removal by glob."""

from __future__ import annotations

import copy
import fnmatch
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from pyckpt.errors import OptionError

__all__ = ["IgnoreKeys", "without_ignored"]

IgnoreKeys = str | Sequence[str] | Callable[[dict[str, Any]], Any] | None


def without_ignored(tree: dict[str, Any], ignore_keys: IgnoreKeys) -> dict[str, Any]:
    """``tree`` less what ``ignore_keys`` names. ``tree`` itself stays as it is.

    Dicts and lists are copied, what they hold is not.

    Args:
        ignore_keys: Globs over key paths: ``*`` also matches across ``/``, list items are numbers,
            and a match takes all that lies below. Or a callable that edits the dict it is given.

    Raises:
        OptionError: ``ignore_keys`` is something else.
    """
    if ignore_keys is None:
        return tree
    tree = _copy_containers(tree)
    if callable(ignore_keys):
        ignore_keys(tree)
        return tree
    globs = [ignore_keys] if isinstance(ignore_keys, str) else list(ignore_keys)
    for glob in globs:
        if not isinstance(glob, str):
            raise OptionError(f"ignore_keys holds globs, not {glob!r}")
        if not _remove(tree, glob, ""):
            # As Composer does: a glob may be meant for another kind of run.
            warnings.warn(f"ignore_keys: nothing matches {glob!r}", stacklevel=3)
    return tree


def _copy_containers(node: Any) -> Any:
    if isinstance(node, dict):
        out = copy.copy(node)  # keeps the class and its attributes
        for key, value in node.items():
            out[key] = _copy_containers(value)
        return out
    if type(node) is list:
        return [_copy_containers(value) for value in node]
    return node


def _remove(node: Any, glob: str, prefix: str) -> bool:
    """Removes every match below ``node``; whether there was one."""
    if isinstance(node, dict):
        items = list(node.items())
    elif type(node) is list:
        items = list(enumerate(node))
    else:
        return False
    found = False
    for key, value in reversed(items):  # from the back, so that list indices stay right
        path = f"{prefix}{key}"
        if fnmatch.fnmatchcase(path, glob):
            del node[key]
            found = True
        else:
            found |= _remove(value, glob, path + "/")
    return found
