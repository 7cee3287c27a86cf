"""Several files of one save in the background, taken together: see ``Collected``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

from pyckpt.torch_format.records import Record

__all__ = ["progress_of", "replace_state_records", "state_records"]


class _File(Protocol):
    @property
    def progress(self) -> tuple[int, int]: ...

    def state_records(self) -> Sequence[Record]: ...

    def replace_state_records(self, records: Sequence[Record]) -> None: ...


def state_records(files: Iterable[_File]) -> list[Record]:
    """The records of all files, one file after another."""
    return [record for file in files for record in file.state_records()]


def replace_state_records(files: Iterable[_File], records: Sequence[Record]) -> None:
    """Replaces ``state_records(files)``. The new records have the same order and sizes."""
    following = iter(records)
    for file in files:
        file.replace_state_records([next(following) for _ in file.state_records()])


def progress_of(files: Iterable[_File]) -> tuple[int, int]:
    """Bytes written and in total, before compression."""
    parts = [file.progress for file in files]
    return sum(done for done, _ in parts), sum(total for _, total in parts)
