"""What a rank reads of a checkpoint for a state of which it has a part.

The checkpoint is an outline: a tree of hollow tensors. Of each tensor that this rank holds in
parts, only those parts are read. Everything else is read as a whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from pyckpt.errors import StateMismatchError
from pyckpt.key_paths import join_path
from pyckpt.sharded.layout import Layout
from pyckpt.sharded.optimizer_names import merged_names
from pyckpt.sharded.outline import Outline, Slice
from pyckpt.state import State, named_objects, unwrapped
from pyckpt.tensor_kinds import is_shard
from pyckpt.training.holding import Holding
from pyckpt.training.named_state import as_fsdp1_loads, has_fsdp1, keeping_shards, with_names

__all__ = ["fill"]


def fill(
    outline: Outline,
    state: Any,
    contents: dict[str, Any],
    others: Any,
    holdings: Sequence[Holding],
    place: int,
) -> dict[str, Any]:
    """Reads what this rank needs.

    Args:
        contents: What is to be restored of the outline's ``tree["state"]``.
        others: What else is needed of the tree. It is read to its place.
        holdings: Those of all ranks.
        place: This rank's place among them.

    Returns:
        ``contents`` for this rank: parts of tensors as the state holds them, optimizers by
        position, and of the model only what this rank has.

    Raises:
        StateMismatchError: A tensor of the checkpoint has another shape than the state's.
        CorruptArchiveError, CheckpointError: As ``Outline.read``.
    """
    chosen = dict(contents)
    layouts: dict[tuple[str, ...], Layout] = {}
    if has_fsdp1(state):
        chosen, layouts = _for_fsdp1(state, chosen)
    elif isinstance(state, State):
        chosen = _own_part(state, chosen, holdings, place)
        layouts.update(_layouts_of(state, chosen))
    else:
        layouts.update(_layouts_in(state.state_dict(), ()))
    filling = _Filling(outline, layouts)
    out = {key: filling.chosen(value, (key,)) for key, value in chosen.items()}
    filling.chosen(others, ("",))
    filling.read()
    built = {key: filling.built(value) for key, value in out.items()}
    if has_fsdp1(state) and "optimizers" in built:
        with keeping_shards(state):
            built["optimizers"] = as_fsdp1_loads(state, built["optimizers"])
    return built


def _for_fsdp1(
    state: State, contents: dict[str, Any]
) -> tuple[dict[str, Any], dict[tuple[str, ...], Layout]]:
    """``contents`` with optimizers by name, and how FSDP1 holds what is in them. Collective."""
    with keeping_shards(state):
        own = with_names(state, state.state_dict())
    weights: dict[str, Any] = own["model"]
    layouts = dict(_layouts_in({"model": weights}, ()))
    optimizers: dict[str, Any] = {}
    for label, saved in contents.get("optimizers", {}).items():
        optimizers[label] = saved
        groups = own["optimizers"].get(label, {}).get("param_groups")
        if groups is None or not isinstance(saved, Mapping):
            continue
        holding = Holding(True, (), {label: [list(group["params"]) for group in groups]})
        names = _names_of_positions(saved["param_groups"], label, [holding])
        optimizers[label] = {
            **saved,
            "state": {names.get(key, key): kept for key, kept in saved["state"].items()},
            "param_groups": [
                {**group, "params": [names[key] for key in group["params"]]}
                for group in saved["param_groups"]
            ],
        }
        for name, kept in optimizers[label]["state"].items():
            layout = layouts.get(("model", str(name)))
            for key, value in kept.items() if isinstance(kept, Mapping) else ():
                if layout and _has_shape(value, layout.shape):
                    layouts["optimizers", label, "state", str(name), str(key)] = layout
    return {**contents, **({"optimizers": optimizers} if optimizers else {})}, layouts


class _Filling:
    """Replaces hollow tensors by what will be read, and reads it."""

    def __init__(self, outline: Outline, layouts: Mapping[tuple[str, ...], Layout]) -> None:
        self._outline = outline
        self._layouts = layouts
        self._slices: list[Slice] = []
        self._whole: dict[int, tuple[str, torch.Tensor]] = {}

    def chosen(self, node: Any, path: tuple[str, ...]) -> Any:
        """A copy of ``node`` in which parts of tensors are still to be built, if it has any."""
        if isinstance(node, torch.Tensor):
            return self._tensor(node, path)
        if isinstance(node, Mapping):
            copy = {key: self.chosen(value, (*path, str(key))) for key, value in node.items()}
            return _unless_equal(copy, node)
        if isinstance(node, list | tuple):
            items = [self.chosen(value, (*path, str(at))) for at, value in enumerate(node)]
            return _unless_equal(items, node) if isinstance(node, list) else node
        return node

    def read(self) -> None:
        """Reads everything that was chosen."""
        self._outline.read(self._slices, list(self._whole.values()))

    def built(self, node: Any) -> Any:
        """Builds the tensors of what ``chosen`` returned."""
        if isinstance(node, _Parts):
            return node.layout.build(node.parts)
        if isinstance(node, Mapping):
            return _unless_equal({key: self.built(value) for key, value in node.items()}, node)
        if type(node) is list:
            return _unless_equal([self.built(value) for value in node], node)
        return node

    def _tensor(self, tensor: torch.Tensor, path: tuple[str, ...]) -> Any:
        name = ""
        for key in ("state", *path) if path[0] else path[1:]:
            name = join_path(name, key)
        layout = self._layouts.get(path)
        if layout is None:
            if tensor.layout is torch.strided and tensor.numel():
                self._whole.setdefault(tensor.untyped_storage()._cdata, (name, tensor))
            return tensor
        if tuple(tensor.shape) != layout.shape:
            raise StateMismatchError(
                f"the checkpoint's {name!r} has the shape {list(tensor.shape)}, and the state's "
                f"{list(layout.shape)}"
            )
        parts = layout.empty(tensor.dtype)
        for part, (offsets, _) in zip(parts, layout.chunks, strict=True):
            if part.numel():
                self._slices.append(Slice(name, tensor, offsets, part))
        return _Parts(layout, parts)


def _unless_equal(copy: Any, node: Any) -> Any:
    """``copy``, but ``node`` if nothing in it is new: it may be more than a dict or a list."""
    keys = node if isinstance(node, Mapping) else range(len(node))
    return node if all(copy[key] is node[key] for key in keys) else copy


@dataclass(frozen=True)
class _Parts:
    layout: Layout
    parts: Sequence[torch.Tensor]


def _own_part(
    state: State, contents: dict[str, Any], holdings: Sequence[Holding], place: int
) -> dict[str, Any]:
    """``contents`` without what only other ranks have, and with optimizers by position."""
    chosen = dict(contents)
    own = holdings[place]
    elsewhere = {name for one in holdings for name in one.names} - set(own.names)
    weights = contents.get("model")
    if isinstance(weights, Mapping) and elsewhere:
        # Buffers are not among the names. They belong to where their neighbours are.
        model = unwrapped(state.model)
        here = {_folder(name) for name, _ in (*model.named_parameters(), *model.named_buffers())}
        chosen["model"] = {
            key: value
            for key, value in weights.items()
            if key not in elsewhere and _folder(key) in here
        }
    optimizers = contents.get("optimizers")
    if isinstance(optimizers, Mapping):
        chosen["optimizers"] = {
            label: _by_own_position(saved, label, own, holdings)
            for label, saved in optimizers.items()
        }
    return chosen


def _folder(name: str) -> str:
    """The module that a weight or a buffer is in."""
    return name.rpartition(".")[0]


def _by_own_position(saved: Any, label: str, own: Holding, holdings: Sequence[Holding]) -> Any:
    """The state of an optimizer with the positions that its parameters have on this rank."""
    groups = own.groups.get(label)
    if groups is None or not isinstance(saved, Mapping) or "param_groups" not in saved:
        return saved
    saved_groups = saved["param_groups"]
    if len(saved_groups) != len(groups):
        raise StateMismatchError(
            f"{label} has {len(groups)} groups of parameters, the checkpoint {len(saved_groups)}"
        )
    names = _names_of_positions(saved_groups, label, holdings)
    order = [name for group in groups for name in group]
    positions = {name: at for at, name in enumerate(order)}
    known = set(names.values())
    missing = [name for name in order if name not in known]
    if missing:
        raise StateMismatchError(f"the checkpoint's {label} does not have {missing[0]!r}")
    state = {}
    for key, value in saved.get("state", {}).items():
        name = names.get(key, key)
        if name in positions:
            state[positions[name]] = value
        elif not isinstance(name, str) or name not in known:
            state[key] = value  # what belongs to no parameter
    start, out = 0, []
    for group, its_names in zip(saved_groups, groups, strict=True):
        out.append({**group, "params": list(range(start, start + len(its_names)))})
        start += len(its_names)
    return {**saved, "state": state, "param_groups": out}


def _names_of_positions(
    saved_groups: Sequence[Mapping[str, Any]], label: str, holdings: Sequence[Holding]
) -> dict[Any, str]:
    """The name of each key of the saved state: names already, or positions in all ranks' groups."""
    keys = [key for group in saved_groups for key in group["params"]]
    if any(isinstance(key, str) for key in keys):
        return {key: key for key in keys}
    merged: list[str] = []
    for at, group in enumerate(saved_groups):
        of_all = [one.groups[label][at] for one in holdings if label in one.groups]
        names = merged_names(of_all)
        if len(names) != len(group["params"]):
            raise StateMismatchError(
                f"{label} has {len(names)} parameters in group {at}, the checkpoint "
                f"{len(group['params'])}"
            )
        merged += names
    return dict(zip(keys, merged, strict=True))


