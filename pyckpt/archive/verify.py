"""verify: compares every checksum of a file and unpickles nothing."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from pyckpt.archive.formats import STATES_MEMBER
from pyckpt.archive.members import FILE, FOLDER, Member, MemberIndex
from pyckpt.archive.reader import ArchiveReader, Contents
from pyckpt.errors import CorruptArchiveError, OptionError
from pyckpt.options import WriteOptions
from pyckpt.progress import ProgressHook, reporting
from pyckpt.progress import Report as Tell
from pyckpt.storage.urls import Location, StorageOptions, location
from pyckpt.stream import describe
from pyckpt.torch_format.deserialize import broken_records
from pyckpt.torch_format.legacy_file import LegacyFile
from pyckpt.torch_format.lost_tensors import lost_tensors
from pyckpt.torch_format.object_check import object_problems
from pyckpt.torch_format.tensor_index import TensorInfo, tensors_in
from pyckpt.torch_format.torch_file import PICKLE, STORAGES, UNREADABLE, StoredRecord, TorchFile

__all__ = ["Problem", "Report", "verify", "verify_and_index"]

_PIECE_NBYTES = 1 << 20
_BATCH_NBYTES = 128 << 20  # of code
_LEAST_NBYTES = 16 << 20  # of it for each thread: as much as a thread decodes at once
_BATCH_OF_OBJECT_NBYTES = 64 << 20  # is decoded as a whole
_MOST_INDEX_NBYTES = 64 << 20
_PROMISE_A_TORCH_FILE = (".pt", ".pth")


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a file.

    Attributes:
        message: What is wrong.
        member: The member of the tar; None if the problem is about the whole file.
        record: The record of torch's zip file, or None.
        tensors: The tensors whose bytes are damaged. If the stream cannot be decoded any further:
            the tensors with which the loss begins.
        offset: Position in the decompressed stream; None if the problem has no position.
    """

    message: str
    member: str | None = None
    record: str | None = None
    tensors: tuple[TensorInfo, ...] = ()
    offset: int | None = None

    def __str__(self) -> str:
        parts = [f"member {self.member!r}"] if self.member else []
        parts += [f"record {self.record!r}"] if self.record else []
        parts += [str(tensor) for tensor in self.tensors]
        parts += [f"offset {self.offset}"] if self.offset is not None else []
        return f"{', '.join(parts)}: {self.message}" if parts else self.message


