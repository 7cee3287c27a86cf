"""What one rank tells the others about its exception, and the error that all of them raise then."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from pyckpt import errors
from pyckpt.errors import CheckpointError, FilenameError, OptionError, SaveInProgressError

__all__ = ["Failure", "as_one", "describe"]

_KINDS: dict[str, type[CheckpointError]] = {name: getattr(errors, name) for name in errors.__all__}
# Their messages are about arguments that all ranks got, and not about one rank's files or tensors.
_ABOUT_ARGUMENTS = (FilenameError, OptionError, SaveInProgressError)


@dataclass(frozen=True)
class Failure:
    """An exception as plain data, so it always pickles.

    Attributes:
        rank: The rank that failed. None if it is not known.
        kind: The name of a CheckpointError's type; empty for other exceptions.
        is_exchanged: Whether all ranks have heard of it already.
    """

    rank: int | None
    kind: str
    message: str
    path: str | None = None
    errno: int | None = None
    is_exchanged: bool = False

    def to_text(self) -> str:
        """It as a text, for a store."""
        return json.dumps(asdict(self))

    @classmethod
    def from_text(cls, text: str) -> Failure:
        """The reverse of ``to_text``."""
        return cls(**json.loads(text))

    def error(self) -> CheckpointError:
        """The error that every rank raises."""
        kind = _KINDS.get(self.kind, CheckpointError)
        error = kind(self.message, rank=self.rank, path=self.path, errno=self.errno)
        error.is_exchanged = True
        return error


def describe(error: BaseException, rank: int) -> Failure:
    """What this rank tells of its exception."""
    if isinstance(error, CheckpointError):
        kind = type(error).__name__
        return Failure(rank, kind, str(error), error.path, error.errno, error.is_exchanged)
    path = getattr(error, "filename", None)
    return Failure(
        rank=rank,
        kind="",
        message=f"{type(error).__name__}: {error}",
        path=path if isinstance(path, str) else None,
        errno=error.errno if isinstance(error, OSError) else None,
    )


def as_one(doing: str, failures: list[Failure], size: int) -> Failure:
    """What all ranks raise, if some of ``size`` have failed. The first one's is the cause."""
    first = failures[0]
    kind = _KINDS.get(first.kind)
    if kind is not None and len(failures) == size and all(one.is_exchanged for one in failures):
        return first  # a step in the step has told all ranks
    failed = f"rank {first.rank}"
    others = [str(failure.rank) for failure in failures[1:]]
    also = f" (and on rank {', '.join(others)})" if others else ""
    if kind is None or not issubclass(kind, _ABOUT_ARGUMENTS):
        message = f"{doing} failed on {failed}: {first.message}{also}"
    elif len(failures) < size:  # the ranks did not get the same arguments
        message = f"{first.message} (on {failed}, not on every rank)"
    else:
        message = first.message
    return Failure(first.rank, first.kind, message, first.path, first.errno)
