"""Training checkpoints as standard archives, fast, and all or nothing."""

from pyckpt.archive import save
from pyckpt.async_checkpoint import async_save_checkpoint
from pyckpt.checkpoint import save_checkpoint
from pyckpt.errors import (
    CheckpointError,
    CorruptArchiveError,
    DuplicateFileError,
    FilenameError,
    OptionError,
    SaveInProgressError,
    StateMismatchError,
    TornSaveError,
)
from pyckpt.inspection import ArchiveInfo, inspect
from pyckpt.loading import load
from pyckpt.pending_saves import PendingSave
from pyckpt.resume import load_checkpoint
from pyckpt.state import RestorableState, State, Timestamp, TrainingState
from pyckpt.verification import Problem, Report, verify

__all__ = [
    "ArchiveInfo",
    "CheckpointError",
    "CorruptArchiveError",
    "DuplicateFileError",
    "FilenameError",
    "OptionError",
    "PendingSave",
    "Problem",
    "Report",
    "RestorableState",
    "SaveInProgressError",
    "State",
    "StateMismatchError",
    "Timestamp",
    "TornSaveError",
    "TrainingState",
    "async_save_checkpoint",
    "inspect",
    "load",
    "load_checkpoint",
    "save",
    "save_checkpoint",
    "verify",
]

__version__ = "0.1.0"
