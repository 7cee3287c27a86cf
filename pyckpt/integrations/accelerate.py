"""Hugging Face accelerate: the folder of ``save_state`` appears whole, or not at all.

    from pyckpt.integrations.accelerate import Accelerator  # in place of accelerate.Accelerator

What is replaced: ``save_state`` lets accelerate write into a hidden folder, which gets its name
when all ranks have written and all is on the disk. If anything fails, on any rank, all ranks raise
the same CheckpointError, and what was there is as it was. With ``automatic_checkpoint_naming`` old
checkpoints are removed after that; accelerate removes them first. pyckpt writes the optimizers,
under accelerate's names and as torch's files: the stock Accelerator loads the folder. With
``asynchronous=True`` they are written, and the folder is named, while training goes on.

What is left: all other files, and ``load_state``, which only waits, and passes over what is hidden.
Under DeepSpeed, FSDP and Megatron-LM their own code writes the optimizers too. The folder still
appears whole, but a rank that fails there can leave the others in a collective of that code. With
``save_on_each_node`` accelerate saves as it always has.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pyckpt
from pyckpt.integrations._last_checkpoint import LastCheckpoint
from pyckpt.integrations.needed import needed
from pyckpt.paths import check_is_local, path_text
from pyckpt.ranks.exchange import together
from pyckpt.training.folder_save import FolderSave
from pyckpt.warn import warn_if_untried

with needed("accelerate", "huggingface"):
    import accelerate
    from accelerate.utils import DistributedType
    from accelerate.utils.constants import OPTIMIZER_NAME

__all__ = ["Accelerator"]

warn_if_untried("accelerate", accelerate.__version__, (1, 15))

_SAVED_BY_OTHERS = (
    DistributedType.DEEPSPEED,
    DistributedType.FSDP,
    DistributedType.MEGATRON_LM,
    DistributedType.XLA,
)
_NAME = re.compile(r"checkpoint_(\d+)")


class Accelerator(LastCheckpoint, accelerate.Accelerator):
    """accelerate.Accelerator, with checkpoints that appear whole or not at all."""

    _optimizers: list[Any]

    def save_state(
        self,
        output_dir: str | os.PathLike[str] | None = None,
        safe_serialization: bool = True,
        *,
        asynchronous: bool = False,
        **save_model_func_kwargs: Any,
    ) -> Path:
        """As accelerate's. Files that are in the folder already, and are not replaced, stay.

        Args:
            asynchronous: Whether the call only copies the optimizers' states, or reads them in
                place until they step. The folder appears later; ``wait_for_checkpoint`` waits for
                it. So do the next ``save_state``, ``load_state`` and ``end_training``. They raise
                its error.

        Returns:
            The folder.

        Raises:
            FilenameError: The folder is a URL.
            CheckpointError: It could not be written. What was there is as it was.
        """
        self._check_local(output_dir)
        options = {"safe_serialization": safe_serialization, **save_model_func_kwargs}
        if self.project_configuration.save_on_each_node:  # there is no folder that all ranks see
            return Path(super().save_state(output_dir, **options))
        self.wait_for_checkpoint()
        folder = self._folder(output_dir)
        iteration = self.project_configuration.iteration
        try:
            with FolderSave(folder, asynchronous=asynchronous) as files:
                write = partial(super().save_state, str(files.path), **options)
                with self._without_optimizers_and_names() as optimizers:
                    together(f"writing {folder}", write, files.channel)
                if self.is_main_process:
                    self._complete(files, folder, optimizers)
        except BaseException:
            self.project_configuration.iteration = iteration
            raise
        self._pending = files.pending
        return folder

    def load_state(
        self,
        input_dir: str | os.PathLike[str] | None = None,
        load_kwargs: dict[str, Any] | None = None,
        **load_model_func_kwargs: Any,
    ) -> None:
        """As accelerate's.

        Raises:
            FilenameError: The folder is a URL.
        """
        self._check_local(input_dir)
        self.wait_for_checkpoint()
        if input_dir is None and self.project_configuration.automatic_checkpoint_naming:
            # accelerate takes the highest number, also that of a hidden folder which is not whole.
            input_dir = next(reversed(self._named()), None)
        super().load_state(input_dir, load_kwargs, **load_model_func_kwargs)

    def end_training(self) -> None:
        """As accelerate's."""
        self.wait_for_checkpoint()
        super().end_training()

    def _check_local(self, folder: str | os.PathLike[str] | None) -> None:
        """Checks that accelerate will not take a URL for a folder of this machine."""
        for one in (folder, self.project_dir):
            if one is not None:
                check_is_local(path_text(one))

    def _folder(self, output_dir: str | os.PathLike[str] | None) -> Path:
        if not self.project_configuration.automatic_checkpoint_naming:
            if output_dir is None:
                raise pyckpt.OptionError("save_state needs an output_dir")
            return Path(output_dir).expanduser()
        folder = self._parent() / f"checkpoint_{self.save_iteration}"
        if folder.exists():
            raise pyckpt.FilenameError(
                f"{folder} exists: set project_configuration.iteration to the next number",
                path=str(folder),
            )
        return folder

    def _parent(self) -> Path:
        return Path(self.project_dir, "checkpoints")

    def _named(self) -> list[Path]:
        """The checkpoints that accelerate has named, oldest first."""
        found = [(_NAME.fullmatch(path.name), path) for path in self._parent().glob("*")]
        return [path for _, path in sorted((int(name[1]), path) for name, path in found if name)]

    @contextmanager
    def _without_optimizers_and_names(self) -> Iterator[list[Any]]:
        """Keeps accelerate from what is done here: names, removals, and the optimizers yielded."""
        configuration, kept = self.project_configuration, self._optimizers
        is_naming = configuration.automatic_checkpoint_naming
        ours = [] if self.distributed_type in _SAVED_BY_OTHERS else kept
        configuration.automatic_checkpoint_naming = False
        self._optimizers = [] if ours else kept
        try:
            yield ours
        finally:
            configuration.automatic_checkpoint_naming = is_naming
            self._optimizers = kept

    def _complete(self, files: FolderSave, folder: Path, optimizers: list[Any]) -> None:
        for number, optimizer in enumerate(optimizers):
            name = f"{OPTIMIZER_NAME}_{number}.bin" if number else f"{OPTIMIZER_NAME}.bin"
            # accelerate's optimizer has torch's inside, which is the one that steps.
            files.save(optimizer.state_dict(), name, optimizer.optimizer)
        if not self.project_configuration.automatic_checkpoint_naming:
            _keep_others(folder, files.path)
            return
        limit = self.project_configuration.total_limit
        if limit is not None:
            older = self._named()
            files.remove_after(older[: max(0, len(older) + 1 - max(1, limit))])


def _keep_others(folder: Path, written: Path) -> None:
    """Links the files of ``folder`` that ``written`` does not have. No rank writes any more."""

    def replaced(source: str, names: list[str]) -> list[str]:
        target = written / os.path.relpath(source, folder)
        return [
            name
            for name in names
            if os.path.lexists(target / name)
            and not (_is_folder(Path(source, name)) and _is_folder(target / name))
        ]

    if folder.is_dir():
        shutil.copytree(
            folder,
            written,
            symlinks=True,
            ignore=replaced,
            copy_function=_link,
            dirs_exist_ok=True,
        )


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        shutil.copy2(source, target)
