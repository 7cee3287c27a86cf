"""FolderSave: a checkpoint of several files that appears as a whole, at once or in the background.

    training thread     enter ─▶ small files, save(...) ─▶ stage ─▶ forward, backward, step ...
                                                             │
    background thread                                        └─▶ write ─▶ flush, name ─▶ remove old

At the end of the block the ranks tell each other whether their blocks have succeeded. In the
background they tell each other whether their files are written. Each thread has a channel of its
own.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

from pyckpt.archive.assembly import saving
from pyckpt.archive.formats import STATES_MEMBER
from pyckpt.archive.save import save
from pyckpt.options import BackgroundOptions
from pyckpt.ranks.exchange import Channel, together
from pyckpt.staging.lazy import is_lazy_safe
from pyckpt.staging.pending_saves import (
    PendingSave,
    end_below,
    raise_uncollected,
    wait_for_room,
)
from pyckpt.storage.local_file import LocalFile
from pyckpt.storage.renamed_folder import RenamedFolder
from pyckpt.storage.transaction import Transaction
from pyckpt.torch_format.records import Record
from pyckpt.training.async_save import ObjectSave, trained_by
from pyckpt.training.background import BackgroundSave
from pyckpt.training.removal import remove_now
from pyckpt.training.several_files import progress_of, replace_state_records, state_records

__all__ = ["FolderSave"]

_LOGGER = logging.getLogger("pyckpt")


class FolderSave(AbstractContextManager["FolderSave"]):
    """As ``transaction``; and what is given to ``save`` may be written while training goes on.

    Use it on every rank, in the thread that trains. If a block raises, all ranks raise at its end,
    and the folder is removed.

    Args:
        folder: As in ``transaction``.
        asynchronous: Whether the folder gets its name in the background, when the files of all
            ranks are written. The block begins when no asynchronous save of this process is under
            way. If an earlier one has failed, and nobody has asked for its result, it raises that.

    Attributes:
        folder: The name that it will have.
        path: The hidden folder.
        pending: When the block has ended, if asynchronous: the Future of the folder's path.
    """

    def __init__(self, folder: str | os.PathLike[str], *, asynchronous: bool = False) -> None:
        self.pending: PendingSave[Path] | None = None
        self.folder = Path(folder)
        self._options = BackgroundOptions()
        # Those who write the folder would not read it from a store.
        self._transaction = Transaction(
            lambda: RenamedFolder(folder, fsync=True), None, in_background=asynchronous
        )
        self._later = _Files() if asynchronous else None
        self._optimizers: list[Any] = []
        self._obsolete: list[Path] = []

    @property
    def channel(self) -> Channel:
        """For exchanges between the ranks in the block."""
        return self._transaction.channel

    def __enter__(self) -> FolderSave:
        if self._later is not None:
            wait_for_room(1)
        with ExitStack() as stack:
            self.path = stack.enter_context(self._transaction)
            together(f"beginning {self.folder}", raise_uncollected, self.channel)
            stack.pop_all()
        return self

    def save(self, obj: Any, name: str, optimizer: Any = None) -> None:
        """Writes an object as it is now to a file in the folder, as torch does.

        Args:
            optimizer: Whose state is in ``obj``. It is read in place until the optimizer steps, if
                that is safe: see ``stage`` of ``async_save``. Everything else is copied.
        """
        path = self.path / name
        if self._later is None:
            save(obj, path)
            return
        if optimizer is not None:
            self._optimizers.append(optimizer)
        with saving(path):
            target = LocalFile(path)
            self._later.saves.append(ObjectSave(obj, target, STATES_MEMBER, self._options))

    def remove_after(self, paths: Iterable[Path]) -> None:
        """Removes older checkpoints when the folder has its name. A failure is only logged."""
        self._obsolete.extend(paths)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._later is None:
            self._transaction.__exit__(kind, error, traceback)
            self._remove_old()
            return
        work = BackgroundSave(self._later, self._write, self._options.nice)
        trained = trained_by(self._optimizers)
        is_lazy = is_lazy_safe(trained)

        def begin() -> None:
            if error is not None:
                raise error
            work.begin(trained if is_lazy else None, chosen=False)

        try:
            together(f"writing {self.folder}", begin, self.channel)
            self.pending = work.start()
        except BaseException:
            work.drop()
            end_below(self.path, give_up=True)
            self._transaction.abandon()
            raise

    def _write(self, before: Callable[[], None], after: Callable[[], None]) -> Path:
        assert self._later is not None
        with ExitStack() as stack:
            stack.push(self._transaction)  # it has been entered already
            self._later.write(before, after)
        self._remove_old()
        return self.folder

    def _remove_old(self) -> None:
        for path in self._obsolete:
            try:
                remove_now(path)
            except OSError as error:  # no reason to end a training
                _LOGGER.warning("%s could not be removed: %s", path, error)


class _Files:
    """Several files that are written in the background. See ``Collected``."""

    paths: Sequence[Path] = ()  # none that the end of the transaction waits for: it is in the save

    def __init__(self) -> None:
        self.saves: list[ObjectSave] = []

    @property
    def progress(self) -> tuple[int, int]:
        return progress_of(self.saves)

    def state_records(self) -> Sequence[Record]:
        return state_records(self.saves)

    def replace_state_records(self, records: Sequence[Record]) -> None:
        replace_state_records(self.saves, records)

    def give_up(self) -> None:
        for one in self.saves:
            one.give_up()

    def write(self, before: Callable[[], None], after: Callable[[], None]) -> None:
        """Writes all files. They are in a hidden folder, so ``after`` comes in time."""
        try:
            before()
            for one in self.saves:
                one.write(_nothing, _nothing)
        finally:
            after()

    def close(self) -> None:
        for one in self.saves:
            one.close()


def _nothing() -> None:
    """A step of a file that is done once for all."""
