"""Converts an archive to another format.

The bytes of members do not change. They are decoded piece by piece, when the writer asks for them,
so memory is bounded: see docs/reading.md.
"""

from __future__ import annotations

import os

from pyckpt import _core
from pyckpt.archive.formats import STATES_MEMBER, archive_format
from pyckpt.archive.members import FILE, Member, MemberIndex
from pyckpt.archive.parts import (
    ImageReader,
    Part,
    can_be_rewritten,
    element_sizes,
    member_parts,
    segments,
)
from pyckpt.archive.reader import ArchiveReader, Contents
from pyckpt.archive.writer import ArchiveWriter
from pyckpt.errors import CorruptArchiveError, OptionError
from pyckpt.options import WriteOptions
from pyckpt.paths import local_path
from pyckpt.progress import ProgressHook
from pyckpt.storage.urls import StorageOptions, location
from pyckpt.stream import StreamReader, describe
from pyckpt.torch_format.mmap_guard import unguarded
from pyckpt.torch_format.records import Record, bytes_record
from pyckpt.torch_format.torch_file import PICKLE, StoredRecord, TorchFile

__all__ = ["convert"]


def convert(
    source: str | os.PathLike[str],
    path: str | os.PathLike[str],
    *,
    compression_level: int | None = None,
    num_threads: int | None = None,
    fsync: bool = True,
    progress: ProgressHook = False,
    storage_options: StorageOptions = None,
) -> None:
    """Writes the contents of ``source`` to ``path``, whose suffix decides the format.

    All or nothing, like a save. The checksums of ``source``'s compression are compared before
    ``path`` appears. The checksums of torch's records are copied and not compared; ``verify``
    compares them. Records that are compressed in torch's own file, or will be, are written anew:
    their checksums are compared. Of several members with one name, the last one is written. A link
    becomes a file with the data that it leads to.

    Args:
        source: A file of pyckpt, Composer or torch.save; an object's URL also.
        compression_level: The format's level; None takes its standard one. Torch's own file is
            compressed only if it is given.
        num_threads: Worker threads; None takes the CPUs that this process may use.
        fsync: Whether to wait until the file is on the disk.
        progress: True shows a bar. A function is called with the bytes done and the total, about 20
            times a second. Both only on rank 0.
        storage_options: What the store of a URL is told besides the environment.

    Raises:
        CorruptArchiveError: ``source`` is damaged, or has a member that is no file, no folder and
            no link to a file.
        OptionError: An argument is wrong, or ``path`` is not a tar and ``source`` does not hold
            exactly one file.
        FilenameError: ``path`` has an unknown suffix.
        OSError: A file cannot be read or written.
    """
    source, path = location(source), local_path(path)
    with ArchiveWriter(
        path, WriteOptions(compression_level, num_threads, fsync, progress)
    ) as writer:
        reader = ArchiveReader(source, storage_options=storage_options, num_threads=num_threads)
        rewritten = _add_members(writer, reader, single=archive_format(path) is None)
        writer.write()
        for record in rewritten:
            record.require_checksum()
        damages = reader.finish()
        if damages:
            raise CorruptArchiveError(
                f"{source} is damaged: {describe(damages[0])}", path=str(source)
            )
        writer.commit()


def _add_members(
    writer: ArchiveWriter, reader: ArchiveReader, *, single: bool
) -> list[_RecordReader]:
    """Adds all members. Returns the records that are written anew."""
    if not reader.is_tar:
        whole = reader.whole()
        parts, has_deflated = member_parts(reader, whole)
        if has_deflated or writer.is_deflated:
            return _add_records(writer, STATES_MEMBER, reader, whole)
        writer.add_segments(STATES_MEMBER, segments(reader, parts))
        return []
    index, found = _read_headers(reader)
    files = index.files(reader.path)
    wanted = {file.offset: file for file in files.values()}
    if single and len(wanted) != 1:
        raise OptionError(
            f"{reader.path} has {len(wanted)} files; without a tar there must be exactly one"
        )
    if not single:
        for folder in index.folders(reader.path):
            writer.add_directory(folder)
    reader.forget_all_but(wanted.values())
    rewritten: list[_RecordReader] = []
    for name, file in files.items():
        # Bytes can be read only once, because their memory is then given back. So a second name of
        # the same data gets a second reader.
        source = reader
        if wanted.pop(file.offset, None) is None:
            if single:
                continue
            source = reader.again()
            source.forget_all_but([file])
        if writer.is_deflated and source.is_ordered:
            # The directory of its records is at its end, so all of it is kept.
            source = reader.again()
            file = source.find(name)
        parts, has_deflated = found[file.offset]
        if has_deflated or writer.is_deflated:
            rewritten += _add_records(writer, name, source, file)
        else:
            writer.add_segments(name, segments(source, parts))
    return rewritten


