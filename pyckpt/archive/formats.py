"""Maps file names to formats, and names the member that holds the object."""

from __future__ import annotations

import stat
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
# Endings of compressed files that are no tars, and of tars that pyckpt does not write.
_COMPRESSED = (
    *(".gz", ".bz", ".bz2", ".bzip", ".bzip2", ".xz", ".lzma", ".zst", ".zstd", ".lz", ".lz4"),
    *(".lzo", ".br", ".7z", ".z", ".sz"),
    *(".tbz", ".tb2", ".tz2", ".tlz", ".tlzma", ".taz", ".tz", ".tzo"),
)
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
        FilenameError: The name looks like a compressed tar of an unknown kind, or like something
            else that is compressed. A file without compression must not be written under it.
    """
    suffix = match_suffix(path.name, tar_suffixes())
    if suffix is None:
        _refuse_compressed(path.name)
    for row in _core.formats():
        if suffix in row.suffixes:
            return row
    return None


def _refuse_compressed(name: str) -> None:
    lower = name.lower()
    ending = PurePath(lower).suffix or lower
    if any(lower.endswith(suffix) for suffix in tar_suffixes()):
        raise FilenameError(
            f"{name!r} looks like a tar, but pyckpt and Composer know its suffix only in lower "
            "case, and only behind a name",
            path=name,
        )
    if ending in _COMPRESSED:
        raise FilenameError(
            f"{name!r} looks like a compressed file, and pyckpt compresses only tars; it knows "
            f"{', '.join(tar_suffixes())}",
            path=name,
        )


def is_compressed(path: Path) -> bool:
    """Whether the first bytes of the file are those of a compressed format.

    Raises:
        OSError: The file cannot be read.
    """
    if not stat.S_ISREG(path.stat().st_mode):  # to open a pipe could take forever
        return False
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
