"""DeepSpeed: an engine's checkpoints go through pyckpt.

    pyckpt.integrations.deepspeed.attach(engine)

It serves all that call the engine: plain loops, and Hugging Face's Trainer, accelerate and
Lightning under DeepSpeed.

**What it replaces.** ``engine.checkpoint_engine``, to which DeepSpeed hands every state that it
saves, and from which it asks every state that it loads. And four methods of this one engine, as
attributes of the object:

- ``save_checkpoint`` calls DeepSpeed's with ``save_latest=False``, since DeepSpeed would write
  ``latest`` in place, and before an asynchronous save is complete. pyckpt writes it when all files
  of all ranks have their names. An exception in DeepSpeed's own code, such as that of a full disk
  when it copies zero_to_fp32.py, goes to all ranks too.
- ``load_checkpoint`` and ``destroy`` wait for an asynchronous save first.
- ``save_16bit_model`` needs no more than the checkpoint engine.

The files have DeepSpeed's names, in DeepSpeed's folders, and are in torch's own format. Tensors
that are views are saved without the rest of their storage. A folder that is a URL is refused:
DeepSpeed reads and writes some of its files itself.

**What it leaves.** DeepSpeed copies zero_to_fp32.py and the files of tensors on NVMe itself, before
the checkpoint is committed. zero_to_fp32.py, ds_to_universal.py and universal checkpoints read the
files with torch.load. Its barriers of all ranks are exchanges during a save: a rank whose DeepSpeed
raises tells the others there. In its other collectives they wait until the time limit of these.
"""

from __future__ import annotations

import inspect
import logging
import os
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from pyckpt.archive.load import load
from pyckpt.errors import OptionError
from pyckpt.integrations.needed import needed
from pyckpt.options import BackgroundOptions, WriteOptions
from pyckpt.paths import check_is_local, path_text
from pyckpt.ranks.exchange import (
    AllRaised,
    Channel,
    begin_together,
    current_ranks,
    together,
)
from pyckpt.staging.pending_saves import PendingSave, raise_uncollected, wait_for_all
from pyckpt.storage.small_files import Replacement
from pyckpt.training.background import BackgroundSave
from pyckpt.training.file_set import WRITING, FileSet
from pyckpt.warn import warn_if_untried

with needed("deepspeed", "deepspeed"):
    import deepspeed
    from deepspeed.runtime.checkpoint_engine.checkpoint_engine import CheckpointEngine
    from deepspeed.runtime.checkpoint_engine.torch_checkpoint_engine import TorchCheckpointEngine
    from deepspeed.runtime.engine import DeepSpeedEngine

    from pyckpt.training.deepspeed import with_exchanges
    from pyckpt.training.deepspeed_types import allow_deepspeed_types

__all__ = ["Attachment", "attach", "detach"]

_LOGGER = logging.getLogger("pyckpt")
_NEWEST_TRIED = (0, 19)
_STAGING = "staging the state"


def attach(
    engine: DeepSpeedEngine,
    asynchronous: bool = False,
    *,
    compression_level: int | None = None,
    num_threads: int | None = None,
    fsync: bool = True,
    nice: int = 10,
    weights_only: bool | None = None,
) -> Attachment:
    """Lets ``engine`` save and load its checkpoints through pyckpt. Call it on every rank.

    Args:
        engine: What ``deepspeed.initialize`` returns.
        asynchronous: Whether saves return when the states are copied to host memory, and are
            written while training goes on. The next save, a load, ``engine.destroy()`` and the end
            of the process wait for it. Its error is raised by ``wait()`` of what this returns, or
            else by the next save.
        compression_level: 1 to 9 deflates the tensors inside torch's own files. DeepSpeed loads
            them all the same, but zero_to_fp32.py cannot: it maps the files. None compresses
            nothing.
        num_threads: Worker threads of each rank; None takes an equal share of the CPUs, and half
            of it for asynchronous saves.
        fsync: Whether to wait until the disks have the files.
        nice: By how much the priority of threads is lowered that write in the background, 0 to 19.
        weights_only: Whether loads refuse what is not plain data, as in torch.load. None means
            True, unless torch's environment variables say otherwise.

    Raises:
        OptionError: An argument is wrong, or the engine's checkpoints go elsewhere already.
    """
    if not isinstance(engine, DeepSpeedEngine):
        raise OptionError(
            "attach takes the engine that deepspeed.initialize returns, not "
            f"{type(engine).__qualname__}"
        )
    if isinstance(engine.checkpoint_engine, _PyckptEngine):
        raise OptionError("pyckpt is attached to this engine already: detach(engine) first")
    if not isinstance(engine.checkpoint_engine, TorchCheckpointEngine):
        raise OptionError(
            f"this engine saves with {type(engine.checkpoint_engine).__qualname__}, which divides "
            "the files among the ranks in its own way: leave it out of DeepSpeed's configuration"
        )
    warn_if_untried("DeepSpeed", deepspeed.__version__, _NEWEST_TRIED)
    allow_deepspeed_types()
    options = (
        BackgroundOptions(compression_level, num_threads, fsync, nice=nice)
        if asynchronous
        else WriteOptions(compression_level, num_threads, fsync)
    )
    return Attachment(engine, _PyckptEngine(options, weights_only))


