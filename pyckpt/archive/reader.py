"""The archive as it is read: its members, and the records of those that torch wrote."""

from __future__ import annotations

import enum
import os
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from pyckpt import _core
from pyckpt.errors import CorruptArchiveError
from pyckpt.memory import require_memory
from pyckpt.options import default_threads
from pyckpt.progress import Report

__all__ = [
    "ArchiveReader",
    "Contents",
    "Damage",
    "Member",
    "StoredRecord",
    "TorchFile",
    "describe",
]

_START_NBYTES = 32
_ZIP_MAGIC = b"PK\3\4"
_LEGACY_MAGIC = torch.serialization.MAGIC_NUMBER.to_bytes(10, "little")
_HEADER_NBYTES = 30  # of a zip record's local header, before the name
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


@dataclass(frozen=True)
class Damage:
    """Bytes of the decompressed stream that could not be had.

    Attributes:
        offset: Where they begin in the stream.
        nbytes: How many they are.
        file_offset: Where the file's own bytes begin to be wrong.
        message: What is wrong.
    """

    offset: int
    nbytes: int
    file_offset: int
    message: str

    def hits(self, offset: int, nbytes: int) -> bool:
        """Whether it is among those bytes."""
        return self.offset < offset + nbytes and offset < self.offset + self.nbytes


@dataclass(frozen=True)
class StoredRecord:
    """One record of torch's zip file, named without its root folder: ``data/0``.

    Attributes:
        nbytes: Once it is decompressed, if it is not ``stored`` as it is.
        deflated: Whether it is compressed as most zip files are.
    """

    name: str
    nbytes: int
    crc: int
    stored: bool
    deflated: bool
    entry: _core.ZipEntry

    @property
    def has_checksum(self) -> bool:
        """Whether there is a CRC-32. torch writes 0 when it is told to take none."""
        return self.crc != 0 or self.nbytes == 0


class ArchiveReader:
    """Reads one file; what a file that is no tar holds is its only member.

    Args:
        path: Any file.
        num_threads: As many threads decode; None takes the CPUs that this process may use.
        mapped: Leave the bytes of a file that is not compressed where they are, on disk.
        report: Called with the bytes that are done, and ``wanted_nbytes``; raises to stop.

    Attributes:
        num_threads: How many threads decode.
        mapped: Whether bytes stay in the file.
        wanted_nbytes: How many are going to be decoded, as far as its user has said.

    Raises:
        OSError: The file cannot be read.
        CorruptArchiveError: It is damaged; as all methods do.
    """

    def __init__(
        self,
        path: Path,
        *,
        num_threads: int | None = None,
        mapped: bool = False,
        report: Report | None = None,
    ) -> None:
        self.path = path
        self.num_threads = num_threads or default_threads()
        self.wanted_nbytes: int | None = None
        self._reporter = report
        with self.corruption():
            self.image = _core.StreamImage(
                os.fsencode(path),
                threads=self.num_threads,
                mapped=mapped,
                progress=None if report is None else _weakly(self._report),
            )
        self.mapped = mapped and not self.image.format
        self.is_tar = self.contents(0) is Contents.OTHER
        self._tar: _core.TarReader | None = None

    def _report(self, done: int) -> None:
        assert self._reporter is not None
        wanted = self.wanted_nbytes
        self._reporter(done if wanted is None else min(done, wanted), wanted)

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

    def require(self, offset: int, nbytes: int) -> None:
        """Decodes bytes of the stream."""
        with self.corruption():
            if not self.image.require((offset, nbytes)):
                raise _core.CorruptError(f"it ends before its byte {offset + nbytes}")

    def read(self, offset: int, nbytes: int) -> bytes:
        """A copy of bytes of the decompressed stream."""
        self.require(offset, nbytes)
        return self.image.read((offset, nbytes))

    def take(self, offset: int, nbytes: int) -> _core.ImageBytes:
        """Bytes of the decompressed stream, to be asked for once.

        When the result goes, so do they.
        """
        self.require(offset, nbytes)
        return self.image.take((offset, nbytes))

    def fill(
        self, ranges: Sequence[tuple[int, int]], *, keep: bool, checksums: bool
    ) -> tuple[list[int], list[Damage]]:
        """Decodes ranges of the stream: (offset, nbytes).

        Args:
            keep: Whether they are to be readable afterwards.
            checksums: Whether to take the CRC-32 of each.

        Returns:
            The CRC-32 of each, without meaning for those that are damaged; and the damage.
        """
        crcs, damages = self.image.fill(ranges, keep=keep, checksums=checksums)
        return crcs, [Damage(*one) for one in damages]

    def finish(self) -> list[Damage]:
        """Decodes what has not been, and compares the checksums of the whole stream."""
        with self.corruption():
            return [Damage(*one) for one in self.image.finish()]

    def check_rest(self) -> None:
        """Compares the checksums of the whole, if the member that was found is all there is.

        To be called when its bytes are decoded, and before they are taken: all that follows is
        decoded now, and later it could move them.
        """
        if self._tar is not None:
            with self.corruption():
                if self._tar.next() is not None:
                    return
        damages = self.finish()
        if damages:
            raise CorruptArchiveError(
                f"{self.path} is damaged: {describe(damages[0])}", path=str(self.path)
            )

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

    def code_nbytes(self, record: StoredRecord) -> int | None:
        """About how many bytes of the file hold a record; None where blocks have no places."""
        offset = record.entry.header_offset
        nbytes = self.image.code_nbytes((offset, record.nbytes))
        return nbytes if nbytes or not record.nbytes else None

    @contextmanager
    def corruption(self, what: str = "is damaged") -> Iterator[None]:
        """Turns the core's error over broken contents into CorruptArchiveError."""
        try:
            yield
        except _core.CorruptError as error:
            raise CorruptArchiveError(
                f"{self.path} {what}: {error}", path=str(self.path)
            ) from error


