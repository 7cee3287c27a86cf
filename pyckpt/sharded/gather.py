"""Gathers sharded tensors on the rank that writes them, one batch after another.

    first rank:   pipeline ─▶ reads tensors in the order of the file
                     ▲
                  gathering thread: says "go on" ─▶ receives the batch ─▶ puts tensors together
                     │ ▲
    other ranks:     ▼ │ wait for "go on" ─▶ send what they have of the batch

A batch is some tensors that follow one another in the file: up to 64 MiB, or one tensor that is
larger. The next batch is asked for when the one before the last has been written. So beside its
shards the first rank holds at most three times the largest batch, every other rank one batch's
share of its own.

The first rank tells every other one what it sends in each batch. It alone may stop before the last
one, because its file cannot be written. A rank that cannot read its shards still sends as many
bytes as were agreed, and raises at the end. So no rank waits for another that has failed.
"""

from __future__ import annotations

import ctypes
import errno
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch

from pyckpt.errors import CheckpointError
from pyckpt.ranks.exchange import Channel
from pyckpt.ranks.transfer import hear, receive, send, tell
from pyckpt.sharded.shard import Shard
from pyckpt.staging.latch import Latch
from pyckpt.torch_format.hollow import hollow_storages, hollow_tensor
from pyckpt.torch_format.tensor_slices import part_of

__all__ = ["BATCH_NBYTES", "Gathered", "Gathering", "Piece", "requests_of", "serve", "share_nbytes"]

BATCH_NBYTES = 64 << 20
_BATCHES = 2  # put together and not yet written
_GO_ON, _STOP = 1, 0


