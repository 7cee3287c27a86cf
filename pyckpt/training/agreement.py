"""Whether the ranks hold the same state, so that rank 0's is the state of all.

The file has rank 0's state alone. With data parallelism that is everything. With sharded, tensor,
pipeline or expert parallelism it is a part, and a save of it would look whole. Three things tell:

- a tensor that knows that it is a shard: DTensor, ShardedTensor, FSDP1's flat parameters;
- names, shapes and types that differ between ranks in the model, the optimizers or ``extra``, and
  plain values that differ in ``extra``. A rank that has nothing there is not compared: states that
  are gathered to rank 0 are empty on the others;
- weights that have nothing in common, beside others that the ranks share. A few numbers of each
  weight are compared. Replicas may drift apart, as in local SGD. Shards have no numbers in common.
  Ranks that share no weight at all train models of their own. Then a warning is logged.
"""

from __future__ import annotations

import datetime
import enum
import hashlib
import logging
import math
import random
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from pyckpt.errors import ShardedStateError
from pyckpt.key_paths import join_path
from pyckpt.ranks.exchange import Channel, together
from pyckpt.state import TrainingState, optimizers_of

__all__ = ["Description", "WeightSamples"]

_LOGGER = logging.getLogger("pyckpt")

_ADVICE = (
    "One file holds rank 0's state alone. Gather it on rank 0 in the state's state_dict() (see "
    "torch.distributed.checkpoint.state_dict, full_state_dict=True), or let every rank save its "
    "part with pyckpt.save or torch.distributed.checkpoint"
)
_WHOLE = (torch.Tensor, torch.nn.Parameter)  # types of most tensors, which know no other parts
_COMPARED = ("model", "optimizers", "extra")  # what all ranks must have alike
_BY_VALUE = "extra"  # where plain values must be equal too
_PLAIN = (bool, int, float, complex, str, bytes, type(None), datetime.timedelta, enum.Enum)
_SMALL_NBYTES = 1 << 16  # up to here, tensors of ``extra`` on the CPU are compared by value
_MOST_WEIGHTS = 64
_NUMBERS_OF_EACH = 16
# Numbers without relation differ by about 1.4 times their size, replicas by far less.
_UNRELATED = 0.5


class Description:
    """What this rank has of the state, in so far as all ranks must have the same.

    Args:
        saved: The state's dict.

    Attributes:
        parts: For each compared part of the state, a text for each key path.

    Raises:
        ShardedStateError: A tensor is this rank's part of a larger one.
    """

    def __init__(self, state: TrainingState, saved: Mapping[str, Any]) -> None:
        self.parts: dict[str, dict[str, str]] = {}
        self._flat = _storages_of_fsdp1(state)
        self._kinds: dict[tuple[torch.dtype, torch.Size], str] = {}
        self._above: set[int] = set()
        for part, node in saved.items():
            texts: dict[str, str] = {}
            self._describe(node, f"state/{part}", texts, by_value=part == _BY_VALUE)
            if texts and part in _COMPARED:
                self.parts[part] = texts

    def digests(self) -> dict[str, str]:
        """A short text for each part. It also depends on the order of what is in it."""
        return {
            part: hashlib.sha256("\n".join((*texts, *texts.values())).encode()).hexdigest()
            for part, texts in self.parts.items()
        }

    def compare(self, digests: Sequence[Mapping[str, str]], channel: Channel) -> None:
        """Compares what all ranks have. Collective.

        Args:
            digests: Those of all ranks, by rank.

        Raises:
            ShardedStateError: A part of the state differs between two ranks.
        """
        differing = [
            (rank, part)
            for rank, its_digests in enumerate(digests)
            for part, digest in its_digests.items()
            if digest != digests[0].get(part)
        ]
        for rank, part in differing:
            asked = (0, rank)
            texts = together(
                "comparing the ranks' states",
                lambda: self.parts.get(part, {}) if channel.rank in asked else {},  # noqa: B023
                channel,
            )
            _compare(texts[0], texts[rank], rank)

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
        for key, value in items:
            self._describe(value, join_path(path, key), texts, by_value=by_value)
        self._above.remove(id(node))

    def _text(self, tensor: torch.Tensor, path: str, by_value: bool) -> str:
        if self._flat and _is_flat(tensor, self._flat):
            raise _sharded(path, "part of a flat parameter of FSDP")
        if type(tensor) not in _WHOLE and _is_shard(tensor):
            raise _sharded(path, type(tensor).__name__)
        kind = (tensor.dtype, tensor.shape)
        text = self._kinds.get(kind)
        if text is None:  # a state has few kinds of tensors and many tensors
            text = f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
            self._kinds[kind] = text
        return f"{text} {_values(tensor)}" if by_value else text


