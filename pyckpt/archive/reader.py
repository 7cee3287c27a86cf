"""Reads an archive: its members, and what each of them holds."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator

import torch

from pyckpt import _core
from pyckpt.archive.foreign import START_NBYTES, foreign_format
from pyckpt.archive.members import FILE, Member, MemberIndex, inner_path
from pyckpt.errors import CorruptArchiveError
from pyckpt.memory import require_memory
from pyckpt.progress import Report
from pyckpt.storage.inputs import InputFile, open_input
from pyckpt.storage.urls import Location, StorageOptions, Stores
from pyckpt.stream import StreamReader

__all__ = ["ArchiveReader", "Contents"]

_START_NBYTES = 32
_ZIP_MAGIC = b"PK\3\4"
_LEGACY_MAGIC = torch.serialization.MAGIC_NUMBER.to_bytes(10, "little")
_STEP_NBYTES = 64 << 20  # decoded between two checks of free memory, if the size is unknown


class Contents(enum.Enum):
    """What a member holds, judged by its first bytes."""

    TORCH_ZIP = "what torch.save writes since 1.6"
    TORCH_LEGACY = "what it wrote before"
    OTHER = "anything else"


class ArchiveReader(StreamReader):
    """Reads one file, or one object. A file that is not a tar is treated as one member.

    For arguments and errors see :class:`pyckpt.stream.StreamReader`.

    Args:
        file: A path, an object's URL, or a file that is open. It is the same file as long as this
            is used, whatever gets its name meanwhile.
        storage_options: What the store of a URL is told.

    Attributes:
        file: The file.
        is_tar: Whether the file is read as a tar: it is not a file of torch.save.
        is_ordered: Whether it is decoded from start to end, because the file does not tell the
            places of its blocks.
    """

    def __init__(
        self,
        file: Location | InputFile,
        *,
        storage_options: StorageOptions = None,
        num_threads: int | None = None,
        mapped: bool = False,
        report: Report | None = None,
    ) -> None:
        if not isinstance(file, InputFile):
            file = open_input(file, Stores(storage_options))
        self.file = file
        self.path: Location
        super().__init__(
            file.path,
            fd=file.fd,
            supply=file.supply,
            num_threads=num_threads,
            mapped=mapped,
            report=report,
        )
        self.is_ordered = self.image.nbytes is None
        self.is_tar = self.contents(0) is Contents.OTHER
        self._tar: _core.TarReader | None = None
        self._is_last = True

    def again(self) -> ArchiveReader:
        """Another reader of the same file, with nothing decoded."""
        return ArchiveReader(self.file, num_threads=self.num_threads)

    def members(self) -> Iterator[Member]:
        """All members in the order of the tar.

        Where the format allows it, only headers are decoded. Once the next member is requested, the
        memory of the previous one is given back. A stream that is decoded from start to end cannot
        go back to it.
        """
        if not self.is_tar:
            raise CorruptArchiveError(f"{self.path} is not a tar", path=str(self.path))
        tar = _core.TarReader(self.image)
        self._tar = tar
        while True:
            try:
                with self.corruption("is damaged, or is neither a tar nor a file of torch.save"):
                    found = tar.next()
            except CorruptArchiveError as error:
                kind = self._foreign_kind() if tar.offset == 0 else None
                if kind is None:
                    raise
                raise CorruptArchiveError(f"{self.path} is {kind}", path=str(self.path)) from error
            if found is None:
                return
            yield Member(_text(found[0]), *found[1:5], _text(found[5]))

    def index(self) -> MemberIndex:
        """Which members count. Reads all headers."""
        index = MemberIndex()
        for member in self.members():
            index.add(member)
        return index

    def find(self, name: str, *, strict: bool = True) -> Member:
        """The file that counts for this name. Reads all headers: a later member may replace it.

        In a stream that is decoded from start to end, its data is decoded and kept.

        Args:
            strict: Damage behind the file is an error. Without it, members behind the damage do not
                count.

        Raises:
            OptionError: There is no such file.
            CorruptArchiveError: A header is damaged.
            CheckpointError: There is not enough memory.
        """
        index = MemberIndex()
        path = inner_path(name)
        candidate: Member | None = None
        members = self.members()
        while True:
            try:
                member = next(members, None)
            except CorruptArchiveError:
                # Whoever reads damaged data of the file gets this error again, and can say more.
                is_damaged = candidate is not None and candidate.end > self.image.placed_nbytes
                if candidate is None or (strict and not is_damaged):
                    raise
                self._is_last = False
                return candidate
            if member is None:
                break
            index.add(member)
            if member.path == path and member.type == FILE:
                candidate = member
                self._keep(member)
        found = index.file(name, self.path)
        self._is_last = index.last_offset == found.offset
        if self.is_ordered and found.offset != (candidate and candidate.offset):
            self.reopen()  # a link leads to data that is gone
            self._keep(found)
            self.forget_all_but([found])
        return found

    def _keep(self, member: Member) -> None:
        if self.is_ordered:
            require_memory(member.nbytes, self.path)
            self.wanted_nbytes = member.end
            self.image.keep((member.offset, member.nbytes))

    def _foreign_kind(self) -> str | None:
        if self.image.compression:
            return None
        kind = foreign_format(self.read_once(0, START_NBYTES))
        return kind if kind in (None, "empty") else f"{kind}, which pyckpt does not read"

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
        return Member("", FILE, 0, 0, self.image.nbytes)

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
        """Like the base class's, but does nothing if the rest has other members to decode."""
        if self._is_last or self.is_ordered:
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

    def forget_all_but(self, members: Iterable[Member]) -> None:
        """Gives back the memory of what is between these members, as soon as it is decoded."""
        at = 0
        for member in sorted(members, key=lambda member: member.offset):
            self.image.forget((at, max(at, member.offset) - at))
            at = max(at, member.end)


def _text(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")
