"""One rank (gloo) that gathers tensors on the first rank, as a save of one file does.

Usage: gather_worker.py SCENARIO FOLDER
What each rank saw is in FOLDER/SCENARIO-RANK.json. All scenarios but the last one share a channel,
so each of them also shows that those before left it in order.
"""

import ctypes
import itertools
import json
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from pyckpt.errors import CheckpointError
from pyckpt.ranks.exchange import Channel, begin_together, together
from pyckpt.sharded import gather
from pyckpt.sharded.gather import Gathered, Gathering, Piece, requests_of, serve, share_nbytes
from pyckpt.sharded.shard import Shard
from pyckpt.torch_format.hollow import hollow_storages

SCENARIO, FOLDER = sys.argv[1], Path(sys.argv[2])

Box = tuple[tuple[int, ...], tuple[int, ...]]  # where it begins, and its shape

DTYPES = [torch.uint8, torch.float64, torch.bfloat16, torch.int16, torch.complex64, torch.bool]
SHAPES: list[tuple[int, ...]] = [
    *((), (1,), (0,), (3, 0), (7,), (5, 3), (4, 1, 6), (1, 1)),
    *((40, 30), (9,), (2, 3, 4, 5), (17, 1)),
]


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.resolve_conj().contiguous().view(-1).view(torch.uint8).numpy().tobytes()


def filled(shape: Sequence[int], dtype: torch.dtype, source: random.Random) -> torch.Tensor:
    nbytes = torch.Size(shape).numel() * dtype.itemsize
    is_bool = dtype is torch.bool
    raw = bytes(source.choices([0, 1], k=nbytes)) if is_bool else source.randbytes(nbytes)
    flat = torch.frombuffer(bytearray(raw or b"\0"), dtype=torch.uint8)[:nbytes]
    return flat.clone().view(dtype).view(tuple(shape))


