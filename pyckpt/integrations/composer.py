"""Composer: its Trainer and CheckpointSaver write their checkpoints through pyckpt.

    import pyckpt.integrations.composer

    pyckpt.integrations.composer.install()  # or install(asynchronous=True); before Trainer.fit()

Replaced, on every rank, until ``uninstall()``:

- ``save_checkpoint`` of ``composer.utils.checkpoint``, which Trainer and CheckpointSaver call, and
  of ``composer.utils``. Composer's state makes the contents, so they are those of its release. The
  first rank writes them. If it fails, every rank raises; Composer's own lets the others wait.
- ``CheckpointSaver._save_checkpoint``, ``run_event`` and ``close``. If asynchronous, its saves end
  while training goes on: the link, the upload and the rotation, all Composer's own, follow at the
  end of the batch in which all ranks know that the file is there, at the latest at the end of
  ``fit()``. And if the process is killed between file and link, the next start sets the link.
- ``_write_checkpoint_file`` of ``composer.checkpoint.save``, where a release has it.

Left as it is: names, folders, links, uploads, rotation, autoresume, and all loading. Left to
Composer, with a warning: states that every rank saves a part of (FSDP's "sharded", DeepSpeed), and
names for which pyckpt has no encoder (``.pt.lz4``, ``.pt.lzo``). Names that pyckpt would compress
and this release would not read are refused with FilenameError.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from importlib import import_module
from pathlib import Path, PurePath
from typing import Any

import pyckpt
from pyckpt.archive.formats import file_format, file_suffixes
from pyckpt.errors import CheckpointError, FilenameError, OptionError, TornSaveError
from pyckpt.integrations.needed import needed
from pyckpt.key_paths import IgnoreKeys, without_ignored
from pyckpt.options import BackgroundOptions, Stage
from pyckpt.staging.lazy import distrust, is_lazy_safe
from pyckpt.state import is_deepspeed_engine
from pyckpt.training.first_rank import FirstRankSave, begin_on_first_rank, save_on_first_rank
from pyckpt.warn import warn

with needed("mosaicml", "composer"):
    import composer
    import composer.utils
    from composer.callbacks import CheckpointSaver
    from composer.core import Event
    from composer.utils import checkpoint, dist, reproducibility
    from composer.utils.file_helpers import is_tar

try:
    from composer.utils.compression import is_compressed_pt
except ImportError:  # a release that knows no compressed file but tars

    def is_compressed_pt(filename: str) -> bool:
        return False


__all__ = ["TRIED", "install", "installed", "uninstall"]

TRIED = ("0.14.1", "0.32.1")
"""The releases of Composer that this was tried with."""

_LOGGER = logging.getLogger("pyckpt")

_installation: _Installation | None = None


def install(
    asynchronous: bool = False,
    *,
    compression_level: int | None = None,
    num_threads: int | None = None,
    fsync: bool = True,
    stage: Stage = None,
    nice: int = 10,
) -> None:
    """Lets Composer write through pyckpt, in this process. Call it on every rank.

    A second call changes the options.

    Args:
        asynchronous: Whether training goes on while a CheckpointSaver's file is written. What a
            program saves by a call of its own (``Trainer.save_checkpoint``) is there when the call
            returns.
        compression_level, num_threads, fsync: As in ``pyckpt.save``.
        stage, nice: As in ``pyckpt.async_save``; only for asynchronous saves.

    Raises:
        OptionError: A value is wrong.
    """
    global _installation
    options = _Options(asynchronous, compression_level, num_threads, fsync, stage, nice)
    if composer.__version__ not in TRIED:
        warn(
            f"pyckpt.integrations.composer was tried with Composer {' and '.join(TRIED)}, and this "
            f"is {composer.__version__}: try one save and one load before you rely on it"
        )
    if _installation is None:
        _installation = _Installation(options)
    _installation.options = options


def uninstall() -> None:
    """Puts Composer's own functions back. Saves that are under way are finished first."""
    global _installation
    if _installation is not None:
        _installation.remove()
        _installation = None


