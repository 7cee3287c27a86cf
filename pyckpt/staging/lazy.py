"""Tensors that are saved in place, and copied only before an optimizer changes them.

Forward and backward leave parameters and the optimizers' state alone; ``optimizer.step()`` changes
them. So a save in the background may read them in place. A hook before each step copies what has
not been read yet. Everything else is copied when the save begins.

There is one hook for all torch optimizers of the process, and one around ``engine.step()`` of each
DeepSpeed engine that was saved lazily. Hooks are never removed, because the background thread could
do so in the middle of a step. They do nothing while nothing is saved.

torch may free the memory while it is read, for instance when a tensor is resized or shared with
another process. So it is read through the kernel, which cannot fault, and afterwards it is checked
that every tensor has the memory that it had.

There is no lock here. A signal handler may come at any point of the training thread, and save, or
wait for a save that is under way. What the background thread needs to end that save must not be
held by the interrupted code. So both threads may stage, settle and close at the same time, and all
that they share is changed by single operations on lists and dicts, which Python makes atomic.
"""

from __future__ import annotations

import enum
import functools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any
from weakref import WeakSet

import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from pyckpt import _core
from pyckpt.errors import CheckpointError, OptionError, TornSaveError
from pyckpt.staging.buffers import BufferPool, HostBuffer
from pyckpt.staging.copies import Copies
from pyckpt.staging.latch import Latch
from pyckpt.state import TrainingState, is_deepspeed_engine, optimizers_of
from pyckpt.torch_format.records import Record
from pyckpt.torch_format.torch_internals import wrapped_step

__all__ = ["LiveRecords", "check_lazy", "distrust", "is_lazy_safe"]


def check_lazy(state: TrainingState) -> None:
    """Checks that memory can be read in place, and that every step calls our hook first.

    Raises:
        OptionError: An optimizer does not call torch's hooks, the model is not a module, or the
            system does not permit it.
    """
    if not isinstance(state.model, torch.nn.Module):
        raise OptionError("stage='lazy' needs a model that is a torch.nn.Module")
    if not _core.can_guard_copies():
        raise OptionError(
            "stage='lazy' needs the system call process_vm_readv, which is not permitted here: use "
            "stage='copy'"
        )
    if is_deepspeed_engine(state.model):  # its step is hooked
        return
    for optimizer in _optimizers(state):
        if not _is_hooked(optimizer):
            raise OptionError(
                f"stage='lazy' is not possible with {type(optimizer).__qualname__}, which does not "
                "call the hooks of torch.optim.Optimizer before a step (some versions of "
                "torch.compile remove them): use stage='copy'"
            )


def is_lazy_safe(state: TrainingState) -> bool:
    """Whether, as far as is known, only steps of hooked optimizers change what is trained.

    False for DeepSpeed, whose engines have many ways to move weights; for Composer's algorithms,
    some of which swap weights; for optimizers with public methods that torch's do not have, which
    may move weights too; for embeddings that are renormalized in forward; for parameters that are
    trained by an optimizer that ``state`` does not name; and after ``distrust``. What changes
    frozen parameters, such as averaging, is not known: see ``frozen`` of ``LiveRecords``.
    """
    if not isinstance(state.model, torch.nn.Module) or is_deepspeed_engine(state.model):
        return False
    if state.model in _distrusted or not _core.can_guard_copies():
        return False
    if getattr(state, "algorithms", None):
        return False
    optimizers = list(_optimizers(state))
    if any(one in _distrusted for one in optimizers if isinstance(one, torch.optim.Optimizer)):
        return False
    if not optimizers or not all(_is_hooked(one) and _only_steps(one) for one in optimizers):
        return False
    if any(getattr(module, "max_norm", None) is not None for module in state.model.modules()):
        return False
    stepped = {id(parameter) for one in optimizers for parameter in _parameters(one)}
    return all(id(p) in stepped for p in state.model.parameters() if p.requires_grad)


def distrust(state: TrainingState) -> None:
    """Makes ``is_lazy_safe`` false for the model and the optimizers of ``state`` from now on.

    Call it when a save was torn: something but the optimizers changes what they train.
    """
    for one in (state.model, *_optimizers(state)):
        if isinstance(one, torch.nn.Module | torch.optim.Optimizer):
            _distrusted.add(one)


