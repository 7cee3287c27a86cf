"""async_save_checkpoint: a save that goes on while training does.

    training thread   collect ─▶ stage ─▶ return ─▶ forward, backward, step ...
                                   │                               │ lazy: copies what is unread
    background thread              └─▶ write ─▶ commit ─▶ result ◀─┘

One background thread a save; they write one after the other. They are no daemons, so the
interpreter ends when they have. On each of several ranks, the two threads have a process group
each.
"""

from __future__ import annotations

import os
import sys
import threading
from concurrent.futures import Future
from contextlib import closing, suppress
from pathlib import Path, PurePath
from typing import Literal

from pyckpt.archive.writer import ArchiveWriter
from pyckpt.errors import OptionError
from pyckpt.key_paths import IgnoreKeys
from pyckpt.options import BackgroundOptions, WriteOptions, default_threads
from pyckpt.ranks.exchange import Channel, current_ranks, own_channels, together
from pyckpt.staging.buffers import BufferPool
from pyckpt.staging.copies import Copies
from pyckpt.staging.lazy import LiveRecords, check_lazy, is_lazy_safe
from pyckpt.state import TrainingState
from pyckpt.training.pending_saves import PendingSave, check_room, raise_uncollected, wait_for_room
from pyckpt.training.save_checkpoint import Save

__all__ = ["async_save_checkpoint"]

_pool = BufferPool()
_last_write: threading.Event | None = None  # set when the latest save has been written


def async_save_checkpoint(
    state: TrainingState,
    filename: str | PurePath = "ep{epoch}-ba{batch}-rank{rank}",
    *,
    weights_only: bool = False,
    ignore_keys: IgnoreKeys = None,
    compression_level: int | None = None,
    num_threads: int | None = None,
    fsync: bool = True,
    stage: Literal["copy", "lazy"] | None = None,
    nice: int = 10,
    max_pending: int = 1,
    when_busy: Literal["wait", "raise"] = "wait",
) -> PendingSave:
    """Starts to save the training state as it is now, and returns while the file is written.

    What is saved, where, and what becomes of it when some rank fails are those of
    ``save_checkpoint``. Call it on every rank, in the thread that trains.

    ``stage`` says how the state is kept while training goes on:

    - ``"copy"``: everything is copied to host memory before the call returns (CUDA memory: before
      whatever is queued on the current stream afterwards). Holds one state on the host, and keeps
      the memory for the next save.
    - ``"lazy"``: parameters and optimizer state are read in place, and what is still unread is
      copied when an optimizer steps; all else is copied at once. Between the call and the next
      step, nothing but an optimizer of torch's kind or DeepSpeed's engine may change them. In-place
      changes that torch keeps count of raise TornSaveError; those through ``tensor.data`` or by
      other libraries go unseen.
    - ``None``: lazy where ``state`` names torch optimizers for all that is trained, and nothing is
      known that changes parameters besides (frozen ones are then copied at once); else copy.

    Args:
        state, filename, weights_only, ignore_keys, compression_level, fsync: As in
            ``save_checkpoint``.
        num_threads: Worker threads of each rank that writes; None takes half of what
            ``save_checkpoint`` takes, and one at least.
        nice: By how much their priority is lowered, 0 to 19.
        max_pending: How many saves may be under way, this one included. They are written one after
            the other.
        when_busy: Whether to wait when there are so many, or raise SaveInProgressError.

    Returns:
        A Future of what ``save_checkpoint`` returns.

    Raises:
        CheckpointError: As in ``save_checkpoint``, for all that comes before the write; the rest
            comes from the Future. SaveInProgressError: see ``when_busy``. The error of an earlier
            save that nobody has collected: this one is then not begun.
    """
    global _last_write
    if when_busy == "wait":
        wait_for_room(max(1, max_pending) if isinstance(max_pending, int) else 1)
    training, background = own_channels(2)

    def make_options() -> WriteOptions:
        raise_uncollected()
        if stage not in (None, "copy", "lazy"):
            raise OptionError(f"stage must be 'copy', 'lazy' or None, not {stage!r}")
        if when_busy not in ("wait", "raise"):
            raise OptionError(f"when_busy must be 'wait' or 'raise', not {when_busy!r}")
        if not isinstance(max_pending, int) or isinstance(max_pending, bool) or max_pending < 1:
            raise OptionError(f"max_pending must be an int of at least 1, not {max_pending!r}")
        check_room(max_pending)
        if stage == "lazy":
            check_lazy(state)
        return BackgroundOptions(compression_level, num_threads, fsync, nice=nice)

    save = Save(state, filename, weights_only, ignore_keys)
    staging = _Staging()
    pending = PendingSave(staging.staged, staging.stage, staging.progress)
    begun: Future[bool] = Future()
    written = threading.Event()
    thread = threading.Thread(
        target=_run,
        args=(begun, pending, save, staging, background, nice, _last_write, written),
        name="pyckpt-save",
    )
    try:
        save.collect(make_options, training)
        lazy = stage == "lazy" or (stage is None and is_lazy_safe(state))

        def begin() -> None:
            staging.begin(save.writer, state, lazy, frozen=stage == "lazy")
            thread.start()

        together("staging the state", begin, training)
        pending.begin()
        _last_write = written
        begun.set_result(True)
    except BaseException:
        # Ctrl-C may come at any time; once the thread is let go, it does all there is to do.
        if not begun.done():
            pending.forget()
            written.set()
            begun.set_result(False)
            staging.close()
            save.close()
        raise
    return pending