@dataclass
class Report:
    """What :func:`verify` found.

    Attributes:
        compression: ``gzip``, ``bzip2``, ``xz``, ``zstd``, ``lzma`` or empty.
        members: Number of members.
        records: Number of records in torch's zip files, including those in ``unchecked``.
        nbytes: Size of these records, decompressed.
        unchecked: Records without a checksum, because torch was told to compute none. Also files
            from before torch 1.6, which have no checksums. Damage in them is found only by the
            checksums of the compression, if there are any.
        replaced: Names of members that do not count, because a later member has the same name.
            ``tar -r`` makes such tars. They are checked all the same.
    """

    path: Location
    compression: str = ""
    members: int = 0
    records: int = 0
    nbytes: int = 0
    unchecked: list[str] = field(default_factory=list)
    replaced: list[str] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether there is no problem."""
        return not self.problems

    def raise_if_damaged(self) -> None:
        """
        Raises:
            CorruptArchiveError: There is a problem. The message has the first one.
        """
        if self.problems:
            more = f" (and {len(self.problems) - 1} more)" if len(self.problems) > 1 else ""
            raise CorruptArchiveError(
                f"{self.path} is damaged: {self.problems[0]}{more}", path=str(self.path)
            )


def verify(
    path: str | os.PathLike[str],
    *,
    num_threads: int | None = None,
    progress: ProgressHook = False,
    storage_options: StorageOptions = None,
) -> Report:
    """Compares every checksum of a file: of the compression, of tar headers, of zip records.

    It also compares the pickle with the storages: what it needs must be there, and as long as it
    says. And it finds records that appear twice, names that lead out of the archive, members named
    ``.pt`` or ``.pth`` that cannot be loaded, and data after the end of the
    archive. Nothing is unpickled. For the memory see docs/reading.md.

    Args:
        path: A file of pyckpt, Composer or torch.save; an object's URL also.
        num_threads: None takes the CPUs that this process may use.
        progress: True shows a bar. A function is called with the bytes done and the total (None if
            unknown), about 20 times a second. Both only on rank 0.
        storage_options: What the store of a URL is told besides the environment.

    Raises:
        OSError: The file cannot be read. Problems with its contents are in the report.
    """
    return verify_and_index(
        path, num_threads=num_threads, progress=progress, storage_options=storage_options
    )[0]


def verify_and_index(
    path: str | os.PathLike[str],
    *,
    num_threads: int | None = None,
    progress: ProgressHook = False,
    storage_options: StorageOptions = None,
) -> tuple[Report, MemberIndex]:
    """Like :func:`verify`. Also returns which members count, as far as headers could be read."""
    path = location(path)
    WriteOptions(num_threads=num_threads, progress=progress)
    report, index = Report(path), MemberIndex()
    with reporting(progress, f"verifying {path.name}") as tell:
        _verify(report, index, num_threads, tell, storage_options)
    return report, index


def _verify(
    report: Report,
    index: MemberIndex,
    num_threads: int | None,
    tell: Tell | None,
    storage_options: StorageOptions,
) -> None:
    path = report.path
    try:
        reader = ArchiveReader(
            path, storage_options=storage_options, num_threads=num_threads, report=tell
        )
        reader.wanted_nbytes = reader.image.nbytes
        report.compression = reader.image.compression
        if reader.is_tar:
            _verify_tar(reader, report, index)
        else:
            report.members = 1
            if reader.contents(0) is Contents.TORCH_ZIP:
                _verify_torch_file(reader, reader.whole(), report)
            else:
                _verify_legacy_file(reader, reader.whole(), report)
        _verify_stream(reader, report)
    except CorruptArchiveError as error:
        # A stream that cannot be decoded further raises the same error at each access.
        if not any(str(error.__cause__) in problem.message for problem in report.problems):
            report.problems.append(Problem(str(error).removeprefix(f"{path} ")))


def _verify_tar(reader: ArchiveReader, report: Report, index: MemberIndex) -> None:
    for member in reader.members():
        report.members += 1
        index.add(member)
        name, at = member.name, member.header_offset
        try:
            member.inner_name(reader.path)
        except CorruptArchiveError:
            report.problems.append(Problem("its name leads out of the archive", name, offset=at))
        contents = reader.contents(member.offset) if member.type == FILE else Contents.OTHER
        if contents is not Contents.OTHER:
            is_zip = contents is Contents.TORCH_ZIP
            try:
                (_verify_torch_file if is_zip else _verify_legacy_file)(reader, member, report)
            except CorruptArchiveError as error:
                report.problems.append(_broken_file(reader, member, error))
        elif member.type == FILE and name.endswith(_PROMISE_A_TORCH_FILE):
            report.problems.append(
                Problem("it is not a file of torch.save", name, offset=member.offset)
            )
    report.replaced = [member.path for member in index.replaced]
    _verify_names(reader.path, index, report)
    _verify_behind_tar(reader, report)


def _verify_names(path: Location, index: MemberIndex, report: Report) -> None:
    """What is named like a file of torch.save must be a file, or a link to one."""
    for member in index:
        is_folder = member.type == FOLDER and member.path != STATES_MEMBER
        if member.path.endswith(_PROMISE_A_TORCH_FILE) and not is_folder:
            try:
                index.file(member.path, path)
            except (CorruptArchiveError, OptionError):
                problem = Problem(f"it is {member.kind}", member.name, offset=member.header_offset)
                report.problems.append(problem)


def _verify_torch_file(reader: ArchiveReader, member: Member, report: Report) -> None:
    file = TorchFile(reader, member.offset, member.nbytes)
    records = {record.name: record for record in (*file.records.values(), *file.others.values())}
    found: list[_Found] = []
    most_nbytes = max(_BATCH_NBYTES, reader.num_threads * _LEAST_NBYTES)
    if reader.supply is not None:
        most_nbytes = _BATCH_OF_OBJECT_NBYTES
    for batch in _batches(records.values(), most_nbytes):
        found += _broken_among(file, batch)
        # Headers are in memory, and the code of deflated records if the file is compressed.
        last = batch[-1].entry
        end = last.header_offset + last.code_nbytes
        reader.image.release((member.offset, end - member.offset))
    report.records += len(records)
    report.nbytes += sum(record.nbytes for record in records.values())
    report.unchecked += [
        f"{member.name}:{record.name}" for record in records.values() if not record.has_checksum
    ]
    known = {name for name, _, _ in found}
    if PICKLE not in known and _is_of_torch(file, member):
        found += [(name, what, None) for name, what in object_problems(file) if name not in known]
    _report_records(file, member, found, report)


# A record's name, what is wrong with it, and where it is in the stream, if that is known.
_Found = tuple[str, str, int | None]


def _batches(records: Iterable[StoredRecord], nbytes: int) -> Iterator[list[StoredRecord]]:
    """Neighbours whose code has together at most ``nbytes``, or single records."""
    batch: list[StoredRecord] = []
    code_nbytes = 0
    for record in sorted(records, key=lambda record: record.entry.header_offset):
        code_nbytes += record.entry.code_nbytes
        if batch and code_nbytes > nbytes:
            yield batch
            batch, code_nbytes = [], record.entry.code_nbytes
        batch.append(record)
    if batch:
        yield batch


def _broken_among(file: TorchFile, records: Sequence[StoredRecord]) -> list[_Found]:
    file.bring(records)
    located, wrong = file.locate_whole(records)
    for record in records:
        if not record.readable and located.pop(record.name, None) is not None:
            wrong[record.name] = f"torch cannot read it: {UNREADABLE}"
    found: list[_Found] = [(name, message, None) for name, message in wrong.items()]
    for group in file.opened([record for record in records if record.name in located]):
        crcs, damages = group.stream.fill(group.places, keep=False, checksums=True)
        # A place in a stream of inflated records says nothing to users.
        found += [
            (one.record.name, str(one), one.offset if one.record.stored else None)
            for one in broken_records(group.places, crcs, group.records, damages)
        ]
    return found


def _report_records(
    file: TorchFile,
    member: Member,
    found: Sequence[_Found],
    report: Report,
) -> None:
    tensors = _tensors(file) if found else []
    for name, message, offset in found:
        hit = tuple(t for t in tensors if f"{STORAGES}{t.storage.key}" == name)
        report.problems.append(Problem(message, member.name or None, name, hit, offset))


def _is_of_torch(file: TorchFile, member: Member) -> bool:
    """Whether it should be a file of torch.save. A tar may hold other zip files too."""
    return not member.name or member.name.endswith(_PROMISE_A_TORCH_FILE) or PICKLE in file.records


def _verify_legacy_file(reader: ArchiveReader, member: Member, report: Report) -> None:
    """A file from before torch 1.6 has no checksums, but its sizes must match its pickle."""
    report.unchecked.append(member.name or reader.path.name)
    file = LegacyFile(reader, member.offset, member.nbytes)
    for name, message in object_problems(file):
        report.problems.append(Problem(message, member.name or None, name))


def _broken_file(reader: ArchiveReader, member: Member, error: CorruptArchiveError) -> Problem:
    """The problem of a file of torch.save whose records cannot even be listed."""
    message = str(error).removeprefix(f"{reader.path} ")
    if reader.image.nbytes is not None:
        return Problem(message, member.name, offset=member.offset)
    tensors = tuple(lost_tensors(reader, member.offset, member.nbytes))
    return Problem(message, member.name, tensors=tensors, offset=reader.image.placed_nbytes)


def _tensors(file: TorchFile) -> list[TensorInfo]:
    try:
        return tensors_in(file.read(PICKLE))
    except (CorruptArchiveError, pickle.UnpicklingError):
        return []


def _verify_behind_tar(reader: ArchiveReader, report: Report) -> None:
    """Only zeros, and the index that some compressors add, may follow the tar."""
    at = reader.tar_end()
    while piece := reader.read_once(at, _PIECE_NBYTES):
        at += len(piece)
        rest = piece.lstrip(b"\0")
        if rest:
            begin = at - len(rest)
            while len(rest) < _MOST_INDEX_NBYTES and (more := reader.read_once(at, _PIECE_NBYTES)):
                at += len(more)
                rest += more
            is_index = reader.image.is_index(rest)
            if not is_index:
                report.problems.append(Problem("data after the end of the tar", offset=begin))
            return


def _verify_stream(reader: ArchiveReader, report: Report) -> None:
    known = {problem.message for problem in report.problems}
    damages = reader.finish()
    for damage in damages:
        message = describe(damage)
        if message not in known:
            report.problems.append(Problem(message))
    if not damages and reader.image.trailing_nbytes:
        report.problems.append(
            Problem(f"{reader.image.trailing_nbytes} bytes follow the end of the compressed stream")
        )
