"""The exceptions that pyckpt raises.

CheckpointError (RuntimeError)
├── FilenameError (also ValueError)
│   ├── DuplicateFileError
│   └── MixedFilesError
├── OptionError (also ValueError)
├── CorruptArchiveError
├── StateMismatchError (also ValueError)
├── ShardedStateError (also ValueError)
├── SaveInProgressError
└── TornSaveError
"""

from __future__ import annotations

__all__ = [
    "CheckpointError",
    "CorruptArchiveError",
    "DuplicateFileError",
    "FilenameError",
    "MixedFilesError",
    "OptionError",
    "SaveInProgressError",
    "ShardedStateError",
    "StateMismatchError",
    "TornSaveError",
]


class CheckpointError(RuntimeError):
    """A checkpoint could not be saved or read.

    After a failed save or load every rank raises an error of the same type, with the same message.
    On the rank that failed, ``__cause__`` is the original exception.

    Attributes:
        rank: The global rank that failed, or None if it is not known.
        path: The file, or None.
        errno: The system's error number, or None if no system call failed.
        is_exchanged: Whether every rank raises it.
    """

    def __init__(
        self,
        message: str,
        *,
        rank: int | None = None,
        path: str | None = None,
        errno: int | None = None,
    ) -> None:
        super().__init__(message)
        self.rank = rank
        self.path = path
        self.errno = errno
        self.is_exchanged = False


class FilenameError(CheckpointError, ValueError):
    """A file name cannot be rendered, or must not be written to."""


class DuplicateFileError(FilenameError):
    """Two ranks would write the same file."""


class MixedFilesError(FilenameError):
    """The ranks would write files that do not belong to one set."""


class OptionError(CheckpointError, ValueError):
    """An argument is out of range, or arguments exclude each other."""


class CorruptArchiveError(CheckpointError):
    """A file is damaged, or is not of a format that pyckpt reads."""


class StateMismatchError(CheckpointError, ValueError):
    """A checkpoint is whole, but does not fit the state. The state is unchanged."""


class ShardedStateError(CheckpointError, ValueError):
    """The ranks hold different parts of the state, and the file would have only rank 0's.

    Raised on all ranks before a byte is written.
    """


class SaveInProgressError(CheckpointError):
    """``max_pending`` asynchronous saves are under way already."""


class TornSaveError(CheckpointError):
    """The state was changed while it was saved. Nothing was committed."""
