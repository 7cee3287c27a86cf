"""Training checkpoints as standard archives, fast, and all or nothing."""

from pyckpt.archive import save
from pyckpt.checkpoint import save_checkpoint
from pyckpt.errors import (
    CheckpointError,
    CorruptArchiveError,
    DuplicateFileError,
    FilenameError,
    OptionError,
    StateMismatchError,
)
from pyckpt.loading import load
from pyckpt.resume import load_checkpoint
from pyckpt.state import RestorableState, State, Timestamp, TrainingState

__all__ = [
    "CheckpointError",
    "CorruptArchiveError",
    "DuplicateFileError",
    "FilenameError",
    "OptionError",
    "RestorableState",
    "State",
    "StateMismatchError",
    "Timestamp",
    "TrainingState",
    "load",
    "load_checkpoint",
    "save",
    "save_checkpoint",
]