@contextmanager
def installed(asynchronous: bool = False, **options: Any) -> Iterator[None]:
    """``install`` inside of a with block; afterwards everything is as it was before."""
    before = None if _installation is None else _installation.options
    install(asynchronous, **options)
    try:
        yield
    finally:
        if before is None:
            uninstall()
        elif _installation is not None:
            _installation.options = before


@dataclass(frozen=True)
class _Options:
    """The arguments of ``install``."""

    asynchronous: bool
    compression_level: int | None
    num_threads: int | None
    fsync: bool
    stage: Stage
    nice: int

    def __post_init__(self) -> None:
        if not isinstance(self.asynchronous, bool):
            raise OptionError(f"asynchronous must be a bool, not {self.asynchronous!r}")
        BackgroundOptions(
            self.compression_level, self.num_threads, self.fsync, nice=self.nice, stage=self.stage
        )

    def of_save(self) -> dict[str, Any]:
        names = ("compression_level", "num_threads", "fsync")
        return {name: getattr(self, name) for name in names}

    def of_async_save(self, state: Any) -> dict[str, Any]:
        lazy = self.stage == "lazy" or (self.stage is None and is_lazy_safe(state))
        optimizers = list(state.optimizers) if lazy else None
        return {**self.of_save(), "stage": self.stage, "nice": self.nice, "optimizers": optimizers}


@dataclass
class _Turn:
    """One save of a CheckpointSaver, which runs Composer's method for it.

    If it is asynchronous, the method runs twice: until the file is to be written, and again once it
    is there.
    """

    state: _StateThen
    logger: Any
    link: _NextLink | None
    is_asynchronous: bool
    save: FirstRankSave | None = None  # set between the two runs

    def forget(self) -> None:
        """The save is over."""
        if self.link is not None:
            self.link.remove()


class _StateThen:
    """Composer's state, with the time of a save instead of today's: it is in names."""

    def __init__(self, state: Any) -> None:
        self._state = state
        self.timestamp = state.timestamp

    def __getattr__(self, name: str) -> Any:
        return getattr(self._state, name)


class _Begun(Exception):
    """Leaves Composer's method where the file is to be written, since that has begun."""