@dataclass(frozen=True)
class Piece:
    """A part of a tensor, and who has it.

    Attributes:
        rank: The rank in the channel's group.
        number: Which of that rank's shards it is.
        offsets: Where it begins in the tensor.
        shape: In elements.
    """

    rank: int
    number: int
    offsets: tuple[int, ...]
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Gathered:
    """A tensor that is put together of pieces."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    pieces: tuple[Piece, ...]

    @property
    def nbytes(self) -> int:
        """Size of the whole tensor."""
        return self.dtype.itemsize * torch.Size(self.shape).numel()

    def piece_nbytes(self, piece: Piece) -> int:
        """Size of one piece."""
        return self.dtype.itemsize * torch.Size(piece.shape).numel()


def batches_of(tensors: Sequence[Gathered]) -> list[range]:
    """Cuts the tensors into batches: see the module."""
    batches = []
    start = nbytes = 0
    for index, tensor in enumerate(tensors):
        if index > start and nbytes + tensor.nbytes > BATCH_NBYTES:
            batches.append(range(start, index))
            start, nbytes = index, 0
        nbytes += tensor.nbytes
    if start < len(tensors):
        batches.append(range(start, len(tensors)))
    return batches


def requests_of(tensors: Sequence[Gathered], ranks: int) -> list[list[list[int]]]:
    """The numbers of the shards that each rank sends in each batch: by rank, by batch."""
    requests: list[list[list[int]]] = [[] for _ in range(ranks)]
    for batch in batches_of(tensors):
        for of_rank in requests:
            of_rank.append([])
        for tensor in map(tensors.__getitem__, batch):
            for piece in tensor.pieces:
                requests[piece.rank][-1].append(piece.number)
    return requests


def share_nbytes(requests: Sequence[Sequence[int]], shards: Sequence[Shard]) -> int:
    """The most bytes that a rank sends in one batch."""
    return max((_nbytes(numbers, shards) for numbers in requests), default=0)


def _nbytes(numbers: Sequence[int], shards: Sequence[Shard]) -> int:
    return sum(shards[number].nbytes for number in numbers)


def serve(
    requests: Sequence[Sequence[int]],
    shards: Sequence[Shard],
    room: torch.UntypedStorage,
    before: Callable[[], None],
    channel: Channel,
) -> None:
    """Sends what this rank has, batch by batch, until the first rank has all or stops.

    Args:
        requests: What to send in each batch: see ``requests_of``.
        shards: What this rank has.
        room: Memory of ``share_nbytes``, which is there already, because nothing may fail here.
        before: Called before the first is read.

    Raises:
        Exception: ``before`` raised, or a shard could not be read. The first rank got other bytes
            instead.
    """
    buffer: Any = torch.empty(0, dtype=torch.uint8, device="cpu")
    buffer.set_(room)
    failed: BaseException | None = None
    try:
        before()
    except BaseException as error:
        failed = error
    for numbers in requests:
        if hear(channel) == _STOP:
            break
        data = buffer[: _nbytes(numbers, shards)]
        if not len(data):
            continue
        try:
            if failed is None:
                _fill(data, numbers, shards)
        except BaseException as error:  # Ctrl-C too: the first rank waits for these bytes
            failed = error
        send(data, 0, channel)
    if failed is not None:
        raise failed


def _fill(data: torch.Tensor, numbers: Sequence[int], shards: Sequence[Shard]) -> None:
    start = 0
    for number in numbers:
        end = start + shards[number].nbytes
        shards[number].copy_to(data[start:end])
        start = end


class Gathering:
    """One gathering of all tensors, on the first rank.

    Enter ``running()`` and read all ``reader``s, each byte once. Meanwhile the others ``serve()``.

    Args:
        tensors: In the order in which they will be read.
    """

    def __init__(self, tensors: Sequence[Gathered]) -> None:
        self._tensors = tensors
        self._batches = batches_of(tensors)
        self._batch_of = {at: n for n, batch in enumerate(self._batches) for at in batch}
        self._changed = threading.Condition()  # guards all below
        self._whole: dict[int, torch.Tensor] = {}  # uint8, by the tensor's index
        self._unread = {at: tensor.nbytes for at, tensor in enumerate(tensors) if tensor.nbytes}
        self._left = [sum(tensors[at].nbytes > 0 for at in batch) for batch in self._batches]
        self._error: BaseException | None = None
        self._stopped = False
        self._ended = Latch()  # the thread has come to its end

    def reader(self, index: int) -> _Reader:
        """Reads the bytes of a tensor, on the first rank. It waits until they are there."""
        return _Reader(self, index)

    @contextmanager
    def running(self, shards: Sequence[Shard], channel: Channel) -> Iterator[None]:
        """Gathers in a thread of its own. At the end the other ranks are told to stop waiting.

        Args:
            shards: What this rank has, by the numbers in its pieces.

        Raises:
            CheckpointError: A rank died, or this rank could not read its shards.
            OSError: The system has no more threads: EAGAIN.
        """
        thread = threading.Thread(target=self._gather, args=(shards, channel), name="pyckpt-gather")
        try:
            thread.start()
        except RuntimeError as error:
            tell(_STOP, channel)
            raise OSError(errno.EAGAIN, f"the state cannot be gathered: {error}") from error
        try:
            yield
        finally:
            with self._changed:
                self._stopped = True
                self._changed.notify_all()
            self._ended.wait_through()  # it uses the channel
        if self._error is not None:
            raise self._error

    def read(self, index: int, offset: int, nbytes: int, address: int) -> None:
        """Copies bytes of a tensor. Waits until they are there."""
        with self._changed:
            self._changed.wait_for(lambda: index in self._whole or self._error or self._stopped)
            whole = self._whole.get(index)
        if whole is None:
            raise CheckpointError(f"gathering the state failed: {self._error or 'it was stopped'}")
        ctypes.memmove(address, whole.data_ptr() + offset, nbytes)
        with self._changed:
            self._unread[index] -= nbytes
            if self._unread[index]:
                return
            del self._whole[index]
            batch = self._batch_of[index]
            self._left[batch] -= 1
            if not self._left[batch]:
                self._changed.notify_all()

    def _gather(self, shards: Sequence[Shard], channel: Channel) -> None:
        """The gathering thread of the first rank."""
        try:
            self._gather_all(shards, channel)
        finally:
            self._ended.set()

    def _gather_all(self, shards: Sequence[Shard], channel: Channel) -> None:
        try:
            for number, batch in enumerate(self._batches):
                data = self._make_room(number)
                if data is None:
                    tell(_STOP, channel)
                    return
                tell(_GO_ON, channel)
                receive({rank: part for rank, part in data.items() if rank != 0}, channel)
                self._keep(batch, data, shards)
                del data  # before the next batch has room
        except BaseException as error:  # a rank died
            self._fail(error)
            with suppress(CheckpointError):
                tell(_STOP, channel)

    def _make_room(self, number: int) -> dict[int, torch.Tensor] | None:
        """Memory for what each rank has of a batch, once a further batch may be held.

        None if gathering must stop.
        """

        def has_room() -> bool:
            unwritten = sum(left > 0 for left in self._left[:number])
            return self._stopped or self._error is not None or unwritten < _BATCHES

        with self._changed:
            self._changed.wait_for(has_room)
            if self._stopped or self._error is not None:
                return None
        try:
            shares = self._shares(self._batches[number])
            return dict(zip(shares, _new_memory([*shares.values()]), strict=True))
        except BaseException as error:
            self._fail(error)
            return None

    def _keep(
        self, batch: range, data: Mapping[int, torch.Tensor], shards: Sequence[Shard]
    ) -> None:
        """Puts a batch together, for the readers. An error makes the next batch the end."""
        try:
            if 0 in data:
                pieces = [p for at in batch for p in self._tensors[at].pieces if p.rank == 0]
                _fill(data[0], [piece.number for piece in pieces], shards)
            whole = self._put_together(batch, data)
        except BaseException as error:
            self._fail(error)
            return
        with self._changed:
            self._whole.update(whole)
            self._changed.notify_all()

    def _fail(self, error: BaseException) -> None:
        with self._changed:
            self._error = self._error or error
            self._changed.notify_all()

    def _put_together(
        self, batch: range, data: Mapping[int, torch.Tensor]
    ) -> dict[int, torch.Tensor]:
        whole: dict[int, torch.Tensor] = {}
        starts = dict.fromkeys(data, 0)
        for at, memory in zip(batch, _new_memory(self._sizes(batch)), strict=True):
            tensor = self._tensors[at]
            if not tensor.nbytes:
                continue
            elements = memory.view(tensor.dtype).view(tensor.shape)
            for piece in tensor.pieces:
                nbytes = tensor.piece_nbytes(piece)
                if not nbytes:
                    continue
                start = starts[piece.rank]
                starts[piece.rank] += nbytes
                part = data[piece.rank][start : start + nbytes]
                if start % tensor.dtype.itemsize:  # behind a piece of another type
                    part = part.clone()
                target = part_of(elements, piece.offsets, piece.shape)
                target.copy_(part.view(tensor.dtype).view(piece.shape))
            whole[at] = memory
        return whole

    def _sizes(self, batch: range) -> list[int]:
        return [self._tensors[at].nbytes for at in batch]

    def _shares(self, batch: range) -> dict[int, int]:
        """How many bytes of a batch each rank has. Ranks without any are left out."""
        shares: dict[int, int] = {}
        for tensor in map(self._tensors.__getitem__, batch):
            for piece in tensor.pieces:
                nbytes = tensor.piece_nbytes(piece)
                if nbytes:
                    shares[piece.rank] = shares.get(piece.rank, 0) + nbytes
        return shares


def _new_memory(sizes: Sequence[int]) -> list[torch.Tensor]:
    """Tensors of uint8. Unlike malloc's, their memory is always the system's again afterwards."""
    return [
        hollow_tensor(storage, torch.uint8, (nbytes,))
        for storage, nbytes in zip(hollow_storages(sizes), sizes, strict=True)
    ]


@dataclass(frozen=True)
class _Reader:
    """The bytes of one gathered tensor, as a reader of a record."""

    gathering: Gathering
    index: int

    def read(self, offset: int, nbytes: int, address: int) -> None:
        """Copies ``nbytes`` at ``offset`` to the host memory at ``address``. Thread-safe."""
        self.gathering.read(self.index, offset, nbytes, address)
