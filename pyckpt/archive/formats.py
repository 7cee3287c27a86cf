"""Maps file names to formats, and names the member that holds the object."""

from __future__ import annotations

from pathlib import Path, PurePath

from pyckpt import _core
from pyckpt.errors import FilenameError

__all__ = [
    "STATES_MEMBER",
    "TAR_SUFFIX",
    "add_tar_suffix",
    "archive_format",
    "is_compressed",
    "match_suffix",
    "tar_suffixes",
    "usual_suffixes",
]

STATES_MEMBER = "composer_states.pt"
"""The name of the member that holds the object. Composer uses the same."""

TAR_SUFFIX = ".tar"
_START_NBYTES = 64  # enough to recognize every format


def tar_suffixes() -> list[str]:
    """Every suffix that makes a file a tar, compressed or not."""
    return [suffix for row in _core.formats() for suffix in row.suffixes]


def usual_suffixes() -> list[str]:
    """One suffix of each tar format, in the order in which users should read them."""
    return [row.suffixes[0] for row in _core.formats()]


def archive_format(path: Path) -> _core.Format | None:
    """The tar format of this file name, or None for torch's own zip file.

    Raises:
        FilenameError: The name looks like a compressed tar of an unknown kind.
    """
    suffix = match_suffix(path.name, tar_suffixes())
    for row in _core.formats():
        if suffix in row.suffixes:
            return row
    return None


def is_compressed(path: Path) -> bool:
    """Whether the first bytes of the file are those of a compressed format.

    Raises:
        OSError: The file cannot be read.
    """
    with path.open("rb") as file:
        return _core.compression_of(file.read(_START_NBYTES)) != ""


def match_suffix(name: str, suffixes: list[str]) -> str | None:
    """The longest of ``suffixes`` that ``name`` ends with, or None. Case matters.

    Raises:
        FilenameError: The name ends like a compressed tar (``.tar.foo``), but not with one of
            ``suffixes``.
    """
    matches = [suffix for suffix in suffixes if name.endswith(suffix) and name != suffix]
    if matches:
        return max(matches, key=len)
    endings = PurePath(name).suffixes[-2:]
    if len(endings) == 2 and endings[0] == TAR_SUFFIX:
        raise FilenameError(
            f"{name!r} looks like a compressed tar, but {''.join(endings)!r} is not a suffix "
            f"that pyckpt knows; it knows {', '.join(suffixes)}",
            path=name,
        )
    return None


def add_tar_suffix(path: Path, suffixes: list[str]) -> Path:
    """``path`` itself if it ends with one of ``suffixes``, else ``path`` with ``.tar`` appended."""
    if match_suffix(path.name, suffixes) is not None:
        return path
    return path.with_name(path.name + TAR_SUFFIX)
