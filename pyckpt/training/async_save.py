"""async_save: saves any object to one file while training goes on."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import torch

from pyckpt.archive.assembly import saving
from pyckpt.archive.formats import STATES_MEMBER
from pyckpt.archive.member_names import check_member
from pyckpt.archive.writer import ArchiveWriter
from pyckpt.options import BackgroundOptions, Stage, WhenBusy
from pyckpt.staging.lazy import check_lazy, is_lazy_safe
from pyckpt.staging.pending_saves import PendingSave, check_may_begin, wait_for_room
from pyckpt.state import State
from pyckpt.storage.remote_object import target_at
from pyckpt.storage.target import Target
from pyckpt.storage.urls import Location, StorageOptions, location
from pyckpt.torch_format.records import Record
from pyckpt.training.background import BackgroundSave

__all__ = ["ObjectSave", "async_save", "trained_by"]


def async_save(
    obj: Any,
    path: str | os.PathLike[str],
    *,
    optimizers: Any = None,
    stage: Stage = None,
    compression_level: int | None = None,
    num_threads: int | None = None,
    fsync: bool = True,
    member: str = STATES_MEMBER,
    nice: int = 10,
    max_pending: int = 1,
    when_busy: WhenBusy = "wait",
    storage_options: StorageOptions = None,
) -> PendingSave[Location]:
    """Starts to save an object as it is now, and returns while the file is written.

    It saves the same file as ``save``, and as all or nothing. It is no collective: any rank may
    call it, for a file of its own. Asynchronous saves of one process, those of
    ``async_save_checkpoint`` too, are written in the order of the calls; ``remove`` keeps to that
    order.

    ``stage`` says how the object is kept while training goes on. Lists, dicts and numbers in it may
    be changed at once in any case.

    - ``"copy"``: all tensors are copied to host memory before the call returns.
    - ``"lazy"``: what ``optimizers`` train, and their states, is read in place. What is unread when
      one of them steps is copied then. Everything else is copied at once. docs/async.md says what
      may not be changed before that step.
    - ``None``: lazy if ``optimizers`` are given and nothing but their steps is known to change what
      they train, else copy.

    Args:
        optimizers: The optimizer, or optimizers, whose parameters and states are in ``obj``. They
            must train all that training changes, but for buffers. Without them everything is
            copied.
        path: A path or a URL.
        compression_level, fsync, member, storage_options: As in ``save``.
        num_threads: Worker threads; None takes half as many as ``save``, at least one.
        nice, max_pending, when_busy: As in ``async_save_checkpoint``.

    Returns:
        A Future of the path or the URL.

    Raises:
        CheckpointError: An argument is wrong (FilenameError, OptionError), the object cannot be
            saved, or an earlier asynchronous save failed, whose result nobody has asked for. The
            Future has later errors. A previous file is unchanged.
    """
    options = BackgroundOptions(
        compression_level,
        num_threads,
        fsync,
        nice=nice,
        stage=stage,
        max_pending=max_pending,
        when_busy=when_busy,
    )
    check_member(member)
    target = target_at(location(path), storage_options)
    trained = trained_by(optimizers)
    if stage == "lazy":
        check_lazy(trained)
    if when_busy == "wait":
        wait_for_room(options.max_pending)
    check_may_begin(options.max_pending)
    lazy = stage == "lazy" or (stage is None and is_lazy_safe(trained))
    with saving(target.path):
        save = ObjectSave(obj, target, member, options)
        work = BackgroundSave(save, save.write, options.nice)
        try:
            work.begin(trained if lazy else None, chosen=stage is not None)
            return work.start()
        except BaseException:
            work.drop()
            raise


def trained_by(optimizers: Any) -> State:
    """A state without a model: what its optimizers train is all that is read in place."""
    return State(torch.nn.Module(), optimizers)


class ObjectSave:
    """One object on its way to a file. See ``Collected``."""

    def __init__(self, obj: Any, target: Target, member: str, options: BackgroundOptions) -> None:
        self.paths = [target.path]
        self._writer = ArchiveWriter(target, options)
        self._writer.add_object(member, obj)

    @property
    def progress(self) -> tuple[int, int]:
        return self._writer.progress

    def state_records(self) -> Sequence[Record]:
        return self._writer.state_records()

    def replace_state_records(self, records: Sequence[Record]) -> None:
        self._writer.replace_state_records(records)
        self._writer.plan()

    def give_up(self) -> None:
        self._writer.give_up()

    def write(self, before: Callable[[], None], after: Callable[[], None]) -> Location:
        [path] = self.paths
        with saving(path):
            try:
                before()
                self._writer.write()
            finally:
                after()  # its error tells more, if memory was freed that was read
            self._writer.commit()
        return path

    def close(self) -> None:
        self._writer.abandon()
