"""Reads torch's zip file: its records, and where their bytes are in a stream."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pyckpt import _core
from pyckpt.errors import CorruptArchiveError
from pyckpt.memory import require_memory
from pyckpt.stream import StreamReader, describe

__all__ = ["PICKLE", "STORAGES", "UNREADABLE", "OpenedRecords", "StoredRecord", "TorchFile"]

PICKLE = "data.pkl"
STORAGES = "data/"
"""What the names of the records that hold storages begin with."""

UNREADABLE = "it is encrypted, or compressed by an unknown method"

_HEADER_NBYTES = 30  # of a zip record's local header, before the name


@dataclass(frozen=True)
class StoredRecord:
    """One record of torch's zip file.

    Attributes:
        name: Without the root folder: ``data/0``.
        nbytes: Decompressed size.
        stored: Whether it is neither compressed nor encrypted.
        deflated: Whether it is compressed by deflate, and not encrypted.
    """

    name: str
    nbytes: int
    crc: int
    stored: bool
    deflated: bool
    entry: _core.ZipEntry

    @property
    def readable(self) -> bool:
        """Whether torch can read it. If not: UNREADABLE."""
        return self.stored or self.deflated

    @property
    def full_name(self) -> str:
        """With the root folder: ``archive/data/0``."""
        return self.entry.name.decode("utf-8", "surrogateescape")

    @property
    def has_checksum(self) -> bool:
        """Whether there is a CRC-32. torch writes 0 when it is told not to compute one."""
        return self.crc != 0 or self.nbytes == 0


@dataclass(frozen=True)
class OpenedRecords:
    """Records whose contents are in one stream.

    Attributes:
        stream: The file's own stream, or one of inflated records.
        places: Where the records are in ``stream``: (offset, nbytes).
    """

    stream: StreamReader
    records: Sequence[Any]
    places: Sequence[tuple[int, int]]


class TorchFile:
    """The records of torch's zip file.

    Args:
        stream: The stream that contains the file.
        offset: Where the file begins in the stream.
        nbytes: Size of the file.

    Attributes:
        records: The records by name without the root folder, in the order of the file.
        others: The records outside of the root folder, by name, which begins with ``../``. torch
            refuses files that have some.

    Raises:
        CorruptArchiveError: It is not a zip file, or it is damaged.
        CheckpointError: There is not enough memory.
    """

    def __init__(self, stream: StreamReader, offset: int, nbytes: int) -> None:
        self.stream = stream
        if stream.image.nbytes is None:
            # The directory is after the records, so all bytes before it must be kept.
            require_memory(nbytes, stream.path)
            stream.wanted_nbytes = offset + nbytes
        with stream.corruption():
            entries = _core.read_zip_directory(stream.image, (offset, nbytes))
        names = [entry.name.decode("utf-8", "surrogateescape") for entry in entries]
        # Like torch, take the folder of the directory's first record as the root of all records.
        first = min(range(len(entries)), key=lambda at: entries[at].index, default=None)
        root = "" if first is None else names[first].partition("/")[0] + "/"
        self.records: dict[str, StoredRecord] = {}
        self.others: dict[str, StoredRecord] = {}
        for full_name, entry in zip(names, entries, strict=True):
            is_inside = root != "" and full_name.startswith(root)
            name = full_name.removeprefix(root) if is_inside else f"../{full_name}"
            group = self.records if is_inside else self.others
            group[name] = StoredRecord(
                name, entry.nbytes, entry.crc, entry.stored, entry.deflated, entry
            )

    @property
    def is_torch_script(self) -> bool:
        """Whether it holds a program of TorchScript, which only torch reads."""
        return "constants.pkl" in self.records

    @property
    def holds_object(self) -> bool:
        """Whether torch.save wrote it: it has a pickle, and is not TorchScript."""
        return PICKLE in self.records and not self.is_torch_script

    def locate(self, records: Sequence[StoredRecord]) -> list[tuple[int, int]]:
        """Where the data of records is in the stream, as it is stored there: (offset, nbytes)."""
        with self.stream.corruption():
            return _core.locate_zip_data(self.stream.image, [record.entry for record in records])

    def opened(self, records: Sequence[StoredRecord]) -> list[OpenedRecords]:
        """The streams that have the contents of records, and where they are in them.

        Raises:
            CorruptArchiveError: A record is encrypted, or compressed by an unknown method.
        """
        for record in records:
            if not record.readable:
                raise CorruptArchiveError(
                    f"{self.stream.path} is damaged in record {record.name!r}: {UNREADABLE}",
                    path=str(self.stream.path),
                )
        stored = [record for record in records if record.stored]
        deflated = [record for record in records if record.deflated]
        groups = [OpenedRecords(self.stream, stored, self.locate(stored))] if stored else []
        if deflated:
            stream, places = self.stream.inflated([record.entry for record in deflated])
            groups.append(OpenedRecords(stream, deflated, places))
        return groups

    def expect(self, records: Sequence[StoredRecord]) -> None:
        """Says that the records will be opened, and decoded as a whole. It saves time."""
        self.stream.image.expect(_places(records))

    def bring(self, records: Sequence[StoredRecord]) -> None:
        """Decodes and keeps the records as a whole, if they are of an object. Ignores damage.

        Headers are wanted before data. If they were decoded before, the object's bytes would come
        out of order, and some of them twice.
        """
        if self.stream.supply is None or self.stream.mapped or self.stream.image.nbytes is None:
            return
        with self.stream.corruption():
            self.stream.image.bring(_places(records))

    def locate_whole(
        self, records: Sequence[StoredRecord]
    ) -> tuple[dict[str, tuple[int, int]], dict[str, str]]:
        """Like locate(), but goes on after damaged headers.

        Returns:
            The place of each record whose header is right, and a message for each of the others,
            both by name.
        """
        headers = [(r.entry.header_offset, _header_nbytes(r)) for r in records]
        _, damages = self.stream.fill(headers, keep=True, checksums=False)
        places, wrong = {}, {}
        for record, header in zip(records, headers, strict=True):
            hit = next((d for d in damages if d.hits(*header)), None)
            try:
                if hit is None:
                    [places[record.name]] = self.locate([record])
                else:
                    wrong[record.name] = describe(hit)
            except CorruptArchiveError as error:
                wrong[record.name] = str(error).removeprefix(f"{self.stream.path} ")
        return places, wrong

    def read(self, name: str, *, verify: bool = True) -> bytes:
        """Reads a small record.

        Raises:
            CorruptArchiveError: There is no record of this name, it is damaged, or with ``verify``
                its checksum does not match.
            CheckpointError: There is not enough memory.
        """
        record = self.records.get(name)
        path = self.stream.path
        if record is None:
            raise CorruptArchiveError(
                f"{path} has no record {name!r}, so torch.save did not write it", path=str(path)
            )
        require_memory(2 * record.nbytes, path)  # once in the stream's memory, once as a copy
        [group] = self.opened([record])
        [crc], damages = group.stream.fill(group.places, keep=True, checksums=verify)
        if damages:
            raise CorruptArchiveError(
                f"{path} is damaged in record {name!r}: {describe(damages[0])}", path=str(path)
            )
        if verify and record.has_checksum and crc != record.crc:
            raise CorruptArchiveError(
                f"{path} is damaged in record {name!r}: its checksum does not match", path=str(path)
            )
        return group.stream.image.read(group.places[0])

    def code_nbytes(self, record: StoredRecord) -> int | None:
        """About how many bytes of the file hold a record; None if blocks have no known places."""
        offset = record.entry.header_offset
        nbytes = self.stream.image.code_nbytes((offset, record.entry.code_nbytes))
        return nbytes if nbytes or not record.nbytes else None


def _header_nbytes(record: StoredRecord) -> int:
    """Of the local header, without the extra field, whose size only the header tells."""
    return _HEADER_NBYTES + len(record.entry.name)


def _places(records: Sequence[StoredRecord]) -> list[tuple[int, int]]:
    """Where the headers and the contents of stored records are, but for a few bytes at the end."""
    return [
        (record.entry.header_offset, _header_nbytes(record) + record.nbytes)
        for record in records
        if record.stored
    ]
