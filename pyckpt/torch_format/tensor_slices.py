"""Reads parts of tensors that lie in a stream, and decodes no more than they span.

Memory: a batch of decoded bytes, and the blocks at its ends. A batch has at most 16 MiB for each
thread, or 64 MiB if that is more. Two slices that interleave, as columns of one matrix do, are read
together, and the bytes between them are held once.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from pyckpt import _core
from pyckpt.errors import CorruptArchiveError
from pyckpt.stream import Damage, StreamReader, describe

__all__ = ["CheckedRecord", "TensorSlice", "part_of", "read_slices"]

_PIECE_NBYTES = 16 << 20
_FEWEST_IN_A_BATCH = 4
_MOST_NAMED = 5
# Types that are copied in place of others of their size, so that every bit stays.
_BITS = {
    1: torch.uint8,
    2: torch.int16,
    4: torch.int32,
    8: torch.int64,
    16: torch.complex128,
}


@dataclass(frozen=True)
class CheckedRecord:
    """Bytes of the stream whose CRC-32 is known."""

    offset: int
    nbytes: int
    crc: int


@dataclass(frozen=True)
class TensorSlice:
    """A part of a tensor in a stream, and where it is wanted.

    Attributes:
        name: What it is, for messages.
        position: Where the tensor's first element is in the decompressed stream.
        dtype: The type of its elements there.
        stride: The tensor's strides, in elements.
        offsets: Where the part begins in each dimension.
        lengths: The shape of the part.
        out: A tensor in host memory, of this shape. Another dtype gets the numbers converted.
        record: What the tensor's bytes are a part of, if it has a checksum.
        is_foreign: Whether the bytes of each number are in the other order.
    """

    name: str
    position: int
    dtype: torch.dtype
    stride: tuple[int, ...]
    offsets: tuple[int, ...]
    lengths: tuple[int, ...]
    out: torch.Tensor
    record: CheckedRecord | None = None
    is_foreign: bool = False


def part_of(tensor: torch.Tensor, offsets: Sequence[int], lengths: Sequence[int]) -> torch.Tensor:
    """A view of the part of a tensor that begins at ``offsets`` and has the shape ``lengths``."""
    for dim, (offset, length) in enumerate(zip(offsets, lengths, strict=True)):
        tensor = tensor.narrow(dim, offset, length)
    return tensor


def read_slices(
    stream: StreamReader, slices: Sequence[TensorSlice], *, verify: bool = True
) -> None:
    """Reads all slices to their ``out``.

    Memory is given back as it goes: no byte from the first slice to the last may be asked for
    afterwards.

    Args:
        verify: Whether to compare the checksum of each record of which all is read.

    Raises:
        CorruptArchiveError: Something is damaged. The message names the slices. Some tensors may
            have been filled.
    """
    pieces = sorted((p for one in slices for p in _pieces(one)), key=lambda piece: piece.start)
    checksums = _Checksums(stream)
    # While one batch is decoded and copied, a store sends the next.
    stream.image.expect([(piece.start, piece.nbytes) for piece in pieces])
    for begin, end in _batches(pieces, stream.num_threads):
        batch = pieces[begin:end]
        ranges = [(piece.start, piece.nbytes) for piece in batch]
        crcs, damages = stream.fill(ranges, keep=True, checksums=verify)
        if damages:
            raise _damaged(stream, batch, damages)
        if verify:
            for piece, crc in zip(batch, crcs, strict=True):
                checksums.add(piece, crc)
        _copy(stream, batch)
        start = batch[0].start
        # Later pieces may begin inside of earlier ones.
        last = max(piece.end for piece in batch) if end == len(pieces) else pieces[end].start
        stream.image.forget((start, last - start))


@dataclass(frozen=True)
class _Piece:
    """A part of a slice that is decoded at once: [start, end) of the stream."""

    source: TensorSlice
    start: int
    end: int
    lengths: tuple[int, ...]
    out: torch.Tensor

    @property
    def nbytes(self) -> int:
        return self.end - self.start

    @property
    def is_dense(self) -> bool:
        """Whether its bytes are those of ``out``, in their order."""
        one = self.source
        return (
            one.dtype == self.out.dtype
            and not one.is_foreign
            and self.nbytes == self.out.numel() * one.dtype.itemsize
            and self.out.is_contiguous()
            and _is_contiguous(self.lengths, one.stride)
        )


def _is_contiguous(lengths: Sequence[int], stride: Sequence[int]) -> bool:
    expected = 1
    for length, step in zip(reversed(lengths), reversed(stride), strict=True):
        if length != 1 and step != expected:
            return False
        expected *= length
    return True


def _pieces(one: TensorSlice) -> Iterator[_Piece]:
    """Cuts a slice, so that no piece spans more than it must."""
    if 0 in one.lengths:
        return
    itemsize = one.dtype.itemsize
    first = sum(at * step for at, step in zip(one.offsets, one.stride, strict=True))
    todo = [(first, tuple(one.lengths), one.out.detach())]
    while todo:
        at, lengths, out = todo.pop()
        span = _span(lengths, one.stride)
        if span * itemsize <= _PIECE_NBYTES or all(length == 1 for length in lengths):
            start = one.position + at * itemsize
            yield _Piece(one, start, start + span * itemsize, lengths, out)
            continue
        # Cut the dimension whose steps are longest.
        [(step, dim)] = sorted((one.stride[d], d) for d, n in enumerate(lengths) if n > 1)[-1:]
        inner = _span((*lengths[:dim], 1, *lengths[dim + 1 :]), one.stride)
        fitting = (_PIECE_NBYTES // itemsize - inner) // step + 1
        count = max(1, min(fitting, lengths[dim] - 1))
        for begin in range(0, lengths[dim], count):
            part = min(count, lengths[dim] - begin)
            shape = (*lengths[:dim], part, *lengths[dim + 1 :])
            todo.append((at + begin * step, shape, out.narrow(dim, begin, part)))


def _span(lengths: Sequence[int], stride: Sequence[int]) -> int:
    """How many elements there are from the first to the last, with gaps."""
    return 1 + sum((n - 1) * step for n, step in zip(lengths, stride, strict=True))


def _batches(pieces: Sequence[_Piece], threads: int) -> Iterator[tuple[int, int]]:
    """Cuts the pieces into rows of a bounded size: (begin, end)."""
    most = _PIECE_NBYTES * max(_FEWEST_IN_A_BATCH, threads)
    begin, nbytes = 0, 0
    for at, piece in enumerate(pieces):
        if nbytes and nbytes + piece.nbytes > most:
            yield begin, at
            begin, nbytes = at, 0
        nbytes += piece.nbytes
    if pieces:
        yield begin, len(pieces)


def _copy(stream: StreamReader, batch: Sequence[_Piece]) -> None:
    """Copies decoded pieces to where they are wanted."""
    copies = []
    for piece in batch:
        address = stream.image.address((piece.start, piece.nbytes))
        if piece.is_dense:
            copies.append((piece.out.data_ptr(), address, piece.nbytes))
        else:
            _copy_strided(piece, address)
    _core.parallel_copy(copies, stream.num_threads)


def _copy_strided(piece: _Piece, address: int) -> None:
    one, out = piece.source, piece.out
    itemsize = one.dtype.itemsize
    memory = (ctypes.c_uint8 * piece.nbytes).from_address(address)
    raw = torch.frombuffer(memory, dtype=torch.uint8)
    if one.is_foreign:
        number = itemsize // 2 if one.dtype.is_complex else itemsize
        raw = raw.view(-1, number).flip(1).flatten()
    elif address % itemsize:
        raw = raw.clone()
    dtype = one.dtype
    if dtype == out.dtype:
        dtype = _BITS[itemsize]
        out = out.view(dtype)
    out.copy_(raw.view(dtype).as_strided(piece.lengths, one.stride))


class _Checksums:
    """Compares the checksums of records of which all pieces are added, in the order of the file."""

    def __init__(self, stream: StreamReader) -> None:
        self._path = stream.path
        self._done: dict[CheckedRecord, tuple[int, int]] = {}  # where the pieces end, and their CRC

    def add(self, piece: _Piece, crc: int) -> None:
        record = piece.source.record
        if record is None:
            return
        end, before = self._done.get(record, (record.offset, 0))
        if piece.start != end:  # bytes are missing, or read twice
            return
        whole = crc if end == record.offset else _core.crc32_combine(before, crc, piece.nbytes)
        self._done[record] = (piece.end, whole)
        if piece.end == record.offset + record.nbytes and whole != record.crc:
            raise CorruptArchiveError(
                f"{self._path} is damaged: {piece.source.name}: its checksum does not match",
                path=str(self._path),
            )


def _damaged(
    stream: StreamReader, batch: Sequence[_Piece], damages: Sequence[Damage]
) -> CorruptArchiveError:
    hit: dict[str, Damage] = {}
    for piece in batch:
        for damage in damages:
            if damage.hits(piece.start, piece.nbytes):
                hit.setdefault(piece.source.name, damage)
    lines = [f"{name}: {describe(damage)}" for name, damage in hit.items()][:_MOST_NAMED]
    if len(hit) > _MOST_NAMED:
        lines.append(f"and {len(hit) - _MOST_NAMED} more")
    return CorruptArchiveError(
        f"{stream.path} is damaged: {'; '.join(lines)}", path=str(stream.path)
    )
