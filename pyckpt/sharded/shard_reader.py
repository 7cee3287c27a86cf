"""Reads parts of shards out of archives and files, without running anything that a file names.

Each file is opened once. Its shards are read in the order of the file, in groups, and the memory of
a group is given back before the next one. Only the blocks that hold the wanted bytes are decoded,
where the format allows it.
"""

from __future__ import annotations

import pickle
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from pyckpt.archive.members import FILE, Member, MemberIndex, inner_path
from pyckpt.archive.reader import ArchiveReader, Contents
from pyckpt.errors import CorruptArchiveError, OptionError
from pyckpt.options import whole_threads
from pyckpt.storage.inputs import open_input
from pyckpt.storage.urls import Location, StorageOptions, Stores
from pyckpt.torch_format.deserialize import byte_order, deserialize
from pyckpt.torch_format.pickle_tree import read_tree
from pyckpt.torch_format.tensor_index import TensorInfo, lone_tensor
from pyckpt.torch_format.tensor_slices import CheckedRecord, TensorSlice, part_of, read_slices
from pyckpt.torch_format.torch_file import PICKLE, STORAGES, TorchFile

__all__ = ["ShardReader", "Wanted"]

_GROUP_NBYTES = 256 << 20
_MOST_IN_A_GROUP = 4096
# At both ends of a shard there are headers, and after the data the directory of the zip file.
_END_NBYTES = 128 << 10
_MOST_NBYTES = 1 << 62


@dataclass(frozen=True)
class Wanted:
    """A part of a shard, and where it is wanted.

    Attributes:
        key: The tensor's name, for messages.
        path: The file: an archive, or a file with nothing but the shard.
        member: The name of the shard's member; None if ``place`` tells where it is.
        place: Where it is in the decompressed file: (offset, nbytes). Without ``member`` and
            ``place``, the shard is the whole file.
        offsets: Where the part begins in the shard, in each dimension.
        lengths: The shape of the part.
        out: A tensor of this shape. One on a device is filled from a copy in host memory, which is
            made for each group. Or a bytearray, which gets the whole member unread, as for what is
            no tensor.
    """

    key: str
    path: Location
    member: str | None
    place: tuple[int, int] | None
    offsets: tuple[int, ...]
    lengths: tuple[int, ...]
    out: torch.Tensor | bytearray


class ShardReader:
    """Reads parts of shards.

    Args:
        num_threads: Decoding threads; None takes the CPUs that this process may use.
        verify: Whether to compare checksums. A tensor's is known only if all of the shard is read.
        storage_options: What the store of a URL is told besides the environment.
        check: Called with the reader of each file, each time that one is opened. It may raise.

    Raises:
        OptionError: ``num_threads`` is wrong.
    """

    def __init__(
        self,
        num_threads: int | None = None,
        verify: bool = True,
        storage_options: StorageOptions = None,
        check: Callable[[ArchiveReader], object] | None = None,
    ) -> None:
        self._threads = None if num_threads is None else whole_threads(num_threads)
        self._verify = verify
        self._stores = Stores(storage_options)
        self._check = check

    def look(self, path: Location) -> None:
        """Opens a file, and checks it. Raises as ``read()`` does."""
        self._open(path, 1)

    def read(self, wanted: Sequence[Wanted]) -> None:
        """Reads all parts to where they are wanted.

        Raises:
            CorruptArchiveError: A file is damaged, or does not hold what is wanted. The message
                names the file and the key. Some tensors may have been filled.
            CheckpointError: There is not enough memory.
            OSError: A file cannot be read.
        """
        by_path: dict[Location, list[Wanted]] = {}
        for one in wanted:
            by_path.setdefault(one.path, []).append(one)
        for path, group in by_path.items():
            with _naming(group):
                reader = self._open(path, self._threads)
            self._read_file(reader, group)

    def read_bytes(
        self, path: Location, *, member: str | None = None, place: tuple[int, int] | None = None
    ) -> bytes:
        """The bytes of one member, or of the whole file. Raises as ``read()`` does."""
        out = bytearray()
        self.read([Wanted(member or path.name, path, member, place, (), (), out)])
        return bytes(out)

    def _open(self, path: Location, num_threads: int | None) -> ArchiveReader:
        reader = ArchiveReader(open_input(path, self._stores), num_threads=num_threads)
        if self._check is not None:
            self._check(reader)
            if reader.is_ordered:  # what was decoded for that does not come again
                reader.reopen()
        return reader

    def _read_file(self, reader: ArchiveReader, wanted: Sequence[Wanted]) -> None:
        by_name: dict[str, list[Wanted]] = {}
        by_place: dict[tuple[int, int], list[Wanted]] = {}
        for one in wanted:
            if one.place is not None:
                by_place.setdefault(one.place, []).append(one)
            elif one.member is not None:
                by_name.setdefault(inner_path(one.member), []).append(one)
            else:
                whole = reader.whole()
                by_place.setdefault((whole.offset, whole.nbytes), []).append(one)
        if by_name and reader.is_ordered:
            _Passage(reader, self._verify).read(by_name)
            if not by_place:
                return
            reader.reopen()
        elif by_name:
            _add_places(reader, by_name, by_place)
        shards = [
            _Shard(Member("", FILE, 0, *place), group) for place, group in sorted(by_place.items())
        ]
        reader.forget_all_but(shard.member for shard in shards)
        _ShardFile(reader, self._verify).read(shards)


