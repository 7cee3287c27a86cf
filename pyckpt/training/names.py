"""File names: what the variables in braces stand for."""

from __future__ import annotations

import os
import re
import string
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from pyckpt.errors import FilenameError, MixedFilesError
from pyckpt.paths import check_is_local, expand_user, is_url, path_text
from pyckpt.storage.urls import Location, StorageOptions, Url, location, open_store

if TYPE_CHECKING:
    from pyckpt.ranks.exchange import Ranks
    from pyckpt.state import TrainingState

__all__ = [
    "RANK_VARIABLES",
    "VARIABLES",
    "check_one_set",
    "find",
    "literal",
    "render",
    "render_ranks",
    "values",
]

RANK_VARIABLES = ("rank", "local_rank", "world_size", "local_world_size", "node_rank")
"""The names that the path of an existing checkpoint may contain in braces."""

_COUNT_NAMES = (
    "epoch",
    "batch",
    "batch_in_epoch",
    "sample",
    "sample_in_epoch",
    "token",
    "token_in_epoch",
)
_TIME_NAMES = ("total_wct", "epoch_wct", "batch_wct")

VARIABLES = ("run_name", *RANK_VARIABLES, *_COUNT_NAMES, *_TIME_NAMES)
"""The names that a filename may contain in braces."""


def render(filename: str | PurePath, state: TrainingState, ranks: Ranks) -> Location:
    """The path or URL that ``filename`` stands for, now and on this rank.

    Ranks and counts are integers. The three wall-clock times are seconds, as floats. Python's
    format specs apply (``{batch:06d}``).

    Raises:
        FilenameError: A variable is unknown, a format is wrong, a value leads out of the folder
            that stands before the first variable, the name is empty or names a folder, the system
            cannot encode it, or no store serves the URL.
    """
    return _render(filename, _lookups(state, ranks))


def render_ranks(filename: str | PurePath, ranks: Ranks) -> Path:
    """The path of a checkpoint that exists. Only RANK_VARIABLES are filled in.

    The counts that :func:`render` fills in were those of the run that saved. Write them out.

    Raises:
        FilenameError: As in ``render``. Variables other than RANK_VARIABLES are unknown.
    """
    return _render_path(expand_user(path_text(filename)), _rank_lookups(ranks))


def literal(text: str) -> str:
    """A part of a filename that stands for itself: braces in it are no variables."""
    return text.replace("{", "{{").replace("}", "}}")


def values(filename: str | PurePath, state: TrainingState) -> dict[str, str]:
    """What the variables of ``filename`` that are the same on all ranks stand for now."""
    lookups = _state_lookups(state)
    return {
        field: format(lookups[field](), spec or "")
        for _, field, spec, _ in string.Formatter().parse(path_text(filename))
        if field in lookups
    }


def check_one_set(names: Sequence[tuple[str, Mapping[str, str]]], ranks: Sequence[int]) -> None:
    """Checks that the files of all ranks belong together.

    The caller may have put the rank's number into the name, instead of ``{rank}``. So names may
    differ by such numbers alone.

    Args:
        names: The filename and the ``values`` of each rank.
        ranks: The numbers of these ranks.

    Raises:
        MixedFilesError: Two ranks name files of different sets.
    """
    template, of_first = names[0]
    first = ranks[0]
    for rank, (other, of_other) in zip(ranks, names, strict=True):
        for variable, value in of_first.items():
            if of_other.get(variable, value) != value:
                raise MixedFilesError(
                    f"{{{variable}}} is {value!r} on rank {first} and {of_other[variable]!r} on "
                    f"rank {rank}: the ranks' files would not belong together",
                    rank=rank,
                )
        if not _differ_by_rank_alone(template, first, other, rank):
            raise MixedFilesError(
                f"rank {first} would write {template!r}, and rank {rank} {other!r}: the ranks' "
                "files would not belong together. Use one filename, with {rank} in it",
                rank=rank,
            )


def _differ_by_rank_alone(name: str, rank: int, other: str, other_rank: int) -> bool:
    """Whether ``other`` is ``name`` with numbers of ``other_rank`` in place of those of ``rank``.

    These may be its global rank, its local rank or its node's, so any number up to its rank.
    """
    ours, theirs = (re.split(r"(\d+)", text) for text in (name, other))
    if len(ours) != len(theirs):
        return False
    return all(
        a == b or (a.isdecimal() and b.isdecimal() and int(a) <= rank and int(b) <= other_rank)
        for a, b in zip(ours, theirs, strict=True)
    )


