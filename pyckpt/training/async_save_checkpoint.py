"""async_save_checkpoint: saves a training state while training goes on.

With several ranks, the calling thread and the background thread have a channel each.
"""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from pathlib import PurePath
from typing import Any

from pyckpt.errors import OptionError
from pyckpt.key_paths import IgnoreKeys
from pyckpt.options import BackgroundOptions, Stage, WhenBusy, WriteOptions, whole_number
from pyckpt.ranks.exchange import begin_together, together
from pyckpt.staging.lazy import check_lazy, is_lazy_safe
from pyckpt.staging.pending_saves import PendingSave, check_may_begin, wait_for_room
from pyckpt.state import TrainingState
from pyckpt.storage.urls import Location, StorageOptions
from pyckpt.training.background import BackgroundSave
from pyckpt.training.save_checkpoint import Save, StateDictType

__all__ = ["async_save_checkpoint"]


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
    stage: Stage = None,
    nice: int = 10,
    max_pending: int = 1,
    when_busy: WhenBusy = "wait",
    process_group: Any = None,
    storage_options: StorageOptions = None,
) -> PendingSave[list[Location]]:
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
            process_group, storage_options: As in ``save_checkpoint``.
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
    if when_busy == "wait":
        with suppress(OptionError):  # is raised below, on all ranks
            wait_for_room(whole_number("max_pending", max_pending, 1))
    training, background = begin_together("async_save_checkpoint", 2, process_group)

    def make_options() -> WriteOptions:
        options = BackgroundOptions(
            compression_level,
            num_threads,
            fsync,
            nice=nice,
            stage=stage,
            max_pending=max_pending,
            when_busy=when_busy,
        )
        check_may_begin(options.max_pending)
        if stage == "lazy":
            check_lazy(state)
        return options

    save = Save(state, filename, weights_only, ignore_keys, state_dict_type, storage_options)
    work = BackgroundSave(save, partial(save.write, background), nice)
    try:
        save.collect(make_options, training)
        lazy = stage == "lazy" or (stage is None and is_lazy_safe(state))
        kept = state if lazy else None
        together("staging the state", lambda: work.begin(kept, chosen=stage is not None), training)
        return work.start()
    except BaseException as error:
        work.drop()
        for channel in (training, background):
            channel.leave("async_save_checkpoint", error)
        raise
