"""Whether the ranks hold the same state, so that rank 0's is the state of all.

With data parallelism it is. With sharded, tensor, pipeline or expert parallelism it is a part, and
a file with it alone would look whole. Three things tell:

- a tensor that knows that it is a shard (shards.py), and names that only some ranks have in the
  model or the optimizers: then the state is put together of all ranks;
- shapes and types that differ between ranks in the model, the optimizers, the schedulers or
  ``extra``, names that differ in the last two, and plain values that differ in them or in the
  optimizers' groups, such as a learning rate. A rank that has nothing there is not compared: states
  that are gathered to rank 0 are empty on the others;
- weights that have nothing in common, beside others that the ranks share (weight_samples.py).
"""

from __future__ import annotations

import datetime
import enum
import hashlib
import numbers
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from pyckpt.errors import ShardedStateError
from pyckpt.key_paths import join_path
from pyckpt.ranks.exchange import Channel, together
from pyckpt.ranks.transfer import to_first
from pyckpt.state import TrainingState
from pyckpt.tensor_kinds import PLAIN_TENSORS, is_shard
from pyckpt.training.shards import ADVICE, flat_storages, is_part_of_flat

__all__ = ["Description"]

_COMPARED = ("model", "optimizers", "schedulers", "extra")  # what all ranks must have alike
_BY_VALUE = ("schedulers", "extra")  # where plain values must be equal too
_GROUPS = "param_groups"  # the optimizers' part where they must be
_PARAMETERS = "params"  # but for these
_PLAIN = (numbers.Number, str, bytes, type(None), datetime.timedelta, enum.Enum)
_SMALL_NBYTES = 1 << 16  # up to here, tensors on the CPU are compared by value there too


class Description:
    """What this rank has of the state, in so far as all ranks must have the same.

    Args:
        saved: The state's dict.

    Attributes:
        parts: For each compared part of the state, a text for each key path.
        has_shards: Whether a tensor is this rank's part of a larger one.

    Raises:
        ShardedStateError: A tensor is a part of a larger one, and cannot be put together again.
    """

    def __init__(self, state: TrainingState, saved: Mapping[str, Any]) -> None:
        self.parts: dict[str, dict[str, str]] = {}
        self.has_shards = False
        self._flat = flat_storages(state)
        self._kinds: dict[tuple[torch.dtype, torch.Size], str] = {}
        self._above: set[int] = set()
        self._in_tuple = 0  # how many tuples are around what is described
        for part, node in saved.items():
            texts: dict[str, str] = {}
            self._describe(node, f"state/{part}", texts, by_value=part in _BY_VALUE)
            if texts and part in _COMPARED:
                self.parts[part] = texts

    def digests(self) -> dict[str, str]:
        """A short text for each part. It also depends on the order of what is in it."""
        return {
            part: hashlib.sha256("\n".join((*texts, *texts.values())).encode()).hexdigest()
            for part, texts in self.parts.items()
        }

    def compare(self, digests: Sequence[Mapping[str, str]], channel: Channel) -> bool:
        """Compares what all ranks have. Collective.

        Args:
            digests: Those of all members of the channel.

        Returns:
            Whether some ranks have weights or optimizer state that others lack: the stages of a
            pipeline, for example.

        Raises:
            ShardedStateError: Something differs between two ranks that must be alike.
        """
        differing = [
            part for part in _COMPARED if len({its[part] for its in digests if part in its}) > 1
        ]
        if not differing:
            return False
        own = {part: self.parts.get(part, {}) for part in differing}
        packed = to_first(pickle.dumps(own), channel)

        def compare() -> list[bool | _Difference]:
            every = [pickle.loads(one) for one in packed or ()]
            return [
                _compare([its[part] for its in every], channel.members)
                for part in differing
                if every
            ]

        found = together("comparing the ranks' states", compare, channel)[0]
        for one in found:
            if isinstance(one, _Difference):
                raise one.error()
        return any(found)

    def _describe(self, node: Any, path: str, texts: dict[str, str], *, by_value: bool) -> None:
        """Adds what is in nested dicts, lists and tuples. Cycles are followed once."""
        if isinstance(node, torch.Tensor):
            texts[path] = self._text(node, path, by_value)
            return
        if isinstance(node, Mapping):
            items: Any = node.items()
        elif isinstance(node, list | tuple):
            items = enumerate(node)
        else:
            if by_value:
                texts[path] = repr(node) if isinstance(node, _PLAIN) else type(node).__qualname__
            return
        if id(node) in self._above:
            return
        self._above.add(id(node))
        self._in_tuple += isinstance(node, tuple)
        for key, value in items:
            below = join_path(path, key)
            # Parts of a model have parameters of their own in the groups.
            is_plain = (by_value or key == _GROUPS) and key != _PARAMETERS
            self._describe(value, below, texts, by_value=is_plain)
        self._in_tuple -= isinstance(node, tuple)
        self._above.remove(id(node))

    def _text(self, tensor: torch.Tensor, path: str, by_value: bool) -> str:
        if self._flat and is_part_of_flat(tensor, self._flat):
            raise _sharded(path, "part of a flat parameter of FSDP")
        if type(tensor) not in PLAIN_TENSORS and is_shard(tensor):
            if self._in_tuple:
                raise _sharded(path, f"{type(tensor).__name__} in a tuple")
            self.has_shards = True
        kind = (tensor.dtype, tensor.shape)
        text = self._kinds.get(kind)
        if text is None:  # a state has few kinds of tensors and many tensors
            text = f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
            self._kinds[kind] = text
        return f"{text} {_values(tensor)}" if by_value else text