class _Staging:
    """What this rank keeps of the state as it was at the call.

    Attributes:
        staged: Set when the state may be changed in whatever way.
    """

    def __init__(self) -> None:
        self.staged = threading.Event()
        self._writer: ArchiveWriter | None = None
        self._kept: Copies | LiveRecords | None = None

    def begin(
        self, writer: ArchiveWriter | None, state: TrainingState, lazy: bool, *, frozen: bool
    ) -> None:
        """Copies what has to be copied now; ``frozen`` is LiveRecords' own."""
        if writer is None:
            self.staged.set()
            return
        records = writer.state_records()
        threads = default_threads(current_ranks().local_world_size)
        if lazy:
            self._kept = LiveRecords(records, state, _pool, threads, self.staged, frozen=frozen)
        else:
            self._kept = Copies(records, _pool, threads)
            if self._kept.is_complete:
                self.staged.set()
        writer.replace_state_records(self._kept.records)
        writer.plan()
        self._writer = writer

    def progress(self) -> tuple[int, int]:
        """As PendingSave has it."""
        return (0, 0) if self._writer is None else self._writer.progress

    def stage(self) -> None:
        """Copies what has not been copied; any thread."""
        kept = self._kept
        if isinstance(kept, LiveRecords):
            kept.stage()
        elif kept is not None:
            self.wait()

    def wait(self) -> None:
        """Until what is being copied is there. For the background thread, before it reads."""
        kept = self._kept
        if kept is not None:
            kept.wait()
        if not isinstance(kept, LiveRecords):
            self.staged.set()

    def settle(self) -> None:
        """Raises what tore the state apart. For the background thread, when it has read."""
        if isinstance(self._kept, LiveRecords):
            self._kept.settle()

    def close(self) -> None:
        """Gives the copies' memory back."""
        if self._kept is not None:
            self._kept.close()
            self._kept = None


def _run(
    begun: Future[bool],
    pending: PendingSave,
    save: Save,
    staging: _Staging,
    channel: Channel,
    nice: int,
    earlier: threading.Event | None,
    written: threading.Event,
) -> None:
    if not begun.result():
        return
    outcome: list[Path] | BaseException
    try:
        with closing(save), closing(staging):
            # The threads that this one starts inherit its priority.
            _lower_priority(nice)
            # So that ``staged`` is set even while an earlier save is being written. An error comes
            # again when all ranks can hear of it.
            with suppress(Exception):
                staging.wait()
            if earlier is not None:
                earlier.wait()
            outcome = save.write(channel, staging.wait, staging.settle)
    except BaseException as error:
        outcome = error
    written.set()
    pending.finish(outcome, staging.progress())


def _lower_priority(nice: int) -> None:
    """Of the calling thread alone, where the system has priorities of threads."""
    if nice and sys.platform == "linux":
        thread = threading.get_native_id()
        with suppress(OSError):  # forbidden here: training is slower then, and the save still right
            os.setpriority(
                os.PRIO_PROCESS, thread, min(19, os.getpriority(os.PRIO_PROCESS, thread) + nice)
            )


def _forget() -> None:
    """A forked process has neither the threads nor what they hold."""
    global _pool, _last_write
    _pool = BufferPool()
    _last_write = None


os.register_at_fork(after_in_child=_forget)
