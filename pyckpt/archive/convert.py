"""Converts an archive to another format, and packs files and folders into an archive.

The bytes of members do not change. They are decoded piece by piece, when the writer asks for them,
so memory is bounded: see docs/reading.md.
"""

from __future__ import annotations

import os
import pickle
import stat
import threading
from collections.abc import Sequence
from pathlib import Path

from pyckpt import _core
from pyckpt.archive.formats import STATES_MEMBER, archive_format
from pyckpt.archive.members import FILE, Member, MemberIndex
from pyckpt.archive.reader import ArchiveReader, Contents
from pyckpt.archive.writer import ArchiveWriter, Segment
from pyckpt.errors import CorruptArchiveError, OptionError
from pyckpt.options import WriteOptions
from pyckpt.paths import local_path
from pyckpt.progress import ProgressHook
from pyckpt.stream import StreamReader, describe
from pyckpt.torch_format.mmap_guard import unguarded
from pyckpt.torch_format.records import Record, bytes_record
from pyckpt.torch_format.tensor_index import tensors_in
from pyckpt.torch_format.torch_file import PICKLE, StoredRecord, TorchFile

__all__ = ["convert", "pack"]

_MOST_PICKLE_NBYTES = 16 << 20
_READ_AHEAD_NBYTES = 4 << 20  # for each thread that decodes
_LOCAL_HEADER_NBYTES = 30  # of a zip record, before its name


def convert(
    source: str | os.PathLike[str],
    path: str | os.PathLike[str],
    *,
    compression_level: int | None = None,
    num_threads: int | None = None,
    fsync: bool = True,
    progress: ProgressHook = False,
) -> None:
    """Writes the contents of ``source`` to ``path``, whose suffix decides the format.

    All or nothing, like a save. The checksums of ``source``'s compression are compared before
    ``path`` appears. The checksums of torch's records are copied and not compared; ``verify``
    compares them. Records that are compressed in torch's own file, or will be, are written anew:
    their checksums are compared. Of several members with one name, the last one is written. A link
    becomes a file with the data that it leads to.

    Args:
        source: A file of pyckpt, Composer or torch.save.
        compression_level: The format's level; None takes its standard one. Torch's own file is
            compressed only if it is given.
        num_threads: Worker threads; None takes the CPUs that this process may use.
        fsync: Whether to wait until the file is on the disk.
        progress: True shows a bar. A function is called with the bytes done and the total, about 20
            times a second. Both only on rank 0.

    Raises:
        CorruptArchiveError: ``source`` is damaged, or has a member that is no file, no folder and
            no link to a file.
        OptionError: An argument is wrong, or ``path`` is not a tar and ``source`` does not hold
            exactly one file.
        FilenameError: ``path`` has an unknown suffix.
        OSError: A file cannot be read or written.
    """
    source, path = local_path(source), local_path(path)
    with ArchiveWriter(
        path, WriteOptions(compression_level, num_threads, fsync, progress)
    ) as writer:
        reader = ArchiveReader(source, num_threads=num_threads)
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


def pack(
    source: str | os.PathLike[str],
    path: str | os.PathLike[str],
    *,
    compression_level: int | None = None,
    num_threads: int | None = None,
    fsync: bool = True,
    progress: ProgressHook = False,
) -> None:
    """Writes a file of torch.save, or all files of a folder, to the archive ``path``.

    A file becomes the member ``composer_states.pt``. The files of a folder keep their names. Links
    to files are followed.

    Args:
        source: The file or the folder. The other arguments are those of :func:`convert`.

    Raises:
        OptionError: An argument is wrong, ``path`` does not end with a tar suffix, or the folder
            has a link that leads to a folder or nowhere, or something else that is not a file.
        CorruptArchiveError: ``source`` is a file that torch.save did not write.
        OSError: A file cannot be read or written.
    """
    source, path = local_path(source), local_path(path)
    with ArchiveWriter(
        path, WriteOptions(compression_level, num_threads, fsync, progress)
    ) as writer:
        if archive_format(path) is None:
            raise OptionError(f"{path} does not end with a tar suffix")
        if source.is_dir():
            _add_folder(writer, source)
        elif not _add_file(writer, STATES_MEMBER, source):
            raise CorruptArchiveError(f"{source} is not a file of torch.save", path=str(source))
        writer.write()
        writer.commit()


