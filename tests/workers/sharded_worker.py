"""One rank (gloo) of runs that are saved in shards and in one file, and go on in other layouts.

``save`` trains each run, saves it in four ways and trains on. ``load`` starts each run anew, from
other weights, restores it from each of the four and trains on:

- ``stock``: torch.distributed.checkpoint alone, in its own format.
- ``dcp``: the same calls of torch.distributed.checkpoint, with pyckpt's storage.
- ``full``: one file of pyckpt's.
- ``sharded``: an archive of pyckpt's for each rank.

Every rank reports to FOLDER/MODE-RANKS-RANK.json, by run, what the losses after the save were and,
when loading, in what the restored run differs from the saved one.

Usage: torchrun ... sharded_worker.py MODE FOLDER RUNS
RUNS is a list in JSON: [name, layout, optimizer, suffix, stage] to save, [name, layout, optimizer,
suffix, layout to go on in] to load. Reports are by name and last element.
"""

import gc
import json
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_state_dict,
    set_state_dict,
)

import pyckpt
from pyckpt.sharded import StorageReader, StorageWriter
from pyckpt.state import each
from tests.layouts import Run, build, differences, whole

MODE, FOLDER, RUNS = sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3])
TRAINED, MORE = 3, 3

background: dist.ProcessGroup  # for asynchronous saves of torch, which training would disturb

# Values of optimizers by the parameters' names, as stages of a pipeline need it.
BY_NAME = StateDictOptions(flatten_optimizer_state_dict=True)


def stock_state(run: Run) -> dict[str, Any]:
    model, optimizer = get_state_dict(run.state.model, each(run.state.optimizers), options=BY_NAME)
    return {
        "model": model,
        "optimizer": optimizer,
        "schedulers": [one.state_dict() for one in each(run.state.schedulers)],
        "batch": run.state.timestamp.batch,
    }


def load_stock(run: Run, reader: dcp.StorageReader) -> None:
    saved = stock_state(run)
    dcp.load(saved, storage_reader=reader)
    set_state_dict(
        run.state.model,
        each(run.state.optimizers),
        model_state_dict=saved["model"],
        optim_state_dict=saved["optimizer"],
        options=BY_NAME,
    )
    for one, values in zip(each(run.state.schedulers), saved["schedulers"], strict=True):
        one.load_state_dict(values)
    run.state.timestamp.batch = saved["batch"]


def save(name: str, layout: str, optimizer: str, suffix: str, stage: str) -> dict[str, Any]:
    folder = FOLDER / name
    run = build(layout, optimizer, seed=0, tied=layout != "pipeline")
    run.train(TRAINED)
    reference = whole(run)
    dcp.save(stock_state(run), checkpoint_id=folder / "stock")
    if dist.get_rank() == 0:
        torch.save(reference, folder / "reference")
    pending: list[Any] = []
    writer = StorageWriter(
        folder / "dcp", compression=suffix.removeprefix(".tar").strip(".") or None
    )
    if stage == "copy" and not layout.startswith("fsdp1"):  # torch cannot stage what that has
        pending.append(
            dcp.async_save(stock_state(run), storage_writer=writer, process_group=background)
        )
    else:
        dcp.save(stock_state(run), storage_writer=writer)
    for shape, stem in (("full", "full"), ("sharded", "rank{rank}")):
        path = folder / f"{stem}{suffix}"
        if stage == "blocking":
            pyckpt.save_checkpoint(run.state, path, state_dict_type=shape)
        else:
            pending.append(
                pyckpt.async_save_checkpoint(run.state, path, state_dict_type=shape, stage=stage)
            )
    losses = run.train(MORE)
    for one in pending:
        one.result()
    return {"losses": losses}


def load(name: str, layout: str, optimizer: str, suffix: str, target: str) -> dict[str, Any]:
    folder = FOLDER / name
    saved = torch.load(folder / "reference")
    ways: dict[str, Callable[[Run], None]] = {
        "stock": lambda run: load_stock(run, dcp.FileSystemReader(folder / "stock")),
        "dcp": lambda run: load_stock(run, StorageReader(folder / "dcp")),
        "full": lambda run: pyckpt.load_checkpoint(folder / f"full{suffix}", run.state),
        "sharded": lambda run: pyckpt.load_checkpoint(folder / f"rank{{rank}}{suffix}", run.state),
    }
    report: dict[str, Any] = {}
    for way, restore in ways.items():
        run = build(target, optimizer, seed=1, tied=layout != "pipeline")
        restore(run)
        report[way] = {"differs": differences(run, saved), "losses": run.train(MORE)}
    return report


def main() -> None:
    global background
    warnings.simplefilter("ignore")  # torch's own, of FSDP1 and of stock saves
    dist.init_process_group("gloo")
    background = dist.new_group()
    torch.set_num_threads(1)
    run = {"save": save, "load": load}[MODE]
    report = {f"{arguments[0]} {arguments[-1]}": run(*arguments) for arguments in RUNS}
    name = f"{MODE}-{dist.get_world_size()}-{dist.get_rank()}.json"
    (FOLDER / name).write_text(json.dumps(report))
    dist.barrier()
    gc.collect()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
