"""async_save_checkpoint: saves while training goes on.

    training thread   collect ─▶ stage ─▶ return ─▶ forward, backward, step ...
                                   │                               │ lazy: copies what is unread
    background thread              └─▶ write ─▶ commit ─▶ result ◀─┘

Each save has a background thread. These threads write one after another. They are not daemons, also
if training runs in one, so the interpreter waits for them. A save that begins when the interpreter
ends already, or when the system has no more threads, is written before the call returns. With
several ranks, the training thread and the background thread have a channel each.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from concurrent.futures import Future
from contextlib import closing, suppress
from functools import partial
from pathlib import Path, PurePath
from typing import Any, Literal

from pyckpt.errors import OptionError, TornSaveError
from pyckpt.key_paths import IgnoreKeys
from pyckpt.options import BackgroundOptions, WriteOptions, default_threads, whole_number
from pyckpt.ranks.exchange import Channel, begin_together, current_ranks, together
from pyckpt.staging.buffers import BufferPool
from pyckpt.staging.copies import Copies
from pyckpt.staging.latch import Latch
from pyckpt.staging.lazy import LiveRecords, check_lazy, distrust, is_lazy_safe
from pyckpt.state import TrainingState
from pyckpt.training import pending_saves
from pyckpt.training.pending_saves import PendingSave, check_room, raise_uncollected, wait_for_room
from pyckpt.training.save_checkpoint import Save, StateDictType

__all__ = ["async_save_checkpoint"]

_LOGGER = logging.getLogger("pyckpt")

_pool = BufferPool()
_last_write: Latch | None = None  # set when the latest save has been written


def async_save_checkpoint(
    state: TrainingState,
    filename: str | PurePath = "ep{epoch}-ba{batch}-rank{rank}",
    *,
    weights_only: bool = False,
    ignore_keys: IgnoreKeys = None,
    state_dict_type: StateDictType | None = None,
    compression_level: int | None = None,
    num_threads: int | None = None,
    fsync: bool = True,
    stage: Literal["copy", "lazy"] | None = None,
    nice: int = 10,
    max_pending: int = 1,
    when_busy: Literal["wait", "raise"] = "wait",
    process_group: Any = None,
) -> PendingSave:
    """Starts to save the training state as it is now, and returns while the file is written.

    It saves the same contents to the same file as ``save_checkpoint``, and handles failed ranks in
    the same way. Call it on every rank, in the thread that trains.

    ``stage`` says how the state is kept while training goes on:

    - ``"copy"``: everything is copied to host memory before the call returns. CUDA memory is copied
      before all work that is queued on the current stream after the call. Holds one state on the
      host, and keeps the memory for the next save.
    - ``"lazy"``: parameters and optimizer state are read in place. What is unread when an optimizer
      steps is copied then. Everything else is copied at once. Between the call and the next step,
      only a torch.optim.Optimizer or DeepSpeed's engine may change parameters and optimizer state.
      Other in-place changes raise TornSaveError if torch counts them, and so does memory that is
      moved or freed. Changes through ``tensor.data`` or NumPy, and by other libraries, are not
      detected.
    - ``None``: lazy if ``state`` names torch optimizers for everything that is trained and nothing
      else is known to change parameters. What is not known to be trained is then copied at once. If
      such a save is torn all the same, a warning is logged, and later saves of the model are
      copied. Else copy.

    Args:
        state, filename, weights_only, ignore_keys, state_dict_type, compression_level, fsync,
            process_group: As in ``save_checkpoint``.
        num_threads: Worker threads of each rank that writes; None takes half as many as
            ``save_checkpoint``, at least one.
        nice: By how much the priority of these threads is lowered, 0 to 19.
        max_pending: How many saves may be under way, this one included. They are written one after
            another.
        when_busy: What to do if ``max_pending`` saves are under way already: wait, or raise
            SaveInProgressError.

    Returns:
        A Future of what ``save_checkpoint`` returns.

    Raises:
        CheckpointError: As in ``save_checkpoint``, for all steps before the write. The Future has
            later errors. SaveInProgressError: see ``when_busy``. Also the error of an earlier save
            that has not been collected; then this save does not begin.
    """
    global _last_write
    if when_busy == "wait":
        with suppress(OptionError):  # is raised below, on all ranks
            wait_for_room(_checked(max_pending))
    training, background = begin_together("async_save_checkpoint", 2, process_group)

    def make_options() -> WriteOptions:
        raise_uncollected()
        if stage not in (None, "copy", "lazy"):
            raise OptionError(f"stage must be 'copy', 'lazy' or None, not {stage!r}")
        if when_busy not in ("wait", "raise"):
            raise OptionError(f"when_busy must be 'wait' or 'raise', not {when_busy!r}")
        check_room(_checked(max_pending))
        if stage == "lazy":
            check_lazy(state)
        return BackgroundOptions(compression_level, num_threads, fsync, nice=nice)

    save = Save(state, filename, weights_only, ignore_keys, state_dict_type)
    staging = _Staging()
    pending = PendingSave(staging.staged, staging.stage, staging.progress, staging.give_up)
    begun: Future[bool] = Future()
    written = Latch()
    run = partial(_run, begun, pending, save, staging, background, _last_write, written, nice=nice)
    thread = threading.Thread(target=run, name="pyckpt-save", daemon=False)
    in_background = False
    try:
        save.collect(make_options, training)
        lazy = stage == "lazy" or (stage is None and is_lazy_safe(state))

        def begin() -> None:
            staging.begin(save, state, lazy, chosen=stage is not None)
            nonlocal in_background
            in_background = _start(thread)

        together("staging the state", begin, training)
        pending_saves.begin(pending)
        _last_write = written
        begun.set_result(True)
    except BaseException:
        # Ctrl-C may come at any time. Once begun is set, the thread does everything else.
        if not begun.done():
            pending_saves.forget(pending)
            written.set()
            begun.set_result(False)
            staging.close()
            save.close()
        raise
    if not in_background:
        run(nice=0)
    return pending


def _checked(max_pending: int) -> int:
    return whole_number("max_pending", max_pending, 1)


class _Staging:
    """What this rank keeps of the state as it was at the call.

    Attributes:
        staged: Set when the state may be changed in any way.
    """

    def __init__(self) -> None:
        self.staged = Latch()
        self._chosen = True
        self._state: TrainingState | None = None
        self._save: Save | None = None
        self._kept: Copies | LiveRecords | None = None

    def begin(self, save: Save, state: TrainingState, lazy: bool, *, chosen: bool) -> None:
        """Copies what has to be copied now. ``chosen``: whether the caller chose the way."""
        self._chosen = chosen
        self._state = state
        self._save = save
        records = save.state_records()
        if not records:
            self.staged.set()
            save.replace_state_records([])
            return
        threads = default_threads(current_ranks().local_world_size)
        if lazy:
            self._kept = LiveRecords(records, state, _pool, threads, self.staged, frozen=chosen)
        else:
            self._kept = Copies(records, _pool, threads)
            self._kept.hold_back()
            if self._kept.is_complete:
                self.staged.set()
        save.replace_state_records(self._kept.records)

    def progress(self) -> tuple[int, int]:
        """Bytes written and in total; see PendingSave.progress."""
        return (0, 0) if self._save is None else self._save.progress

    def stage(self) -> None:
        """Copies what has not been copied. Any thread."""
        if isinstance(self._kept, LiveRecords):
            self._kept.stage()
        self.wait()

    def wait(self) -> None:
        """Waits for copies that are being made. The background thread calls it before it reads."""
        kept = self._kept
        if kept is not None:
            kept.wait()
        if not isinstance(kept, LiveRecords):
            self.staged.set()

    def settle(self) -> None:
        """Raises TornSaveError or the error of a copy. For the background thread, at the end."""
        if isinstance(self._kept, LiveRecords):
            self._kept.settle()

    def give_up(self) -> None:
        """Lets the write fail soon."""
        if self._save is not None:
            self._save.give_up()

    def distrust(self) -> bool:
        """After a TornSaveError: whether the way to stage was the default one.

        It is not used for this model again.
        """
        if self._chosen or self._state is None:
            return False
        distrust(self._state)
        _LOGGER.warning("the state of this model is copied from now on (stage='copy')")
        return True

    def close(self) -> None:
        """Gives the copies' memory back."""
        if self._kept is not None:
            self._kept.close()
            self._kept = None
        self._state = None


