"""inspect: what an archive holds, without unpickling and, where the format allows, undecoded."""

from __future__ import annotations

import os
import pickle
from dataclasses import dataclass
from pathlib import Path

from pyckpt.archive.reader import ArchiveReader, Contents, Member
from pyckpt.options import WriteOptions
from pyckpt.torch_format.tensor_index import TensorInfo, tensors_in
from pyckpt.torch_format.torch_file import StoredRecord, TorchFile

__all__ = ["ArchiveInfo", "MemberInfo", "TensorEntry", "inspect"]


@dataclass(frozen=True)
class TensorEntry:
    """A tensor of a member.

    Attributes:
        record: The record that holds its storage, ``data/0``.
        code_nbytes: About how many bytes of the file hold the storage; None where blocks do not
            tell where they belong (bzip2, gzip of other programs).
    """

    info: TensorInfo
    record: str
    code_nbytes: int | None


@dataclass(frozen=True)
class MemberInfo:
    """A member of a tar, or a file of torch.save as a whole (its name is empty then).

    Attributes:
        records: Of torch's zip file; empty for anything else.
        tensors: Those of its pickle; empty if it cannot be read.
    """

    name: str
    is_directory: bool
    nbytes: int
    records: tuple[StoredRecord, ...]
    tensors: tuple[TensorEntry, ...]


@dataclass(frozen=True)
class ArchiveInfo:
    """What a file holds.

    Attributes:
        compression: ``gzip``, ``bzip2``, ``xz``, ``lzma`` or empty.
        file_nbytes: Of the file.
    """

    path: Path
    compression: str
    file_nbytes: int
    members: tuple[MemberInfo, ...]


def inspect(path: str | os.PathLike[str], *, num_threads: int | None = None) -> ArchiveInfo:
    """Lists members, records and tensors of a file of pyckpt, Composer or torch.save.

    Nothing is unpickled: any file can be looked at. Of ``.tar``, ``.tar.gz`` by pyckpt and xz
    only headers are decoded, of others all.

    Raises:
        CorruptArchiveError: What was decoded is damaged; ``verify`` tells more.
        OSError: The file cannot be read.
    """
    path = Path(path)
    WriteOptions(num_threads=num_threads)
    reader = ArchiveReader(path, num_threads=num_threads)
    members = reader.members() if reader.is_tar else iter([reader.whole()])
    found = tuple(_member_info(reader, member) for member in members)
    return ArchiveInfo(path, reader.image.compression, path.stat().st_size, found)


def _member_info(reader: ArchiveReader, member: Member) -> MemberInfo:
    records: tuple[StoredRecord, ...] = ()
    tensors: tuple[TensorEntry, ...] = ()
    if member.type == "0" and reader.contents(member.offset) is Contents.TORCH_ZIP:
        file = TorchFile(reader, member.offset, member.nbytes)
        records = tuple(file.records.values())
        tensors = tuple(_tensor_entries(file))
        reader.forget(member)
    return MemberInfo(member.name, member.type == "5", member.nbytes, records, tensors)


def _tensor_entries(file: TorchFile) -> list[TensorEntry]:
    if not file.is_plain:
        return []
    try:
        tensors = tensors_in(file.read("data.pkl"))
    except pickle.UnpicklingError:
        return []
    return [
        TensorEntry(tensor, record.name, file.code_nbytes(record))
        for tensor in tensors
        if (record := file.records.get(f"data/{tensor.storage.key}")) is not None
    ]
