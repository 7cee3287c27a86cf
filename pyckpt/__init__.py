"""Training checkpoints as standard archives, fast, and all or nothing."""

from pyckpt.archive import load, save
from pyckpt.checkpoint import save_checkpoint
from pyckpt.errors import (
    CheckpointError,
    CorruptArchiveError,
    DuplicateFileError,
    FilenameError,
    OptionError,
)
from pyckpt.state import State, Timestamp, TrainingState

__all__ = [
    "CheckpointError",
    "CorruptArchiveError",
    "DuplicateFileError",
    "FilenameError",
    "OptionError",
    "State",
    "Timestamp",
    "TrainingState",
    "load",
    "save",
    "save_checkpoint",
]