_distrusted: WeakSet[torch.nn.Module | torch.optim.Optimizer] = WeakSet()


class LiveRecords:
    """Records that are read in place as long as possible.

    The training thread makes it. Another thread reads the records and calls ``settle()`` and
    ``close()``. Any thread may call ``stage()``, also a signal handler that interrupts it.

    Nothing reads a GPU's memory in place: its bytes are copied at once, while the GPU goes on, and
    what a step queues there waits for the copy. The CPU does not.

    Memory: at once the bytes of all tensors that are neither parameters nor optimizer state, or are
    on a device; at the first step the bytes that are unread then.

    Args:
        frozen: Whether parameters are read in place too that the next step will not change, as far
            as is known: those that need no gradient, that no optimizer of ``state`` has, or that
            were never given a gradient.

    Attributes:
        records: The same records, in the same order; valid until ``close()``.
        staged: Set once nothing is read in place any more, and all copies are made.
    """

    def __init__(
        self,
        records: Sequence[Record],
        state: TrainingState,
        pool: BufferPool,
        threads: int,
        staged: Latch,
        *,
        frozen: bool = True,
    ) -> None:
        self.staged = staged
        self._pool = pool
        self._threads = threads
        self._memory = _core.LiveMemory()
        self._released = Latch()  # set once nothing is read in place any more
        self._error: BaseException | None = None
        self._buffers: list[HostBuffer] = []
        self._staging: list[None] = []  # an item for each call of stage() that runs
        self._closed = False

        self._stepping = [one for one in _optimizers(state) if _is_hooked(one)]
        storages = [record.owner._cdata for record in records]
        self._marks = _marks(state, frozen, set(storages))
        live = {storage._cdata for _, _, _, storage, _ in self._marks}
        ways = [_way(record, at in live) for record, at in zip(records, storages, strict=True)]
        chosen = {
            way: [r for r, its in zip(records, ways, strict=True) if its is way] for way in _Way
        }
        # A pool of its own, released with it: these copies are small, all others large.
        self._copies = Copies(chosen[_Way.AT_ONCE], BufferPool(), threads)
        self._copies.hold_back()
        try:
            self._queued = Copies(chosen[_Way.ON_DEVICE], pool, threads)
        except BaseException:
            self._copies.close()
            raise
        kept = {
            _Way.AT_ONCE: iter(self._copies.records),
            _Way.ON_DEVICE: iter(self._queued.records),
            _Way.IN_PLACE: map(self._in_place, chosen[_Way.IN_PLACE]),
        }
        self.records = [next(kept[way]) for way in ways]
        _watch(self, state)

    def stage(self) -> None:
        """Copies what is unread, so that the caller may change the state.

        On a device, that is what the caller queues from now on, on its current streams.

        Errors are kept and raised by ``settle()``. KeyboardInterrupt and SystemExit are raised at
        once, and ``settle()`` then raises a CheckpointError.
        """
        self._queued.hold_back()
        if self._released.is_set():
            return
        self._staging.append(None)
        try:
            self._stage()
        except Exception as error:
            self._fail(error)
        except BaseException as error:
            self._fail(
                CheckpointError(
                    f"{type(error).__name__} came while the state was copied before a change"
                )
            )
            raise
        finally:
            self._let_go()
            self._staging.pop()
            if self._closed and not self._staging:
                self._give_back()

    def _stage(self) -> None:
        self._check_untouched()
        buffer = self._pool.take(self._memory.staging_nbytes, pinned=False)
        self._buffers.append(buffer)
        self._memory.stage(buffer.bytes.data_ptr(), self._threads)
        self._check_untouched()

    def _fail(self, error: BaseException) -> None:
        """Keeps an error, unless the save has got all it needs in the meantime."""
        if not self._released.is_set() and self._error is None:
            self._error = error

    def wait(self) -> None:
        """Waits until all bytes that are not read in place are copied."""
        self._copies.wait()
        self._queued.wait()
        self._end_if_copied()

    def settle(self) -> None:
        """Raises what went wrong. Call it when the records are written. Ends the reading in place.

        Raises:
            TornSaveError: A tensor was changed while it was read in place.
            Exception: The error of a copy before a step.
        """
        if not self._released.is_set():
            try:
                self._check_untouched()
            finally:
                self._let_go()
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        """Gives the memory back. The records must not be read any more."""
        self._let_go()
        self._copies.close()
        self._queued.close()
        self._end_if_copied()
        self.records.clear()
        self._closed = True
        if not self._staging:  # else the call of stage() does it that ends last
            self._give_back()

    def _give_back(self) -> None:
        while self._buffers:
            try:
                buffer = self._buffers.pop()
            except IndexError:  # another thread took it
                return
            self._pool.give_back(buffer)

    def _in_place(self, record: Record) -> Record:
        source = self._memory.add(record.address, record.nbytes)
        return record._replace(address=0, reader=source)

    def _check_untouched(self) -> None:
        """Checks that nothing was changed, up to now or up to the end of another ``stage()``.

        Raises:
            TornSaveError: Something was.
        """
        torn = self._torn()
        # Once nothing is read in place any more, the state may change.
        if torn is not None and not self._released.is_set():
            raise TornSaveError(torn)

    def _torn(self) -> str | None:
        for mark in self._marks:
            if not _is_untouched(mark):
                name, *_ = mark
                return (
                    f"{name} was changed while it was saved, and not by an optimizer's step: "
                    "use stage='copy', or call wait_staged() first"
                )
        # Fused optimizers do not count versions, so check that they still call the hook.
        for optimizer in self._stepping:
            if not _is_hooked(optimizer):
                return (
                    f"{type(optimizer).__qualname__} stopped calling the hooks of "
                    "torch.optim.Optimizer while its parameters were saved: use stage='copy'"
                )
        return None

    def _let_go(self) -> None:
        # First, so that a thread which finds something changed also finds it released.
        self._released.set()
        self._marks = []
        self._stepping = []
        self._end_if_copied()

    def _end_if_copied(self) -> None:
        """Sets ``staged`` if all is done. Of two threads that do the last two things, one sees it.

        Until then, every step of an optimizer waits on its own stream.
        """
        if self._released.is_set() and self._copies.is_complete and self._queued.is_complete:
            _watching.pop(id(self), None)
            self.staged.set()


