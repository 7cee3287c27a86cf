"""CheckpointManager: the checkpoints of one run in one folder, on this machine or in a store.

    run/
      step-400-rank0.tar.gz       one file, or one for each rank
      step-500-rank0.tar.gz
      latest-rank0.tar.gz         a link to the newest; stores have none
      checkpoints.json            in the order of the saves: steps, files, metrics

The list is written when a save is safe on all ranks, and before older ones go. A file that is not
in the list, because a process died just then, counts all the same: its time says where it belongs.
Files of a save in which the first rank's is missing, which gets its name last, do not count.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, wait
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeAlias

from pyckpt.archive.formats import TAR_SUFFIX, file_format, promises_archive
from pyckpt.errors import CheckpointError, OptionError, StateMismatchError
from pyckpt.options import whole_number
from pyckpt.ranks.exchange import begin_together, together
from pyckpt.staging.pending_saves import (
    PendingSave,
    raise_uncollected,
    under_way,
    wait_for_room,
)
from pyckpt.state import RestorableState, TrainingState
from pyckpt.storage.folder import Entry, open_folder
from pyckpt.storage.urls import Location, StorageOptions
from pyckpt.training.async_save_checkpoint import async_save_checkpoint
from pyckpt.training.background import in_turn
from pyckpt.training.load_checkpoint import load_checkpoint
from pyckpt.training.names import literal
from pyckpt.training.retention import KeepBest, Kept, Retention
from pyckpt.training.save_checkpoint import save_checkpoint
from pyckpt.warn import warn

__all__ = ["CheckpointManager", "SavedCheckpoint"]

_LIST = "checkpoints.json"
_FILE = re.compile(r"step-(\d+)-rank(\d+)(\.[^/]*)?")
_LATEST = "latest"
_LISTING = "keeping the list of checkpoints"

_Files: TypeAlias = Mapping[str, Entry]
"""The files of the folder by name."""


@dataclass(frozen=True)
class SavedCheckpoint:
    """A checkpoint in a manager's folder.

    Attributes:
        step: The step at which it was saved.
        paths: Its file or its object, or those of all ranks, by rank.
        metrics: What was given to ``save``.
        saved_at: When, in seconds since 1970, by the clock of the file system or the store.
    """

    step: int
    paths: tuple[Location, ...]
    metrics: Mapping[str, float] = field(default_factory=dict)
    saved_at: float = 0.0

    @property
    def name(self) -> str:
        """What ``load_checkpoint`` takes as its path: with several files, a name with {rank}."""
        first = self.paths[0]
        if len(self.paths) == 1:
            return literal(str(first))
        rank = _FILE.fullmatch(first.name)
        assert rank is not None
        return _template(first.with_name(first.name[: rank.start(2)]), first.name[rank.end(2) :])

    def as_kept(self) -> Kept:
        """What retention needs to know."""
        return Kept(self.step, self.metrics)


class CheckpointManager:
    """Saves the checkpoints of a run into one folder, finds the newest, and removes older ones.

    Use it on every rank alike. All ranks must see the folder. The first rank keeps the list and the
    links, and removes files.

    A checkpoint is removed only when a newer one is safe on the disk of every rank, or in the
    store. If a save fails, nothing is removed.

    Args:
        folder: A path, or a URL such as ``s3://bucket/run``. Is made by the first save.
        suffix: Decides the format, as in ``save_checkpoint``.
        keep_last: How many of the newest stay.
        keep_every: Those at steps that are multiples of it stay.
        keep_best: A metric of ``save``, and "min" or "max": the checkpoint with the best value
            stays. The newest always stays. Without any of the three, all stay.
        asynchronous: Whether ``save`` returns while the files are written.
        process_group: As in ``save_checkpoint``.
        storage_options: What the store of a URL is told besides the environment; for the saves, for
            ``restore_latest``, and for all that the manager itself does.
        options: More arguments of ``save_checkpoint``, or of ``async_save_checkpoint``, for every
            save.

    Raises:
        CheckpointError: An argument is wrong (FilenameError, OptionError).
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        suffix: str = ".tar.gz",
        keep_last: int | None = None,
        keep_every: int | None = None,
        keep_best: KeepBest | None = None,
        asynchronous: bool = False,
        process_group: Any = None,
        storage_options: StorageOptions = None,
        **options: Any,
    ) -> None:
        self._folder = open_folder(folder, storage_options)
        self.folder = self._folder.path
        self._storage_options = storage_options
        self._retention = Retention(keep_last, keep_every, keep_best)
        self._suffix = suffix
        file_format(self._folder.at(f"step-0{suffix}"))  # raises FilenameError
        if _FILE.fullmatch(f"step-0-rank0{suffix}") is None:
            raise OptionError(f"suffix must be such as '.tar.gz', not {suffix!r}")
        for name in ("filename", "process_group"):
            if name in options:
                raise OptionError(f"{name} is not an option of a manager's saves")
        self._save = async_save_checkpoint if asynchronous else save_checkpoint
        self._options = options
        self._fsync = bool(options.get("fsync", True))
        self._process_group = process_group
        self._tidying: list[Future[None]] = []

    def save(
        self, step: int, state: TrainingState, *, metrics: Mapping[str, float] | None = None
    ) -> list[Location] | PendingSave[list[Location]]:
        """Saves ``state`` as the checkpoint of a step; one of the same step is replaced.

        Call it on every rank.

        Args:
            metrics: Numbers by name, for ``keep_best`` and for ``all()``. Those of the first rank
                count.

        Returns:
            What ``save_checkpoint`` or, if asynchronous, ``async_save_checkpoint`` returns.

        Raises:
            CheckpointError: As these do. Also if the list could not be written, or an older
                checkpoint not be removed: the new one is safe then. If asynchronous, the next
                ``save()`` or ``wait()`` raises that.
        """
        [channel] = begin_together("CheckpointManager.save", process_group=self._process_group)

        def check() -> tuple[int, dict[str, float]]:
            self._raise_untidy()
            return whole_number("step", step, 0), _numbers(metrics or {})

        step, measured = together(_LISTING, check, channel)[channel.rank]
        result = self._save(
            state,
            _template(self._folder.at(f"step-{step}-rank"), self._suffix),
            process_group=self._process_group,
            storage_options=self._storage_options,
            **self._options,
        )
        if isinstance(result, PendingSave):
            if channel.rank == 0:
                work = partial(self._tidy_behind, result, step, measured)
                self._tidying.append(in_turn(work))
            return result
        is_first = channel.rank == 0
        together(
            _LISTING, lambda: self._tidy(result, step, measured) if is_first else None, channel
        )
        return result

    def wait(self) -> None:
        """Waits until all saves are safe, and older checkpoints removed.

        Call it on every rank, at the end of training.

        Raises:
            CheckpointError: A save failed, or see ``save()``.
        """
        [channel] = begin_together("CheckpointManager.wait", process_group=self._process_group)
        together("waiting for the saves", self._finish, channel)

    def latest(self) -> SavedCheckpoint | None:
        """The newest checkpoint, or None. Whether it can be read is not known."""
        return next(reversed(self.all()), None)

    def best(self) -> SavedCheckpoint | None:
        """The best checkpoint by ``keep_best``, or None."""
        checkpoints = self.all()
        best = self._retention.best_of([one.as_kept() for one in checkpoints])
        return None if best is None else checkpoints[best]

    def all(self) -> list[SavedCheckpoint]:
        """The checkpoints in the order of their saves, the newest last.

        One that lacks a file is not among them. Any rank may ask, at any time.

        Raises:
            OSError: The folder cannot be read. If it is not there, there are no checkpoints.
        """
        # In this order: files go after they have left the list, and the first rank may remove some
        # while another one looks.
        listed = self._listed()
        return self._complete(listed, self._found())

    def _complete(self, listed: Sequence[SavedCheckpoint], found: _Files) -> list[SavedCheckpoint]:
        """What ``all()`` returns, by what the list says and what is there."""
        steps = {one.step for one in listed}
        unlisted = []
        for step, names in self._sets(found):
            if step not in steps and self._has_first(names):
                with suppress(FileNotFoundError):
                    paths = tuple(map(self._folder.at, names))
                    saved_at = _at_the_latest(max(found[name].modified() for name in names))
                    unlisted.append(SavedCheckpoint(step, paths, {}, saved_at))
        whole = [one for one in listed if _missing(one, found) is None]
        return sorted([*whole, *unlisted], key=lambda one: (one.saved_at, one.step))

    def restore_latest(self, state: RestorableState, **options: Any) -> SavedCheckpoint | None:
        """Restores the newest checkpoint that can be read.

        Call it on every rank. Those that are damaged or incomplete are passed over, with a warning
        that says why. A store that does not answer is an error, since it says nothing about them.
        Saves that are under way are finished first.

        Args:
            options: Arguments of ``load_checkpoint``. ``storage_options`` are the manager's unless
                given.

        Returns:
            The checkpoint that was restored, or None if there is none at all.

        Raises:
            StateMismatchError: The newest that can be read does not fit ``state``.
            CheckpointError: None of the checkpoints can be read, the folder or the store cannot, an
                argument is wrong, or restoring failed in the middle.
        """
        self._wait_alone()
        [channel] = begin_together(
            "CheckpointManager.restore_latest", process_group=self._process_group
        )

        def look() -> list[SavedCheckpoint]:
            if channel.rank != 0:
                return []
            listed = self._listed()
            found = self._found()
            for one in listed:
                if missing := _missing(one, found):
                    warn(f"the checkpoint of step {one.step} is passed over: {missing} is gone")
            return self._complete(listed, found)

        [checkpoints, *_] = together("looking for checkpoints", look, channel)
        options = {"storage_options": self._storage_options, **options}
        errors = []
        for one in reversed(checkpoints):
            try:
                load_checkpoint(one.name, state, process_group=self._process_group, **options)
                return one
            except (StateMismatchError, OptionError):
                raise
            except CheckpointError as error:
                if str(error).startswith("restoring the state failed"):
                    raise
                if not self._folder.is_lost(error.errno):
                    raise  # an older one would be taken, though this one may be good
                errors.append(error)
                warn(f"the checkpoint of step {one.step} is passed over: {error}")
        if errors:
            raise CheckpointError(
                f"none of the {len(errors)} checkpoints in {self.folder} can be read; the newest: "
                f"{errors[0]}",
                rank=errors[0].rank,
                path=errors[0].path,
                errno=errors[0].errno,
            ) from errors[0]
        return None

    def _finish(self) -> None:
        self._wait_alone()
        raise_uncollected()
        self._raise_untidy()

    def _wait_alone(self) -> None:
        """Waits for this rank's saves, and for the work behind them."""
        wait_for_room(1)
        wait(self._tidying)

    def _raise_untidy(self) -> None:
        """Raises the error of work behind an asynchronous save that has ended. The next call raises
        the next one.
        """
        for future in list(self._tidying):
            if future.done() or not under_way():
                wait([future])
                self._tidying.remove(future)
                future.result()

    def _tidy_behind(
        self, pending: PendingSave[list[Location]], step: int, metrics: Mapping[str, float]
    ) -> None:
        # Future's own methods: PendingSave's would count as the caller's asking.
        if Future.exception(pending) is None:
            files: list[Location] = Future.result(pending)
            self._tidy(files, step, metrics)

    def _tidy(self, files: Sequence[Location], step: int, metrics: Mapping[str, float]) -> None:
        """Puts a checkpoint that is safe into the list, and removes what need not stay."""
        try:
            listed = self._listed()
            found = self._found()
            others = [one for one in self._complete(listed, found) if one.step != step]
            # By the same clock as the times of files that are not in the list.
            times = [found[file.name].modified() for file in files if file.name in found]
            saved_at = max(times, default=0.0) or time.time()
            saved_at = max([saved_at, *(one.saved_at + 1e-3 for one in others)])
            checkpoints = [*others, SavedCheckpoint(step, tuple(files), metrics, saved_at)]
            dropped = set(self._retention.dropped([one.as_kept() for one in checkpoints]))
            kept = [one for i, one in enumerate(checkpoints) if i not in dropped]
            self._write_list(kept)
            self._link([file.name for file in files])
            self._remove_others(kept, listed, found)
        except OSError as error:
            raise CheckpointError(
                f"the checkpoint of step {step} is safe, and what comes after it failed: {error}",
                path=error.filename if isinstance(error.filename, str) else str(self.folder),
                errno=error.errno,
            ) from error

    def _write_list(self, checkpoints: Sequence[SavedCheckpoint]) -> None:
        entries = [
            {
                "step": one.step,
                "files": [path.name for path in one.paths],
                "metrics": dict(one.metrics),
                "saved_at": one.saved_at,
            }
            for one in checkpoints
        ]
        data = json.dumps({"checkpoints": entries}, indent=1) + "\n"
        self._folder.replace(_LIST, data.encode(), fsync=self._fsync)

    def _listed(self) -> list[SavedCheckpoint]:
        """What the list says. A list that is damaged says nothing, with a warning."""
        try:
            data = self._folder.read(_LIST)
        except FileNotFoundError:
            return []
        try:
            checkpoints = [
                SavedCheckpoint(
                    int(one["step"]),
                    tuple(self._folder.at(_checked(name)) for name in one["files"]),
                    {str(name): float(value) for name, value in one["metrics"].items()},
                    float(one["saved_at"]),
                )
                for one in json.loads(data)["checkpoints"]
            ]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            warn(f"{self._folder.at(_LIST)} is damaged, so metrics are unknown: {error}")
            return []
        return list({one.step: one for one in checkpoints}.values())

    def _found(self) -> _Files:
        return {one.name: one for one in self._folder.entries()}

    def _sets(self, found: _Files) -> Iterator[tuple[int, list[str]]]:
        """The steps of the archives, and the names of those with one suffix, by rank.

        Other files that users keep beside them, such as a checksum, are none.
        """
        sets: dict[tuple[int, str], list[tuple[int, str]]] = {}
        for name in filter(self._is_archive, found):
            step, rank, suffix = _parsed(name)
            sets.setdefault((step, suffix), []).append((rank, name))
        for (step, _), names in sets.items():
            yield step, [name for _, name in sorted(names)]

    def _has_first(self, names: Sequence[str]) -> bool:
        """Whether there is the first rank's file, which gets its name last."""
        # In a process group, that rank may have any number.
        return self._process_group is not None or _parsed(names[0])[1] == 0

    def _is_archive(self, name: str) -> bool:
        match = _FILE.fullmatch(name)
        own = (self._suffix, self._suffix + TAR_SUFFIX)  # that is added to files of several ranks
        return match is not None and (
            (match[3] or "") in own or promises_archive(self._folder.at(name))
        )

    def _link(self, names: Sequence[str]) -> None:
        """Lets the names that begin with "latest" lead to these files."""
        targets = {_LATEST + name[name.rindex("-rank") :]: name for name in names}
        self._folder.replace_links(f"{_LATEST}-rank", targets)

    def _remove_others(
        self, kept: Sequence[SavedCheckpoint], listed: Sequence[SavedCheckpoint], found: _Files
    ) -> None:
        """Removes all archives that were found or listed, and do not stay."""
        staying = {path.name for one in kept for path in one.paths}
        names = [name for _, names in self._sets(found) for name in names]
        names += [path.name for one in listed for path in one.paths]
        self._folder.remove([name for name in dict.fromkeys(names) if name not in staying])


