"""Ranks that share a manager's folder: save, rotate, lose a file, restore.

manager_worker.py FOLDER full|sharded ASYNCHRONOUS [SERVER]

SERVER: the address of the store, if FOLDER is a URL.
"""

from __future__ import annotations

import sys
import warnings

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import pyckpt

FOLDER, KIND, ASYNCHRONOUS = sys.argv[1], sys.argv[2], bool(int(sys.argv[3]))
OPTIONS = {"endpoint_url": sys.argv[4], "key": "key", "secret": "secret"} if sys.argv[4:] else None


def main() -> None:
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 4)
    fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
    state = pyckpt.State(model, torch.optim.AdamW(model.parameters()))
    manager = pyckpt.CheckpointManager(
        FOLDER,
        suffix=".tar",
        keep_last=2,
        asynchronous=ASYNCHRONOUS,
        state_dict_type=KIND,
        storage_options=OPTIONS,
    )
    assert manager.restore_latest(state) is None

    def at(step: int) -> pyckpt.State:
        with torch.no_grad():
            model.weight.to_local().fill_(step)
        return state

    for step in (1, 2, 3, 4):
        manager.save(step, at(step), metrics={"loss": float(rank)})
    manager.wait()
    dist.barrier()
    assert [one.step for one in manager.all()] == [3, 4]
    assert manager.all()[0].metrics == {"loss": 0.0}

    dist.barrier()
    if rank == 0:  # the newest loses what the last rank wrote; the one before is from another run
        name = f"{FOLDER}/step-4-rank{0 if KIND == 'full' else 1}.tar"
        assert pyckpt.remove(name, storage_options=OPTIONS).result()
    dist.barrier()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        restored = manager.restore_latest(at(0))
    assert restored is not None
    assert restored.step == 3, restored
    if rank == 0:
        assert "step-4-rank" in str(caught[0].message), caught
    assert model.weight.to_local().eq(3).all()

    # A wrong argument on one rank is an error on all: none waits for it.
    with pytest.raises(pyckpt.OptionError, match="metrics must be numbers"):
        manager.save(5, at(5), metrics={"loss": "low"} if rank == 0 else None)

    # A save that fails on one rank fails on all, and nothing is removed.
    bad = pyckpt.State(model, per_rank={"x": lambda: None} if rank == 1 else {})
    failed_on = None
    try:
        manager.save(5, bad)
        manager.wait()
    except pyckpt.CheckpointError as error:
        failed_on = error.rank
    assert failed_on == 1
    dist.barrier()
    assert [one.step for one in manager.all()] == [3]
    manager.save(2, at(2))
    manager.wait()
    assert [one.step for one in manager.all()] == [3, 2]
    dist.barrier()
    dist.destroy_process_group()


main()
