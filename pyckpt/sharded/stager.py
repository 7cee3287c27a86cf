"""Stager: copies a state to host memory for ``dcp.async_save``, as fast as the memory allows."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Iterator
from typing import Any

import torch
from torch.distributed._state_dict_utils import _copy_state_dict, _create_cpu_state_dict

from pyckpt.options import default_threads, whole_threads
from pyckpt.ranks.exchange import current_ranks
from pyckpt.staging.buffers import BufferPool
from pyckpt.staging.copies import Copies
from pyckpt.tensor_kinds import PLAIN_TENSORS, is_dtensor, is_shard
from pyckpt.torch_format.device_reader import memory_of
from pyckpt.torch_format.serialize import spanned_records
from pyckpt.torch_format.torch_internals import dtensor_like

__all__ = ["Stager"]


class Stager:
    """Copies states to host memory: ``dcp.async_save(..., async_stager=Stager())``.

    ``async_save`` returns after one copy, made by several threads. CUDA memory is copied to pinned
    memory. Keep the stager for all saves, since it uses its memory again: it holds as much as the
    states that were staged at the same time. The memory of a state is free once the save has
    dropped it, which it does by itself when it ends.

    It is for the thread executor, torch's default: the process executor would copy again.

    Args:
        num_threads: Copying threads; None takes an equal share of the CPUs for each rank on the
            machine.

    Raises:
        OptionError: ``num_threads`` is wrong.
    """

    # torch asks for both. Staging is complete when stage() returns.
    _synchronize_after_execute = False
    should_synchronize_after_execute = False

    def __init__(self, num_threads: int | None = None) -> None:
        self._threads = None if num_threads is None else whole_threads(num_threads)
        self._pool = BufferPool()

    def stage(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        """A copy of the state in host memory, which training cannot change."""
        threads = self._threads or default_threads(current_ranks().local_world_size)
        staged: dict[str, Any] = _Staging(self._pool, threads).copy(state_dict)
        return staged

    def synchronize_staging(self) -> None:
        """Does nothing, since ``stage()`` waits."""

    def close(self) -> None:
        """Drops the memory that is not in use."""
        self._pool = BufferPool()


class _Staging:
    """Copies one state: first it notes all tensors, then it copies their memory at once."""

    def __init__(self, pool: BufferPool, threads: int) -> None:
        self._pool = pool
        self._threads = threads
        self._tensors: list[torch.Tensor] = []
        self._places: Iterator[tuple[int, int]] = iter(())  # of their copies, in the same order

    def copy(self, state: Any) -> Any:
        self._note(state)
        records = spanned_records(self._tensors)
        sources = {memory_of(one): one for one in records if one.nbytes}
        copies = Copies(list(sources.values()), self._pool, self._threads)
        copies.wait()
        if not copies.records:
            copies.close()
            memory = torch.empty(0, dtype=torch.uint8, device="cpu")
        else:
            # The last tensor made of this array gives the memory back.
            array = copies.records[0].owner.numpy()[:]
            weakref.finalize(array, copies.close).atexit = False
            memory = torch.from_numpy(array)
        starts = {
            key: copied.address - memory.data_ptr()
            for key, copied in zip(sources, copies.records, strict=True)
        }
        self._places = iter([(starts.get(memory_of(one), 0), one.nbytes) for one in records])
        return self._rebuilt(state, memory)

    def _note(self, value: Any) -> None:
        """Notes the tensors of a state in the order in which ``_rebuilt`` comes to them."""
        if isinstance(value, dict):
            for inner in value.values():
                self._note(inner)
        elif isinstance(value, list | tuple):
            for inner in value:
                self._note(inner)
        elif (tensor := _plain(value)) is not None:
            self._tensors.append(tensor)

    def _rebuilt(self, value: Any, memory: torch.Tensor) -> Any:
        if isinstance(value, dict):
            return _filled(value, {key: self._rebuilt(one, memory) for key, one in value.items()})
        if isinstance(value, list):
            return [self._rebuilt(one, memory) for one in value]
        if isinstance(value, tuple):
            parts = [self._rebuilt(one, memory) for one in value]
            return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
        tensor = _plain(value)
        if tensor is None:
            return _other(value)
        start, nbytes = next(self._places)
        raw = memory[start : start + nbytes].view(tensor.dtype)
        made = raw.as_strided(tensor.shape, tensor.stride(), raw.storage_offset())
        return dtensor_like(made, value) if is_dtensor(value) else made


def _plain(value: Any) -> torch.Tensor | None:
    """The strided tensor whose memory is copied; None if it takes another way."""
    if is_dtensor(value):
        value = value._local_tensor
    if type(value) not in PLAIN_TENSORS or value.layout is not torch.strided or value.is_quantized:
        return None
    if value.is_conj() or value.is_neg() or value.device.type not in ("cpu", "cuda"):
        return None
    return value.detach()  # type: ignore[no-any-return]


def _filled(like: dict[Any, Any], items: dict[Any, Any]) -> dict[Any, Any]:
    """A dict of the same type, where that can be made of items."""
    if type(like) is dict:
        return items
    made = copy.copy(like)
    made.update(items)
    return made


def _other(value: Any) -> Any:
    """Copies what is no plain tensor, as torch does."""
    if is_shard(value):
        state = {"": value}
        made = _create_cpu_state_dict(state)
        return _copy_state_dict(state, made)[""]
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    return copy.deepcopy(value)
