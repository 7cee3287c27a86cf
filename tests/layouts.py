"""One small model, trained in every layout in which ranks share it.

A run gives the same losses in every layout, but for rounding: each step has a batch of its own,
which data-parallel ranks divide among them. Sizes do not divide evenly by four ranks. The model has
a tied weight, a buffer, and a parameter without dimensions.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor import Replicate
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)

import pyckpt
from pyckpt.state import each

__all__ = ["LAYOUTS", "OPTIMIZERS", "Run", "build", "differences", "whole"]

_SYMBOLS = 13
_BATCH, _LENGTH = 8, 3


class Model(nn.Module):
    """Guesses symbols. Parts that are None belong to another stage of a pipeline."""

    def __init__(self, tied: bool = True) -> None:
        super().__init__()
        self.embed: nn.Embedding | None = nn.Embedding(_SYMBOLS, 10)
        self.up: nn.Linear | None = nn.Linear(10, 22)
        self.down: nn.Linear | None = nn.Linear(22, 10)
        self.norm: nn.LayerNorm | None = nn.LayerNorm(10)
        self.head: nn.Linear | None = nn.Linear(10, _SYMBOLS, bias=False)
        self.scale: nn.Parameter | None = nn.Parameter(torch.tensor(1.5))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))
        if tied:
            self.head.weight = self.embed.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.embed is not None:
            x = self.up(self.embed(x))
        if self.head is not None:
            self.seen += _BATCH
            x = self.head(self.norm(self.down(torch.relu(x)))) * self.scale
        return x


@dataclass
class Run:
    """The training of one rank.

    Attributes:
        state: What is saved and restored. Its timestamp counts the steps.
        replicas: The number of ranks that divide a batch among them, and this rank's number.
        shared: Parameters whose gradients are averaged here, since their wrapper ignores them.
        group: The ranks that divide a batch.
        stage: This rank's stage of a pipeline and the rank that has the other one.
    """

    state: pyckpt.State
    replicas: tuple[int, int] = (1, 0)
    shared: tuple[nn.Parameter, ...] = ()
    group: dist.ProcessGroup | None = None
    stage: tuple[int, int] | None = None

    def train(self, steps: int) -> list[float]:
        """Trains and returns the losses of the whole batches."""
        return [self._step() for _ in range(steps)]

    def _step(self) -> float:
        generator = torch.Generator().manual_seed(self.state.timestamp.batch)
        batch = torch.randint(_SYMBOLS, (2, _BATCH, _LENGTH), generator=generator)
        count, number = self.replicas
        x, y = batch[:, number::count]
        loss = self._backward(x, y)
        for parameter in self.shared:
            dist.all_reduce(parameter.grad, group=self.group)
            parameter.grad /= count
        for optimizer in each(self.state.optimizers):
            optimizer.step()
            optimizer.zero_grad()
        for scheduler in each(self.state.schedulers):
            scheduler.step()
        self.state.timestamp.batch += 1
        return self._whole(loss.detach())

    def _backward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        if self.stage is None:
            return _backward(self.state.model(x), y)
        number, other = self.stage
        if number == 0:
            hidden = self.state.model(x)
            dist.send(hidden.detach(), other)
            gradient = torch.empty_like(hidden)
            dist.recv(gradient, other)
            hidden.backward(gradient)
            return torch.zeros(())
        hidden = torch.empty(*x.shape, 22)
        dist.recv(hidden, other)
        hidden.requires_grad_()
        loss = _backward(self.state.model(hidden), y)
        dist.send(hidden.grad, other)
        return loss

    def _whole(self, loss: torch.Tensor) -> float:
        """The mean of all ranks that have a loss."""
        if dist.is_initialized():
            dist.all_reduce(loss)
            loss /= dist.get_world_size() / (2 if self.stage is not None else 1)
        return loss.item()


def _backward(scores: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    loss = nn.functional.cross_entropy(scores.flatten(0, 1), y.flatten())
    loss.backward()
    return loss


def _adamw(model: nn.Module) -> list[torch.optim.Optimizer]:
    return [torch.optim.AdamW(model.parameters(), lr=0.05)]


def _sgd(model: nn.Module) -> list[torch.optim.Optimizer]:
    return [torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)]


def _muon(model: nn.Module) -> list[torch.optim.Optimizer]:
    """Muon takes matrices only. AdamW takes the rest, as is usual."""
    inner = {f"{part}.weight" for part in ("up", "down")}
    named = [(name.removeprefix("module."), one) for name, one in model.named_parameters()]
    matrices = [parameter for name, parameter in named if name in inner]
    rest = [parameter for name, parameter in named if name not in inner]
    return [torch.optim.Muon(matrices, lr=0.05), torch.optim.AdamW(rest, lr=0.05)]


OPTIMIZERS: dict[str, Callable[[nn.Module], list[torch.optim.Optimizer]]] = {
    "adamw": _adamw,
    "sgd": _sgd,
    "muon": _muon,
}


@functools.cache
def _mesh(*shape: int) -> DeviceMesh:
    """Made once: each mesh makes process groups."""
    names = ("outer", "inner")[-len(shape) :]
    return init_device_mesh("cpu", shape, mesh_dim_names=names)


def _single(model: Model) -> dict[str, Any]:
    return {"model": model}


def _ddp(model: Model) -> dict[str, Any]:
    replicas = (dist.get_world_size(), dist.get_rank())
    return {"model": nn.parallel.DistributedDataParallel(model), "replicas": replicas}


def _fsdp2(model: Model) -> dict[str, Any]:
    return _fully_sharded(model, _mesh(dist.get_world_size()))


def _hsdp(model: Model) -> dict[str, Any]:
    """Two groups of ranks have replicas; the ranks of each have shards."""
    return _fully_sharded(model, _mesh(2, dist.get_world_size() // 2))


def _fully_sharded(model: Model, mesh: DeviceMesh) -> dict[str, Any]:
    # Nothing that is sharded may be without dimensions.
    ignored = {model.scale} if model.scale is not None else set()
    if model.up is not None:
        fully_shard(model.up, mesh=mesh)
    fully_shard(model, mesh=mesh, ignored_params=ignored)
    number = mesh.get_coordinate()
    if mesh.ndim == 2:
        replicas, group = (mesh.size(), number[0] * mesh.size(1) + number[1]), None
    else:
        replicas, group = (mesh.size(), number[0]), mesh.get_group()
    return {"model": model, "replicas": replicas, "shared": tuple(ignored), "group": group}


def _fsdp1(model: Model, *, use_orig_params: bool = True) -> dict[str, Any]:
    options: dict[str, Any] = {
        "use_orig_params": use_orig_params,
        "device_id": torch.device("cpu"),
        "ignored_states": [model.scale],
    }
    shared = (model.scale,)
    model.up = FullyShardedDataParallel(model.up, **{**options, "ignored_states": None})
    wrapped = FullyShardedDataParallel(model, **options)
    replicas = (dist.get_world_size(), dist.get_rank())
    return {"model": wrapped, "replicas": replicas, "shared": shared}


def _tensor_parallel(model: Model, mesh: DeviceMesh | None = None) -> dict[str, Any]:
    plan = {
        "embed": RowwiseParallel(input_layouts=Replicate()),
        "up": ColwiseParallel(use_local_output=False),  # the local one would hide the odd size
        "down": RowwiseParallel(),
        "head": ColwiseParallel(output_layouts=Replicate()),
    }
    tied = model.head.weight is model.embed.weight
    parallelize_module(model, mesh or _mesh(dist.get_world_size()), plan)
    if tied:
        model.head.weight = model.embed.weight
    return {"model": model}


def _fsdp2_and_tensor_parallel(model: Model) -> dict[str, Any]:
    mesh = _mesh(dist.get_world_size() // 2, 2)
    _tensor_parallel(model, mesh["inner"])
    return _fully_sharded(model, mesh["outer"])


def _pipeline(model: Model) -> dict[str, Any]:
    """Two stages. With four ranks, those of a stage shard it among them."""
    half = dist.get_world_size() // 2
    number, place = divmod(dist.get_rank(), half)
    for part in ("embed", "up") if number else ("down", "norm", "head", "scale"):
        setattr(model, part, None)
    if number == 0:
        del model.seen
    options = _fully_sharded(model, _mesh(2, half)["inner"]) if half > 1 else {"model": model}
    return {**options, "stage": (number, (1 - number) * half + place)}


LAYOUTS: dict[str, Callable[[Model], dict[str, Any]]] = {
    "single": _single,
    "ddp": _ddp,
    "fsdp2": _fsdp2,
    "hsdp": _hsdp,
    "fsdp1": _fsdp1,
    "fsdp1-flat": functools.partial(_fsdp1, use_orig_params=False),
    "tp": _tensor_parallel,
    "fsdp2-tp": _fsdp2_and_tensor_parallel,
    "pipeline": _pipeline,
}


def build(layout: str, optimizer: str, *, seed: int, tied: bool) -> Run:
    """A new run on this rank. A weight that stages of a pipeline shared could not be tied."""
    torch.manual_seed(seed)
    options = LAYOUTS[layout](Model(tied))
    model = options.pop("model")
    optimizers = OPTIMIZERS[optimizer](model)
    schedulers = [torch.optim.lr_scheduler.StepLR(one, 2, 0.5) for one in optimizers]
    return Run(pyckpt.State(model, optimizers, schedulers), **options)


# Values of optimizers by the parameters' names, as stages of a pipeline need it.
_WHOLE = StateDictOptions(flatten_optimizer_state_dict=True, full_state_dict=True)


def whole(run: Run) -> dict[str, Any]:
    """Weights, buffers and the optimizers' values of all ranks, by name, gathered by torch."""
    model, optimizer = get_state_dict(run.state.model, each(run.state.optimizers), options=_WHOLE)
    own = {f"model {name}": value for name, value in model.items()}
    own.update({f"optimizer {name}": value for name, value in optimizer.items()})
    parts: list[dict[str, Any]] = [{} for _ in range(dist.get_world_size())]
    dist.all_gather_object(parts, own)  # stages of a pipeline have different names
    return {name: value for part in parts for name, value in part.items()}


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and one.shape == other.shape and torch.equal(one, other)
    return bool(one == other)


def differences(run: Run, saved: dict[str, Any]) -> list[str]:
    """In what the run differs from one whose ``whole`` was saved."""
    restored = whole(run)
    return sorted(
        name
        for name in restored.keys() | saved.keys()
        if name not in restored or name not in saved or not _same(restored[name], saved[name])
    )
