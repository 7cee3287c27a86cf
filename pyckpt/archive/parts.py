"""The bytes of a member, in parts: each has numbers of one size, which helps the compressors.

They are decoded piece by piece, when a writer asks for them, so memory is bounded: see
docs/reading.md.
"""

from __future__ import annotations

import pickle
import threading
from collections.abc import Sequence

from pyckpt.archive.members import Member
from pyckpt.archive.reader import ArchiveReader, Contents
from pyckpt.archive.writer import Segment
from pyckpt.stream import StreamReader
from pyckpt.torch_format.tensor_index import tensors_in
from pyckpt.torch_format.torch_file import TorchFile

__all__ = ["ImageReader", "Part", "can_be_rewritten", "element_sizes", "member_parts", "segments"]

_MOST_PICKLE_NBYTES = 16 << 20
_READ_AHEAD_NBYTES = 4 << 20  # for each thread that decodes
_LOCAL_HEADER_NBYTES = 30  # of a zip record, before its name

# A part of a member: where it is in the stream, its size, and the size of one number in it.
Part = tuple[int, int, int]


def member_parts(reader: ArchiveReader, member: Member) -> tuple[list[Part], bool]:
    """A member's bytes, cut where the element size changes, and whether records are deflated.

    In a stream of unknown size, records do not say that they are: their directory is at the end.
    """
    if reader.contents(member.offset) is not Contents.TORCH_ZIP:
        return [(member.offset, member.nbytes, 1)], False
    if reader.is_ordered and reader.is_tar:
        return [(member.offset, member.nbytes, _usual_element_nbytes(reader, member))], False
    file = TorchFile(reader, member.offset, member.nbytes)
    sizes = element_sizes(file.read("data.pkl")) if file.holds_object else {}
    records = [record for record in file.records.values() if record.stored]
    parts: list[Part] = []
    at = member.offset
    for record, (offset, nbytes) in zip(records, file.locate(records), strict=True):
        element_nbytes = sizes.get(record.name, 1)
        if element_nbytes > 1 and nbytes:
            parts += [(at, offset - at, 1), (offset, nbytes, element_nbytes)]
            at = offset + nbytes
    parts.append((at, member.end - at, 1))
    has_deflated = can_be_rewritten(file) and len(records) != len(file.records)
    return [part for part in parts if part[1]], has_deflated


def element_sizes(data: bytes) -> dict[str, int]:
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


def segments(reader: ArchiveReader, parts: Sequence[Part]) -> list[Segment]:
    return [
        Segment(ImageReader(reader, offset, nbytes), nbytes, element_nbytes)
        for offset, nbytes, element_nbytes in parts
    ]


def can_be_rewritten(file: TorchFile) -> bool:
    return file.holds_object and not file.others


class ImageReader:
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
