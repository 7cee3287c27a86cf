"""Saves and loads on many ranks: endurance_worker.py FOLDER."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist

import pyckpt

folder = Path(sys.argv[1])
dist.init_process_group("gloo")
rank = dist.get_rank()
model = torch.nn.Linear(100, 100)
state = pyckpt.State(model, torch.optim.AdamW(model.parameters()), run_name="x")
for step in range(10):
    name = str(folder / "ba{batch}-rank{rank}.tar.gz")
    state.timestamp.batch = step
    with torch.no_grad():
        model.weight.fill_(step)
    [path] = pyckpt.save_checkpoint(state, name, fsync=False)
    with torch.no_grad():
        model.weight.fill_(-1)
    pyckpt.load_checkpoint(path, state)
    assert torch.equal(model.weight, torch.full((100, 100), float(step)))
dist.destroy_process_group()
