"""Saves training checkpoints as standard archives, fast, and all or nothing."""

from pyckpt.archive.assembly import ArchiveWriter
from pyckpt.archive.convert import convert
from pyckpt.archive.extract import extract
from pyckpt.archive.inspect import ArchiveInfo, inspect
from pyckpt.archive.load import load
from pyckpt.archive.pack import pack
from pyckpt.archive.save import save
from pyckpt.archive.verify import Problem, Report, verify
from pyckpt.errors import (
    CheckpointError,
    CorruptArchiveError,
    DuplicateFileError,
    FilenameError,
    MixedFilesError,
    OptionError,
    SaveInProgressError,
    ShardedStateError,
    StateMismatchError,
    TornSaveError,
)
from pyckpt.staging.pending_saves import PendingSave
from pyckpt.state import RestorableState, State, Timestamp, TrainingState
from pyckpt.storage.transaction import transaction
from pyckpt.training.async_save import async_save
from pyckpt.training.async_save_checkpoint import async_save_checkpoint
from pyckpt.training.load_checkpoint import load_checkpoint
from pyckpt.training.manager import CheckpointManager, SavedCheckpoint
from pyckpt.training.removal import remove
from pyckpt.training.save_checkpoint import save_checkpoint
from pyckpt.training.signals import save_on_signal

__all__ = [
    "ArchiveInfo",
    "ArchiveWriter",
    "CheckpointError",
    "CheckpointManager",
    "CorruptArchiveError",
    "DuplicateFileError",
    "FilenameError",
    "MixedFilesError",
    "OptionError",
    "PendingSave",
    "Problem",
    "Report",
    "RestorableState",
    "SaveInProgressError",
    "SavedCheckpoint",
    "ShardedStateError",
    "State",
    "StateMismatchError",
    "Timestamp",
    "TornSaveError",
    "TrainingState",
    "async_save",
    "async_save_checkpoint",
    "convert",
    "extract",
    "inspect",
    "load",
    "load_checkpoint",
    "pack",
    "remove",
    "save",
    "save_checkpoint",
    "save_on_signal",
    "transaction",
    "verify",
]

__version__ = "0.1.0"
