"""The archive as it is read: its members, and what each of them holds."""

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
_STEP_NBYTES = 64 << 20  # of a stream that may turn out to be of any size


class Contents(enum.Enum):
    """What a member holds, as its first bytes tell."""

    TORCH_ZIP = "what torch.save writes since 1.6"
    TORCH_LEGACY = "what it wrote before"
    OTHER = "anything else"


@dataclass(frozen=True)
class Member:
    """One member of a tar; offsets are those of the decompressed stream.

    Attributes:
        name: As written, with what is not UTF-8 as surrogates. Not to be used as a file's name.
        type: ``"0"`` a file, ``"5"`` a folder, as POSIX numbers them.
        header_offset: Of the first header that belongs to it.
        offset: Of its data.
        nbytes: Of its data.
    """

    name: str
    type: str
    header_offset: int
    offset: int
    nbytes: int

    def inner_name(self, path: Path) -> str:
        """The name, which stays inside whatever folder it is put in.

        Raises:
            CorruptArchiveError: It does not: it is absolute, or has ``..`` in it. ``path`` is the
                archive's.
        """
        name = self.name.removeprefix("./")
        if name.startswith("/") or "\0" in name or ".." in name.split("/"):
            raise CorruptArchiveError(
                f"{path} has a member {self.name!r} whose name leads out of the archive",
                path=str(path),
            )
        return name


class ArchiveReader(StreamReader):
    """Reads one file; what a file that is no tar holds is its only member.

    Arguments and errors are those of :class:`pyckpt.stream.StreamReader`.

    Attributes:
        is_tar: Whether it has members of its own.
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
        """The members from the first to the last; nothing but headers is decoded, if possible.

        Once one is asked for, the data of the one before can no longer be had of a stream that is
        decoded from start to end.
        """
        if not self.is_tar:
            raise CorruptArchiveError(f"{self.path} is not a tar", path=str(self.path))
        tar = _core.TarReader(self.image)
        self._tar = tar
        while True:
            with self.corruption("is damaged, or neither a tar nor a file of torch.save"):
                found = tar.next()
            if found is None:
                return
            yield Member(found[0].decode("utf-8", "surrogateescape"), *found[1:])

    def find(self, name: str) -> Member:
        """The first member of that name.

        Raises:
            CorruptArchiveError: There is none, or it is no file.
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
            CheckpointError: It needs more memory than there is: all of a stream whose size nobody
                knows is decoded and kept.
        """
        nbytes = 0
        while self.image.nbytes is None:
            require_memory(_STEP_NBYTES, self.path)
            nbytes += _STEP_NBYTES
            with self.corruption():
                self.image.require((0, nbytes))
        return Member("", "0", 0, 0, self.image.nbytes)

    def contents(self, offset: int) -> Contents:
        """What begins at ``offset``: at that of a member, or at 0."""
        with self.corruption():
            if not self.image.require((offset, _START_NBYTES)):
                return Contents.OTHER
        start = self.image.read((offset, _START_NBYTES))
        if start.startswith(_ZIP_MAGIC):
            return Contents.TORCH_ZIP
        return Contents.TORCH_LEGACY if _LEGACY_MAGIC in start else Contents.OTHER

    def check_rest(self) -> None:
        """As StreamReader's, if the member that was found is all there is."""
        if self._tar is not None:
            with self.corruption():
                if self._tar.next() is not None:
                    return
        super().check_rest()

    def tar_end(self) -> int:
        """What offset the tar ends at, behind its first block of zeros, once all members are
        told."""
        assert self._tar is not None
        return self._tar.offset

    def read_once(self, offset: int, nbytes: int) -> bytes:
        """Bytes that nobody asks for again; fewer where the stream ends."""
        with self.corruption():
            if not self.image.require((offset, nbytes)):
                assert self.image.nbytes is not None  # known, now that the end was reached
                nbytes = max(0, self.image.nbytes - offset)
                self.image.require((offset, nbytes))
        data = self.image.read((offset, nbytes)) if nbytes else b""
        self.image.forget((offset, nbytes))
        return data

    def forget(self, member: Member) -> None:
        """Gives back the memory of a member that nobody asks for again."""
        self.image.forget((member.offset, member.nbytes))