def cut(
    shape: Sequence[int], source: random.Random
) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Boxes that make up the shape, some of them empty."""
    boxes: list[Box] = [((), ())]
    for n in shape:
        cuts = sorted([0, *(source.randint(0, n) for _ in range(source.randint(0, 3))), n])
        boxes = [
            ((*at, start), (*size, end - start))
            for at, size in boxes
            for start, end in itertools.pairwise(cuts)
        ]
    return boxes


def held(part: torch.Tensor, source: random.Random) -> torch.Tensor:
    """The same elements, in memory of some other order, or with gaps."""
    way = source.randint(0, 3)
    if way == 1 and part.dim() > 1:
        return part.transpose(0, -1).contiguous().transpose(0, -1)
    if way == 2 and part.dim():
        wide = torch.zeros(*part.shape[:-1], part.shape[-1] + 2, dtype=part.dtype)
        wide[..., 1:-1] = part
        return wide[..., 1:-1]
    if way == 3 and part.dtype is torch.complex64:
        return part.conj().resolve_conj().conj()
    return part.clone()


class Reading:
    """A reader of a shard that is not in host memory: as of a GPU."""

    def __init__(self, tensor: torch.Tensor, read: Callable[[], None] = lambda: None) -> None:
        self._data, self._read = bits(tensor), read

    def read(self, offset: int, nbytes: int, address: int) -> None:
        self._read()
        ctypes.memmove(address, self._data[offset : offset + nbytes], nbytes)


@dataclass
class Case:
    """Tensors, who has which part of them, and what this rank has."""

    whole: list[torch.Tensor]
    tensors: list[Gathered]
    shards: list[Shard]


def make(seed: int, rank: int, size: int) -> Case:
    source = random.Random(seed)
    case = Case([], [], [])
    counts = [0] * size
    for shape in source.sample(SHAPES, len(SHAPES)):
        dtype = source.choice(DTYPES)
        tensor = filled(shape, dtype, source)
        pieces = []
        for offsets, lengths in cut(shape, source):
            owner = source.randrange(size)
            pieces.append(Piece(owner, counts[owner], offsets, lengths))
            counts[owner] += 1
            part = tensor[tuple(slice(a, a + n) for a, n in zip(offsets, lengths, strict=True))]
            mine = held(part, source)
            if owner == rank:
                [shard] = Shard.all_of([mine])
                if source.randint(0, 4) == 0 and mine.is_contiguous() and mine.numel():
                    reader = Reading(mine)
                    shard = shard.staged(shard.record._replace(address=0, reader=reader))
                case.shards.append(shard)
            else:
                source.randint(0, 4)
        case.whole.append(tensor)
        case.tensors.append(Gathered(dtype, tuple(shape), tuple(pieces)))
    return case


def gathered(
    case: Case,
    channel: Channel,
    before: Callable[[], None] = lambda: None,
    after_tensor: Callable[[int], None] = lambda index: None,
    threads: int = 3,
) -> list[bytes]:
    """Gathers everything, in a step that ranks take together. Returns what the first rank read."""
    if channel.rank != 0:
        requests = requests_of(case.tensors, channel.size)[channel.rank]
        [room] = hollow_storages([share_nbytes(requests, case.shards)])
        together("saving", lambda: serve(requests, case.shards, room, before, channel), channel)
        return []
    found = [bytearray(tensor.nbytes) for tensor in case.tensors]

    def write() -> None:
        gathering = Gathering(case.tensors)
        with gathering.running(case.shards, channel), ThreadPoolExecutor(threads) as pool:
            before()
            chunks = []
            for index, out in enumerate(found):
                address = ctypes.addressof((ctypes.c_char * len(out)).from_buffer(out))
                step = max(1, len(out) // 3)
                for at in range(0, len(out), step):
                    nbytes = min(step, len(out) - at)
                    read = gathering.reader(index).read
                    chunks.append((index, pool.submit(read, at, nbytes, address + at)))
            for index, chunk in chunks:
                chunk.result()
                after_tensor(index)

    together("saving", write, channel)
    return [bytes(out) for out in found]


def error_of(work: Callable[[], Any]) -> list[Any]:
    started = time.monotonic()
    try:
        work()
    except CheckpointError as error:
        return [type(error).__name__, str(error), error.rank, time.monotonic() - started]
    return ["nothing", "", None, time.monotonic() - started]


def is_right(channel: Channel, seeds: Sequence[int]) -> bool:
    for seed in seeds:
        case = make(seed, channel.rank, channel.size)
        found = gathered(case, channel)
        if channel.rank == 0 and found != [bits(tensor) for tensor in case.whole]:
            return False
    return True


def failing_at(rank: int) -> Callable[[], None]:
    def fail() -> None:
        if dist.get_rank() == rank:
            raise OSError(5, f"rank {rank} has failed on purpose")

    return fail


def unreadable(case: Case, rank: int) -> Case:
    """The same, but a rank cannot read its largest shard."""
    if dist.get_rank() != rank:
        return case
    largest = max(range(len(case.shards)), key=lambda at: case.shards[at].record.nbytes)
    record = case.shards[largest].record
    reader = Reading(torch.zeros(record.nbytes, dtype=torch.uint8), failing_at(rank))
    shards = list(case.shards)
    shards[largest] = shards[largest].staged(record._replace(address=0, reader=reader))
    return replace(case, shards=shards)


def whole(channel: Channel) -> dict[str, Any]:
    report = {}
    for nbytes in (1, 100, 5000, 1 << 26):
        gather.BATCH_NBYTES = nbytes
        report[str(nbytes)] = is_right(channel, range(6))
    empty = Case([], [], [])
    report["nothing"] = gathered(empty, channel) == []
    none = Case([torch.empty(0)], [Gathered(torch.float32, (0,), ())], [])
    report["empty"] = gathered(none, channel) in ([], [b""])
    return report


def faults(channel: Channel) -> dict[str, Any]:
    """After each fault, the next gathering must be right."""
    gather.BATCH_NBYTES = 300
    case = make(1, channel.rank, channel.size)

    def fill_disk(index: int) -> None:
        if index == len(case.tensors) // 2:
            raise OSError(28, "the disk is full on purpose")

    works: dict[str, Callable[[], Any]] = {}
    for rank in (0, 1, 2):
        works[f"before {rank}"] = lambda r=rank: gathered(case, channel, failing_at(r))
        works[f"reader {rank}"] = lambda r=rank: gathered(unreadable(case, r), channel)

    def without_thread() -> Any:
        start = threading.Thread.start

        def refuse(thread: threading.Thread) -> None:
            if thread.name == "pyckpt-gather":
                raise RuntimeError("no thread, on purpose")
            start(thread)

        threading.Thread.start = refuse
        try:
            return gathered(case, channel)
        finally:
            threading.Thread.start = start

    works["thread 0"] = without_thread
    works["disk"] = lambda: gathered(case, channel, after_tensor=fill_disk, threads=1)
    return {name: [error_of(work), is_right(channel, [2])] for name, work in works.items()}


def killed(channel: Channel) -> dict[str, Any]:
    """The second rank dies in the middle of sending."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # which the agent sends to the others
    gather.BATCH_NBYTES = 300
    case = make(1, channel.rank, channel.size)
    if channel.rank == 1:
        last = max(at for at, shard in enumerate(case.shards) if shard.record.nbytes)
        record = case.shards[last].record
        reader = Reading(torch.zeros(1), lambda: os.kill(os.getpid(), signal.SIGKILL))
        case.shards[last] = case.shards[last].staged(record._replace(address=0, reader=reader))
    return {"killed": error_of(lambda: gathered(case, channel))}


def main() -> None:
    dist.init_process_group("gloo")
    torch.set_num_threads(1)
    [channel] = begin_together("gathering")
    report = {"whole": whole, "faults": faults, "killed": killed}[SCENARIO](channel)
    path = FOLDER / f"{SCENARIO}-{dist.get_rank()}.json"
    path.with_suffix(".tmp").write_text(json.dumps(report))
    path.with_suffix(".tmp").rename(path)
    if SCENARIO == "killed":
        os._exit(1)  # as a program does that does not handle the error: so all others notice
    dist.barrier()
    with suppress(RuntimeError):
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