def _sharded(path: str, kind: str) -> ShardedStateError:
    return ShardedStateError(f"{path!r} is sharded over ranks ({kind}). {_ADVICE}")


class WeightSamples:
    """A few numbers of each weight of a model, taken when it is made and looked at later.

    Making it queues small copies on the devices and does not wait for them.
    """

    def __init__(self, model: Any) -> None:
        self._names: list[str] = []
        self._taken: list[torch.Tensor] = []
        self._events: list[torch.cuda.Event] = []
        if isinstance(model, torch.nn.Module) and not _sharding_modules(model):
            self._take(model)

    def check_related(self, channel: Channel) -> None:
        """Compares the samples of all ranks. Collective.

        Raises:
            ShardedStateError: A weight has nothing in common with rank 0's of the same name, and
                others have.
        """
        doing = "comparing the ranks' weights"
        digests = together(doing, self._digest, channel)
        if all(digest == digests[0] for digest in digests):
            return  # replicas are equal, so this is where it mostly ends
        first, *others = together(doing, self._numbers, channel)
        for rank, theirs in enumerate(others, 1):
            pairs = {name: (numbers, theirs.get(name, [])) for name, numbers in first.items()}
            unrelated = [name for name, pair in pairs.items() if _is_unrelated(*pair)]
            shared = [name for name, pair in pairs.items() if _is_shared(*pair)]
            if unrelated and shared:
                raise ShardedStateError(
                    f"weight {unrelated[0]!r} of rank {rank} has nothing in common with rank 0's, "
                    f"and {shared[0]!r} has: the ranks hold parts of one model. {_ADVICE}",
                    rank=rank,
                )
            if unrelated and channel.rank == 0:
                _LOGGER.warning(
                    "the models of ranks 0 and %d have nothing in common: rank 0's is saved", rank
                )

    def _take(self, model: torch.nn.Module) -> None:
        parameters = list(model.named_parameters())
        if len(parameters) > _MOST_WEIGHTS:  # the same choice on every rank, of all kinds
            parameters = random.Random(0).sample(parameters, _MOST_WEIGHTS)
        for name, parameter in parameters:
            weight = parameter.detach()
            if type(weight) is not torch.Tensor or weight.layout is not torch.strided:
                continue
            if not weight.numel() or not (weight.is_cpu or weight.is_cuda):
                continue
            row = (weight[weight.shape[0] // 2] if weight.ndim > 1 else weight).reshape(-1)
            self._names.append(name)
            self._taken.append(row[:_NUMBERS_OF_EACH].to(torch.float32, copy=True))
        for device in {row.device for row in self._taken if row.is_cuda}:
            event = torch.cuda.Event()
            event.record(torch.cuda.current_stream(device))
            self._events.append(event)

    def _digest(self) -> str:
        return hashlib.sha256(repr(self._numbers()).encode()).hexdigest()

    def _numbers(self) -> dict[str, list[float]]:
        for event in self._events:
            event.synchronize()
        rows = (row.tolist() for row in self._taken)
        return dict(zip(self._names, rows, strict=True))


def _is_unrelated(first: Sequence[float], second: Sequence[float]) -> bool:
    distance, size = _distance(first, second)
    return distance > _UNRELATED * size


def _is_shared(first: Sequence[float], second: Sequence[float]) -> bool:
    """Whether two samples are alike, and not just because both are as they were initialised."""
    distance, size = _distance(first, second)
    return len(set(first)) > 1 and distance <= _UNRELATED * size


def _distance(first: Sequence[float], second: Sequence[float]) -> tuple[float, float]:
    """How far two samples are from each other, and how large they are."""
    size = max(math.hypot(*first), math.hypot(*second))
    if not first or len(first) != len(second) or not math.isfinite(size):
        return 0.0, 0.0  # not comparable
    return math.dist(first, second), size


def _is_shard(tensor: torch.Tensor) -> bool:
    """Whether a tensor is of a kind that knows its other parts, and has some."""
    placements, mesh = getattr(tensor, "placements", None), getattr(tensor, "device_mesh", None)
    if placements is not None and mesh is not None:  # a DTensor
        return any(
            not placement.is_replicate() and mesh.size(dim) > 1
            for dim, placement in enumerate(placements)
        )
    return hasattr(tensor, "local_shards")  # a ShardedTensor


def _sharding_modules(model: torch.nn.Module) -> list[Any]:
    """The modules of FSDP1 in ``model`` that shard over more than one rank."""
    fsdp = sys.modules.get("torch.distributed.fsdp")
    if fsdp is None:
        return []
    return [
        module
        for module in model.modules()
        if isinstance(module, fsdp.FullyShardedDataParallel)
        and module.sharding_strategy is not fsdp.ShardingStrategy.NO_SHARD
        and module.process_group.size() > 1
    ]


def _storages_of_fsdp1(state: TrainingState) -> set[int]:
    """The storages of FSDP1's flat parameters, and of what optimizers keep of them.

    They are plain tensors, so nothing else tells that they are shards.
    """
    model = state.model
    if not isinstance(model, torch.nn.Module) or not _sharding_modules(model):
        return set()
    tensors: list[Any] = list(model.parameters())
    for optimizer in optimizers_of(state):
        for kept in getattr(optimizer, "state", {}).values():
            tensors += kept.values() if isinstance(kept, Mapping) else ()
    return {
        tensor.untyped_storage()._cdata
        for tensor in tensors
        if isinstance(tensor, torch.Tensor) and tensor.layout is torch.strided
    }


def _is_flat(tensor: torch.Tensor, flat: set[int]) -> bool:
    # Step counts belong to a parameter too, and are the same on every rank.
    return tensor.numel() > 1 and tensor.untyped_storage()._cdata in flat


def _values(tensor: torch.Tensor) -> str:
    """A text for the values of a small tensor on the CPU; empty for others."""
    is_small = tensor.layout is torch.strided and tensor.is_cpu and tensor.nbytes <= _SMALL_NBYTES
    return repr(tensor.tolist()) if is_small else ""


def _compare(first: Mapping[str, str], second: Mapping[str, str], rank: int) -> None:
    differing = sorted(path for path in {*first, *second} if first.get(path) != second.get(path))
    if not differing:  # only their order differs
        return
    path = differing[0]
    ours, theirs = (_short(texts.get(path, "nothing")) for texts in (first, second))
    advice = _EXTRA_ADVICE if path.startswith(f"state/{_BY_VALUE}") else _ADVICE
    raise ShardedStateError(
        f"{path!r} differs between ranks: {ours} on rank 0, {theirs} on rank {rank}. {advice}",
        rank=rank,
    )


_EXTRA_ADVICE = (
    "One file holds rank 0's extra alone. Give every rank the same value, for instance a list of "
    "the values of all ranks (torch.distributed.all_gather_object)"
)


def _short(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}..."