def _add_folder(writer: ArchiveWriter, source: Path) -> None:
    for root, folders, files in os.walk(source, onerror=_raise):
        for name in folders:
            folder = Path(root, name)
            if folder.is_symlink():
                raise OptionError(f"{folder} is a link to a folder, which is not packed")
            writer.add_directory(folder.relative_to(source).as_posix())
        for name in files:
            file = Path(root, name)
            if file.is_symlink() and not file.exists():
                raise OptionError(f"{file} is a link that leads nowhere")
            if not stat.S_ISREG(file.stat().st_mode):
                raise OptionError(f"{file} is neither a file nor a folder")
            _add_file(writer, file.relative_to(source).as_posix(), file)


def _raise(error: OSError) -> None:
    raise error


def _add_file(writer: ArchiveWriter, name: str, path: Path) -> bool:
    """Adds a file. Returns whether torch.save wrote it."""
    if path.stat().st_size:
        reader = ArchiveReader(path)
        contents = reader.contents(0)
        if not reader.image.compression and contents is not Contents.OTHER:
            parts, _ = _parts(reader, reader.whole())
            writer.add_segments(name, _segments(reader, parts))
            return True
    writer.add_file(name, path)
    return False


def _add_members(
    writer: ArchiveWriter, reader: ArchiveReader, *, single: bool
) -> list[_RecordReader]:
    """Adds all members. Returns the records that are written anew."""
    if not reader.is_tar:
        whole = reader.whole()
        parts, has_deflated = _parts(reader, whole)
        if has_deflated or writer.is_deflated:
            return _add_records(writer, STATES_MEMBER, reader, whole)
        writer.add_segments(STATES_MEMBER, _segments(reader, parts))
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
            source = ArchiveReader(reader.path, num_threads=reader.num_threads)
            source.forget_all_but([file])
        if writer.is_deflated and source.is_ordered:
            # The directory of its records is at its end, so all of it is kept.
            source = ArchiveReader(reader.path, num_threads=reader.num_threads)
            file = source.find(name)
        parts, has_deflated = found[file.offset]
        if has_deflated or writer.is_deflated:
            rewritten += _add_records(writer, name, source, file)
        else:
            writer.add_segments(name, _segments(source, parts))
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
    if file is None or not _can_be_rewritten(file):
        raise OptionError(
            f"{reader.path} has no records that can be compressed: with compression_level, a "
            "file that is no tar is made of one that torch.save has written since torch 1.6"
        )
    pickle_record = file.records[PICKLE]
    data = file.read(PICKLE)
    sizes = _element_sizes(data)
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


# A part of a member: where it is in the stream, its size, and the size of one number in it.
_Part = tuple[int, int, int]


def _can_be_rewritten(file: TorchFile) -> bool:
    return file.holds_object and not file.others


def _read_headers(reader: ArchiveReader) -> tuple[MemberIndex, dict[int, tuple[list[_Part], bool]]]:
    """Which members count, and what _parts() tells of each file, by where its data begins."""
    # A stream of unknown size is decoded twice: once for its headers, once for its contents.
    headers = ArchiveReader(reader.path) if reader.is_ordered else reader
    index, found = MemberIndex(), {}
    for member in headers.members():
        index.add(member)
        if member.type == FILE:
            found[member.offset] = _parts(headers, member)
    return index, found