def detach(engine: DeepSpeedEngine) -> None:
    """Lets ``engine`` save and load as before ``attach``. Waits for a save that is under way."""
    if isinstance(engine.checkpoint_engine, _PyckptEngine):
        engine.checkpoint_engine.attachment.detach()


class Attachment:
    """pyckpt in an engine; see the module's docstring."""

    def __init__(self, engine: DeepSpeedEngine, ours: _PyckptEngine) -> None:
        self._engine = engine
        self._ours = ours
        self._replaced = engine.checkpoint_engine
        self._save = engine.save_checkpoint
        self._load = engine.load_checkpoint
        self._destroy = engine.destroy
        ours.attachment = self
        engine.checkpoint_engine = ours
        engine.save_checkpoint = self._save_checkpoint
        engine.load_checkpoint = self._load_checkpoint
        engine.destroy = self._wait_and_destroy

    def wait(self) -> None:
        """Waits until the latest save is complete on all ranks.

        Raises:
            CheckpointError: It has failed. All ranks that wait raise it.
        """
        if self._ours.pending is not None:
            self._ours.pending.result()

    def detach(self) -> None:
        """Lets the engine save and load as before. Waits for a save that is under way."""
        wait_for_all()
        if self._engine.checkpoint_engine is self._ours:
            self._engine.checkpoint_engine = self._replaced
            for name in ("save_checkpoint", "load_checkpoint", "destroy"):
                delattr(self._engine, name)

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> Any:
        """In place of ``engine.save_checkpoint``, with the same arguments."""
        if self._engine.checkpoint_engine is not self._ours:  # somebody else collects the states
            return self._save(*args, **kwargs)
        call = inspect.signature(self._save).bind(*args, **kwargs)
        call.apply_defaults()
        wants_latest = call.arguments["save_latest"] and self._engine.global_rank == 0
        call.arguments["save_latest"] = False
        folder = call.arguments["save_dir"]
        with self._ours.saving("engine.save_checkpoint", folder, writes_latest=wants_latest):
            return self._save(*call.args, **call.kwargs)

    def _load_checkpoint(self, *args: Any, **kwargs: Any) -> Any:
        """In place of ``engine.load_checkpoint``, with the same arguments."""
        call = inspect.signature(self._load).bind(*args, **kwargs)
        # Of a URL, DeepSpeed would find nothing, and training would go on from nothing.
        check_is_local(path_text(call.arguments["load_dir"]))
        wait_for_all()  # or ``latest`` would still have the tag of the save before
        return self._load(*args, **kwargs)

    def _wait_and_destroy(self) -> None:
        """In place of ``engine.destroy``, which may be followed by the end of the process group."""
        wait_for_all()
        self._destroy()


