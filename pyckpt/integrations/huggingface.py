"""Checkpoints of Hugging Face's Trainer: each appears whole, or not at all.

    from pyckpt.integrations.huggingface import Trainer  # in place of transformers.Trainer

    class MyTrainer(CheckpointMixin, SFTTrainer): ...    # any other class of Trainer

What is replaced: ``checkpoint-N`` is written as a hidden folder beside its place, by the Trainer's
own code, and gets its name when all ranks have written and all is on the disk. If anything fails,
on any rank, all ranks raise the same CheckpointError, and the earlier checkpoints are as they were.
Old ones are removed, and pushes to the Hub begin, after that. pyckpt writes ``optimizer.pt`` and
``scheduler.pt``, as torch's files: the stock Trainer resumes from the folder. With
``asynchronous = True`` the optimizer is written, and the folder named, while training goes on.

What is left: all other files, their names and contents, and everything that reads them. Under
DeepSpeed and FSDP the Trainer's own code writes the optimizer too. The folder still appears whole,
but a rank that fails there can leave the others in a collective of that code. What
``trainer.save_model()`` writes outside of checkpoints, and the checkpoints of a search with Ray
Tune, are as before. With ``save_on_each_node`` the Trainer saves as it always has.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyckpt
from pyckpt.integrations._last_checkpoint import LastCheckpoint
from pyckpt.integrations.needed import check_has, needed
from pyckpt.paths import check_is_local
from pyckpt.ranks.exchange import together
from pyckpt.training.folder_save import FolderSave
from pyckpt.warn import warn_if_untried

with needed("transformers", "huggingface"):
    import transformers
    from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME, TRAINER_STATE_NAME
    from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, sort_checkpoints
    from transformers.utils import is_sagemaker_mp_enabled, is_torch_xla_available

__all__ = ["CheckpointMixin", "Trainer"]

_Base: Any = LastCheckpoint  # a Trainer's class comes behind the mixin

warn_if_untried("transformers", transformers.__version__, (5, 24))
check_has(
    transformers.Trainer,
    "_finalize_training",
    "_get_output_dir",
    "_push_from_checkpoint",
    "_save_checkpoint",
    "_save_optimizer_and_scheduler",
)


@dataclass
class _Save:
    """A checkpoint that is being written.

    Attributes:
        files: Its hidden folder stands for the run's folder in the Trainer's code, which writes
            to checkpoint-N in it.
        is_pushed: Whether that code has asked for a push to the Hub.
    """

    files: FolderSave
    is_pushed: bool = False


class CheckpointMixin(_Base):
    """Goes in front of a class of Trainer: ``class MyTrainer(CheckpointMixin, SFTTrainer)``.

    Attributes:
        asynchronous: Whether a save only copies the optimizer's state, or reads it in place until
            the optimizer steps, and the checkpoint appears later. The next save waits for it, and
            so does the end of ``train()``. They raise its error.
    """

    asynchronous: bool = False

    control: Any
    _current: _Save | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """As the Trainer's.

        Raises:
            FilenameError: The run's folder is a URL. The Trainer would make a folder of that name.
        """
        for one in (*args, *kwargs.values()):
            if isinstance(one, transformers.TrainingArguments) and one.output_dir:
                check_is_local(one.output_dir)
        super().__init__(*args, **kwargs)

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        order = cls.__mro__
        is_trainer = transformers.Trainer in order
        if is_trainer and order.index(CheckpointMixin) > order.index(transformers.Trainer):
            raise TypeError(  # its methods would never be called
                f"CheckpointMixin goes in front of the Trainer's class: class {cls.__name__}"
                f"(CheckpointMixin, {cls.__bases__[0].__name__})"
            )

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As the Trainer's."""
        self.wait_for_checkpoint()
        result = super().train(*args, **kwargs)
        self.wait_for_checkpoint()
        return result

    def _finalize_training(self, *args: Any, **kwargs: Any) -> Any:
        self.wait_for_checkpoint()  # the best one is about to be loaded
        return super()._finalize_training(*args, **kwargs)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        if self.args.save_on_each_node:  # there is no folder that all ranks see
            super()._save_checkpoint(model, trial)
            return
        self.wait_for_checkpoint()
        run = Path(self._get_output_dir(trial))
        folder = run / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        with FolderSave(folder, asynchronous=self._may_be_asynchronous()) as files:
            save = self._current = _Save(files)
            try:
                write = partial(super()._save_checkpoint, model, trial)
                together(f"writing {folder}", write, files.channel)
            finally:
                self._current = None
            self._name_the_best(run, files.path / folder.name)
            if self.args.should_save:
                _move_up(files.path / folder.name)
                files.remove_after(self._surplus(run, folder))
        self._pending = files.pending
        if save.is_pushed:
            self._push_from_checkpoint(str(folder))

    def _may_be_asynchronous(self) -> bool:
        if self.asynchronous and self.args.push_to_hub:
            raise pyckpt.OptionError(
                "asynchronous is not possible with push_to_hub: the upload of a checkpoint would "
                "begin before it is written"
            )
        # Training does not go on. transformers' just-in-time checkpoint also needs it to be there.
        return self.asynchronous and not self.control.should_training_stop

    def _get_output_dir(self, trial: Any) -> str:
        save = self._current
        return super()._get_output_dir(trial) if save is None else str(save.files.path)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """As the Trainer's."""
        write = partial(super().save_model, output_dir, _internal_call)
        if self._current is None:
            write()
        else:  # a barrier may follow, where no rank must be missing
            files = self._current.files
            together(f"writing {files.folder}", write, files.channel)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        save = self._current
        if save is None or self._is_saved_by_others():
            super()._save_optimizer_and_scheduler(output_dir)
        elif self.args.should_save:
            # accelerate's optimizer has torch's inside, which is the one that steps.
            stepped = getattr(self.optimizer, "optimizer", self.optimizer)
            save.files.save(self.lr_scheduler.state_dict(), SCHEDULER_NAME)
            save.files.save(self.optimizer.state_dict(), OPTIMIZER_NAME, stepped)

    def _is_saved_by_others(self) -> bool:
        return bool(
            self.is_deepspeed_enabled
            or self.is_fsdp_enabled
            or is_torch_xla_available()
            or is_sagemaker_mp_enabled()
        )

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if self._current is None:
            super()._push_from_checkpoint(checkpoint_folder)
        else:  # an upload goes on in the background, and needs files that stay where they are
            self._current.is_pushed = True

    def _name_the_best(self, run: Path, written: Path) -> None:
        """Sets the path of the best checkpoint. The Trainer has looked for it beside this one."""
        if not self.state.best_global_step:
            return
        best = run / f"{PREFIX_CHECKPOINT_DIR}-{self.state.best_global_step}"
        is_there = best.name == written.name or best.exists()
        if is_there and self.state.best_model_checkpoint != str(best):
            self.state.best_model_checkpoint = str(best)
            if self.args.should_save:
                self.state.save_to_json(str(written / TRAINER_STATE_NAME))

    def _surplus(self, run: Path, newest: Path) -> list[Path]:
        """The old checkpoints that the Trainer would remove, once there is the newest one."""
        limit = self.args.save_total_limit
        if limit is None or limit <= 0:
            return []
        found = sort_checkpoints(str(run), use_mtime=True)
        others = [Path(path) for path in found if Path(path) != newest]
        best = self.state.best_model_checkpoint
        removable = [path for path in others if best is None or path != Path(best)]
        return removable[: max(0, len(others) + 1 - limit)]


class Trainer(CheckpointMixin, transformers.Trainer):
    """transformers.Trainer, with checkpoints that appear whole or not at all."""


def _move_up(folder: Path) -> None:
    """Moves what is in a folder to the folder around it."""
    for path in folder.iterdir():
        path.rename(folder.parent / path.name)
    folder.rmdir()