def _start(thread: threading.Thread) -> bool:
    """Starts a thread, if the system has one more, and the interpreter is not about to end."""
    if not threading.main_thread().is_alive():
        return False
    try:
        thread.start()
    except RuntimeError:  # no more threads
        return False
    return True


def _run(
    begun: Future[bool],
    pending: PendingSave,
    save: Save,
    staging: _Staging,
    channel: Channel,
    earlier: Latch | None,
    written: Latch,
    *,
    nice: int,
) -> None:
    if not begun.result():
        return
    outcome: list[Path] | BaseException
    raise_later = True
    try:
        with closing(save), closing(staging):
            # The threads that this one starts inherit its priority.
            _lower_priority(nice)
            # So ``staged`` is set even while an earlier save is being written. An error is raised
            # again by save.write, which tells all ranks.
            with suppress(Exception):
                staging.wait()
            if earlier is not None:
                earlier.wait()
            try:
                outcome = save.write(channel, staging.wait, staging.settle)
            except TornSaveError:
                raise_later = not staging.distrust()
                raise
    except BaseException as error:
        outcome = error
    written.set()
    pending_saves.finish(pending, outcome, staging.progress(), raise_later=raise_later)


def _lower_priority(nice: int) -> None:
    """Lowers the priority of the calling thread, if the system has priorities of threads."""
    if nice and sys.platform == "linux":
        thread = threading.get_native_id()
        with suppress(OSError):  # not permitted: training is slower, the save is still right
            os.setpriority(
                os.PRIO_PROCESS, thread, min(19, os.getpriority(os.PRIO_PROCESS, thread) + nice)
            )


def _forget() -> None:
    """A forked process has neither the threads nor their buffers."""
    global _pool, _last_write
    _pool = BufferPool()
    _last_write = None


os.register_at_fork(after_in_child=_forget)