class _Way(enum.Enum):
    """How a record is kept while training goes on."""

    IN_PLACE = "read where it is"
    ON_DEVICE = "copied at once, while the device goes on with what does not change it"
    AT_ONCE = "copied before the device goes on"


def _way(record: Record, is_live: bool) -> _Way:
    if not is_live:
        return _Way.AT_ONCE
    return _Way.IN_PLACE if record.reader is None else _Way.ON_DEVICE


# What shows that a tensor is unchanged: its name, the tensor, its version, its storage, and the
# storage's address and size. If a tensor gets other memory, the old storage is unchanged and still
# read. If memory is resized, it moves. Not a class, because training waits until all are made.
_Mark = tuple[str, torch.Tensor, int, torch.UntypedStorage, tuple[int, int]]


def _is_untouched(mark: _Mark) -> bool:
    _, tensor, version, storage, place = mark
    return tensor._version == version and (storage.data_ptr(), storage.nbytes()) == place


def _marks(state: TrainingState, frozen: bool, saved: set[int]) -> list[_Mark]:
    """Marks of parameters and optimizer state in the ``saved`` storages (their ``_cdata``).

    A parameter appears twice, from the model and from its optimizer.
    """
    buffers = {
        buffer.untyped_storage()._cdata
        for buffer in state.model.buffers()
        if buffer.layout is torch.strided
    }
    live = saved - buffers
    marks: list[_Mark] = []
    for name, whole in _named_tensors(state, frozen):
        tensor = getattr(whole, "_local_tensor", whole)  # of a DTensor
        # Inference tensors have no version.
        if tensor.layout is not torch.strided or tensor.is_inference():
            continue
        storage = tensor.untyped_storage()
        if storage._cdata in live:
            place = (storage.data_ptr(), storage.nbytes())
            marks.append((name, tensor, tensor._version, storage, place))
    return marks


