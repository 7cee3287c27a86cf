"""What a checkpoint holds and load_checkpoint refuses, unless ``weights_only=False`` is given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pyckpt.key_paths import join_path
from pyckpt.torch_format.weights_unpickler import is_allowed
from pyckpt.warn import warn

__all__ = ["warn_of_refused"]


def warn_of_refused(contents: Any, named: Sequence[Any]) -> None:
    """Warns at the save of types that the load will refuse by default.

    Args:
        contents: What is saved.
        named: The classes and functions that its pickle names.
    """
    refused = [one for one in named if not is_allowed(one)]
    if not refused:
        return
    # A type is made by itself or by a function, such as pathlib's and enum's.
    path, kind = _first_of(contents, refused, "", set()) or ("", refused[0])
    where = f"{path!r} is" if path else "the state holds"
    warn(
        f"{where} a {kind.__module__}.{kind.__qualname__}: load_checkpoint and pyckpt.load refuse "
        "it, unless weights_only=False is given or torch.serialization.add_safe_globals admits it"
    )


def _first_of(
    node: Any, kinds: Sequence[Any], path: str, above: set[int]
) -> tuple[str, Any] | None:
    """The path and type of the first object whose type is one of ``kinds``."""
    if type(node) in kinds:
        return path, type(node)
    if isinstance(node, Mapping):
        items: Any = node.items()
    elif isinstance(node, list | tuple):
        items = enumerate(node)
    else:
        return None
    if id(node) in above:  # a cycle
        return None
    above.add(id(node))
    for key, value in items:
        found = _first_of(value, kinds, join_path(path, key), above)
        if found is not None:
            return found
    above.remove(id(node))
    return None