def _parts(reader: ArchiveReader, member: Member) -> tuple[list[_Part], bool]:
    """A member's bytes, cut where the element size changes, and whether records are deflated.

    In a stream of unknown size, records do not say that they are: their directory is at the end.
    """
    if reader.contents(member.offset) is not Contents.TORCH_ZIP:
        return [(member.offset, member.nbytes, 1)], False
    if reader.is_ordered and reader.is_tar:
        return [(member.offset, member.nbytes, _usual_element_nbytes(reader, member))], False
    file = TorchFile(reader, member.offset, member.nbytes)
    sizes = _element_sizes(file.read("data.pkl")) if file.holds_object else {}
    records = [record for record in file.records.values() if record.stored]
    parts: list[_Part] = []
    at = member.offset
    for record, (offset, nbytes) in zip(records, file.locate(records), strict=True):
        element_nbytes = sizes.get(record.name, 1)
        if element_nbytes > 1 and nbytes:
            parts += [(at, offset - at, 1), (offset, nbytes, element_nbytes)]
            at = offset + nbytes
    parts.append((at, member.end - at, 1))
    has_deflated = _can_be_rewritten(file) and len(records) != len(file.records)
    return [part for part in parts if part[1]], has_deflated


def _element_sizes(data: bytes) -> dict[str, int]:
    """The element size of each record that holds a storage, read from the pickle ``data``."""
    try:
        storages = {tensor.storage for tensor in tensors_in(data)}
    except pickle.UnpicklingError:
        return {}
    return {f"data/{s.key}": s.dtype.itemsize // (2 if s.dtype.is_complex else 1) for s in storages}


def _usual_element_nbytes(reader: ArchiveReader, member: Member) -> int:
    """The element size that most bytes have, read from the pickle (a torch file's first record)."""
    start = reader.read(member.offset, min(member.nbytes, _MOST_PICKLE_NBYTES))
    name_nbytes = int.from_bytes(start[26:28], "little")
    extra_nbytes = int.from_bytes(start[28:30], "little")
    try:
        tensors = tensors_in(start[_LOCAL_HEADER_NBYTES + name_nbytes + extra_nbytes :])
    except pickle.UnpicklingError:
        return 1
    totals: dict[int, int] = {}
    for storage in {tensor.storage for tensor in tensors}:
        size = storage.dtype.itemsize // (2 if storage.dtype.is_complex else 1)
        totals[size] = totals.get(size, 0) + storage.numel * storage.dtype.itemsize
    return max(totals, key=lambda size: totals[size], default=1)


def _segments(reader: ArchiveReader, parts: Sequence[_Part]) -> list[Segment]:
    return [
        Segment(_ImageReader(reader, offset, nbytes), nbytes, element_nbytes)
        for offset, nbytes, element_nbytes in parts
    ]


class _ImageReader:
    """Reads bytes of an archive for a writer.

    They are decoded a little ahead of the reads, and their memory is given back after each read.
    """

    # Only one thread at a time may use the core's image. The decoding inside is parallel.
    _lock = threading.Lock()

    def __init__(self, reader: StreamReader, offset: int, nbytes: int) -> None:
        self._reader = reader
        self._offset = offset
        self._nbytes = nbytes
        self._decoded = 0  # the end of what was decoded ahead

    def read(self, offset: int, nbytes: int, address: int) -> None:
        with self._lock:
            self._decode(offset, nbytes)
            # Copied under the lock: another thread's decoding may move these bytes.
            place = (self._offset + offset, nbytes)
            self._reader.image.copy(place, address)
            self._reader.image.forget(place)

    def _decode(self, offset: int, nbytes: int) -> None:
        end = offset + nbytes
        if end > self._decoded:
            ahead = offset + self._reader.num_threads * _READ_AHEAD_NBYTES
            end = self._decoded = min(self._nbytes, max(end, ahead))
        # Also below what was decoded: threads read in any order, and a later piece may come first.
        self._reader.require(self._offset + offset, end - offset)


class _RecordReader(_ImageReader):
    """Reads a record that is written anew, with a new checksum. So the old one is compared."""

    def __init__(self, reader: StreamReader, offset: int, record: StoredRecord) -> None:
        super().__init__(reader, offset, record.nbytes)
        self._record = record
        self._crcs: dict[int, tuple[int, int]] = {}  # of the pieces: size and CRC, by offset

    def _decode(self, offset: int, nbytes: int) -> None:
        super()._decode(offset, nbytes)
        place = (self._offset + offset, nbytes)
        [crc], _ = self._reader.fill([place], keep=True, checksums=True)
        self._crcs[offset] = nbytes, crc

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