def _add_records(
    writer: ArchiveWriter, name: str, reader: ArchiveReader, member: Member
) -> list[_RecordReader]:
    """Adds a file of torch.save by its records, which are deflated, or will be. Returns these.

    Raises:
        OptionError: Records are to be deflated, and it is no such file.
    """
    file = None
    if reader.contents(member.offset) is Contents.TORCH_ZIP:
        file = TorchFile(reader, member.offset, member.nbytes)
    if file is None or not can_be_rewritten(file):
        raise OptionError(
            f"{reader.path} has no records that can be compressed: with compression_level, a "
            "file that is no tar is made of one that torch.save has written since torch 1.6"
        )
    pickle_record = file.records[PICKLE]
    data = file.read(PICKLE)
    sizes = element_sizes(data)
    readers: list[_RecordReader] = []
    records = {pickle_record.full_name: bytes_record(pickle_record.full_name, data)}
    for group in file.opened([r for r in file.records.values() if r.name != PICKLE]):
        for record, (offset, nbytes) in zip(group.records, group.places, strict=True):
            source = _RecordReader(group.stream, offset, record)
            readers.append(source)
            element_nbytes = sizes.get(record.name, 1)
            records[record.full_name] = Record(
                record.full_name, 0, nbytes, element_nbytes, source if nbytes else None
            )
    # The first one stays the first: its folder is the root of all.
    writer.add_records(name, unguarded([records[r.full_name] for r in file.records.values()]))
    return readers


def _read_headers(reader: ArchiveReader) -> tuple[MemberIndex, dict[int, tuple[list[Part], bool]]]:
    """Which members count, and what member_parts() tells of each file, by where its data begins."""
    # A stream of unknown size is decoded twice: once for its headers, once for its contents.
    headers = reader.again() if reader.is_ordered else reader
    index, found = MemberIndex(), {}
    for member in headers.members():
        index.add(member)
        if member.type == FILE:
            found[member.offset] = member_parts(headers, member)
    return index, found


class _RecordReader(ImageReader):
    """Reads a record that is written anew, with a new checksum. So the old one is compared."""

    def __init__(self, reader: StreamReader, offset: int, record: StoredRecord) -> None:
        super().__init__(reader, offset, record.nbytes)
        self._record = record
        self._crcs: dict[int, tuple[int, int]] = {}  # of the pieces: size and CRC, by offset

    def read(self, offset: int, nbytes: int, address: int) -> None:
        super().read(offset, nbytes, address)
        self._crcs[offset] = nbytes, _core.crc32(address, nbytes)

    def require_checksum(self) -> None:
        """Call it once all of the record has been read, or nothing, if it is left out.

        Raises:
            CorruptArchiveError: The checksum does not match.
        """
        if not self._crcs:
            return
        end, whole = 0, 0
        for offset, (nbytes, crc) in sorted(self._crcs.items()):
            assert offset == end
            whole = _core.crc32_combine(whole, crc, nbytes) if offset else crc
            end += nbytes
        assert end == self._nbytes
        if self._record.has_checksum and whole != self._record.crc:
            path = self._reader.path
            raise CorruptArchiveError(
                f"{path} is damaged in record {self._record.name!r}: its checksum does not match",
                path=str(path),
            )
