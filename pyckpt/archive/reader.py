"""Reads an archive: its members, and what each of them holds."""

from __future__ import annotations

import enum
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from pyckpt import _core
from pyckpt.errors import CorruptArchiveError
from pyckpt.memory import require_memory
from pyckpt.progress import Report
from pyckpt.stream import StreamReader

__all__ = ["ArchiveReader", "Contents", "Member"]

_START_NBYTES = 32
_ZIP_MAGIC = b"PK\3\4"
_LEGACY_MAGIC = torch.serialization.MAGIC_NUMBER.to_bytes(10, "little")
_STEP_NBYTES = 64 << 20  # decoded between two checks of free memory, if the size is unknown


class Contents(enum.Enum):
    """What a member holds, judged by its first bytes."""

    TORCH_ZIP = "what torch.save writes since 1.6"
    TORCH_LEGACY = "what it wrote before"
    OTHER = "anything else"


@dataclass(frozen=True)
class Member:
    """One member of a tar. Offsets are positions in the decompressed stream.

    Attributes:
        name: As written; bytes that are not UTF-8 become surrogates. Do not use it as a file name,
            use ``inner_name()``.
        type: The type code of POSIX: ``"0"`` is a file, ``"5"`` a folder.
        header_offset: Where the first of its headers begins.
        offset: Where its data begins.
        nbytes: Size of its data.
    """

    name: str
    type: str
    header_offset: int
    offset: int
    nbytes: int

    def inner_name(self, path: Path) -> str:
        """The name as a relative path that cannot leave the folder it is extracted to.

        Args:
            path: The archive's path, for the error message.

        Raises:
            CorruptArchiveError: The name is absolute, or contains ``..`` or NUL.
        """
        name = self.name.removeprefix("./")
        if name.startswith("/") or "\0" in name or ".." in name.split("/"):
            raise CorruptArchiveError(
                f"{path} has a member {self.name!r} whose name leads out of the archive",
                path=str(path),
            )
        return name


class ArchiveReader(StreamReader):
    """Reads one file. A file that is not a tar is treated as one member.

    For arguments and errors see :class:`pyckpt.stream.StreamReader`.

    Attributes:
        is_tar: Whether the file is read as a tar: it is not a file of torch.save.
    """

    def __init__(
        self,
        path: Path,
        *,
        num_threads: int | None = None,
        mapped: bool = False,
        report: Report | None = None,
    ) -> None:
        super().__init__(path, num_threads=num_threads, mapped=mapped, report=report)
        self.is_tar = self.contents(0) is Contents.OTHER
        self._tar: _core.TarReader | None = None

    def members(self) -> Iterator[Member]:
        """The members in the order of the tar.

        Where the format allows it, only headers are decoded. A stream that is decoded from start
        to end does not keep what it has passed: once the next member is requested, the data of the
        previous one is gone.
        """
        if not self.is_tar:
            raise CorruptArchiveError(f"{self.path} is not a tar", path=str(self.path))
        tar = _core.TarReader(self.image)
        self._tar = tar
        while True:
            with self.corruption("is damaged, or is neither a tar nor a file of torch.save"):
                found = tar.next()
            if found is None:
                return
            yield Member(found[0].decode("utf-8", "surrogateescape"), *found[1:])

    def find(self, name: str) -> Member:
        """The first member of this name.

        Raises:
            CorruptArchiveError: There is none, or it is not a file.
        """
        for member in self.members():
            if member.name == name:
                if member.type == "0":
                    return member
                break
        raise CorruptArchiveError(f"{self.path} has no member {name!r}", path=str(self.path))

    def whole(self) -> Member:
        """The file itself, as if it were a member without a name.

        Raises:
            CheckpointError: There is not enough memory. A stream of unknown size is decoded
                completely, and all of it is kept.
        """
        nbytes = 0
        while self.image.nbytes is None:
            require_memory(_STEP_NBYTES, self.path)
            nbytes += _STEP_NBYTES
            with self.corruption():
                self.image.require((0, nbytes))
        return Member("", "0", 0, 0, self.image.nbytes)

    def contents(self, offset: int) -> Contents:
        """What begins at ``offset``, which is a member's offset, or 0 for the whole file."""
        with self.corruption():
            if not self.image.require((offset, _START_NBYTES)):
                return Contents.OTHER
        start = self.image.read((offset, _START_NBYTES))
        if start.startswith(_ZIP_MAGIC):
            return Contents.TORCH_ZIP
        return Contents.TORCH_LEGACY if _LEGACY_MAGIC in start else Contents.OTHER

    def check_rest(self) -> None:
        """Like the base class's, but does nothing if another member follows the found one."""
        if self._tar is not None:
            with self.corruption():
                if self._tar.next() is not None:
                    return
        super().check_rest()

    def tar_end(self) -> int:
        """Where the tar ends: after its first block of zeros.

        Call it only after ``members()`` has yielded the last member.
        """
        assert self._tar is not None
        return self._tar.offset

    def read_once(self, offset: int, nbytes: int) -> bytes:
        """Reads bytes and gives back their memory. Returns fewer at the end of the stream."""
        with self.corruption():
            if not self.image.require((offset, nbytes)):
                assert self.image.nbytes is not None  # known, because the end was reached
                nbytes = max(0, self.image.nbytes - offset)
                self.image.require((offset, nbytes))
        data = self.image.read((offset, nbytes)) if nbytes else b""
        self.image.forget((offset, nbytes))
        return data

    def forget(self, member: Member) -> None:
        """Gives back the memory of a member that will not be read again."""
        self.image.forget((member.offset, member.nbytes))
