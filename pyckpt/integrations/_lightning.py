"""What ``lightning`` and ``pytorch_lightning`` have in common here: all but their base classes.

Lightning comes as two packages with classes of their own, so that one's Trainer does not know the
other's plugins. This module imports neither. Its classes are mixed into those of one package.
"""

from __future__ import annotations

import io
import os
import re
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future, wait
from functools import partial
from pathlib import Path, PurePath
from tempfile import TemporaryDirectory
from typing import Any, Literal, TypeVar

import pyckpt
from pyckpt import _core
from pyckpt.archive.formats import STATES_MEMBER, file_format, is_compressed
from pyckpt.archive.reader import ArchiveReader
from pyckpt.integrations._lightning_sharded import ShardedSaving
from pyckpt.options import BackgroundOptions
from pyckpt.paths import check_is_local, local_path
from pyckpt.ranks.exchange import begin_together, together
from pyckpt.staging.pending_saves import raise_uncollected
from pyckpt.storage.flush import flush_folder
from pyckpt.warn import warn

__all__ = ["NEWEST_TRIED", "SavingCallback", "SavingIO", "load_from_checkpoint"]

T = TypeVar("T")

NEWEST_TRIED = (2, 6)
"""The newest release of either package that this was tried with."""

_PIECE_NBYTES = 16 << 20
# What Lightning saves when Slurm is about to end the job.
_OF_SLURM = re.compile(r"hpc_ckpt_\d+\.ckpt")
# Callbacks that change weights between the steps of the optimizers.
_SWAPPING = {"StochasticWeightAveraging", "WeightAveraging"}