class _PyckptEngine(CheckpointEngine):
    """A CheckpointEngine whose files get their names together, when DeepSpeed calls ``commit``.

    In a save, nothing raises before ``commit``: a rank that left early would let the others wait in
    one of DeepSpeed's barriers.
    """

    attachment: Attachment
    pending: PendingSave[list[Path]] | None = None

    def __init__(self, options: WriteOptions, weights_only: bool | None) -> None:
        super().__init__(None)
        self.name = "pyckpt"
        self._options = options
        self._weights_only = weights_only
        self._channels = [Channel()]
        self._files: FileSet | None = None  # of the save under way, until the ranks exchange
        self._latest: Path | None = None

    @contextmanager
    def saving(
        self, call: str, folder: str | os.PathLike[str], *, writes_latest: bool
    ) -> Iterator[None]:
        """A save by DeepSpeed, whose own exceptions go to all ranks too.

        Args:
            writes_latest: Whether this rank writes the file that is to have the tag: one, or none.
        """
        self._begin(call, folder)
        if writes_latest:
            self._latest = Path(folder) / "latest"
        try:
            # What a rank that fails is doing in the exchange that the others are in.
            doing = _STAGING if self._is_asynchronous else WRITING
            with with_exchanges(doing, self._channels[0]):
                yield
        except AllRaised as raised:
            files, self._files = self._files, None
            if files is not None:
                files.close()
            error = raised.args[0]
            raise error from None
        except BaseException as error:
            if self._files is not None:  # the others come to commit, and wait there for this rank
                _LOGGER.error("a save failed in DeepSpeed: %s: %s", type(error).__name__, error)
                self._files.fail(error)
                self.commit(None)
            raise

    def create(self, info: Any) -> None:
        """Begins a save. ``info`` is a tag up to DeepSpeed 0.18.3, then a CheckpointCommitInfo."""
        if self._files is None:
            self._begin("engine.save_16bit_model", getattr(info, "save_dir", None))
        assert self._files is not None
        if self._latest is not None:
            tag = str(getattr(info, "tag", info)).encode()
            self._files.pointer = Replacement(self._latest, tag, fsync=self._options.fsync)

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        """Makes a folder."""
        if self._files is None:
            Path(path).mkdir(parents=True, exist_ok=exist_ok)
        else:
            self._files.add_folder(Path(path))

    def save(self, state_dict: Any, path: str) -> None:
        """Writes a file, which has no name yet."""
        assert self._files is not None
        self._files.add(Path(path), state_dict, at_once=not self._is_asynchronous)

    def commit(self, info: Any) -> bool:
        """Gives all files of all ranks their names, and then moves ``latest``.

        In an asynchronous save this goes on in the background, once all ranks have copied.

        Raises:
            CheckpointError: A rank failed. All ranks raise it, and none has new files.
        """
        files, self._files = self._files, None
        assert files is not None
        if isinstance(self._options, BackgroundOptions):
            self._commit_in_background(files, self._options.nice)
            return True
        try:
            files.write(self._channels[0])
        finally:
            files.close()
        return True

    def load(self, path: str, map_location: Any = None) -> Any:
        """Reads a file of ours or of torch.save, and compares its checksums."""
        threads = self._options.threads(current_ranks().local_world_size)
        try:
            return load(
                path,
                map_location=map_location,
                weights_only=self._weights_only,
                num_threads=threads,
            )
        except pickle.UnpicklingError as error:
            raise pickle.UnpicklingError(
                f"{path}: {error} If you trust the file: attach(engine, weights_only=False)"
            ) from error

    def preserves_storage_sharing(self) -> bool:
        """False, so that DeepSpeed does not clone the views that it saves."""
        return False

    @property
    def _is_asynchronous(self) -> bool:
        return isinstance(self._options, BackgroundOptions)

    def _begin(self, call: str, folder: str | os.PathLike[str] | None) -> None:
        """Waits until all ranks save, and the save before is complete.

        Raises:
            FilenameError: ``folder`` is a URL.
            CheckpointError: An earlier asynchronous save failed, whose error nobody has asked for.
        """

        def prepare() -> None:
            if folder is not None:
                check_is_local(path_text(folder))
            raise_uncollected()

        if self._files is not None:  # of a save that Ctrl-C has ended
            self._files.close()
        wait_for_all()
        self._channels = begin_together(call, 2 if self._is_asynchronous else 1)
        together("preparing the checkpoint", prepare, self._channels[0])
        self._files = FileSet(self._options, current_ranks().local_world_size)
        self._latest = None

    def _commit_in_background(self, files: FileSet, nice: int) -> None:
        training, background = self._channels
        work = BackgroundSave(files, partial(files.write, background), nice)

        def stage() -> None:
            files.check()
            work.begin(None, chosen=True)

        try:
            together(_STAGING, stage, training)
            self.pending = work.start()
        except BaseException:
            work.drop()
            raise
