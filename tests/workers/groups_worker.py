"""One of four gloo ranks that save and load in process groups of two.

The groups {0, 1} and {2, 3} train models of their own and call at the same time. {1, 2} has a rank
of each. Rank 0 has a group more than the others.

Usage: torchrun ... groups_worker.py OUT FOLDER
Every rank reports to OUT/RANK.json, by scenario, what it got or what was raised.
"""

import gc
import json
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh

import pyckpt
from pyckpt.ranks.exchange import begin_together
from pyckpt.staging.latch import Latch
from pyckpt.training import background

OUT, FOLDER = Path(sys.argv[1]), Path(sys.argv[2])


class Failing(pyckpt.State):
    """A state that cannot be collected on rank 3."""

    def state_dict(self) -> dict[str, Any]:
        if dist.get_rank() == 3:
            raise KeyError("no such layer")
        return super().state_dict()


class Groups:
    """The groups of this rank, and what it trains in its pair."""

    def __init__(self) -> None:
        self.rank = dist.get_rank()
        if self.rank == 0:
            dist.new_group([0], use_local_synchronization=True)
        self.mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("pairs", "inside"))
        self.pair = self.mesh["inside"]  # {0, 1} or {2, 3}
        self.middle = dist.new_group([1, 2])
        self.first = self.rank // 2 * 2  # of the pair

    def state(self, seed: int, kind: Any = pyckpt.State, **options: Any) -> pyckpt.State:
        torch.manual_seed(seed)
        model = nn.Linear(4, 4)
        optimizer = torch.optim.AdamW(model.parameters())
        model(torch.ones(2, 4)).sum().backward()
        optimizer.step()
        state: pyckpt.State = kind(model, optimizer, **options)
        return state

    def transfer(self) -> list[float]:
        """What a channel tells, and a tensor that the second rank of each pair sends."""
        [channel] = begin_together("transfer", process_group=self.pair)
        tensor = torch.full((100_000,), float(self.rank))
        if channel.rank == 1:
            channel.group.send([tensor], 0, 7).wait()
        else:
            channel.group.recv([tensor], 1, 7).wait()
        numbers = [channel.rank, channel.size, channel.global_rank, *channel.members]
        return [*numbers, *tensor.unique().tolist()]

    def save(self) -> list[Path]:
        """The pairs save at the same time, but not equally often."""
        state = self.state(seed=self.first)
        random.seed(self.rank)
        for count in range(1 + self.first):
            paths = pyckpt.save_checkpoint(
                state,
                FOLDER / f"pair-{{rank}}-of-{{world_size}}-{count}.tar.gz",
                process_group=self.pair.get_group(),
            )
        return paths

    def start(self) -> list[Path]:
        """Two saves are under way at once in each pair."""
        state = self.state(seed=self.first)
        pending = [
            pyckpt.async_save_checkpoint(
                state,
                FOLDER / f"async-{{rank}}-{count}.tar",
                process_group=self.pair,
                max_pending=2,
            )
            for count in range(2)
        ]
        return [path for one in pending for path in one.result()]

    def load(self) -> list[Any]:
        """Both pairs load; each rank tells its next random number and what it was told."""
        state = self.state(seed=7)
        told: list[int] = []
        path = FOLDER / f"pair-{self.first}-of-4-0.tar.gz"
        states = pyckpt.load_checkpoint(
            path, state, process_group=self.pair, progress=lambda done, _: told.append(done)
        )
        assert states is not None
        expected = self.state(seed=self.first).model.weight
        return [random.random(), len(states), torch.equal(state.model.weight, expected), bool(told)]

    def load_elsewhere(self) -> list[Any]:
        """The file of a pair, loaded by ranks of both."""
        if self.rank not in (1, 2):
            return []
        state = self.state(seed=7)
        pyckpt.load_checkpoint(FOLDER / "pair-0-of-4-0.tar.gz", state, process_group=self.middle)
        return [random.random()]

    def overlap(self) -> list[Path]:
        """Ranks 1 and 2 save; the others call it too, and must not."""
        state = self.state(seed=0)
        start = time.monotonic()
        try:
            return pyckpt.save_checkpoint(
                state, FOLDER / "middle-{rank}.tar", process_group=self.middle
            )
        finally:
            assert self.rank in (1, 2) or time.monotonic() - start < 5

    def outside_async(self) -> list[Path]:
        if self.rank in (1, 2):
            return []
        return pyckpt.async_save_checkpoint(
            self.state(seed=0), FOLDER / "outside.tar", process_group=self.middle
        ).result()

    def outside_load(self) -> Any:
        if self.rank in (1, 2):
            return []
        return pyckpt.load_checkpoint(
            FOLDER / "x.tar", self.state(seed=0), process_group=self.middle
        )

    def two_dimensions(self) -> list[Path]:
        return pyckpt.save_checkpoint(
            self.state(seed=0), FOLDER / "mesh.tar", process_group=self.mesh
        )

    def not_a_group(self) -> list[Path]:
        return pyckpt.save_checkpoint(self.state(seed=0), FOLDER / "x.tar", process_group=[0, 1])

    def failing(self) -> list[Path]:
        state = self.state(seed=self.first, kind=Failing)
        return pyckpt.save_checkpoint(state, FOLDER / "failing-{rank}.tar", process_group=self.pair)

    def failing_async(self) -> list[Path]:
        """The second pair cannot commit."""
        state = self.state(seed=self.first)
        name = FOLDER / f"failing-async-{self.first}.tar"
        earlier = Latch()  # acts as an earlier save, for which this one waits
        background._last_work = earlier
        pending = pyckpt.async_save_checkpoint(state, name, process_group=self.pair)
        if self.rank == 2:
            name.mkdir()
        earlier.set()
        return pending.result()

    def other_call(self) -> Any:
        state = self.state(seed=self.first)
        if self.rank == 3:
            return pyckpt.load_checkpoint(FOLDER / "x.tar", state, process_group=self.pair)
        return pyckpt.save_checkpoint(state, FOLDER / "other-{rank}.tar", process_group=self.pair)

    def extra(self) -> list[Path]:
        """What differs between the pairs is no difference; what differs inside of one is."""
        extra = {"seen": 5 if self.rank == 3 else self.first}
        state = self.state(seed=self.first, extra=extra)
        return pyckpt.save_checkpoint(state, FOLDER / "extra-{rank}.tar", process_group=self.pair)

    def parts(self) -> list[Path]:
        """The second pair holds parts of a model."""
        seed = self.rank if self.first else 0
        state = self.state(seed=seed)
        with torch.no_grad():
            state.model.bias.copy_(torch.arange(4.0))
        return pyckpt.save_checkpoint(state, FOLDER / "parts-{rank}.tar", process_group=self.pair)

    def alone(self) -> list[Path]:
        """Each rank saves in a group of its own."""
        mine = [dist.new_group([rank]) for rank in range(4)][self.rank]
        return pyckpt.save_checkpoint(
            self.state(seed=0), FOLDER / "alone-{rank}.tar", process_group=mine
        )

    def everybody(self) -> list[Path]:
        """A group of all ranks, and no group."""
        state = self.state(seed=0)
        group = dist.new_group(range(4))
        pyckpt.save_checkpoint(state, FOLDER / "all-{rank}.tar", process_group=group)
        return pyckpt.save_checkpoint(state, FOLDER / "all-{rank}.tar")


def tried(scenario: Callable[[], Any]) -> dict[str, Any]:
    try:
        return {"got": [one if isinstance(one, int | float) else str(one) for one in scenario()]}
    except pyckpt.CheckpointError as error:
        return {"error": [type(error).__name__, str(error), error.rank]}


def main() -> None:
    dist.init_process_group("gloo")
    groups = Groups()
    report = {
        name: tried(getattr(groups, name))
        for name in vars(Groups)
        if not name.startswith("_") and name != "state"
    }
    (OUT / f"{groups.rank}.json").write_text(json.dumps(report))
    dist.barrier()
    del groups
    gc.collect()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
