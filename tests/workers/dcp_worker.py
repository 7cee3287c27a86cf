"""One rank (gloo) that saves or loads with torch.distributed.checkpoint on pyckpt's storage.

Usage: dcp_worker.py SCENARIO FOLDER [COMPRESSION]
Each scenario asserts what it is about. Files in FOLDER connect the runs.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
import warnings
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.checkpoint.state_dict_saver import AsyncCheckpointerType
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from pyckpt.sharded import Stager, StorageReader, StorageWriter

Scenario = Callable[[Path, "str | None"], None]


class Trained:
    """A model under FSDP2 after two steps, with sizes that do not divide evenly."""

    def __init__(self, seed: int, steps: int) -> None:
        torch.manual_seed(seed)
        mesh = init_device_mesh("cpu", (dist.get_world_size(),))
        self.model = nn.Sequential(nn.Linear(37, 50), nn.ReLU(), nn.Linear(50, 3))
        for layer in self.model:
            if isinstance(layer, nn.Linear):
                fully_shard(layer, mesh=mesh)
        fully_shard(self.model, mesh=mesh)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.01)
        for step in range(steps):
            self.train(step)

    def train(self, step: int) -> None:
        generator = torch.Generator().manual_seed(step)
        self.model(torch.randn(8, 37, generator=generator)).square().mean().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def state(self) -> dict[str, Any]:
        model, optimizer = get_state_dict(self.model, self.optimizer)
        return {"model": model, "optim": optimizer, "step": 2, "text": "hello"}

    def load(self, state: dict[str, Any]) -> None:
        set_state_dict(
            self.model,
            self.optimizer,
            model_state_dict=state["model"],
            optim_state_dict=state["optim"],
        )

    def whole(self) -> dict[str, torch.Tensor]:
        return flat_tensors(self.state())


def flat_tensors(value: Any, path: str = "") -> dict[str, torch.Tensor]:
    """All tensors of a state by path, gathered from all ranks."""
    if isinstance(value, DTensor):
        return {path: value.full_tensor().clone()}
    if isinstance(value, torch.Tensor):
        return {path: value.detach().clone()}
    found = {}
    if isinstance(value, dict):
        for key, one in value.items():
            found.update(flat_tensors(one, f"{path}/{key}"))
    return found


def assert_same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    for key, tensor in a.items():
        assert torch.equal(tensor, b[key]), key


def fsdp_save(folder: Path, compression: str | None) -> None:
    trained = Trained(seed=0, steps=2)
    dcp.save(trained.state(), storage_writer=StorageWriter(folder / "c", compression=compression))
    whole = trained.whole()
    if dist.get_rank() == 0:
        torch.save(whole, folder / "whole.pt")


def fsdp_load(folder: Path, compression: str | None) -> None:
    trained = Trained(seed=1, steps=1)
    state = trained.state()
    state["step"], state["text"] = 0, ""
    dcp.load(state, storage_reader=StorageReader(folder / "c"))
    assert (state["step"], state["text"]) == (2, "hello")
    trained.load(state)
    assert_same(trained.whole(), torch.load(folder / "whole.pt"))


def rows(value: float, size: int = 1000) -> dict[str, Any]:
    """A small state: two sharded tensors, a replicated one and plain values."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    make = torch.arange(float(size * 3)).reshape(size, 3)
    return {
        "a": distribute_tensor(make + value, mesh, [Shard(0)]),
        "b": distribute_tensor(make.t().contiguous() - value, mesh, [Shard(1)]),
        "same": torch.full((5,), value),
        "n": {"value": value},
    }


def load_rows(folder: Path, size: int = 1000) -> float:
    """Loads what ``rows`` made, and checks that all of it is from one save. Returns its value."""
    state = rows(-1.0, size)
    dcp.load(state, storage_reader=StorageReader(folder))
    value = state["n"]["value"]
    assert_same(flat_tensors(state), flat_tensors(rows(value, size)))
    return float(value)


