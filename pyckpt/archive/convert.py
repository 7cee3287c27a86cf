"""Converts an archive to another format, and packs files and folders into an archive.

The bytes of members do not change. They are decoded piece by piece, when the writer asks for them,
so memory is bounded: see docs/reading.md.
"""

from __future__ import annotations

import ctypes
import os
import pickle
import threading
from pathlib import Path

from pyckpt.archive.formats import STATES_MEMBER, archive_format
from pyckpt.archive.reader import ArchiveReader, Contents, Member
from pyckpt.archive.writer import ArchiveWriter, Segment
from pyckpt.errors import CorruptArchiveError, OptionError
from pyckpt.options import WriteOptions
from pyckpt.progress import ProgressHook
from pyckpt.stream import describe
from pyckpt.torch_format.tensor_index import tensors_in
from pyckpt.torch_format.torch_file import TorchFile

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
    compares them.

    Args:
        source: A file of pyckpt, Composer or torch.save.

    Raises:
        CorruptArchiveError: ``source`` is damaged.
        OptionError: An argument is wrong, or ``path`` is not a tar and ``source`` does not hold
            exactly one file.
        FilenameError: ``path`` has an unknown suffix.
        OSError: A file cannot be read or written.
    """
    source, path = Path(source), Path(path)
    options = WriteOptions(compression_level, num_threads, fsync, progress)
    reader = ArchiveReader(source, num_threads=num_threads)
    with ArchiveWriter(path, options) as writer:
        _add_members(writer, reader, single=archive_format(path) is None)
        writer.write()
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

    A file becomes the member ``composer_states.pt``. The files of a folder keep their names.

    Raises:
        OptionError: An argument is wrong, or ``path`` does not end with a tar suffix.
        CorruptArchiveError: ``source`` is a file that torch.save did not write.
        OSError: A file cannot be read or written.
    """
    source, path = Path(source), Path(path)
    options = WriteOptions(compression_level, num_threads, fsync, progress)
    if archive_format(path) is None:
        raise OptionError(f"{path} does not end with a tar suffix")
    with ArchiveWriter(path, options) as writer:
        if source.is_dir():
            for file in sorted(source.rglob("*")):
                name = file.relative_to(source).as_posix()
                if file.is_dir():
                    writer.add_directory(name)
                elif file.is_file():
                    _add_file(writer, name, file)
        else:
            if not _add_file(writer, STATES_MEMBER, source):
                raise CorruptArchiveError(f"{source} is not a file of torch.save", path=str(source))
        writer.write()
        writer.commit()


def _add_file(writer: ArchiveWriter, name: str, path: Path) -> bool:
    """Adds a file. Returns whether torch.save wrote it."""
    if path.stat().st_size:
        reader = ArchiveReader(path)
        contents = reader.contents(0)
        if not reader.image.compression and contents is not Contents.OTHER:
            writer.add_segments(name, _segments(reader, reader.whole()))
            return True
    writer.add_file(name, path)
    return False


def _add_members(writer: ArchiveWriter, reader: ArchiveReader, *, single: bool) -> None:
    if not reader.is_tar:
        name = STATES_MEMBER
        writer.add_segments(name, _segments(reader, reader.whole()))
        return
    files = 0
    # A stream of unknown size is decoded twice: once for its headers, once for its contents.
    ordered = reader.image.nbytes is None
    headers = ArchiveReader(reader.path) if ordered else reader
    for member in headers.members():
        name = member.inner_name(reader.path)
        if member.type == "5":
            if name and not single:
                writer.add_directory(name)
        elif member.type == "0":
            files += 1
            writer.add_segments(name, _segments(reader, member, headers))
        else:
            raise CorruptArchiveError(
                f"{reader.path} has a member {name!r} that is neither a file nor a folder",
                path=str(reader.path),
            )
    if single and files != 1:
        raise OptionError(
            f"{reader.path} has {files} files; without a tar there must be exactly one"
        )


def _segments(
    reader: ArchiveReader, member: Member, headers: ArchiveReader | None = None
) -> list[Segment]:
    """A member's bytes, cut where the element size changes."""
    headers = headers or reader
    if headers.contents(member.offset) is not Contents.TORCH_ZIP:
        return [_segment(reader, member.offset, member.nbytes, 1)]
    if headers.image.nbytes is None:
        element_nbytes = _usual_element_nbytes(headers, member)
        headers.forget(member)
        return [_segment(reader, member.offset, member.nbytes, element_nbytes)]
    file = TorchFile(headers, member.offset, member.nbytes)
    sizes = _element_sizes(file.read("data.pkl")) if file.holds_object else {}
    records = [record for record in file.records.values() if record.stored]
    segments = []
    at = member.offset
    for record, (offset, nbytes) in zip(records, file.locate(records), strict=True):
        element_nbytes = sizes.get(record.name, 1)
        if element_nbytes > 1 and nbytes:
            segments.append(_segment(reader, at, offset - at, 1))
            segments.append(_segment(reader, offset, nbytes, element_nbytes))
            at = offset + nbytes
    segments.append(_segment(reader, at, member.offset + member.nbytes - at, 1))
    return [segment for segment in segments if segment.nbytes]


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


def _segment(reader: ArchiveReader, offset: int, nbytes: int, element_nbytes: int) -> Segment:
    return Segment(_ImageReader(reader, offset, nbytes), nbytes, element_nbytes)


class _ImageReader:
    """Reads bytes of an archive for a writer.

    They are decoded a little ahead of the reads, and their memory is given back after each read.
    """

    # Only one thread at a time may use the core's image. The decoding inside is parallel.
    _lock = threading.Lock()

    def __init__(self, reader: ArchiveReader, offset: int, nbytes: int) -> None:
        self._reader = reader
        self._offset = offset
        self._nbytes = nbytes
        self._decoded = 0  # the end of what is decoded, roughly

    def read(self, offset: int, nbytes: int, address: int) -> None:
        with self._lock:
            if offset + nbytes > self._decoded:
                self._read_ahead(offset, nbytes)
            piece = self._reader.take(self._offset + offset, nbytes)
            # Copied under the lock: another thread's decoding may move these bytes.
            ctypes.memmove(address, (ctypes.c_uint8 * nbytes).from_buffer(piece), nbytes)
            del piece

    def _read_ahead(self, offset: int, nbytes: int) -> None:
        wanted = max(nbytes, self._reader.num_threads * _READ_AHEAD_NBYTES)
        self._decoded = min(self._nbytes, offset + wanted)
        self._reader.require(self._offset + offset, self._decoded - offset)