class _Installation:
    """What stands in Composer, and the saves that are under way."""

    def __init__(self, options: _Options) -> None:
        self.options = options
        self._turn: _Turn | None = None  # while a CheckpointSaver saves
        self._is_event = False  # while the Trainer's loop calls a CheckpointSaver
        self._under_way: dict[CheckpointSaver, _Turn] = {}
        self._originals: list[tuple[Any, str, Any]] = []
        self._composers_save = self._replace(checkpoint, "save_checkpoint", self._save_checkpoint)
        self._replace(composer.utils, "save_checkpoint", self._save_checkpoint)
        self._composers_turn = self._replace(CheckpointSaver, "_save_checkpoint", self._take_turn)
        self._composers_run_event = self._replace(CheckpointSaver, "run_event", self._run_event)
        self._composers_close = self._replace(CheckpointSaver, "close", self._close)
        for layout in _new_layouts():
            self._composers_write = self._replace(
                layout, "_write_checkpoint_file", self._write_file
            )

    def remove(self) -> None:
        """Finishes what is under way, and puts everything of Composer's back."""
        try:
            for saver in list(self._under_way):
                self._finish_alone(saver)
        finally:
            for owner, name, original in reversed(self._originals):
                if original is _INHERITED:
                    delattr(owner, name)
                else:
                    setattr(owner, name, original)

    def _replace(self, owner: Any, name: str, function: Callable[..., Any]) -> Any:
        """Returns what was there."""
        original = getattr(owner, name)
        self._originals.append((owner, name, vars(owner).get(name, _INHERITED)))
        setattr(owner, name, _in_place_of(original, function))
        return original

    def _save_checkpoint(
        self,
        state: Any,
        filename: str = "ep{epoch}-ba{batch}-rank{rank}",
        *,
        weights_only: bool = False,
        ignore_keys: IgnoreKeys = None,
    ) -> str | None:
        """In place of composer.utils.checkpoint.save_checkpoint."""
        path = checkpoint.PartialFilePath(filename).format(state)
        turn = self._turn
        if turn is None or turn.save is None:
            if _is_left(path, state):
                arguments: Any = {} if ignore_keys is None else {"ignore_keys": ignore_keys}
                own: str | None = self._composers_save(
                    state, filename, weights_only=weights_only, **arguments
                )
                return own

            def make() -> dict[str, Any]:
                _check_readable(path)
                if turn is not None and turn.link is not None:
                    turn.link.point_to(Path(path))
                return _contents(state, weights_only, ignore_keys)

            if turn is not None and turn.is_asynchronous:
                turn.save = begin_on_first_rank(make, path, **self.options.of_async_save(state))
                raise _Begun
            save_on_first_rank(make, path, **self.options.of_save())
        return path if dist.get_global_rank() == 0 else None

    def _write_file(self, state_dict: dict[str, Any], filename: str) -> None:
        """In place of composer.checkpoint.save._write_checkpoint_file, on the rank that writes."""
        if _is_left(filename):
            self._composers_write(state_dict, filename)
        else:
            _check_readable(filename)
            pyckpt.save(state_dict, filename, **self.options.of_save())

    def _take_turn(self, saver: CheckpointSaver, state: Any, logger: Any) -> None:
        """In place of CheckpointSaver._save_checkpoint."""
        self._finish(saver, wait=True)
        link = _NextLink.of(saver, state)
        is_asynchronous = self.options.asynchronous and self._is_event
        self._run(saver, state, _Turn(_StateThen(state), logger, link, is_asynchronous))

    def _run(self, saver: CheckpointSaver, state: Any, turn: _Turn) -> None:
        """Runs Composer's own method."""
        self._turn = turn
        try:
            self._composers_turn(saver, state, turn.logger)
        except _Begun:
            self._under_way[saver] = turn
            return
        except BaseException:
            turn.forget()
            raise
        finally:
            self._turn = None
        turn.forget()

    def _finish(self, saver: CheckpointSaver, *, wait: bool) -> None:
        """Lets Composer do what follows a file, if it is there. All ranks agree on that."""
        turn = self._under_way.get(saver)
        if turn is None or turn.save is None:
            return
        try:
            if not turn.save.has_ended(wait=wait):
                return
        except CheckpointError as error:
            del self._under_way[saver]
            turn.forget()
            if not isinstance(error, TornSaveError) or self.options.stage is not None:
                raise
            distrust(turn.state)
            _LOGGER.warning("this checkpoint is left out, and the next ones are copied first")
            return
        del self._under_way[saver]
        self._run(saver, turn.state, turn)

    def _finish_alone(self, saver: CheckpointSaver) -> None:
        """Does so without the other ranks, which may not come: training may have failed there."""
        turn = self._under_way.pop(saver, None)
        if turn is None or turn.save is None:
            return
        turn.save.wait_alone()
        if dist.get_world_size() > 1 and getattr(saver, "remote_uploader", None) is not None:
            _LOGGER.warning("training ends before the last checkpoint is uploaded")
        else:
            self._run(saver, turn.state, turn)

    def _run_event(self, saver: CheckpointSaver, event: Event, state: Any, logger: Any) -> None:
        """In place of CheckpointSaver.run_event."""
        if event in (Event.BATCH_END, Event.FIT_END):
            self._finish(saver, wait=event is Event.FIT_END)
        self._is_event = True
        try:
            self._composers_run_event(saver, event, state, logger)
        finally:
            self._is_event = False
        if event is Event.INIT:  # the Trainer looks for a checkpoint to resume from after it
            link = _NextLink.of(saver, state)
            if link is not None:
                link.settle()

    def _close(self, saver: CheckpointSaver, state: Any, logger: Any) -> None:
        """In place of CheckpointSaver.close."""
        try:
            self._composers_close(saver, state, logger)
        finally:
            self._finish_alone(saver)


_INHERITED = object()


def _new_layouts() -> list[Any]:
    """The module that saves a folder of files, in the releases that have it."""
    try:
        return [import_module("composer.checkpoint.save")]
    except ImportError:
        return []


