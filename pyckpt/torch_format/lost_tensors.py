"""Finds the tensors that are lost when a stream cannot be decoded to its end.

The directory of torch's zip file is at the end of the file, so it is lost as well. But the pickle
at the beginning tells the sizes of all storages, and each record is followed by its checksum.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from dataclasses import dataclass

from pyckpt.stream import StreamReader
from pyckpt.torch_format.tensor_index import TensorInfo, tensors_in

__all__ = ["lost_tensors"]

_HEADER_NBYTES = 30
_HEADER_MAGIC = b"PK\3\4"
_DESCRIPTOR_MAGIC = b"PK\7\x08"
_HAS_DESCRIPTOR = 8
_MOST_DESCRIPTOR_NBYTES = 24
_MOST_PICKLE_NBYTES = 256 << 20
# Largest record that is not a storage, except for the pickle, which is the first record.
_MOST_SMALL_NBYTES = 1 << 10
_ALIGNMENT = 64
# Decoded at once. Damage may be anywhere in it.
_DECODED_AT_ONCE = 1 << 20


def lost_tensors(stream: StreamReader, offset: int, nbytes: int) -> list[TensorInfo]:
    """The tensors with which the damage begins, as far as the decoded part of the stream tells.

    These are the tensors whose checksums do not match. If all checksums match, these are the
    tensors at the place where decoding ended.

    Args:
        stream: A stream that is decoded from start to end, and whose decoding has failed.
        offset: Where a file of torch.save begins in it.
        nbytes: Size of that file.
    """
    front = _Front(stream, offset, nbytes)
    first = front.header(offset)
    if first is None or not first.name.endswith("/data.pkl"):
        return []
    try:
        tensors = tensors_in(front.read(first.begin, _MOST_PICKLE_NBYTES))
    except pickle.UnpicklingError:
        return []
    sizes = {t.storage.key: t.storage.numel * t.storage.dtype.itemsize for t in tensors}
    broken, at = set(), offset
    for record in front.records(dict(sizes)):
        at = record.end
        sizes.pop(record.key, None)
        if record.differs:
            broken.add(record.key)
    if not broken:
        broken = set(_at_the_end(front, at, sizes))
    return [tensor for tensor in tensors if tensor.storage.key in broken]


def _at_the_end(front: _Front, at: int, sizes: dict[str, int]) -> Iterator[str]:
    """The keys of the storages after ``at`` that lie about where decoding ended."""
    for key, nbytes in sizes.items():
        at += _HEADER_NBYTES + len(f"archive/data/{key}")
        at += -at % _ALIGNMENT
        if at >= front.end + _DECODED_AT_ONCE:
            return
        if at + nbytes > front.end:
            yield key
        at += nbytes + _MOST_DESCRIPTOR_NBYTES


@dataclass(frozen=True)
class _Header:
    """The local header of a record.

    Attributes:
        begin: Where its data begins.
        nbytes: Size of its data. None if size and checksum are in a descriptor after the data.
    """

    name: str
    begin: int
    nbytes: int | None
    crc: int

    @property
    def key(self) -> str:
        """The key of the storage that the record holds; empty if it holds none."""
        return self.name.partition("/data/")[2]


@dataclass(frozen=True)
class _Record:
    key: str
    end: int
    differs: bool


class _Front:
    """The decoded front part of a file. Offsets are positions in the stream."""

    def __init__(self, stream: StreamReader, offset: int, nbytes: int) -> None:
        self._image = stream.image
        self._begin = offset
        self.end = min(stream.image.placed_nbytes, offset + nbytes)

    def read(self, offset: int, nbytes: int) -> bytes:
        """Reads bytes; fewer if the front ends before."""
        nbytes = min(nbytes, self.end - offset)
        return self._image.read((offset, nbytes)) if nbytes > 0 else b""

    def header(self, offset: int) -> _Header | None:
        """The header of the record that begins at ``offset``; None if none does."""
        header = self.read(offset, _HEADER_NBYTES)
        if len(header) < _HEADER_NBYTES or not header.startswith(_HEADER_MAGIC):
            return None
        name_nbytes, extra_nbytes = _number(header[26:28]), _number(header[28:30])
        has_descriptor = header[6] & _HAS_DESCRIPTOR and header[14:26] == bytes(12)
        return _Header(
            name=self.read(offset + _HEADER_NBYTES, name_nbytes).decode("utf-8", "replace"),
            begin=offset + _HEADER_NBYTES + name_nbytes + extra_nbytes,
            nbytes=None if has_descriptor else _number(header[22:26]),
            crc=_number(header[14:18]),
        )

    def records(self, sizes: dict[str, int]) -> Iterator[_Record]:
        """The decoded records, from the first one up to one that no other record follows.

        Args:
            sizes: Size in bytes of each storage, by key.
        """
        at = self._begin
        while (header := self.header(at)) is not None:
            crc, nbytes, descriptor_nbytes = header.crc, header.nbytes, 0
            if nbytes is None:
                nbytes = sizes.get(header.key) if header.key else self._small_nbytes(header.begin)
                if nbytes is None:
                    return
                descriptor = self.read(header.begin + nbytes, _MOST_DESCRIPTOR_NBYTES)
                is_there = len(descriptor) == _MOST_DESCRIPTOR_NBYTES
                if nbytes and is_there and not descriptor.startswith(_DESCRIPTOR_MAGIC):
                    yield _Record(header.key, header.begin + nbytes, differs=True)
                    return
                crc = _number(descriptor[4:8])
                # The descriptor's two sizes take 8 bytes each in a large file, else 4. Another
                # record follows the descriptor, and its magic tells which.
                descriptor_nbytes = 16 if descriptor[16:18] == b"PK" else _MOST_DESCRIPTOR_NBYTES
                descriptor_nbytes = descriptor_nbytes if nbytes else 0
            at = header.begin + nbytes + descriptor_nbytes
            if at > self.end:
                return
            [found], _ = self._image.fill([(header.begin, nbytes)], keep=True, checksums=True)
            yield _Record(header.key, at, differs=nbytes != 0 and crc not in (0, found))

    def _small_nbytes(self, begin: int) -> int | None:
        """Size of the record whose data starts at ``begin``, found by its descriptor; or None."""
        is_pickle = begin < self._begin + _MOST_SMALL_NBYTES
        most = _MOST_PICKLE_NBYTES if is_pickle else _MOST_SMALL_NBYTES
        data = self.read(begin, most)
        at = data.find(_DESCRIPTOR_MAGIC)
        while at != -1 and _number(data[at + 8 : at + 12]) != at:
            at = data.find(_DESCRIPTOR_MAGIC, at + 1)
        return None if at == -1 else at


def _number(raw: bytes) -> int:
    return int.from_bytes(raw, "little")
