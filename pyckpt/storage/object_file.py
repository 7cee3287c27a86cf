"""An object of a store as a file without a name, which is filled while it is read.

The file has the object's size from the start, and takes memory only where bytes have come. The core
says what it will read (``expect``), and holds what it reads at the moment; both in ranges of bytes.
Ranges become blocks, and neighbouring blocks become requests, of which several are under way at the
same time. What is held comes first, however much that is. Ahead of that come at most 64 MiB, and of
what nobody holds any more the last 32 MiB stay. The rest is taken out of the file, and comes again
if it is wanted again.

So the memory is 96 MiB, plus what is held, plus the pieces in which a store gives each of 8
requests: 256 KiB from S3, the 8 MiB of a request from fsspec.
"""

from __future__ import annotations

import errno
import os
import threading
import weakref
from collections import OrderedDict, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pyckpt import _core
from pyckpt.errors import CheckpointError
from pyckpt.memory import require_memory
from pyckpt.storage.memory_file import memory_file
from pyckpt.storage.store import Store
from pyckpt.storage.urls import Location, Url

__all__ = ["ObjectFile", "replaced"]

_BLOCK_NBYTES = 256 << 10
_CONNECTIONS = 8
_MOST_AHEAD = (64 << 20) // _BLOCK_NBYTES
_MOST_IDLE = (32 << 20) // _BLOCK_NBYTES
_MOST_IN_REQUEST = (8 << 20) // _BLOCK_NBYTES
_FEW_IN_REQUEST = (1 << 20) // _BLOCK_NBYTES  # fewer take as long
_NOTED = (1 << 20) // _BLOCK_NBYTES  # so many come before those who wait are told
_WORTH_BRIDGING = 2  # blocks that nobody wants, between two that are
_FEW = (2 << 20) // _BLOCK_NBYTES  # whoever wants no more at a time reads on from there, perhaps
_MOST_READ_ON = (8 << 20) // _BLOCK_NBYTES
_MUCH_NBYTES = 64 << 20

Ranges = Sequence[tuple[int, int]]


@dataclass
class _Block:
    """A block that is in the file, or on its way there, or wanted.

    Attributes:
        is_there: Whether its bytes are in the file.
        is_coming: Whether a request for it is under way.
        holds: How many hold it.
    """

    is_there: bool = False
    is_coming: bool = False
    holds: int = 0