def async_thread(folder: Path, compression: str | None) -> None:
    group = dist.new_group(backend="gloo")
    stager = Stager()
    for value in (1.0, 2.0, 3.0):
        state = rows(value)
        future = dcp.async_save(
            state,
            storage_writer=StorageWriter(folder / f"{value}", compression=compression),
            process_group=group,
            async_stager=stager,
        )
        for tensor in (state["a"].to_local(), state["b"].to_local(), state["same"]):
            tensor.fill_(99)  # training goes on
        future.result()
        del future
    stager.close()
    for value in (1.0, 2.0, 3.0):
        assert load_rows(folder / f"{value}") == value


def async_process(folder: Path, compression: str | None) -> None:
    state = rows(4.0)
    future = dcp.async_save(
        state,
        storage_writer=StorageWriter(folder / "c", compression=compression),
        async_checkpointer_type=AsyncCheckpointerType.PROCESS,
    )
    state["a"].to_local().fill_(99)
    future.result()
    assert load_rows(folder / "c") == 4


def archives(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*-rank*")}


def cached_plans(folder: Path, compression: str | None) -> None:
    """The planner hands out the plan of the first save again, with the name that it had."""
    for number, name in enumerate(["a", "a", "b", "a"]):
        before = archives(folder / name)
        planner = DefaultSavePlanner(enable_plan_caching=True)
        writer = StorageWriter(folder / name, compression=compression)
        dist.barrier()
        dcp.save(rows(float(number)), storage_writer=writer, planner=planner)
        after = archives(folder / name)
        assert len(after) == len(before) + dist.get_world_size()
        assert before.items() <= after.items()
        assert load_rows(folder / name) == number
        dist.barrier()
    assert load_rows(folder / "b") == 2


def one_writer(folder: Path, compression: str | None) -> None:
    """One writer for many saves, into one folder and another; replicas go to rank 0."""
    writer = StorageWriter(folder / "a", compression=compression)
    for number in range(3):
        planner = DefaultSavePlanner(dedup_save_to_lowest_rank=True)
        dcp.save(rows(float(number)), storage_writer=writer, planner=planner)
        assert load_rows(folder / "a") == number
    dcp.save(rows(7.0), storage_writer=writer, checkpoint_id=folder / "b")
    assert load_rows(folder / "b") == 7
    assert load_rows(folder / "a") == 2
    replicas = {"same": torch.ones(5)}  # the other ranks have nothing to write
    dcp.save(
        replicas,
        storage_writer=StorageWriter(folder / "r"),
        planner=DefaultSavePlanner(dedup_save_to_lowest_rank=True),
    )
    assert len(os.listdir(folder / "r")) == 2


def failure_of_rank_1(call: Callable[[], object]) -> str:
    """What the call raises on all ranks because of rank 1."""
    with pytest.raises(CheckpointException) as caught:
        call()
    [(rank, (cause, _))] = caught.value.failures.items()
    assert rank == 1
    return str(cause)


def must_fail(state: dict[str, Any], writer: StorageWriter) -> str:
    return failure_of_rank_1(lambda: dcp.save(state, storage_writer=writer))


def full_disk(folder: Path, compression: str | None) -> None:
    """One rank cannot write. All raise, the older checkpoint stays, and the next save works."""
    writer = StorageWriter(folder / "c", compression=compression)
    dcp.save(rows(1.0), storage_writer=writer)
    older = set(os.listdir(folder / "c"))
    dist.barrier()
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    if dist.get_rank() == 1:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, unlimited[1]))
    message = must_fail(rows(2.0), writer)
    resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    assert "-rank1.tar" in message, message
    assert "File too large" in message, message
    dist.barrier()
    assert not [name for name in set(os.listdir(folder / "c")) - older if "-rank1." in name]
    assert load_rows(folder / "c") == 1
    dcp.save(rows(3.0), storage_writer=writer)
    assert load_rows(folder / "c") == 3
    # What the other ranks wrote in the failed save is gone.
    dist.barrier()
    assert len(os.listdir(folder / "c")) == 2 * dist.get_world_size() + 1


