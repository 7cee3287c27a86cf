"""One rank (gloo) that sends bytes to others, and plans a save with them.

Usage: transfer_worker.py FOLDER
What each rank saw is in FOLDER/RANK.json. All scenarios share a channel, so each of them also shows
that those before left it in order.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from pyckpt.archive.reader import ArchiveReader
from pyckpt.archive.writer import ArchiveWriter
from pyckpt.errors import CheckpointError
from pyckpt.options import WriteOptions
from pyckpt.ranks.exchange import Channel, begin_together
from pyckpt.ranks.transfer import hand_out, hear, receive, send, tell, to_first
from pyckpt.sharded.full_state import FullState
from pyckpt.sharded.outline import ArchiveSet
from pyckpt.sharded.part import find_part
from pyckpt.sharded.planning import plan_together
from pyckpt.sharded.sharded_state import add_sharded_state

FOLDER = Path(sys.argv[1])
SIZES = [0, 1, 7, 1 << 20]


def data_of(rank: int, nbytes: int) -> bytes:
    return bytes((rank + at) % 251 for at in range(nbytes))


def first(channel: Channel) -> Any:
    """Every rank gives the first one something else, of other sizes."""
    rights = []
    for turn, _ in enumerate(SIZES):
        sizes = [SIZES[(turn + rank) % len(SIZES)] for rank in range(channel.size)]
        found = to_first(data_of(channel.rank, sizes[channel.rank]), channel)
        expected = [data_of(rank, nbytes) for rank, nbytes in enumerate(sizes)]
        rights.append(found == (expected if channel.rank == 0 else None))
    return rights


def handed(channel: Channel) -> Any:
    rights = []
    for nbytes in SIZES:
        data = [data_of(rank, nbytes) for rank in range(channel.size)]
        found = hand_out(data if channel.rank == 0 else None, channel)
        rights.append(found == data_of(channel.rank, nbytes))
    return rights


def told(channel: Channel) -> Any:
    numbers = [0, 1, -5, 1 << 40]
    if channel.rank != 0:
        return [hear(channel) == number for number in numbers]
    for number in numbers:
        tell(number, channel)
    return [True]


def sent(channel: Channel) -> Any:
    """The first rank receives from all others at the same time, to parts of one memory."""
    nbytes = 1 << 20
    if channel.rank != 0:
        send(
            torch.frombuffer(bytearray(data_of(channel.rank, nbytes)), dtype=torch.uint8),
            0,
            channel,
        )
        return [True]
    memory = torch.zeros(channel.size * nbytes, dtype=torch.uint8)
    parts = memory.split(nbytes)
    receive({rank: parts[rank] for rank in range(1, channel.size)}, channel)
    return [
        parts[rank].numpy().tobytes() == data_of(rank, nbytes) for rank in range(1, channel.size)
    ]


def planned(channel: Channel) -> Any:
    """A tensor in parts, one that all have, one of a single rank, and what is no tensor."""
    mesh = init_device_mesh("cpu", (channel.size,))
    whole = torch.arange(15.0).view(5, 3)
    leaves: dict[str, Any] = {
        "parts": distribute_tensor(whole, mesh, [Shard(0)]),
        "all": torch.ones(2),
        f"only {channel.rank}": torch.full((1,), float(channel.rank)),
    }
    if channel.rank == 0:
        leaves["schedule"] = {30: 0.1}  # torch would take it apart
    paths = {name: (name,) for name in leaves}
    report = []
    for prefer_first in (True, False):
        plan = plan_together(leaves, paths, channel, prefer_first=prefer_first)
        items = [item for item in plan.own if item.tensor_data is not None]
        own = {item.index.fqn: tensor for item, tensor in zip(items, plan.tensors(), strict=True)}
        report.append(
            {
                "own": {name: tensor.tolist() for name, tensor in own.items()},
                "items": [item.index.fqn for item in plan.own],
                "every": [[item.index.fqn for item in items] for items in plan.every],
                "metadata": sorted(plan.metadata.state_dict_metadata) if plan.metadata else None,
                "paths": sorted(plan.metadata.planner_data) if plan.metadata else None,
            }
        )
    return report


class Unpicklable:
    def __reduce__(self) -> str:
        raise ValueError("this value cannot be pickled")


class Explosive:
    """Pickles well, and cannot be unpickled."""

    def __reduce__(self) -> Any:
        return explode, ()


def explode() -> None:
    raise ValueError("this value cannot be unpickled")


def error_of(work: Callable[[], Any]) -> list[Any]:
    try:
        work()
    except CheckpointError as error:
        return [type(error).__name__, str(error), error.rank]
    return []


def overlapping(channel: Channel) -> Any:
    """The ranks say that they have the same tensor whole, with other shapes: torch refuses it."""
    mesh = init_device_mesh("cpu", (channel.size,))
    part = distribute_tensor(torch.ones(6, 2), mesh, [Shard(0)])
    leaves = {"a": part} if channel.rank else {"a": torch.ones(3)}
    return error_of(lambda: plan_together(leaves, {"a": ("a",)}, channel, prefer_first=True))


def collected(value: Any) -> Callable[[Channel], Any]:
    def collect(channel: Channel) -> Any:
        """The last rank has an object that cannot be sent, in a part of the model of its own."""
        tree: dict[str, Any] = {"state": {"model": {f"{channel.rank}.weight": torch.ones(2)}}}
        if channel.rank == channel.size - 1:
            tree["state"]["extra"] = value
        return error_of(lambda: FullState().collect(tree, channel, is_pipeline=True))

    return collect


def divided(channel: Channel) -> Any:
    """Each rank has its part of a model, whose optimizer also keeps what is no tensor."""
    name = f"{channel.rank}.weight"
    kept = {"exp_avg": torch.full((2,), float(channel.rank)), "count": channel.rank}
    optimizer = {"state": {name: kept}, "param_groups": [{"params": [name], "lr": 0.1}]}
    tree = {"state": {"model": {name: torch.ones(2)}, "optimizers": {"Own": optimizer}}}
    paths = [FOLDER / f"divided-{rank}.tar" for rank in range(channel.size)]
    with ArchiveWriter(paths[channel.rank], WriteOptions(num_threads=1)) as writer:
        add_sharded_state(writer, tree, paths, lambda record: record, channel, is_pipeline=True)
        writer.write()
        writer.commit()
    dist.barrier()
    part = find_part(ArchiveReader(paths[0], num_threads=1))
    assert part is not None
    found = ArchiveSet(paths[0], part, num_threads=1, weights_only=True)
    saved = found.tree["state"]["optimizers"]["Own"]
    tensors = [(key, one["exp_avg"]) for key, one in saved["state"].items()]
    found.read([], tensors)
    return {
        "model": sorted(found.tree["state"]["model"]),
        "groups": saved["param_groups"],
        "counts": {key: one["count"] for key, one in saved["state"].items()},
        "averages": {key: one.tolist() for key, one in tensors},
    }


SCENARIOS: dict[str, Callable[[Channel], Any]] = {
    "first": first,
    "handed": handed,
    "told": told,
    "sent": sent,
    "planned": planned,
    "divided": divided,
    "overlapping": overlapping,
    "unpicklable": collected(Unpicklable()),
    "explosive": collected(Explosive()),
    "fine": collected("text"),
    "handed again": handed,
}


def main() -> None:
    dist.init_process_group("gloo")
    torch.set_num_threads(1)
    [channel] = begin_together("sending")
    report = {name: scenario(channel) for name, scenario in SCENARIOS.items()}
    (FOLDER / f"{dist.get_rank()}.json").write_text(json.dumps(report))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