def _sharded(path: str, kind: str) -> ShardedStateError:
    return ShardedStateError(f"{path!r} is sharded over ranks ({kind}). {ADVICE}")


def _values(tensor: torch.Tensor) -> str:
    """A text for the values of a small tensor on the CPU; empty for others."""
    is_small = tensor.layout is torch.strided and tensor.is_cpu and tensor.nbytes <= _SMALL_NBYTES
    return repr(tensor.tolist()) if is_small else ""


@dataclass(frozen=True)
class _Difference:
    """What two ranks have, that must be alike."""

    path: str
    ours: str
    theirs: str
    first_rank: int
    rank: int

    def error(self) -> ShardedStateError:
        return ShardedStateError(
            f"{self.path!r} differs between ranks: {_short(self.ours)} on rank {self.first_rank}, "
            f"{_short(self.theirs)} on rank {self.rank}. {_advice(self.path)}",
            rank=self.rank,
        )


def _compare(every: Sequence[Mapping[str, str]], ranks: Sequence[int]) -> bool | _Difference:
    """Compares a part of the state, as all ``ranks`` have it.

    A rank that has nothing there is not compared.

    Returns:
        What differs and must not, or else whether names differ.
    """
    first: dict[str, tuple[str, int]] = {}
    differ = False
    for texts, rank in zip(every, ranks, strict=True):
        missing = [path for path in first if path not in texts] if texts else []
        added = [path for path in texts if path not in first] if first else []
        differ = differ or bool(missing or added)
        changed = [path for path, text in texts.items() if first.get(path, (text,))[0] != text]
        wrong = sorted(changed + [path for path in missing + added if _is_by_name(path)])
        if wrong:
            ours, at = first.get(wrong[0], ("nothing", ranks[0]))
            return _Difference(wrong[0], ours, texts.get(wrong[0], "nothing"), at, rank)
        for path, text in texts.items():
            first.setdefault(path, (text, rank))
    return differ


def _is_by_name(path: str) -> bool:
    """Whether all ranks must have this path, if they have anything in this part."""
    return path.split("/")[1] in _BY_VALUE or f"/{_GROUPS}/" in path


def _advice(path: str) -> str:
    if path.startswith("state/extra"):
        return (
            "What differs by rank belongs in pyckpt.State(per_rank={...}), which is saved for all "
            "ranks. Or give every rank the same value, such as a list of those of all"
        )
    if path.startswith("state/schedulers") or f"/{_GROUPS}/" in path:
        return (
            "One file holds one rank's alone. Step schedulers and change learning rates alike on "
            "every rank, by what all ranks know, such as the mean of their losses"
        )
    return ADVICE


def _short(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}..."
