"""pyckpt.State, for training without Composer, with real modules, optimizers and schedulers."""

from __future__ import annotations

import copy
import datetime
import pickle
import pickletools
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

import pyckpt
from pyckpt.state import is_deepspeed_engine, model_state_dict
from pyckpt.training.names import VARIABLES


def build(seed: int) -> tuple[nn.Module, list[Any], list[Any]]:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))
    optimizers = [
        torch.optim.AdamW(model[0].parameters(), lr=0.1),
        torch.optim.SGD(model[1].parameters(), lr=0.1, momentum=0.9),
        torch.optim.AdamW(model[2].parameters(), lr=0.01),
    ]
    schedulers = [torch.optim.lr_scheduler.StepLR(one, 2, 0.5) for one in optimizers]
    return model, optimizers, schedulers


def train(model: nn.Module, optimizers: list[Any], schedulers: list[Any]) -> list[float]:
    losses = []
    for step in range(3):
        x = torch.randn(6, 4, generator=torch.Generator().manual_seed(step))
        loss = model(x).square().mean()
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        for scheduler in schedulers:
            scheduler.step()
        losses.append(loss.item())
    return losses


def test_training_goes_on_from_what_was_saved(tmp_path: Path) -> None:
    model, optimizers, schedulers = build(seed=1)
    train(model, optimizers, schedulers)
    time = pyckpt.Timestamp(epoch=2, batch=9, epoch_wct=datetime.timedelta(seconds=2.5))
    state = pyckpt.State(model, optimizers, schedulers, "mine", time, {"best": 0.25})
    [path] = pyckpt.save_checkpoint(state, tmp_path / "{run_name}-{epoch}.tar.gz")
    assert path.name == "mine-2.tar.gz"
    expected = train(model, optimizers, schedulers)

    loaded = pyckpt.load(path)["state"]
    model, optimizers, schedulers = build(seed=2)
    model.load_state_dict(loaded["model"])
    names = ["AdamW", "SGD", "AdamW-1"]
    assert list(loaded["optimizers"]) == names
    assert list(loaded["schedulers"]) == ["StepLR", "StepLR-1", "StepLR-2"]
    for optimizer, name in zip(optimizers, names, strict=True):
        optimizer.load_state_dict(loaded["optimizers"][name])
    for scheduler, scheduler_state in zip(schedulers, loaded["schedulers"].values(), strict=True):
        scheduler.load_state_dict(scheduler_state)
    assert train(model, optimizers, schedulers) == expected

    resumed = pyckpt.Timestamp()
    resumed.load_state_dict(loaded["timestamp"]["Timestamp"])
    assert resumed == time
    assert loaded["run_name"] == "mine"
    assert loaded["extra"] == {"best": 0.25}


def test_one_or_several_or_none() -> None:
    model, [optimizer, *_], [scheduler, *_] = build(seed=1)
    alone = pyckpt.State(model, optimizer, scheduler).state_dict()
    listed = pyckpt.State(model, [optimizer], (scheduler,)).state_dict()
    assert list(alone["optimizers"]) == list(listed["optimizers"]) == ["AdamW"]
    assert list(alone["schedulers"]) == list(listed["schedulers"]) == ["StepLR"]
    bare = pyckpt.State(model).state_dict()
    assert bare["optimizers"] == bare["schedulers"] == bare["extra"] == {}
    assert bare["run_name"] == "run"
    assert bare["timestamp"] == {"Timestamp": pyckpt.Timestamp().state_dict()}


def test_states_do_not_share_their_defaults() -> None:
    first, second = pyckpt.State(nn.Identity()), pyckpt.State(nn.Identity())
    first.timestamp.batch = 5
    assert second.timestamp.batch == 0


@pytest.fixture
def group() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.filterwarnings("ignore:`torch.jit")  # torch.compile's own imports
@pytest.mark.usefixtures("group")
@pytest.mark.parametrize("wrapping", ["none", "parallel", "replicas", "compiled", "both"])
def test_weights_have_the_names_of_the_module_itself(wrapping: str) -> None:
    module = nn.Sequential(nn.Linear(2, 2))
    parallel = nn.parallel.DistributedDataParallel
    model: Any = {
        "none": lambda: module,
        "parallel": lambda: parallel(module),
        "replicas": lambda: nn.DataParallel(module),
        "compiled": lambda: torch.compile(module),
        "both": lambda: torch.compile(parallel(module)),
    }[wrapping]()
    state = pyckpt.State(model)
    assert list(state.get_model_state_dict()) == ["0.weight", "0.bias"]
    assert list(state.state_dict()["model"]) == ["0.weight", "0.bias"]
    assert torch.equal(model_state_dict(state)["0.weight"], module[0].weight)


def test_weights_of_a_state_that_does_not_collect_them_itself() -> None:
    model = nn.Linear(2, 2)
    state: Any = SimpleNamespace(model=model)
    assert list(model_state_dict(state)) == ["weight", "bias"]


def test_the_protocol() -> None:
    state = pyckpt.State(nn.Identity())
    assert isinstance(state, pyckpt.TrainingState)
    assert not isinstance(nn.Identity(), pyckpt.TrainingState)
    assert not isinstance(SimpleNamespace(model=1, run_name=2, timestamp=3), pyckpt.TrainingState)


def test_timestamps() -> None:
    time = pyckpt.Timestamp(epoch=1, token=7, total_wct=datetime.timedelta(hours=1))
    fields = time.state_dict()
    assert set(fields) == {name for name in VARIABLES if hasattr(time, name)}
    assert len(fields) == 10
    again = copy.deepcopy(time)
    again.load_state_dict({"epoch": 2, "unknown": 3})
    assert again == pyckpt.Timestamp(epoch=2, token=7, total_wct=datetime.timedelta(hours=1))
    assert not hasattr(again, "unknown")


def test_a_module_is_no_engine() -> None:
    assert not is_deepspeed_engine(nn.Identity())
    assert not is_deepspeed_engine(None)


def test_none_is_no_scheduler() -> None:
    """Scripts pass None when they make a scheduler only for some runs."""
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    without, none = pyckpt.State(model, optimizer), pyckpt.State(model, optimizer, None)
    assert repr(none.state_dict()) == repr(without.state_dict())
    none.load_state_dict(without.state_dict())


def test_pickles_of_before_the_wings() -> None:
    """Pickles of version 0.1.0 name these modules, and must stay readable."""
    time = (
        b"\x80\x02cpyckpt.state\nTimestamp\nq\x00)\x81q\x01}q\x02(X\x05\x00\x00\x00epochq\x03K\x01X"
        b"\x05\x00\x00\x00batchq\x04K*ub."
    )
    assert pickle.loads(time).batch == 42
    error = b"\x80\x02cpyckpt.errors\nCheckpointError\nX\x01\x00\x00\x00x\x85R."
    assert isinstance(pickle.loads(error), pyckpt.CheckpointError)


def test_checkpoints_name_no_module_of_pyckpt(tmp_path: Path) -> None:
    """So they stay readable when modules of pyckpt move."""
    state = pyckpt.State(*build(0))
    [path] = pyckpt.save_checkpoint(state, tmp_path / "x.pt")
    with zipfile.ZipFile(path) as archive:
        names = [arg for _, arg, _ in pickletools.genops(archive.read("archive/data.pkl"))]
    assert not [name for name in names if isinstance(name, str) and "pyckpt" in name]
