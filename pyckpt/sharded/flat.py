"""Nested states as torch.distributed.checkpoint names what is in them: ``state.model.fc.weight``.

The rules are those of torch's flatten_state_dict since 2.4: dicts are taken apart, lists too if
they hold dicts or tensors, and everything else is a leaf.

One rule is added. torch makes texts of all keys, makes a dict of every mapping, and forgets empty
ones. So a mapping without tensors is a leaf if it is empty, is no plain dict, or has keys that are
no texts: the milestones of a learning rate schedule, for example.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from typing import Any

import torch

from pyckpt.errors import OptionError

__all__ = ["Path", "flatten", "mapping_of", "nested", "replaced", "require_texts"]

Path = tuple[Any, ...]
"""The keys and indices that lead to a leaf."""


def flatten(tree: Mapping[str, Any]) -> dict[str, tuple[Path, Any]]:
    """The leaves of ``tree``, with their paths, by name.

    Raises:
        OptionError: Two leaves have one name.
    """
    flat: dict[str, tuple[Path, Any]] = {}
    for path, leaf in _leaves(tree, ()):
        name = ".".join(map(str, path))
        if name in flat:
            raise OptionError(
                f"two entries of the state are called {name!r}: keys with dots are ambiguous here"
            )
        flat[name] = (path, leaf)
    return flat


def mapping_of(flat: Mapping[str, tuple[Path, Any]]) -> dict[str, Path]:
    """Names and paths as torch stores them: keys of dicts are texts."""
    return {
        name: tuple(int(key) if type(key) is _Index else str(key) for key in path)
        for name, (path, _) in flat.items()
    }


def require_texts(flat: Mapping[str, tuple[Path, Any]]) -> None:
    """Checks that ``nested`` brings back all keys. Positions in optimizers are another matter.

    Raises:
        OptionError: A dict with tensors has keys that are no texts.
    """
    for name, (path, _) in flat.items():
        for at, key in enumerate(path):
            is_position = at == _POSITION and path[:2] == ("state", "optimizers")
            if not isinstance(key, str | _Index) and not is_position:
                raise OptionError(
                    f"{name!r} cannot be saved in shards: the key {key!r} in its path is no text, "
                    "and would come back as one. Use texts as keys, or state_dict_type='full'"
                )


_POSITION = 4  # of a parameter's position in the path to what an optimizer keeps of it


class _Index(int):
    """The place of an item in a list, as a key of a path."""


def _leaves(node: Any, path: Path) -> Iterator[tuple[Path, Any]]:
    if isinstance(node, Mapping) and not (path and _is_whole(node)):
        for key, value in node.items():
            yield from _leaves(value, (*path, key))
    elif isinstance(node, list) and _is_taken_apart(node):
        for index, value in enumerate(node):
            yield from _leaves(value, (*path, _Index(index)))
    elif path:
        yield path, node


def _is_whole(mapping: Mapping[Any, Any]) -> bool:
    """Whether a mapping is a leaf: see the module."""
    is_plain = type(mapping) in (dict, OrderedDict) and all(type(key) is str for key in mapping)
    return not (mapping and is_plain) and not _has_tensors(mapping)


def _has_tensors(node: Any) -> bool:
    if isinstance(node, Mapping):
        return any(map(_has_tensors, node.values()))
    if isinstance(node, list | tuple):
        return any(map(_has_tensors, node))
    return isinstance(node, torch.Tensor)


def _is_taken_apart(node: Sequence[Any]) -> bool:
    return any(
        isinstance(item, Mapping | torch.Tensor)
        or (isinstance(item, list) and _is_taken_apart(item))
        for item in node
    )


def nested(leaves: Mapping[str, Any], mapping: Mapping[str, Path]) -> dict[str, Any]:
    """The reverse of ``flatten``: leaves by name, put to their paths. Lists keep their order.

    Raises:
        ValueError: The paths contradict each other.
    """
    tree = _Node()
    for name, leaf in leaves.items():
        path = mapping.get(name, (name,))
        node: Any = tree
        for key in path[:-1]:
            node = node.setdefault(key, _Node())
            if type(node) is not _Node:
                raise ValueError(f"{name!r} cannot be inside of a leaf")
        if not path or path[-1] in node:
            raise ValueError(f"{name!r} has the place of something else")
        node[path[-1]] = leaf
    return {key: _with_lists(value) for key, value in tree.items()}


class _Node(dict[Any, Any]):
    """A dict or a list that is being built. Leaves may be dicts too."""


def _with_lists(node: Any) -> Any:
    """Nodes whose keys are all indices become lists, and others dicts."""
    if type(node) is not _Node:
        return node
    built = {key: _with_lists(value) for key, value in node.items()}
    if all(type(key) is not str for key in built):
        return [built[index] for index in sorted(built)]
    return built


def replaced(tree: Any, leaves: Mapping[Path, Any], path: Path = ()) -> Any:
    """A copy of ``tree`` with other leaves at some paths. Containers keep their types."""
    if path in leaves:
        return leaves[path]
    if isinstance(tree, MutableMapping):
        items = {key: replaced(value, leaves, (*path, key)) for key, value in tree.items()}
        out: Any = _like(tree)
        for key, value in items.items():
            out[key] = value
        return out
    if isinstance(tree, list) and _is_taken_apart(tree):
        return [replaced(value, leaves, (*path, _Index(at))) for at, value in enumerate(tree)]
    return tree


def _like(mapping: MutableMapping[Any, Any]) -> Any:
    """An empty mapping of the same class, with the same attributes."""
    empty = copy.copy(mapping)
    empty.clear()
    return empty
