"""One rank of a gloo run that tries saves of states that differ between ranks, one after another.

Usage: torchrun ... agreement_worker.py OUT FOLDER SCENARIO...
Every rank reports to OUT/agreement-RANK.json, by scenario, what the save returned or raised.
"""

import datetime
import gc
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

import pyckpt
from pyckpt.ranks import exchange, meeting

OUT, FOLDER, SCENARIOS = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]
# Of the process group. Long enough that ranks on a busy machine meet in time.
LIMIT_SECONDS = 4 if "alone" in SCENARIOS else 15


class Gathering(pyckpt.State):
    """A state that is gathered to rank 0, and empty on the others."""

    def state_dict(self) -> dict[str, Any]:
        state = super().state_dict()
        return state if dist.get_rank() == 0 else {**state, "model": {}, "optimizers": {}}


class OnRank0(pyckpt.State):
    """A state that the other ranks do not have at all."""

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() if dist.get_rank() == 0 else {}


def state_of(model: nn.Module, **options: Any) -> pyckpt.State:
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(2, 8)).sum().backward()
    optimizer.step()
    return pyckpt.State(model, optimizer, **options)


def linear(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))


def build(scenario: str, rank: int) -> Any:
    """The state of this rank."""
    if scenario in ("none", "async-none"):
        return state_of(linear()) if rank == 0 else None
    if scenario == "module":
        return linear()
    if scenario == "fsdp2":
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        model = linear()
        fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
        return state_of(model)
    if scenario in ("fsdp1", "gathered-fsdp1"):
        from torch.distributed.fsdp import FullyShardedDataParallel

        model = FullyShardedDataParallel(linear(), device_id=torch.device("cpu"))
        kind = pyckpt.State if scenario == "fsdp1" else WithFullOptimizer
        state = state_of(model)
        return kind(state.model, state.optimizers)
    if scenario in ("tensor-parallel", "async-tensor-parallel"):
        model = linear(seed=rank)
        with torch.no_grad():  # what tensor parallelism does not split is the same everywhere
            model[1].bias.copy_(torch.arange(8.0))
        return state_of(model)
    if scenario == "strangers":
        return state_of(linear(seed=rank))
    if scenario == "pipeline":
        model = linear()
        return state_of(nn.Sequential(model) if rank else model)
    if scenario in ("extra", "equal-extra", "nested-extra"):
        extra: dict[str, Any] = {"seen": [1, {"best": 0.5}], "mean": torch.ones(2)}
        if scenario == "extra":
            extra["mean"] += rank
        if scenario == "nested-extra":
            extra["seen"][1]["best"] += rank
        return state_of(linear(), extra=extra)
    if scenario == "lr":
        state = state_of(linear())
        state.optimizers.param_groups[0]["lr"] *= 1 + rank
        return state
    if scenario in ("plateau", "scheduled"):
        state = state_of(linear())
        optimizer, kinds = state.optimizers, torch.optim.lr_scheduler
        state.schedulers = [
            kinds.OneCycleLR(optimizer, 0.1, total_steps=9),
            kinds.LambdaLR(optimizer, lambda step: 0.9**step),
            kinds.ReduceLROnPlateau(optimizer),
        ]
        loss = 0.5 + (rank if scenario == "plateau" else 0)
        for scheduler, arguments in zip(state.schedulers, ([], [], [loss]), strict=True):
            scheduler.step(*arguments)
        return state
    if scenario == "drifted":
        model = linear()
        for parameter in model.parameters():
            parameter.data *= 1 + 0.01 * rank
        return state_of(model)
    if scenario == "gathered":
        state = state_of(linear())
        return Gathering(state.model, state.optimizers)
    if scenario in ("on-rank-0", "async-on-rank-0"):
        state = state_of(linear(seed=rank))
        return OnRank0(state.model, state.optimizers)
    if scenario == "names":
        return state_of(linear(), run_name=f"run-{rank}")
    return state_of(linear())


class WithFullOptimizer(pyckpt.State):
    """A state that gathers what FSDP1 shards, as its users do."""

    def state_dict(self) -> dict[str, Any]:
        from torch.distributed.fsdp import FullyShardedDataParallel

        gathered = FullyShardedDataParallel.optim_state_dict(self.model, self.optimizers)
        state = {**super().state_dict(), "optimizers": {"AdamW": gathered}}
        return state if dist.get_rank() == 0 else {"model": state["model"]}


class PauseOnce:
    """A progress hook that makes a write take longer than the process group's time limit."""

    seconds = LIMIT_SECONDS + 2

    def __call__(self, done: int, total: int | None) -> None:
        time.sleep(self.seconds)
        self.seconds = 0


def attempt(scenario: str, rank: int) -> list[Path]:
    state = build(scenario, rank)
    torch.set_default_device("meta" if scenario.endswith("default-device") else None)
    path = FOLDER / f"{scenario}-{{run_name}}.tar.gz"
    if scenario == "slow":
        return pyckpt.save_checkpoint(state, path, progress=PauseOnce())
    if scenario == "other-call" and rank == 1:
        pyckpt.load_checkpoint(path, state)
    if scenario == "alone":
        meeting._PATIENCE_SECONDS = 0.2
        if rank == 1:
            time.sleep(LIMIT_SECONDS + 2)
        return pyckpt.async_save_checkpoint(state, path).result()
    if scenario == "other-contents":
        return pyckpt.save_checkpoint(state, path, weights_only=rank == 1)
    if scenario.startswith("async"):
        return pyckpt.async_save_checkpoint(state, path).result()
    return pyckpt.save_checkpoint(state, path)


def main() -> None:
    exchange._LEAST_PATIENCE_SECONDS = 1.0
    dist.init_process_group("gloo", timeout=datetime.timedelta(seconds=LIMIT_SECONDS))
    rank = dist.get_rank()
    report: dict[str, Any] = {}
    for scenario in SCENARIOS:
        start = time.monotonic()
        try:
            report[scenario] = {"paths": [str(path) for path in attempt(scenario, rank)]}
        except pyckpt.CheckpointError as error:
            report[scenario] = {"error": [type(error).__name__, str(error), error.rank]}
        report[scenario]["seconds"] = time.monotonic() - start
    (OUT / f"agreement-{rank}.json").write_text(json.dumps(report))
    dist.barrier()
    gc.collect()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