def _layouts_of(
    state: State, contents: Mapping[str, Any]
) -> Iterator[tuple[tuple[str, ...], Layout]]:
    """How the state holds its weights, and what its optimizers keep for each of them."""
    model = unwrapped(state.model)
    if "model" in contents:
        with keeping_shards(state):
            yield from _layouts_in({"model": model.state_dict()}, ())
    for label, optimizer in named_objects(state.optimizers):
        saved = contents.get("optimizers", {}).get(label)
        if not isinstance(saved, Mapping):
            continue
        at = 0
        for group in getattr(optimizer, "param_groups", ()):
            for parameter in group["params"]:
                layout = Layout.of(parameter)
                kept = saved.get("state", {}).get(at, {})
                for key, value in kept.items() if isinstance(kept, Mapping) else ():
                    # Others, such as the count of steps, are not sharded.
                    if layout and _has_shape(value, layout.shape):
                        yield ("optimizers", label, "state", str(at), str(key)), layout
                at += 1


def _has_shape(value: Any, shape: tuple[int, ...]) -> bool:
    return isinstance(value, torch.Tensor) and tuple(value.shape) == shape


def _layouts_in(node: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Layout]]:
    if isinstance(node, torch.Tensor) or is_shard(node):
        layout = Layout.of(node)
        if layout is not None:
            yield path, layout
    elif isinstance(node, Mapping):
        for key, value in node.items():
            yield from _layouts_in(value, (*path, str(key)))
    elif isinstance(node, list):
        for at, value in enumerate(node):
            yield from _layouts_in(value, (*path, str(at)))