def _add_places(
    reader: ArchiveReader,
    by_name: Mapping[str, list[Wanted]],
    by_place: dict[tuple[int, int], list[Wanted]],
) -> None:
    """Looks up the members, and adds what is wanted of them to ``by_place``."""
    with _naming(next(iter(by_name.values()))):
        index = reader.index()
    for path, wanted in by_name.items():
        found = _found(index, path, wanted)
        by_place.setdefault((found.offset, found.nbytes), []).extend(wanted)


def _found(index: MemberIndex, path: str, wanted: Sequence[Wanted]) -> Member:
    try:
        return index.file(path, wanted[0].path)
    except OptionError as error:
        raise CorruptArchiveError(
            f"{error}, where the shard of {wanted[0].key!r} should be", path=error.path
        ) from None


@dataclass(frozen=True)
class _Shard:
    """A member, and what is wanted of it."""

    member: Member
    wanted: Sequence[Wanted]


class _Passage:
    """Reads members by name from a stream that is decoded from start to end, while they pass."""

    def __init__(self, reader: ArchiveReader, verify: bool) -> None:
        self._reader = reader
        self._file = _ShardFile(reader, verify)

    def read(self, by_name: Mapping[str, Sequence[Wanted]]) -> None:
        index = MemberIndex()
        done: dict[str, int] = {}
        with _naming(next(iter(by_name.values()))):
            members = self._reader.members()
        while (member := self._next(members, by_name)) is not None:
            index.add(member)
            # If another member of this name follows, it is read again.
            if member.type == FILE and member.path in by_name:
                self._file.read([_Shard(member, by_name[member.path])])
                done[member.path] = member.offset
        late = []
        for path, wanted in by_name.items():
            found = _found(index, path, wanted)
            if found.offset != done.get(path):  # a link led to it
                late.append(_Shard(found, wanted))
        if late:
            self._reader.reopen()
            self._file.read(sorted(late, key=lambda shard: shard.member.offset))

    def _next(
        self, members: Iterator[Member], by_name: Mapping[str, Sequence[Wanted]]
    ) -> Member | None:
        with _naming(next(iter(by_name.values()))):
            return next(members, None)


