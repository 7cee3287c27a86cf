"""Whether archives that belong together are all there: those of one save of several ranks."""

from __future__ import annotations

from collections.abc import Sequence

from pyckpt.archive.reader import ArchiveReader
from pyckpt.archive.verify import Problem, Report
from pyckpt.errors import CorruptArchiveError, FilenameError
from pyckpt.sharded.part import DEEPSPEED, Part, find_part
from pyckpt.storage.urls import Location, beside

__all__ = ["add_set_problems"]


def add_set_problems(reports: Sequence[Report]) -> list[tuple[Report, Problem]]:
    """Adds to the reports of archives which others of their save are missing, or of another save.

    The others may be among the reports, wherever they lie, or where the save has put them. What is
    wrong with a set is added to the first report of an archive of it.

    Args:
        reports: What ``verify`` found in each archive. Other files than parts of a save are
            left alone.

    Returns:
        What was added.
    """
    parts = {report.path: _part_or_none(report.path) for report in reports}
    given = {(part.save_id, part.rank) for part in parts.values() if part is not None}
    seen: set[str] = set()
    added = []
    for report in reports:
        part = parts[report.path]
        if part is None or part.save_id in seen:
            continue
        seen.add(part.save_id)
        for rank, file in enumerate(part.files):
            if (part.save_id, rank) not in given:
                message = _what_is_wrong(report.path, file, rank, part)
                if message is not None:
                    added.append((report, Problem(message)))
    for report, problem in added:
        report.problems.append(problem)
    return added


def _what_is_wrong(given: Location, file: str, rank: int, part: Part) -> str | None:
    """What is wrong with the archive of a rank that was not given. None if it is there."""
    try:
        path = beside(given, file)
    except FilenameError as error:
        return f"the archive of rank {rank} cannot be anywhere: {error}"
    try:
        found = _part_of(path)
    except CorruptArchiveError as error:
        return f"the archive of rank {rank} cannot be read: {error}"
    except FileNotFoundError:
        if part.kind == DEEPSPEED:  # it may be on its rank's machine
            return None
        return f"the archive of rank {rank} is not there: {path}"
    except OSError as error:
        return f"the archive of rank {rank} cannot be read: {path}: {error.strerror}"
    if found is None or (found.save_id, found.rank) != (part.save_id, rank):
        return f"the archive of rank {rank} is missing: {path} is another one"
    return None


def _part_or_none(path: Location) -> Part | None:
    """The part; None for any other file, and for one whose own report says that it is damaged."""
    try:
        return _part_of(path)
    except (CorruptArchiveError, OSError):
        return None


def _part_of(path: Location) -> Part | None:
    return find_part(ArchiveReader(path, num_threads=1))