def _in_place_of(original: Callable[..., Any], function: Callable[..., Any]) -> Any:
    """A plain function, which can be a method too, that looks like Composer's own."""

    @wraps(original)
    def replacement(*arguments: Any, **options: Any) -> Any:
        return function(*arguments, **options)

    return replacement


def _contents(state: Any, weights_only: bool, ignore_keys: IgnoreKeys) -> dict[str, Any]:
    """What this release of Composer saves, made by its own state. Call it on every rank."""
    contents: dict[str, Any]
    if not weights_only:
        contents = {"state": state.state_dict(), "rng": reproducibility.get_rng_state()}
    elif hasattr(state, "get_model_state_dict"):
        contents = {
            "state": {
                "model": state.get_model_state_dict(),
                "integrations": state._get_integrations_state_dict(),
                "metadata": state._get_state_metadata(),
            }
        }
    else:
        model = state.state_dict()["model"]
        contents = {"state": {"model": model}, "rng": reproducibility.get_rng_state()}
    if not ignore_keys:
        return contents
    # Composer's own filter would edit the dicts of the optimizer, which are in the contents.
    left = without_ignored(contents, ignore_keys)
    left.setdefault("state", {})
    return left


def _is_left(path: str, state: Any = None) -> bool:
    """Whether Composer has to write this file itself. Then a warning says why."""
    reason = ""
    if is_compressed_pt(path) and PurePath(path).suffix not in _ENDINGS:
        reason = "pyckpt does not write this kind of compressed file"
    elif state is not None and state.fsdp_sharded_state_dict_enabled:
        reason = "every rank saves its part of a sharded state"
    elif state is not None and is_deepspeed_engine(state.model):
        reason = "DeepSpeed saves the states"
    if reason:
        warn(f"Composer writes {path} itself, not through pyckpt: {reason}")
    return bool(reason)


_ENDINGS = {PurePath(suffix).suffix for suffix in file_suffixes()}
_TARFILE_READS = ("", "gzip", "bzip2", "xz")


def _check_readable(path: str) -> None:
    """Checks that this release of Composer will read what pyckpt writes under a name.

    Raises:
        FilenameError: It would not.
    """
    found = file_format(Path(path))
    compression = "" if found.row is None else found.row.compression
    if found.is_tar:
        is_read = is_tar(path) and compression in _TARFILE_READS
    else:
        is_read = not is_tar(path) and is_compressed_pt(path) == bool(compression)
    if not is_read:
        raise FilenameError(
            f"Composer {composer.__version__} would not read {path!r}, as pyckpt writes it: give "
            "the checkpoint another suffix, such as .pt, .tar or .tar.gz",
            path=path,
        )


class _NextLink:
    """A hidden link, beside the link to the latest checkpoint, to the file that will be the next.

    It is there from before the save until Composer has moved its own link. If the process is killed
    between, the next start finds it, and puts it in the place of Composer's. Else the old link
    would stay, and Composer refuses to train on from it beside a newer file.
    """

    def __init__(self, latest: Path) -> None:
        self._latest = latest
        self._path = latest.with_name(f".{latest.name}.next")

    @classmethod
    def of(cls, saver: CheckpointSaver, state: Any) -> _NextLink | None:
        """That of a CheckpointSaver, on the rank that writes, if it links to its checkpoints."""
        if saver.latest_filename is None or dist.get_global_rank() != 0:
            return None
        return cls(Path(saver.latest_filename.format(state)))

    def point_to(self, file: Path) -> None:
        """Notes that ``file`` is about to be written."""
        if file.exists():  # then nobody could tell whether it is the new one
            return
        self.remove()
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._path.symlink_to(os.path.relpath(file, self._path.parent))

    def settle(self) -> None:
        """Moves Composer's link to the file that was written, if one was."""
        if self._path.exists():
            self._path.replace(self._latest)
        else:
            self.remove()

    def remove(self) -> None:
        """The save is over."""
        self._path.unlink(missing_ok=True)