def _template(beginning: Location, end: str) -> str:
    """A name with {rank} between two parts that stand for themselves."""
    return f"{literal(str(beginning))}{{rank}}{literal(end)}"


def _at_the_latest(seconds: float) -> float:
    """The end of a time that is known in whole seconds, as stores tell it.

    What is not in the list is newer than what was listed in the same second.
    """
    return seconds + 1 if seconds.is_integer() else seconds


def _parsed(name: str) -> tuple[int, int, str]:
    """The step, the rank and the suffix in the name of an archive."""
    match = _FILE.fullmatch(name)
    assert match is not None
    return int(match[1]), int(match[2]), match[3] or ""


def _checked(name: str) -> str:
    """A name of an archive in the list, which may have been edited or damaged."""
    if _FILE.fullmatch(name) is None:
        raise ValueError(f"{name!r} is no name of a checkpoint's file")
    return name


def _missing(checkpoint: SavedCheckpoint, found: _Files) -> Location | None:
    """A file of a checkpoint that is not there, or None."""
    return next((path for path in checkpoint.paths if path.name not in found), None)


def _numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    try:
        return {str(name): float(value) for name, value in metrics.items()}
    except (TypeError, ValueError, AttributeError) as error:
        raise OptionError(f"metrics must be numbers by name: {error}") from error