class Unpicklable:
    def __reduce__(self) -> str:
        raise RuntimeError("this value cannot be pickled")


def bad_value(folder: Path, compression: str | None) -> None:
    """A rank fails while it collects its shards. Nothing of the save is mixed with the older."""
    dcp.save(rows(1.0), storage_writer=StorageWriter(folder / "c"))
    state = rows(2.0)
    if dist.get_rank() == 1:
        state["mine"] = Unpicklable()
    message = must_fail(state, StorageWriter(folder / "c"))
    assert "cannot be pickled" in message
    assert load_rows(folder / "c") == 1


def killed_first(folder: Path, compression: str | None) -> None:
    dcp.save(rows(1.0), storage_writer=StorageWriter(folder / "c", compression=compression))


class KilledWriter(StorageWriter):
    """Dies where the scenario says, on rank 1, or on the coordinator at the end."""

    def write_data(self, plan: Any, planner: Any) -> Any:
        if dist.get_rank() == 1 and os.environ["DIES"] == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        done = super().write_data(plan, planner)
        if dist.get_rank() == 1 and os.environ["DIES"] == "after":
            os.kill(os.getpid(), signal.SIGKILL)
        return done

    def finish(self, metadata: Any, results: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


def killed(when: str) -> Scenario:
    def scenario(folder: Path, compression: str | None) -> None:
        os.environ["DIES"] = when
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the launcher sends it when a rank has died
        # Without the timeout, the others would wait for as long as the group lets them.
        group = dist.new_group(backend="gloo", timeout=timedelta(seconds=20))
        try:
            dcp.save(
                rows(2.0),
                storage_writer=KilledWriter(folder / "c", compression=compression),
                process_group=group,
            )
        except (CheckpointException, RuntimeError):
            os._exit(3)
        raise AssertionError("the save returned normally")

    return scenario


def older_stays(folder: Path, compression: str | None) -> None:
    assert load_rows(folder / "c") == 1


def damaged(folder: Path, compression: str | None) -> None:
    """A damaged shard of rank 1 is named on all ranks that read it."""
    dcp.save(rows(1.0), storage_writer=StorageWriter(folder / "c"))
    if dist.get_rank() == 0:
        [path] = (folder / "c").glob("*-rank1.tar")
        raw = bytearray(path.read_bytes())
        raw[raw.index(torch.arange(750.0, 760.0).add(1).numpy().tobytes())] ^= 1
        path.write_bytes(raw)
    dist.barrier()
    message = failure_of_rank_1(
        lambda: dcp.load(rows(0.0), storage_reader=StorageReader(folder / "c"))
    )
    assert "-rank1.tar is damaged: the shard of 'a': its checksum" in message, message


def no_collectives(folder: Path, compression: str | None) -> None:
    """Each rank saves a checkpoint of its own into one folder."""
    state = {"mine": torch.full((3,), float(dist.get_rank()))}
    dcp.save(state, storage_writer=StorageWriter(folder / "c"), use_collectives=False)
    state["mine"].zero_()
    dcp.load(state, storage_reader=StorageReader(folder / "c"))
    assert state["mine"].tolist() == [float(dist.get_rank())] * 3


SCENARIOS: dict[str, Scenario] = {
    **{f.__name__: f for f in (fsdp_save, fsdp_load, async_thread, async_process, cached_plans)},
    **{f.__name__: f for f in (one_writer, full_disk, bad_value, killed_first, older_stays)},
    **{f.__name__: f for f in (damaged, no_collectives)},
    **{f"killed_{when}": killed(when) for when in ("before", "after", "finish")},
}


def main() -> None:
    warnings.simplefilter("ignore")
    dist.init_process_group("gloo")
    scenario, folder, *compression = sys.argv[1:]
    SCENARIOS[scenario](Path(folder), compression[0] if compression else None)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
