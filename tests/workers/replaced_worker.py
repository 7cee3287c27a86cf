"""Two ranks load a checkpoint that is replaced before rank 1 reads it, on another machine.

Prints nothing if both get the same one, or both the same error.

Usage: torchrun ... replaced_worker.py WHEN PATH OTHER ENVIRONMENT

WHEN: ``before`` rank 1 opens it, or ``after``. OTHER is a file with what PATH then has. ENVIRONMENT
is what the store's client reads, as JSON: ranks are forked from a process that is older than the
store.
"""

import errno
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import boto3
import torch
import torch.distributed as dist

import pyckpt
from pyckpt.paths import is_url
from pyckpt.storage.urls import Url
from pyckpt.training import shared_reads

WHEN, PATH, OTHER = sys.argv[1:4]
os.environ.update(json.loads(sys.argv[4]))


def replace() -> None:
    if is_url(PATH):
        url = Url(PATH)
        data = Path(OTHER).read_bytes()
        boto3.client("s3").put_object(Bucket=url.bucket, Key=url.key, Body=data)
    else:
        shutil.copy(OTHER, f"{PATH}.new")
        Path(f"{PATH}.new").rename(PATH)


def replacing(function: Any) -> Any:
    def call(*args: Any, **options: Any) -> Any:
        replace()
        return function(*args, **options)

    return call


dist.init_process_group("gloo")
if dist.get_rank() == 1:
    shared_reads.machine = lambda: "another one"
    name = "open_input" if WHEN == "before" else "load"
    setattr(shared_reads, name, replacing(getattr(shared_reads, name)))
model = torch.nn.Linear(3, 2)
outcome: Any
try:
    pyckpt.load_checkpoint(PATH, pyckpt.State(model))
    outcome = model.weight.detach().tolist()
except pyckpt.CheckpointError as error:
    outcome = error.errno, str(error)
outcomes: list[Any] = [None, None]
dist.all_gather_object(outcomes, outcome)
assert outcomes[0] == outcomes[1], outcomes
if WHEN == "before" or is_url(PATH):
    assert outcome[0] == errno.ESTALE, outcome
    assert "was replaced by another" in outcome[1], outcome
else:
    assert outcome == [[1.0] * 3] * 2, outcome
dist.destroy_process_group()
