"""What tells that archives belong together: a small member in each archive of a set.

It is JSON: the id of the save, the rank that wrote the archive, counted from 0, and the names of
the archives of all ranks, as seen from the folder of this one, and which kind of set it is.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from pyckpt.archive import members
from pyckpt.archive.reader import ArchiveReader
from pyckpt.errors import CorruptArchiveError
from pyckpt.storage.urls import Location, name_beside

__all__ = ["DEEPSPEED", "METADATA", "SHARDED", "Part", "find_part"]

_FOLDER = ".pyckpt"  # of this member in an archive

METADATA = ".metadata"
"""The file or member that lists all tensors. torch's readers take it for the mark of a complete
checkpoint. In a set of archives, the first one has it."""


SHARDED, DEEPSPEED = "sharded", "deepspeed"


@dataclass(frozen=True)
class Part:
    """One archive of a set.

    Attributes:
        save_id: The same in all archives of one save, and in no other.
        rank: The place of the archive in ``files``.
        files: Where the archives of all ranks are, from this one's folder.
        kind: "sharded": the archives are one state, and are read together. "deepspeed": each has
            what DeepSpeed saves on its rank, and may lie on a machine of its own.
    """

    save_id: str
    rank: int
    files: tuple[str, ...]
    kind: str = SHARDED

    @classmethod
    def of(cls, save_id: str, rank: int, paths: Sequence[Location], kind: str = SHARDED) -> Part:
        """The part that ``rank`` writes. ``paths`` are those of all ranks.

        Raises:
            FilenameError: They are not in one bucket.
        """
        return cls(save_id, rank, tuple(name_beside(paths[rank], path) for path in paths), kind)

    @property
    def member(self) -> str:
        """The name of the member."""
        return f"{_FOLDER}/rank{self.rank}.json"

    def to_bytes(self) -> bytes:
        """The member's contents."""
        return (json.dumps(asdict(self), indent=1) + "\n").encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> Part:
        """The reverse of ``to_bytes``.

        Raises:
            ValueError: It is something else.
        """
        try:
            found = json.loads(data)
            save_id, rank, files = found["save_id"], found["rank"], found["files"]
            kind = found.get("kind", SHARDED)
        except (
            AttributeError,
            KeyError,
            TypeError,
            UnicodeDecodeError,
            json.JSONDecodeError,
        ) as error:
            raise ValueError(f"no description of an archive: {error}") from error
        fits = isinstance(save_id, str) and type(rank) is int and isinstance(files, list)
        if not fits or not all(isinstance(one, str) for one in files) or not 0 <= rank < len(files):
            raise ValueError("no description of an archive")
        return cls(save_id, rank, tuple(files), DEEPSPEED if kind == DEEPSPEED else SHARDED)


def find_part(reader: ArchiveReader) -> Part | None:
    """What an archive says of the set that it belongs to. None if it belongs to none.

    Raises:
        CorruptArchiveError: It is damaged.
    """
    if not reader.is_tar:
        return None
    for member in reader.members():
        if member.type == members.FOLDER or member.path == METADATA:
            continue
        if not member.path.startswith(f"{_FOLDER}/"):
            return None  # it is among the first members
        try:
            return Part.from_bytes(reader.read(member.offset, member.nbytes))
        except ValueError as error:
            raise CorruptArchiveError(
                f"{reader.path} is damaged in {member.path!r}: {error}", path=str(reader.path)
            ) from error
    return None