class SavingIO:
    """The methods of a CheckpointIO. See ``PyckptIO`` of ``pyckpt.integrations.lightning``.

    Attributes:
        optimizers: What trains the weights, while it is known that nothing else changes them.
        raises_at_teardown: Whether ``teardown`` raises the error of a failed save. If not, somebody
            else calls ``wait``.
    """

    def __init__(
        self,
        asynchronous: bool = False,
        *,
        stage: Literal["copy", "lazy"] | None = None,
        compression_level: int | None = None,
        num_threads: int | None = None,
        fsync: bool = True,
        nice: int = 10,
        max_pending: int = 1,
    ) -> None:
        BackgroundOptions(
            compression_level, num_threads, fsync, nice=nice, stage=stage, max_pending=max_pending
        )
        self._asynchronous = asynchronous
        self._options: dict[str, Any] = {
            "compression_level": compression_level,
            "num_threads": num_threads,
            "fsync": fsync,
        }
        self._background: dict[str, Any] = {
            "stage": stage,
            "nice": nice,
            "max_pending": max_pending,
        }
        self._under_way: list[tuple[str, Future[Any]]] = []
        self._begun: set[Path] = set()  # all files of asynchronous saves
        self.optimizers: Sequence[Any] | None = None
        self.raises_at_teardown = True

    @property
    def is_asynchronous(self) -> bool:
        """Whether training goes on while a file is written."""
        return self._asynchronous

    def save_checkpoint(
        self,
        checkpoint: dict[str, Any],
        path: str | os.PathLike[str],
        storage_options: Mapping[str, Any] | None = None,
    ) -> None:
        """Saves a checkpoint, or starts to. ``storage_options`` are options of ``pyckpt.save``."""
        check_is_local(os.fspath(path))
        options = {**self._options, **_known(storage_options, self._options)}
        _check_last(checkpoint, os.fspath(path), self._begun)
        _end_link(path)
        if _OF_SLURM.fullmatch(PurePath(path).name):
            _save_for_slurm(checkpoint, Path(path), options)
        elif self._asynchronous:
            pending = pyckpt.async_save(
                checkpoint, path, optimizers=self.optimizers, **options, **self._background
            )
            self._follow(path, pending)
            self._begun.add(Path(path).resolve())
        else:
            pyckpt.save(checkpoint, path, **options)

    def load_checkpoint(
        self,
        path: str | os.PathLike[str],
        map_location: Any = "cpu",
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        """Loads a checkpoint of any format, once the saves that are under way have ended."""
        self.wait()
        checkpoint: dict[str, Any] = pyckpt.load(
            path, map_location=map_location, weights_only=weights_only
        )
        return checkpoint

    def remove_checkpoint(self, path: str | os.PathLike[str]) -> None:
        """Removes a checkpoint once the saves that are under way are safe; else it stays.

        Raises:
            CheckpointError: A save failed, and this was not raised before.
        """
        removal = pyckpt.remove(path)
        if self._asynchronous:
            self._follow(path, removal)
        else:
            removal.result()

    def teardown(self) -> None:
        """Waits for the saves that are under way.

        Raises:
            CheckpointError: One of them failed.
        """
        if self.raises_at_teardown:
            self.wait()
        else:
            wait([pending for _, pending in self._under_way])

    def wait(self) -> None:
        """Waits for the saves that are under way.

        Raises:
            CheckpointError: A save or a removal failed, and this was not raised before.
        """
        ended, self._under_way = [pending for _, pending in self._under_way], []
        wait(ended)
        raise_uncollected()
        for pending in ended:
            if not isinstance(pending, pyckpt.PendingSave):
                pending.result()  # of a removal

    def is_under_way(self, path: str | os.PathLike[str]) -> bool:
        """Whether a file is being written or removed."""
        return any(
            os.fspath(path) == one and not pending.done() for one, pending in self._under_way
        )

    def _follow(self, path: str | os.PathLike[str], pending: Future[Any]) -> None:
        self._under_way = [one for one in self._under_way if not one[1].done()]
        self._under_way.append((os.fspath(path), pending))


def _known(storage_options: Any, known: Mapping[str, Any]) -> Mapping[str, Any]:
    if storage_options is None:
        return {}
    if not isinstance(storage_options, Mapping) or not storage_options.keys() <= known.keys():
        raise pyckpt.OptionError(
            f"storage_options must be a dict with some of {', '.join(known)}, not "
            f"{storage_options!r}"
        )
    return storage_options


def _check_last(checkpoint: Mapping[str, Any], path: str, begun: Collection[Path]) -> None:
    """Checks that Lightning will find its last checkpoint, as far as the checkpoint tells.

    Args:
        begun: The files of asynchronous saves. Other links may be those of an earlier run.

    Raises:
        FilenameError: It would not, and would train from scratch.
        OptionError: The same, for some time.
    """
    callbacks = checkpoint.get("callbacks")
    for state in callbacks.values() if isinstance(callbacks, Mapping) else ():
        last = state.get("last_model_path") if isinstance(state, Mapping) else None
        if not last:
            continue
        if last == path:
            _check_extension(path)
        if last != path and Path(last).is_symlink() and Path(last).resolve() in begun:
            raise _link_refused()


def _end_link(path: str | os.PathLike[str]) -> None:
    """Puts a file with the same contents in the place of a link, if ``path`` is one to a file.

    It is one of ``save_last="link"``, in a run that has another ``save_last`` now. pyckpt.save
    would replace the file that it leads to: another checkpoint.
    """
    link = Path(path)
    if link.is_symlink() and link.is_file():
        with TemporaryDirectory(prefix=".link.", dir=link.parent) as folder:
            copy = Path(folder, link.name)
            try:
                copy.hardlink_to(link.resolve())
            except OSError:  # a file system without hard links, or another one
                shutil.copy2(link, copy)
            copy.replace(link)


def _check_extension(name: str) -> None:
    """Checks that ``ckpt_path="last"`` finds files with the suffix of ``name``.

    Raises:
        FilenameError: It does not.
    """
    # Lightning compares FILE_EXTENSION with pathlib's suffix, which is what follows the last dot.
    found = file_format(Path(name))
    if found.row is None or (found.is_tar and PurePath(name).suffix in found.row.suffixes):
        return
    compression = found.row.compression
    short = [
        suffix
        for row in _core.formats()
        for suffix in row.suffixes
        if suffix.count(".") == 1 and suffix != ".tar" and row.compression == compression
    ]
    raise pyckpt.FilenameError(
        f"Lightning does not find {name!r} with ckpt_path='last', and would train from scratch, "
        "because its suffix has two dots: let ModelCheckpoint.FILE_EXTENSION be "
        f"{' or '.join(map(repr, short)) or repr('.txz')}",
        path=name,
    )


def _link_refused() -> pyckpt.OptionError:
    return pyckpt.OptionError(
        "ModelCheckpoint(save_last='link') is not for asynchronous saves: the link would lead to a "
        "file that is not there yet. Use save_last=True"
    )


def _save_for_slurm(checkpoint: Any, path: Path, options: Mapping[str, Any]) -> None:
    """Saves before the call returns, since the job ends then.

    Lightning takes every name with "hpc_ckpt_" in the folder for such a checkpoint, and numbers in
    it for its version. So what a killed process leaves must not be called so.
    """
    hidden = path.with_name(f".slurm.{os.getpid()}.ckpt")
    pyckpt.save(checkpoint, hidden, **options)
    hidden.replace(path)
    if options["fsync"]:
        flush_folder(path.parent)


class SavingCallback:
    """The methods of a Callback. See ``PyckptCallback`` of ``pyckpt.integrations.lightning``."""

    make_io: Callable[..., Any]
    """Makes the CheckpointIO."""

    def __init__(self, asynchronous: bool = False, **options: Any) -> None:
        super().__init__()
        self.io = type(self).make_io(asynchronous, **options)
        self.io.raises_at_teardown = False

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Puts the CheckpointIO into the strategy, before anything is loaded.

        Raises:
            FilenameError, OptionError: Lightning would not find its last checkpoint.
        """
        for callback in trainer.checkpoint_callbacks:
            if getattr(callback, "save_last", None):
                _check_extension(f"last{callback.FILE_EXTENSION}")
                if callback.save_last == "link" and self.io.is_asynchronous:
                    raise _link_refused()
            if hasattr(callback, "file_exists"):
                callback.file_exists = partial(_is_there_or_under_way, callback)
        _warn_of_own_ways(trainer.strategy)
        trainer.strategy.checkpoint_io = self.io
        if trainer.world_size > 1:
            _tell_all_ranks(trainer.strategy)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Tells the CheckpointIO what changes the weights."""
        kinds = {kind.__name__ for one in trainer.callbacks for kind in type(one).__mro__}
        # An embedding with max_norm changes its weights in forward.
        bounded = any(getattr(one, "max_norm", None) is not None for one in pl_module.modules())
        self.io.optimizers = None if kinds & _SWAPPING or bounded else tuple(trainer.optimizers)

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Training has ended."""
        self.io.optimizers = None

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        """Waits for the saves that are under way.

        Raises:
            CheckpointError: One of them failed. All ranks raise it.
        """
        self.io.optimizers = None
        _on_all_ranks(self.io.wait)


def _warn_of_own_ways(strategy: Any) -> None:
    """Warns if the strategy will not ask its CheckpointIO to save."""
    names = [kind.__name__ for kind in type(strategy).__mro__]
    if "DeepSpeedStrategy" in names:
        warn(
            f"{names[0]} lets DeepSpeed save, not pyckpt: give trainer.strategy.deepspeed_engine "
            "to pyckpt.integrations.deepspeed.attach in on_fit_start of a callback"
        )
    elif not isinstance(strategy, ShardedSaving) and (
        getattr(strategy, "_state_dict_type", None) == "sharded"
        or getattr(strategy, "_save_distributed_checkpoint", False)
    ):
        warn(
            f"{names[0]} saves shards by itself, not through pyckpt: take the strategy of this "
            "name from pyckpt.integrations.lightning or .pytorch_lightning"
        )


def _tell_all_ranks(strategy: Any) -> None:
    """Lets all ranks know how a save ended, and read only what is complete.

    Lightning writes on rank 0, and the other ranks wait in a barrier. If rank 0 raised, they would
    wait until its process ends.
    """
    strategy.save_checkpoint = partial(_told, strategy, "save_checkpoint")
    strategy.remove_checkpoint = partial(_told, strategy, "remove_checkpoint")
    strategy.load_checkpoint = partial(_load_after_saves, strategy)


# These stand in an object's own attributes, which can be copied and pickled with it. The object may
# be used again without pyckpt.


def _told(strategy: Any, name: str, *arguments: Any, **options: Any) -> None:
    """A method of the strategy, of whose error all ranks hear."""
    _on_all_ranks(lambda: getattr(type(strategy), name)(strategy, *arguments, **options))


def _load_after_saves(strategy: Any, *arguments: Any, **options: Any) -> Any:
    """In place of ``strategy.load_checkpoint``."""
    if isinstance(strategy.checkpoint_io, SavingIO):
        _on_all_ranks(strategy.checkpoint_io.wait)
    return type(strategy).load_checkpoint(strategy, *arguments, **options)


def _is_there_or_under_way(model_checkpoint: Any, filepath: str, trainer: Any) -> bool:
    """In place of ``model_checkpoint.file_exists``: what will be there counts too.

    Lightning adds ``-v1`` to a name if there is a file of that name. A file that is still being
    written would be replaced instead.
    """
    is_there: bool = type(model_checkpoint).file_exists(model_checkpoint, filepath, trainer)
    strategy = trainer.strategy
    if is_there or not isinstance(strategy.checkpoint_io, SavingIO):
        return is_there
    is_under_way = strategy.checkpoint_io.is_under_way(filepath)
    return bool(strategy.reduce_boolean_decision(is_under_way, all=False))


def _on_all_ranks(step: Callable[[], None]) -> None:
    """Runs a step, and raises on all ranks if it fails on one.

    The step is run first: a rank may be alone here, to save because it has failed.
    """
    failed: BaseException | None = None
    try:
        step()
    except BaseException as error:
        failed = error

    def tell() -> None:
        if failed is not None:
            raise failed

    [channel] = begin_together("Trainer.save_checkpoint")
    together("saving a checkpoint", tell, channel)


def load_from_checkpoint(
    cls: type[T], checkpoint_path: str | os.PathLike[str], *arguments: Any, **options: Any
) -> T:
    """``cls.load_from_checkpoint(checkpoint_path, ...)``, for checkpoints of every format.

    That of Lightning reads by torch.load alone. Compressed files and tars are given to it
    decompressed, in memory.

    Args:
        cls: A LightningModule or LightningDataModule.
        arguments, options: As in Lightning's method.

    Raises:
        CorruptArchiveError: The file is damaged.
    """
    file: Any = checkpoint_path
    if Path(checkpoint_path).is_file():
        path = local_path(checkpoint_path)
        reader = ArchiveReader(path)
        if reader.is_tar or is_compressed(path):
            pyckpt.verify(checkpoint_path).raise_if_damaged()
            file = _decompressed(reader)
    loaded: T = cls.load_from_checkpoint(file, *arguments, **options)  # type: ignore[attr-defined]
    return loaded


def _decompressed(reader: ArchiveReader) -> io.BytesIO:
    """The file of torch.save in an archive."""
    member = reader.find(STATES_MEMBER) if reader.is_tar else reader.whole()
    file = io.BytesIO()
    for start in range(0, member.nbytes, _PIECE_NBYTES):
        place = (member.offset + start, min(_PIECE_NBYTES, member.nbytes - start))
        file.write(reader.take(*place))
        reader.image.forget(place)
    file.seek(0)
    return file
