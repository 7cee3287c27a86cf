"""What the shards of a rank are called in its archive, and how they get there.

Each shard is a member ``<key>/rank<r>.pt`` in torch's format. A further one of the same key and
rank is ``<key>/rank<r>-<n>.pt``. The key is escaped, so that it is one part of a path.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from urllib.parse import quote

import torch
from torch.distributed.checkpoint.metadata import MetadataIndex
from torch.distributed.checkpoint.planner import SavePlanner, WriteItem

from pyckpt.archive.writer import ArchiveWriter
from pyckpt.errors import CheckpointError

__all__ = ["add_shards", "member_name", "rank_of"]

# Characters that mean nothing to file systems, and nothing to a shell inside a word.
_SAFE = "+,=@()[]^~"
_MOST_NBYTES = 200  # of an escaped key: file systems allow 255 for a name
_DIGEST_DIGITS = 16
_NAME = re.compile(r"rank(\d+)(-\d+)?\.pt\Z", re.ASCII)


def member_name(key: str, rank: int, number: int = 0) -> str:
    """The name of a shard's member. Different keys, ranks and numbers give different names.

    Args:
        key: The tensor's name, as torch.distributed.checkpoint flattens it.
        number: Counts the shards that the rank has of this key.
    """
    tail = f"-{number}" if number else ""
    return f"{_escaped(key)}/rank{rank}{tail}.pt"


def rank_of(member: str) -> int:
    """The rank in a name that ``member_name`` made.

    Raises:
        ValueError: It made no such name.
    """
    found = _NAME.match(member.rpartition("/")[2])
    if found is None:
        raise ValueError(f"{member!r} is not the name of a shard")
    return int(found[1])


def add_shards(
    writer: ArchiveWriter, items: Sequence[WriteItem], planner: SavePlanner, rank: int
) -> list[tuple[MetadataIndex, str]]:
    """Adds each item of a plan as a member. Returns its index and the member's name.

    Tensors are read in place: they must not change until the archive is written, or the writer's
    ``state_records()`` are replaced. Of a view, only the memory that it spans is written.

    Raises:
        CheckpointError: A tensor has no shards: it is sparse, for example.
    """
    counts: Counter[str] = Counter()
    added = []
    for item in items:
        key = item.index.fqn
        name = member_name(key, rank, counts[key])
        counts[key] += 1
        data = planner.resolve_data(item)
        if isinstance(data, torch.Tensor):
            writer.add_object(name, _plain(data, key), compact_views=True)
        else:
            writer.add_bytes(name, data.getvalue())
        added.append((item.index, name))
    return added


def _plain(tensor: torch.Tensor, key: str) -> torch.Tensor:
    """The tensor without its history, and without a conjugation that is still to be computed."""
    if tensor.layout is not torch.strided:
        raise CheckpointError(f"tensor {key!r} cannot be saved in shards: it is {tensor.layout}")
    return tensor.detach().resolve_conj().resolve_neg()


def _escaped(key: str) -> str:
    """The key as one part of a path. No key gives ``%`` alone, or ``%-``."""
    name = quote(key, safe=_SAFE, errors="surrogatepass") or "%"
    if name.startswith("."):  # "..", or a name that the folder has already
        name = f"%2E{name[1:]}"
    if len(name) > _MOST_NBYTES:
        digest = hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()
        tail = f"%-{digest[:_DIGEST_DIGITS]}"
        name = name[: _MOST_NBYTES - len(tail)] + tail
    return name