def _named_tensors(state: TrainingState, frozen: bool) -> Iterator[tuple[str, torch.Tensor]]:
    stepped = {id(p) for one in _optimizers(state) for p in _parameters(one) if _is_stepped(one, p)}
    for name, parameter in state.model.named_parameters():
        if frozen or id(parameter) in stepped:
            yield f"parameter {name}", parameter
    for optimizer in _optimizers(state):
        kind = type(optimizer).__qualname__
        name = f"a parameter of {kind}"
        for parameter in _parameters(optimizer):
            if frozen or id(parameter) in stepped:
                yield name, parameter
        for parameter, of_parameter in optimizer.state.items():
            # Anything else that an optimizer of your own keeps there is copied.
            if isinstance(of_parameter, Mapping) and (frozen or id(parameter) in stepped):
                for key, value in of_parameter.items():
                    if isinstance(value, torch.Tensor):
                        yield f"{key!r} of {kind}", value


def _is_stepped(optimizer: Any, parameter: torch.Tensor) -> bool:
    """Whether steps change the parameter, as far as is known.

    A frozen one may be an average of others, though an optimizer has it. So may one that never had
    a gradient, because the average is made without.
    """
    trained = parameter.grad is not None or bool(optimizer.state.get(parameter))
    return parameter.requires_grad and trained


def _parameters(optimizer: Any) -> Iterator[torch.Tensor]:
    for group in optimizer.param_groups:
        yield from group["params"]


def _optimizers(state: TrainingState) -> Sequence[Any]:
    if not is_deepspeed_engine(state.model):
        return optimizers_of(state)
    # The optimizer inside DeepSpeed's own, which has the sharded tensors. It is torch's, or derives
    # from torch's.
    inner = state.model.basic_optimizer
    return [] if inner is None else [inner]


def _only_steps(optimizer: Any) -> bool:
    """Whether the optimizer has no public methods but those of torch.optim.Optimizer.

    Other ones may move weights, as ``train()`` and ``eval()`` do of optimizers that keep two sets.
    """
    own = torch.optim.Optimizer
    return all(
        hasattr(own, name) or name.startswith("_") or not callable(value)
        for kind in type(optimizer).__mro__
        if not kind.__module__.startswith("torch.optim.")
        for name, value in vars(kind).items()
    )


# The code of torch's wrapper around every optimizer's step, which calls the hooks.
_HOOKING = torch.optim.Optimizer.profile_hook_step(lambda: None).__code__


def _is_hooked(optimizer: Any) -> bool:
    """Whether a step calls torch's hooks.

    Torch's own mark on a hooked step is not reliable: it stays when torch.compile removes the
    hooks, as some versions do, and when ``optimizer.step`` is replaced.
    """
    step = optimizer.step if isinstance(optimizer, torch.optim.Optimizer) else None
    while step is not None and getattr(step, "__code__", None) is not _HOOKING:
        step = wrapped_step(step)
    return step is not None


# The hooks, and the records that they stage.

_watching: dict[int, LiveRecords] = {}  # by id
_has_hook = False


def _watch(records: LiveRecords, state: TrainingState) -> None:
    global _has_hook
    if not _has_hook:  # a handler that comes here makes a second one, which does no harm
        register_optimizer_step_pre_hook(_before_step)
        _has_hook = True
    engine = state.model
    if is_deepspeed_engine(engine) and not hasattr(engine.step, "stages_live_records"):
        engine.step = _hooked_step(engine.step)
    _watching[id(records)] = records


# A forked process does not have the reading threads, so it must not wait for them.
os.register_at_fork(after_in_child=_watching.clear)


def _before_step(*_: Any) -> None:
    for records in list(_watching.values()):
        records.stage()


def _hooked_step(step: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(step)
    def hooked(*arguments: Any, **options: Any) -> Any:
        _before_step()
        return step(*arguments, **options)

    hooked.stages_live_records = True  # type: ignore[attr-defined]
    return hooked