def find(path: str | PurePath, ranks: Ranks, storage_options: StorageOptions = None) -> Location:
    """The checkpoint that ``path`` names: the file of that very name, or else ``render_ranks``.

    Paths that save_checkpoint has returned name files, and may have braces.

    Raises:
        FilenameError: As in ``render_ranks``, or no store serves the URL.
        OSError: The store does not answer.
    """
    literal = location(path)
    if isinstance(literal, Url):
        return _find_object(literal, ranks, storage_options)
    try:
        is_there = os.path.lexists(literal)
    except ValueError:  # the system cannot encode it: render_ranks says so
        is_there = False
    return literal if is_there else render_ranks(literal, ranks)


def _find_object(url: Url, ranks: Ranks, storage_options: StorageOptions) -> Location:
    if "{" in url or "}" in url:
        try:
            open_store(url, storage_options).stat(url)
        except FileNotFoundError:
            return _render_url(url, _rank_lookups(ranks))
    return url


def _render(filename: str | PurePath, lookups: Mapping[str, Callable[[], Any]]) -> Location:
    if is_url(path_text(filename)):
        named = location(filename)
        if not isinstance(named, Path):
            return _render_url(named, lookups)
        filename = named
    return _render_path(expand_user(path_text(filename)), lookups)


def _render_path(template: str, lookups: Mapping[str, Callable[[], Any]]) -> Path:
    literal_folder, rendered = _substitute(template, lookups)
    check_is_local(rendered)
    if "\0" in rendered:
        raise FilenameError(f"{rendered!r} (from {template!r}) contains a NUL byte", path=rendered)
    try:
        os.fsencode(rendered)
    except UnicodeEncodeError as error:
        raise FilenameError(
            f"{rendered!r} (from {template!r}) cannot be encoded for the file system: {error}",
            path=rendered,
        ) from error
    if not PurePath(rendered).name or rendered.endswith("/"):
        raise FilenameError(f"{rendered!r} (from {template!r}) does not name a file", path=rendered)
    _check_inside(literal_folder, rendered, template)
    return Path(rendered)


def _render_url(template: str, lookups: Mapping[str, Callable[[], Any]]) -> Location:
    literal_folder, rendered = _substitute(template, lookups)
    _check_inside(_behind_scheme(literal_folder), _behind_scheme(rendered), template)
    return location(rendered)


def _behind_scheme(url: str) -> str:
    """The bucket and the key, as an absolute path."""
    return url.partition(":/")[2]


def _lookups(state: TrainingState, ranks: Ranks) -> Mapping[str, Callable[[], Any]]:
    return {**_state_lookups(state), **_rank_lookups(ranks)}


def _state_lookups(state: TrainingState) -> dict[str, Callable[[], Any]]:
    lookups: dict[str, Callable[[], Any]] = {"run_name": lambda: str(state.run_name)}
    for name in _COUNT_NAMES:
        lookups[name] = partial(_count, state, name)
    for name in _TIME_NAMES:
        lookups[name] = partial(_seconds, state, name)
    return lookups


def _rank_lookups(ranks: Ranks) -> dict[str, Callable[[], Any]]:
    return {name: partial(getattr, ranks, name) for name in RANK_VARIABLES}


def _count(state: TrainingState, name: str) -> int:
    return int(getattr(state.timestamp, name))


def _seconds(state: TrainingState, name: str) -> float:
    return float(getattr(state.timestamp, name).total_seconds())


def _substitute(template: str, lookups: Mapping[str, Callable[[], Any]]) -> tuple[str, str]:
    """The text before the first variable, and the whole text with values filled in."""
    available = "available are " + ", ".join(f"{{{name}}}" for name in lookups)
    literal: str | None = None
    rendered = ""
    try:
        for text, field, spec, conversion in string.Formatter().parse(template):
            rendered += text
            if field is None:
                continue
            if literal is None:
                literal = rendered
            if field not in lookups:
                raise FilenameError(
                    f"unknown variable {{{field}}} in filename {template!r}; {available}"
                )
            if conversion:
                raise FilenameError(
                    f"conversion !{conversion} is not supported in filename {template!r}"
                )
            rendered += format(lookups[field](), spec or "")
    except FilenameError:
        raise
    except (ValueError, TypeError, AttributeError, OverflowError) as error:
        raise FilenameError(f"cannot render filename {template!r}: {error}; {available}") from error
    return rendered if literal is None else literal, rendered


def _check_inside(literal: str, rendered: str, template: str) -> None:
    """Values may not lead out of the folder of ``literal``, the text before the first variable."""
    folder = os.path.abspath(os.path.dirname(literal))
    path = os.path.abspath(rendered)
    # Not commonpath: a path may begin with two slashes, which commonpath treats as one.
    if path == folder or not path.startswith(folder.rstrip("/") + "/"):
        raise FilenameError(
            f"{rendered!r} (from {template!r}) leads out of {folder!r}, the folder that the "
            "filename names",
            path=rendered,
        )
