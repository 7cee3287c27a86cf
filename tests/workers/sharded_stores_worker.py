"""One rank (gloo) that saves what ranks share to a store, or goes on from there in any layout.

``save`` trains under FSDP2, and saves one file, an archive for each rank (also in the background),
and with torch.distributed.checkpoint. ``load`` starts anew from other weights and restores each of
them. Every rank reports to FOLDER/MODE-RANKS-RANK.json: by way, in what the restored run differs
from the saved one, and its batch.

``fail`` saves with torch.distributed.checkpoint, again when the store refuses what rank 1 uploads,
and again. ``kill`` saves, and again while rank 1 is killed in its upload. ``older`` loads.

Usage: torchrun ... sharded_stores_worker.py MODE FOLDER URL OPTIONS LAYOUT
URL names the folder of all checkpoints; OPTIONS are storage_options in JSON.
"""

import gc
import json
import os
import signal
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.checkpoint.state_dict_saver import AsyncCheckpointerType
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

import pyckpt
from pyckpt.sharded import Stager, StorageReader, StorageWriter
from pyckpt.state import each
from pyckpt.storage.s3_upload import S3Upload
from tests.layouts import Run, build, differences, whole

MODE, FOLDER, URL, OPTIONS = sys.argv[1], Path(sys.argv[2]), sys.argv[3], json.loads(sys.argv[4])
LAYOUT = sys.argv[5]


def dcp_state(run: Run) -> dict[str, Any]:
    model, optimizer = get_state_dict(run.state.model, each(run.state.optimizers))
    return {"model": model, "optimizer": optimizer, "batch": run.state.timestamp.batch}


def save() -> None:
    run = build(LAYOUT, "adamw", seed=0, tied=True)
    run.train(3)
    reference = whole(run)
    if dist.get_rank() == 0:
        torch.save(reference, FOLDER / "reference")
    store: Any = {"storage_options": OPTIONS}
    pyckpt.save_checkpoint(run.state, f"{URL}/full.tar.gz", state_dict_type="full", **store)
    parts = f"{URL}/ba{{batch}}-rank{{rank}}.tar.gz"
    pyckpt.save_checkpoint(run.state, parts, state_dict_type="sharded", **store)
    kind = AsyncCheckpointerType.PROCESS
    writer = StorageWriter(f"{URL}/dcp-process", **store)
    dcp.async_save(dcp_state(run), storage_writer=writer, async_checkpointer_type=kind).result()
    for compression in (None, "gz"):
        writer = StorageWriter(f"{URL}/dcp-{compression}", compression=compression, **store)
        dcp.save(dcp_state(run), storage_writer=writer)
    stager = Stager()
    pending = [
        pyckpt.async_save_checkpoint(
            run.state, f"{URL}/async-rank{{rank}}.tar", state_dict_type="sharded", **store
        ),
        dcp.async_save(
            dcp_state(run),
            storage_writer=StorageWriter(f"{URL}/x", **store),
            checkpoint_id=f"{URL}/dcp-async",
            async_stager=stager,
            process_group=dist.new_group(backend="gloo"),
        ),
    ]
    run.train(1)
    for one in pending:
        one.result()
    stager.close()
    alone = {"rank": dist.get_rank()}  # each rank saves a checkpoint of its own
    writer = StorageWriter(f"{URL}/alone", **store)
    dcp.save(alone, storage_writer=writer, use_collectives=False)
    alone["rank"] = -1
    dcp.load(alone, storage_reader=StorageReader(f"{URL}/alone", **store))
    assert alone["rank"] == dist.get_rank()


def load_dcp(run: Run, name: str) -> None:
    state = dcp_state(run)
    dcp.load(state, storage_reader=StorageReader(f"{URL}/{name}", storage_options=OPTIONS))
    set_state_dict(
        run.state.model,
        each(run.state.optimizers),
        model_state_dict=state["model"],
        optim_state_dict=state["optimizer"],
    )
    run.state.timestamp.batch = state["batch"]


def load() -> dict[str, Any]:
    reference = torch.load(FOLDER / "reference")
    names = ("full.tar.gz", "ba3-rank{rank}.tar.gz", "ba3-rank0.tar.gz", "async-rank0.tar")
    ways: dict[str, Callable[[Run], object]] = {
        name: lambda run, name=name: pyckpt.load_checkpoint(  # type: ignore[misc]
            f"{URL}/{name}", run.state, storage_options=OPTIONS
        )
        for name in names
    }
    for name in ("dcp-None", "dcp-gz", "dcp-async", "dcp-process"):
        ways[name] = lambda run, name=name: load_dcp(run, name)  # type: ignore[misc]
    if dist.get_world_size() > 2:  # there are no archives of the further ranks
        del ways["ba3-rank{rank}.tar.gz"]
    report = {}
    for name, restore in ways.items():
        run = build(LAYOUT, "adamw", seed=1, tied=True)
        restore(run)
        report[name] = [differences(run, reference), run.state.timestamp.batch]
    return report


def rows(value: float) -> dict[str, Any]:
    """Two parts for each rank. One takes several parts of an upload, the other less than one."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    sizes = {"large": 6 << 20, "small": 10}
    return {
        key: distribute_tensor(torch.arange(float(size)) + value, mesh, [Shard(0)])
        for key, size in sizes.items()
    }


def saved_value() -> float:
    """Loads what ``rows`` made, and checks that all of it is from one save. Returns its value."""
    state = rows(-1.0)
    dcp.load(state, storage_reader=StorageReader(f"{URL}/rows", storage_options=OPTIONS))
    value = state["small"].full_tensor()[0].item()
    for key, tensor in rows(value).items():
        assert torch.equal(tensor.to_local(), state[key].to_local())
    return value


def fail() -> dict[str, Any]:
    writer = StorageWriter(f"{URL}/rows", storage_options=OPTIONS)
    dcp.save(rows(1.0), storage_writer=writer)
    report: dict[str, Any] = {}
    try:
        dcp.save(rows(2.0), storage_writer=writer)
    except CheckpointException as error:
        [(rank, (cause, _))] = error.failures.items()
        report["error"] = [type(cause).__name__, str(cause), rank, cause.rank, cause.path]
    report["older"] = saved_value()
    dcp.save(rows(3.0), storage_writer=writer)
    report["newer"] = saved_value()
    return report


def kill() -> None:
    writer = StorageWriter(f"{URL}/rows", storage_options=OPTIONS)
    dcp.save(rows(1.0), storage_writer=writer)
    if dist.get_rank() == 1:
        S3Upload.seal = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
    dcp.save(rows(2.0), storage_writer=writer)


def older() -> float:
    return saved_value()


MODES: dict[str, Callable[[], Any]] = {one.__name__: one for one in (save, load, fail, kill, older)}


def main() -> None:
    warnings.simplefilter("ignore")  # torch's own, and the random states of another number of ranks
    dist.init_process_group("gloo")
    torch.set_num_threads(1)
    report = MODES[MODE]()
    name = f"{MODE}-{dist.get_world_size()}-{dist.get_rank()}.json"
    (FOLDER / name).write_text(json.dumps(report))
    dist.barrier()
    gc.collect()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
