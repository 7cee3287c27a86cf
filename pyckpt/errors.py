"""The exceptions that pyckpt raises.

CheckpointError (RuntimeError)
├── FilenameError (also ValueError)
│   └── DuplicateFileError
├── OptionError (also ValueError)
├── CorruptArchiveError
├── StateMismatchError (also ValueError)
├── SaveInProgressError
└── TornSaveError
"""

from __future__ import annotations

__all__ = [
    "CheckpointError",
    "CorruptArchiveError",
    "DuplicateFileError",
    "FilenameError",
    "OptionError",
    "SaveInProgressError",
    "StateMismatchError",
    "TornSaveError",
]


class CheckpointError(RuntimeError):
    """A checkpoint could not be saved or read.

    After a failed save or load every rank raises one with the same message. On the rank that
    failed, ``__cause__`` is the original exception.

    Attributes:
        rank: The global rank that failed, or None when that is not known.
        path: The file concerned, or None.
        errno: The system's error number, or None when no system call failed.
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


class FilenameError(CheckpointError, ValueError):
    """A file name that cannot be rendered, or that may not be written to."""


class DuplicateFileError(FilenameError):
    """Two ranks would write the same file."""


class OptionError(CheckpointError, ValueError):
    """An argument out of its range, or arguments that exclude each other."""


class CorruptArchiveError(CheckpointError):
    """A file that is not, or no longer, what pyckpt or Composer wrote."""


class StateMismatchError(CheckpointError, ValueError):
    """A whole checkpoint that does not fit the state it is loaded into; the state is unchanged."""


class SaveInProgressError(CheckpointError):
    """As many asynchronous saves are under way as may be."""


class TornSaveError(CheckpointError):
    """A state that was changed while it was saved; nothing was committed."""