class _ShardFile:
    """Reads shards of one file in the order of the file."""

    def __init__(self, reader: ArchiveReader, verify: bool) -> None:
        self._reader = reader
        self._verify = verify
        self._copies: list[tuple[torch.Tensor, torch.Tensor]] = []  # on the device, on the host

    def read(self, shards: Sequence[_Shard]) -> None:
        """Reads what is wanted of shards, which must be sorted by offset."""
        end = 0
        known = self._reader.image.nbytes
        limit = _MOST_NBYTES if known is None else known
        for shard in shards:
            # Places may come from a file that is damaged, or from that of another save.
            if shard.member.offset < end or shard.member.nbytes < 0:
                raise _misplaced(shard.wanted[0], "overlaps another one")
            end = shard.member.end
            if end > limit:
                raise _misplaced(shard.wanted[0], f"should end at byte {end}, where no file is")
        for group in _groups(shards):
            self._read_group(group)

    def _read_group(self, group: Sequence[_Shard]) -> None:
        image = self._reader.image
        if not self._reader.is_ordered:
            # All at once, so that threads share the work. Who needs damaged bytes gets the error.
            self._reader.fill(list(_ends(group)), keep=True, checksums=False)
        slices: list[TensorSlice] = []
        for shard in group:
            with _naming(shard.wanted):
                slices += self._read_shard(shard)
            if self._reader.is_ordered:  # to find the end of a shard decodes all of it
                self._read_slices(slices)
                slices.clear()
                image.forget((shard.member.offset, shard.member.nbytes))
        self._read_slices(slices)
        for shard in group:
            image.forget((shard.member.offset, shard.member.nbytes))

    def _read_slices(self, slices: Sequence[TensorSlice]) -> None:
        read_slices(self._reader, slices, verify=self._verify)
        for out, host in self._copies:
            out.copy_(host)
        self._copies.clear()

    def _host(self, out: torch.Tensor) -> torch.Tensor:
        """The tensor itself, or what is copied to it later."""
        out = out.detach()
        if out.device.type == "cpu":
            return out
        host = torch.empty(out.shape, dtype=out.dtype, device="cpu")
        self._copies.append((out, host))
        return host

    def _read_shard(self, shard: _Shard) -> Iterable[TensorSlice]:
        """Reads what is no slice of a plain tensor at once. Returns the slices to read."""
        member, slices = shard.member, []
        for one in shard.wanted:
            if isinstance(one.out, bytearray):
                one.out[:] = self._read_bytes(member)
            else:
                slices.append((one, self._host(one.out)))
        if not slices:
            return []
        file = TorchFile(self._reader, member.offset, member.nbytes)
        try:
            tensor = lone_tensor(read_tree(file.read(PICKLE, verify=self._verify)))
        except pickle.UnpicklingError as error:
            raise CorruptArchiveError(
                f"{self._reader.path} has a broken pickle: {error}", path=str(self._reader.path)
            ) from error
        key = None if tensor is None else tensor.storage.key
        record = file.records.get(f"{STORAGES}{key}")
        if tensor is None or record is None or not record.stored:
            self._read_odd(file, slices)
            return []
        if record.nbytes != tensor.storage.nbytes or tensor.spanned_nbytes > record.nbytes:
            raise CorruptArchiveError(
                f"{self._reader.path} has a tensor that is larger than its storage",
                path=str(self._reader.path),
            )
        [(offset, nbytes)] = file.locate([record])
        checked = CheckedRecord(offset, nbytes, record.crc) if record.has_checksum else None
        is_foreign = byte_order(file) != sys.byteorder
        return [
            _slice(one, out, tensor, offset, checked, is_foreign=is_foreign) for one, out in slices
        ]

    def _read_bytes(self, member: Member) -> bytes:
        reader = self._reader
        data = reader.read(member.offset, member.nbytes)
        if self._verify and reader.contents(member.offset) is Contents.TORCH_ZIP:
            _check_records(TorchFile(reader, member.offset, member.nbytes))
        return data

    def _read_odd(self, file: TorchFile, slices: Sequence[tuple[Wanted, torch.Tensor]]) -> None:
        """Reads slices of a tensor that has to be made first: a parameter, for example."""
        if self._verify:
            _check_records(file)
        obj = deserialize(file, map_location="cpu", weights_only=True, verify=False, keys=None)
        if not isinstance(obj, torch.Tensor) or obj.layout is not torch.strided:
            raise CorruptArchiveError(
                f"{self._reader.path} has no tensor there, but {type(obj).__name__}",
                path=str(self._reader.path),
            )
        for one, out in slices:
            _check_part(one, tuple(obj.shape))
            out.copy_(part_of(obj.detach(), one.offsets, one.lengths))


def _groups(shards: Sequence[_Shard]) -> Iterator[Sequence[_Shard]]:
    group: list[_Shard] = []
    nbytes = 0
    for shard in shards:
        if group and (
            nbytes + shard.member.nbytes > _GROUP_NBYTES or len(group) == _MOST_IN_A_GROUP
        ):
            yield group
            group, nbytes = [], 0
        group.append(shard)
        nbytes += shard.member.nbytes
    if group:
        yield group


def _ends(group: Sequence[_Shard]) -> Iterator[tuple[int, int]]:
    """Where the headers and directories of the shards are."""
    for shard in group:
        member = shard.member
        if member.nbytes <= 2 * _END_NBYTES:
            yield member.offset, member.nbytes
        else:
            yield member.offset, _END_NBYTES
            yield member.end - _END_NBYTES, _END_NBYTES


def _slice(
    one: Wanted,
    out: torch.Tensor,
    tensor: TensorInfo,
    offset: int,
    record: CheckedRecord | None,
    *,
    is_foreign: bool,
) -> TensorSlice:
    _check_part(one, tensor.shape)
    return TensorSlice(
        f"the shard of {one.key!r}",
        offset + tensor.offset * tensor.dtype.itemsize,
        tensor.dtype,
        tensor.stride,
        one.offsets,
        one.lengths,
        out,
        record,
        is_foreign,
    )


def _check_part(one: Wanted, shape: tuple[int, ...]) -> None:
    fits = len(one.offsets) == len(one.lengths) == len(shape) and all(
        0 <= begin <= begin + length <= size
        for begin, length, size in zip(one.offsets, one.lengths, shape, strict=True)
    )
    if not fits:
        raise _misplaced(
            one,
            f"has the shape {list(shape)}, which does not hold {list(one.lengths)} at "
            f"{list(one.offsets)}",
        )


def _check_records(file: TorchFile) -> None:
    """Compares the checksums of all records of a small file."""
    for name in file.records:
        file.read(name)


def _misplaced(one: Wanted, what: str) -> CorruptArchiveError:
    return CorruptArchiveError(f"{one.path}: the shard of {one.key!r} {what}", path=str(one.path))


@contextmanager
def _naming(wanted: Sequence[Wanted]) -> Iterator[None]:
    """Adds the key to the message of a CorruptArchiveError."""
    key = repr(wanted[0].key)
    try:
        yield
    except CorruptArchiveError as error:
        if key in str(error):
            raise
        raise CorruptArchiveError(f"{error}, in the shard of {key}", path=error.path) from error
