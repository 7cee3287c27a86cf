"""Makes ``torch.load(mmap=True)`` fail for a file whose records are deflated.

torch takes the bytes at a record's place for the tensor's own bytes, and does not ask whether they
are compressed. It fails only where they reach beyond the end of the file. So small tensors would
silently get wrong numbers.

The guard is a tensor of zeros that the pickle makes first and drops. Deflated, it takes next to
nothing. Its record is the last one, and it is longer than all that follows in the file. So its
bytes reach beyond the end, and torch raises "Trying to resize storage that is not resizable" before
any other tensor is made. All other ways of loading make the zeros, and give their memory back.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from pyckpt.torch_format.records import Record, bytes_record

__all__ = ["guarded", "unguarded"]

_GUARD = "data/mmap_guard"
_PICKLE = "data.pkl"
_STORAGES = "data/"
_PROTO = b"\x80"
# What promises torch that the places of records follow from their sizes.
_PROMISES = {".format_version": b"1", ".storage_alignment": b"64"}
_LEAST_NBYTES = 64 << 10
_MOST_NBYTES = 1 << 30
# For a record without its name, and for each MiB of it. Twice what there is at most: container/.
_ENTRY_NBYTES = 256
_CHUNK_NBYTES = 12
# torch._utils._rebuild_tensor_v2(storage, 0, (NUMEL,), (1,), False, OrderedDict()). The result
# stays on the pickle's stack, below the object: torch's unpickler has no opcode to drop it.
_OPCODES = (
    b"ctorch._utils\n_rebuild_tensor_v2\n("
    b"(X\x07\0\0\0storagectorch\nByteStorage\nX\x0a\0\0\0mmap_guardX\x03\0\0\0cpuJ%btQ"
    b"K\0J%b\x85K\1\x85\x89ccollections\nOrderedDict\n)RtR"
)
_PATTERN = re.compile(
    re.escape(_OPCODES).replace(b"%b", b"(.{4})", 1).replace(b"%b", rb"\1"), re.DOTALL
)


def guarded(records: Sequence[Record]) -> list[Record]:
    """The records of a file that will be deflated: with the guard, and without promises."""
    root = records[0].name.partition("/")[0]
    kept = [record for record in records if _inner(record) not in _PROMISES]
    nbytes = _LEAST_NBYTES + sum(
        _ENTRY_NBYTES + len(record.name.encode()) + _CHUNK_NBYTES * (record.nbytes >> 20)
        for record in kept
    )
    nbytes = min(nbytes, _MOST_NBYTES)
    guard = bytes_record(f"{root}/{_GUARD}", bytes(nbytes))
    return [
        _with_guard(record, nbytes) if _inner(record) == _PICKLE else record for record in kept
    ] + [guard]


def unguarded(records: Sequence[Record]) -> list[Record]:
    """The records of a file that will not be deflated: as they were before ``guarded``."""
    pickle = next(record for record in records if _inner(record) == _PICKLE)
    data = pickle.bytes()
    found = _PATTERN.match(data, _start(data))
    if found is None:
        return list(records)
    root = pickle.name.partition("/")[0]
    plain = [bytes_record(pickle.name, data[: found.start()] + data[found.end() :])]
    if _in_order(records):
        plain += [bytes_record(f"{root}/{one}", value) for one, value in _PROMISES.items()]
    kept = [record for record in records if _inner(record) != _GUARD]
    return [one for record in kept for one in (plain if record is pickle else [record])]


def _inner(record: Record) -> str:
    return record.name.partition("/")[2]


def _start(pickle: bytes) -> int:
    """Where the guard is: behind the number of the protocol, which protocol 1 does not have."""
    return 2 if pickle[:1] == _PROTO else 0


def _in_order(records: Sequence[Record]) -> bool:
    """Whether storages are in torch's order, so that their places follow from their sizes."""
    names = [name for record in records if (name := _inner(record)).startswith(_STORAGES)]
    return names[:-1] == [f"{_STORAGES}{at}" for at in range(len(names) - 1)]


def _with_guard(record: Record, nbytes: int) -> Record:
    data = record.bytes()
    number = nbytes.to_bytes(4, "little")
    at = _start(data)
    return bytes_record(record.name, data[:at] + _OPCODES % (number, number) + data[at:])