class ObjectFile:
    """See the module, and :class:`pyckpt._core.Supply`.

    Nothing has to be closed: threads end when nothing is to be brought, and the file goes with the
    last reference.

    Attributes:
        path: The object's URL.
        fd: The file's descriptor.
        nbytes: The object's size.
        mark: A text that differs once the object is replaced, as far as the store tells.
    """

    def __init__(self, store: Store, url: Url) -> None:
        info = store.stat(url)
        self.path = url
        self.nbytes = info.nbytes
        self.mark = f"{info.nbytes} {info.etag or info.modified}"
        self._store = store
        self._etag = info.etag
        self._file = _SparseFile(info.nbytes)
        self.fd = self._file.fd
        self._changed = threading.Condition()  # guards all that follows
        self._blocks: dict[int, _Block] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()  # there, and neither held nor ahead
        self._ahead: set[int] = set()  # expected, there or coming, and not held yet
        self._held_next: deque[int] = deque()
        self._expected: OrderedDict[int, None] = OrderedDict()
        self._expects_few = True  # whoever said last what to expect
        self._read_on_at = -2  # where a reader of small ranges would go on
        self._read_on = 0  # how many blocks it has read so
        self._threads = 0
        self._failure: BaseException | None = None

    def expect(self, ranges: Ranges) -> None:
        blocks = _blocks(ranges)
        with self._changed:
            if all(self._is_known(index) for index in blocks):
                if self._expects_few:
                    self._expected.update(dict.fromkeys(self._next_after(blocks)))
                self._start_threads()
                return
            self._expects_few = len(blocks) <= _FEW
            for index in self._ahead:
                self._rest(index)
            self._ahead.clear()
            for index in blocks:
                block = self._blocks.get(index)
                if block is not None and not block.holds and self._has_room():
                    self._idle.pop(index, None)
                    self._ahead.add(index)
            self._expected = OrderedDict.fromkeys((*blocks, *self._next_after(blocks)))
            self._evict()
            self._start_threads()

    def hold(self, ranges: Ranges) -> None:
        blocks = _blocks(ranges)
        missing = self._held(blocks)
        try:
            while own := self._wait_for(missing):
                self._fetch_or_stop(own)
        except BaseException:
            with self._changed:
                self._release(blocks)
            raise

    def release(self, ranges: Ranges) -> None:
        with self._changed:
            self._release(_blocks(ranges))

    def stop(self, error: BaseException) -> None:
        """Ends all waiting with this error, now and later."""
        with self._changed:
            self._failure = self._failure or error
            self._changed.notify_all()

    def _held(self, blocks: Sequence[int]) -> list[int]:
        """Notes that blocks are held. Returns those that are not there."""
        with self._changed:
            missing = [index for index in blocks if not self._is_there(index)]
            if len(missing) * _BLOCK_NBYTES > _MUCH_NBYTES:
                require_memory(len(missing) * _BLOCK_NBYTES, self.path)
            for index in blocks:
                self._blocks.setdefault(index, _Block()).holds += 1
                self._idle.pop(index, None)
                self._ahead.discard(index)
            self._held_next.extend(index for index in missing if not self._blocks[index].is_coming)
        return missing

    def _wait_for(self, missing: Sequence[int]) -> list[int]:
        """Waits until held blocks are there.

        If the system has no more threads, it returns earlier, with what the caller has to bring.
        """
        with self._changed:
            self._start_threads()
            for index in missing:
                while not self._is_there(index):
                    self._require_no_failure()
                    if self._threads or not self._held_next:
                        self._changed.wait()
                    elif own := self._next_request():
                        return own
            self._require_no_failure()
        return []

    def _is_known(self, index: int) -> bool:
        """Whether a block was expected already, and has not been taken out since."""
        return index in self._expected or index in self._ahead or self._is_there(index)

    def _is_there(self, index: int) -> bool:
        block = self._blocks.get(index)
        return block is not None and block.is_there

    def _release(self, blocks: Iterable[int]) -> None:
        for index in blocks:
            self._blocks[index].holds -= 1
            self._rest(index)
        self._evict()

    def _rest(self, index: int) -> None:
        """Makes a block idle, unless it is held, or not there yet."""
        block = self._blocks[index]
        if block.holds:
            return
        if block.is_there:
            self._idle[index] = None
        elif not block.is_coming:
            del self._blocks[index]

    def _evict(self) -> None:
        evicted = []
        while len(self._idle) > _MOST_IDLE:
            index, _ = self._idle.popitem(last=False)
            del self._blocks[index]
            evicted.append(index)
        for first, count in _runs(sorted(evicted)):
            # Still with the lock: nobody may bring them again before they are gone.
            self._file.drop(first * _BLOCK_NBYTES, count * _BLOCK_NBYTES)

    def _next_after(self, blocks: Sequence[int]) -> range:
        """What is brought ahead for those who read on in small steps: headers of a tar."""
        if not blocks:
            return range(0)
        is_next = abs(blocks[0] - self._read_on_at) <= 1
        self._read_on = self._read_on + len(blocks) if is_next and len(blocks) <= _FEW else 0
        self._read_on_at = end = blocks[-1] + 1
        last = -(-self.nbytes // _BLOCK_NBYTES)
        return range(end, min(end + min(self._read_on, _MOST_READ_ON), last))

    def _require_no_failure(self) -> None:
        error = self._failure
        if isinstance(error, OSError) and error.errno == errno.ESTALE:
            raise replaced(self.path) from error
        if error is not None:
            raise error

    def _start_threads(self) -> None:
        wanted = len(self._held_next) + (len(self._expected) if self._has_room() else 0)
        while self._failure is None and self._threads < min(wanted, _CONNECTIONS):
            thread = threading.Thread(target=self._bring, name="pyckpt-object", daemon=True)
            self._threads += 1
            try:
                thread.start()
            except RuntimeError:  # the system has no more: those who hold bring it
                self._threads -= 1
                return

    def _bring(self) -> None:
        """What each thread does: request after request, until nothing is wanted."""
        try:
            while True:
                with self._changed:
                    blocks = [] if self._failure else self._next_request()
                    if not blocks:
                        # Under the same lock: whoever wants more must see that this thread is gone.
                        self._threads -= 1
                        return
                self._fetch(blocks)
        except BaseException as error:
            with self._changed:
                self._threads -= 1
                self.stop(error)

    def _fetch_or_stop(self, blocks: Sequence[int]) -> None:
        try:
            self._fetch(blocks)
        except BaseException as error:
            self.stop(error)

    def _fetch(self, blocks: Sequence[int]) -> None:
        """Brings neighbouring blocks."""
        start = at = blocks[0] * _BLOCK_NBYTES
        end = min((blocks[-1] + 1) * _BLOCK_NBYTES, self.nbytes)
        noted = 0

        def write(piece: bytes) -> None:
            nonlocal at, noted
            if self._failure is not None:
                raise self._failure
            if len(piece) > end - at:
                raise OSError(errno.EIO, "the store sent more than it was asked for", self.path)
            self._file.write(piece, at)
            at += len(piece)
            whole = len(blocks) if at == end else (at - start) // _BLOCK_NBYTES
            if at == end or whole - noted >= _NOTED:
                with self._changed:
                    self._arrived(blocks[noted:whole])
                noted = whole

        self._store.fetch(self.path, start, end, write, self._etag)
        if at != end:
            raise OSError(errno.ESTALE, "became shorter while it was read", self.path)

    def _arrived(self, blocks: Sequence[int]) -> None:
        for index in blocks:
            block = self._blocks[index]
            block.is_coming, block.is_there = False, True
            if index not in self._ahead:
                self._rest(index)
        self._evict()
        self._changed.notify_all()

    def _next_request(self) -> list[int]:
        """The blocks of the next request, which are neighbours; none if nothing is to be brought.

        They are noted as coming. What is expected behind them comes with them.
        """
        # All requests are about as fast. So what somebody waits for is shared among them.
        wanted = len(self._held_next) or len(self._expected)
        first = self._next_block()
        if first is None:
            return []
        share = -(-wanted // _CONNECTIONS)
        most = min(max(share, _FEW_IN_REQUEST), _MOST_IN_REQUEST)
        blocks = [first]
        bridge: list[int] = []
        for index in range(first + 1, first + most):
            if self._is_on_its_way(index) or len(bridge) > _WORTH_BRIDGING:
                break
            bridge.append(index)
            if self._is_wanted(index):
                blocks += bridge
                bridge = []
        for index in blocks:
            block = self._blocks.setdefault(index, _Block())
            block.is_coming = True
            if index in self._expected:
                del self._expected[index]
                if not block.holds:
                    self._ahead.add(index)
        return blocks

    def _next_block(self) -> int | None:
        """The first block that is wanted and not on its way: held ones before expected ones."""
        while self._held_next:
            index = self._held_next.popleft()
            if not self._is_on_its_way(index):
                return index
        while self._expected and self._has_room():
            index = next(iter(self._expected))
            if not self._is_on_its_way(index):
                return index
            del self._expected[index]
        return None

    def _is_wanted(self, index: int) -> bool:
        block = self._blocks.get(index)
        is_held = block is not None and block.holds > 0
        return is_held or (index in self._expected and self._has_room())

    def _has_room(self) -> bool:
        """Whether more may be brought ahead: a request of the usual size."""
        return len(self._ahead) + _MOST_IN_REQUEST <= _MOST_AHEAD

    def _is_on_its_way(self, index: int) -> bool:
        block = self._blocks.get(index)
        return block is not None and (block.is_there or block.is_coming)


class _SparseFile:
    """A file without a name that takes memory only where it was written."""

    def __init__(self, nbytes: int) -> None:
        with memory_file() as file:
            file.truncate(nbytes)
            self.fd = os.dup(file.fileno())
        weakref.finalize(self, os.close, self.fd).atexit = False  # a thread may write until then

    def write(self, data: bytes, offset: int) -> None:
        with memoryview(data) as view:
            done = 0
            while done < len(view):
                done += os.pwrite(self.fd, view[done:], offset + done)

    def drop(self, offset: int, nbytes: int) -> None:
        """Gives the memory back, if the system can. The bytes read as zeros then."""
        _core.punch_hole(self.fd, offset, nbytes)


def replaced(path: Location) -> CheckpointError:
    """The error for a file that is not the one any more whose reading has begun."""
    kind = "object" if isinstance(path, Url) else "file"
    return CheckpointError(
        f"{path} was replaced by another {kind} while it was read",
        path=str(path),
        errno=errno.ESTALE,
    )


def _runs(indices: Sequence[int]) -> list[tuple[int, int]]:
    """Neighbours among sorted indices, together: the first, and how many."""
    runs: list[tuple[int, int]] = []
    for index in indices:
        if runs and index == sum(runs[-1]):
            runs[-1] = (runs[-1][0], runs[-1][1] + 1)
        else:
            runs.append((index, 1))
    return runs


def _blocks(ranges: Ranges) -> list[int]:
    """The blocks that have bytes of the ranges, each once, in the order of the ranges."""
    found: dict[int, None] = {}
    for offset, nbytes in ranges:
        if nbytes:
            found.update(
                dict.fromkeys(
                    range(offset // _BLOCK_NBYTES, (offset + nbytes - 1) // _BLOCK_NBYTES + 1)
                )
            )
    return list(found)
