"""Maps file names to formats, and names the member that holds the object.

A name with a suffix of a tar is a tar. Any other is one file of torch.save: compressed as a whole
if its ending says so (``.pt.gz``), and else torch's own zip file.
"""

from __future__ import annotations

import re
import stat
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import TypeVar

from pyckpt import _core
from pyckpt.errors import FilenameError, OptionError
from pyckpt.storage.urls import Location

__all__ = [
    "STATES_MEMBER",
    "TAR_SUFFIX",
    "TORCH_FILE",
    "FileFormat",
    "add_tar_suffix",
    "archive_format",
    "deflate_format",
    "file_format",
    "file_suffixes",
    "is_compressed",
    "match_suffix",
    "promises_archive",
    "suffix_format",
    "tar_suffixes",
    "usual_suffixes",
]

L = TypeVar("L", bound=Location)

STATES_MEMBER = "composer_states.pt"
"""The name of the member that holds the object. Composer uses the same."""

TAR_SUFFIX = ".tar"
# What the name of torch's file ends with, before the ending of its compression. The first one is
# what Composer knows.
_TORCH_SUFFIXES = (".pt", ".pth", ".ckpt", ".bin")
# Endings of compressed and encrypted files, and of compressed tars. Nothing else may have them.
_COMPRESSED = (
    *(".gz", ".bz", ".bz2", ".bzip", ".bzip2", ".xz", ".lzma", ".zst", ".zstd", ".lz", ".lz4"),
    *(".lzo", ".br", ".7z", ".z", ".sz", ".zip", ".rar", ".lrz", ".age", ".gpg"),
    *(".tbz", ".tb2", ".tz2", ".tlz", ".tlzma", ".taz", ".tz", ".tzo"),
)
_DEFLATED = re.compile(b"PK\3\4....\x08\0", re.DOTALL)  # a zip's first header
_START_NBYTES = 64  # enough to recognize every format


def tar_suffixes() -> list[str]:
    """Every suffix that makes a file a tar, compressed or not."""
    return [suffix for row in _core.formats() for suffix in row.suffixes]


def usual_suffixes() -> list[str]:
    """One suffix of each tar format, in the order in which users should read them."""
    return [row.suffixes[0] for row in _core.formats()]


def file_suffixes() -> list[str]:
    """One suffix of each compressed file that is no tar: ``.pt.gz`` and so on."""
    return [
        _TORCH_SUFFIXES[0] + ending for row in _core.file_formats() for ending in row.file_endings
    ]


@dataclass(frozen=True)
class FileFormat:
    """What a file of some name is.

    Attributes:
        is_tar: Whether it is a tar. If not, it is one file of torch.save.
        row: How it is compressed as a whole. None if it is torch's own zip file.
    """

    is_tar: bool
    row: _core.Format | None


TORCH_FILE = FileFormat(False, None)
"""One file of torch.save, as torch.save itself writes it."""


def suffix_format(suffix: str) -> FileFormat:
    """The format that a suffix alone asks for, such as ``.tar.gz``.

    Raises:
        OptionError: It is none of those that pyckpt writes.
    """
    known = [*tar_suffixes(), *_TORCH_SUFFIXES, *file_suffixes()]
    if suffix not in known:
        raise OptionError(f"format is {suffix!r}, and must be one of {', '.join(known)}")
    return file_format(Path(f"x{suffix}"))


def file_format(path: Location) -> FileFormat:
    """The format that a file's name asks for.

    Raises:
        FilenameError: The name looks like a compressed tar of an unknown kind, or like something
            else that is compressed. A file without this compression must not be written under it.
    """
    suffix = match_suffix(path.name, tar_suffixes())
    if suffix is not None:
        return FileFormat(True, next(row for row in _core.formats() if suffix in row.suffixes))
    inner, dot, ending = path.name.rpartition(".")
    for row in _core.file_formats():
        if inner.endswith(_TORCH_SUFFIXES) and dot + ending in row.file_endings:
            return FileFormat(False, row)
    _refuse_compressed(path.name)
    return TORCH_FILE


def promises_archive(path: Location) -> bool:
    """Whether a file's suffix says that it is what pyckpt writes.

    Others may have any other suffix, or none, though ``file_format`` takes such names too.
    """
    try:
        found = file_format(path)
    except FilenameError:
        return False
    return found != TORCH_FILE or path.name.endswith(_TORCH_SUFFIXES)


def archive_format(path: Location) -> _core.Format | None:
    """The tar format of this file name, or None for one file of torch.save.

    Raises:
        FilenameError: As in :func:`file_format`.
    """
    found = file_format(path)
    return found.row if found.is_tar else None


def deflate_format() -> _core.Format:
    """The format whose encoder deflates the records of torch's zip file, with its levels."""
    return next(row for row in _core.formats() if row.compression == "gzip")


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
            f"{name!r} looks like a compressed file of a kind that pyckpt does not write; it knows "
            f"{', '.join(tar_suffixes())}, and {', '.join(file_suffixes())}, also behind "
            f"{', '.join(_TORCH_SUFFIXES[1:])}",
            path=name,
        )


def is_compressed(path: Path) -> bool:
    """Whether the file begins like one of a compressed format, or like a zip with deflated records.

    Raises:
        OSError: The file cannot be read.
    """
    if not stat.S_ISREG(path.stat().st_mode):  # to open a pipe could take forever
        return False
    with path.open("rb") as file:
        start = file.read(_START_NBYTES)
    return _core.compression_of(start) != "" or _DEFLATED.match(start) is not None


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


def add_tar_suffix(path: L, suffixes: list[str]) -> L:
    """``path`` itself if it ends with one of ``suffixes``, else ``path`` with ``.tar`` appended."""
    if match_suffix(path.name, suffixes) is not None:
        return path
    named: L = path.with_name(path.name + TAR_SUFFIX)  # type: ignore[assignment]  # of the same type
    return named
