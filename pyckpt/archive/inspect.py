"""inspect: lists what an archive holds. It unpickles nothing and decodes as little as possible."""

from __future__ import annotations

import os
import pickle
from dataclasses import dataclass

from pyckpt.archive.members import FILE, FOLDER, Member, MemberIndex
from pyckpt.archive.reader import ArchiveReader, Contents
from pyckpt.options import WriteOptions
from pyckpt.storage.urls import Location, StorageOptions, location
from pyckpt.torch_format.tensor_index import TensorInfo, tensors_in
from pyckpt.torch_format.torch_file import StoredRecord, TorchFile

__all__ = ["ArchiveInfo", "MemberInfo", "TensorEntry", "inspect"]


@dataclass(frozen=True)
class TensorEntry:
    """A tensor of a member.

    Attributes:
        record: The record that holds its storage, for example ``data/0``.
        code_nbytes: About how many bytes of the file hold the storage. None if the file does not
            tell where its blocks belong (bzip2, gzip of other programs).
        name: Its key path. If it is all that its member holds, as a shard is: the member's name.
    """

    info: TensorInfo
    record: str
    code_nbytes: int | None
    name: str


@dataclass(frozen=True)
class MemberInfo:
    """A member of a tar, or a whole file of torch.save (then the name is empty).

    Attributes:
        link: The name that a link leads to; empty for anything else.
        records: The records of torch's zip file; empty for any other member.
        tensors: The tensors of its pickle; empty if the pickle cannot be read.
    """

    name: str
    is_directory: bool
    link: str
    nbytes: int
    records: tuple[StoredRecord, ...]
    tensors: tuple[TensorEntry, ...]


@dataclass(frozen=True)
class ArchiveInfo:
    """What a file holds.

    Attributes:
        compression: ``gzip``, ``bzip2``, ``xz``, ``zstd``, ``lzma`` or empty.
        file_nbytes: Size of the file.
        members: The members that count, in the order of the file.
        replaced: Names of members that do not count, because a later member has the same name.
    """

    path: Location
    compression: str
    file_nbytes: int
    members: tuple[MemberInfo, ...]
    replaced: tuple[str, ...]


def inspect(
    path: str | os.PathLike[str],
    *,
    num_threads: int | None = None,
    storage_options: StorageOptions = None,
) -> ArchiveInfo:
    """Lists members, records and tensors of a file of pyckpt, Composer or torch.save.

    Nothing is unpickled, so files from untrusted sources are safe to list. Of files that are not
    compressed, of gzip by pyckpt, of xz and zstd with several blocks or frames, and of deflated
    records, only what holds headers and pickles is decoded. Other formats are decoded completely.

    Raises:
        CorruptArchiveError: The decoded part is damaged; ``verify`` gives the details.
        OSError: The file cannot be read.
    """
    path = location(path)
    WriteOptions(num_threads=num_threads)
    reader = ArchiveReader(path, storage_options=storage_options, num_threads=num_threads)
    index = MemberIndex()
    found = {}
    for member in reader.members() if reader.is_tar else [reader.whole()]:
        index.add(member)
        found[member.header_offset] = _member_info(reader, member)
    return ArchiveInfo(
        path,
        reader.image.compression,
        reader.file_nbytes,
        tuple(found[member.header_offset] for member in index),
        tuple(member.path for member in index.replaced),
    )


def _member_info(reader: ArchiveReader, member: Member) -> MemberInfo:
    records: tuple[StoredRecord, ...] = ()
    tensors: tuple[TensorEntry, ...] = ()
    if member.type == FILE and reader.contents(member.offset) is Contents.TORCH_ZIP:
        file = TorchFile(reader, member.offset, member.nbytes)
        records = tuple(file.records.values())
        tensors = tuple(_tensor_entries(file, member.path))
    return MemberInfo(
        member.name, member.type == FOLDER, member.link, member.nbytes, records, tensors
    )


def _tensor_entries(file: TorchFile, member: str) -> list[TensorEntry]:
    if not file.holds_object:
        return []
    try:
        tensors = tensors_in(file.read("data.pkl"))
    except pickle.UnpicklingError:
        return []
    return [
        TensorEntry(tensor, record.name, file.code_nbytes(record), tensor.key_path or member)
        for tensor in tensors
        if (record := file.records.get(f"data/{tensor.storage.key}")) is not None
    ]