class TorchFile:
    """The records of torch's zip file: a member of an archive, or the whole.

    Attributes:
        records: By their names without the root folder, in the order of the file.

    Raises:
        CorruptArchiveError: It is no zip file, or a damaged one.
        CheckpointError: It needs more memory than there is.
    """

    def __init__(self, reader: ArchiveReader, member: Member) -> None:
        self.reader = reader
        if reader.image.nbytes is None:
            # The directory of the records is at their end, and what lies before has to be kept.
            require_memory(member.nbytes, reader.path)
            reader.wanted_nbytes = member.offset + member.nbytes
        with reader.corruption():
            entries = _core.read_zip_directory(reader.image, (member.offset, member.nbytes))
        names = [entry.name.decode("utf-8", "surrogateescape") for entry in entries]
        # torch takes the first record's folder for all.
        root = names[0].partition("/")[0] + "/" if names else ""
        self.records = {
            name.removeprefix(root): StoredRecord(
                name.removeprefix(root),
                entry.nbytes,
                entry.crc,
                entry.stored,
                entry.deflated,
                entry,
            )
            for name, entry in zip(names, entries, strict=True)
        }

    @property
    def is_plain(self) -> bool:
        """Whether this is what torch.save writes: no TorchScript, nothing compressed."""
        return (
            "data.pkl" in self.records
            and "constants.pkl" not in self.records
            and all(record.stored for record in self.records.values())
        )

    def locate(self, records: Sequence[StoredRecord]) -> list[tuple[int, int]]:
        """Where records lie in the stream, compressed if they are so: (offset, nbytes)."""
        with self.reader.corruption():
            return _core.locate_zip_data(self.reader.image, [record.entry for record in records])

    def locate_whole(
        self, records: Sequence[StoredRecord]
    ) -> tuple[dict[str, tuple[int, int]], dict[str, str]]:
        """Where the bytes of records lie, by name; and what is wrong with the others' headers."""
        headers = [(r.entry.header_offset, _HEADER_NBYTES + len(r.entry.name)) for r in records]
        _, damages = self.reader.fill(headers, keep=True, checksums=False)
        places, wrong = {}, {}
        for record, header in zip(records, headers, strict=True):
            hit = next((d for d in damages if d.hits(*header)), None)
            try:
                if hit is None:
                    [places[record.name]] = self.locate([record])
                else:
                    wrong[record.name] = describe(hit)
            except CorruptArchiveError as error:
                wrong[record.name] = str(error).removeprefix(f"{self.reader.path} ")
        return places, wrong

    def read(self, name: str, *, verify: bool = True) -> bytes:
        """A small record's bytes.

        Raises:
            CorruptArchiveError: There is none of that name, or its checksum is another.
            CheckpointError: It needs more memory than there is.
        """
        record = self.records.get(name)
        path = self.reader.path
        if record is None:
            raise CorruptArchiveError(f"{path} has no record {name!r}", path=str(path))
        require_memory(2 * record.nbytes, path)  # there, and copied
        [place] = self.locate([record])
        [crc], damages = self.reader.fill([place], keep=True, checksums=verify)
        if damages:
            raise CorruptArchiveError(
                f"{path} is damaged in record {name!r}: {describe(damages[0])}", path=str(path)
            )
        if verify and record.has_checksum and crc != record.crc:
            raise CorruptArchiveError(
                f"{path} is damaged in record {name!r}: its checksum is another", path=str(path)
            )
        return self.reader.image.read(place)


def _weakly(method: Callable[[int], None]) -> Callable[[int], None]:
    """The method, for the core to keep: Python sees no cycle that leads through the core."""
    reference = weakref.WeakMethod(method)

    def call(done: int) -> None:
        if (target := reference()) is not None:
            target(done)

    return call


def describe(damage: Damage) -> str:
    """What is wrong, and where in the file."""
    return f"{damage.message} (at byte {damage.file_offset} of the file)"
