"""A small training with DeepSpeed, of which all losses are reproducible."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import deepspeed
import torch
from torch import nn

WIDTH = 32


@dataclass(frozen=True)
class Recipe:
    """What is trained. ``moe``: with experts, of which each rank has a part."""

    stage: int
    moe: bool = False

    @property
    def dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.stage else torch.float32


class Net(nn.Module):
    """Two of its layers share a weight."""

    def __init__(self, moe: bool) -> None:
        super().__init__()
        self.first = nn.Linear(16, WIDTH)
        self.experts = _experts() if moe else None
        self.middle = nn.Linear(WIDTH, WIDTH)
        self.again = nn.Linear(WIDTH, WIDTH)
        if not moe:
            self.again.weight = self.middle.weight
        self.last = nn.Linear(WIDTH, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.first(x))
        if self.experts is not None:
            x = self.experts(x)[0]
        return self.last(torch.relu(self.again(torch.relu(self.middle(x)))))


def _experts() -> nn.Module:
    from deepspeed.moe.layer import MoE

    expert = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU())
    return MoE(WIDTH, expert, num_experts=4, ep_size=2, k=1, min_capacity=4)


def start(recipe: Recipe, seed: int = 0) -> deepspeed.DeepSpeedEngine:
    """A new engine. Another seed makes other weights."""
    torch.manual_seed(seed)
    net = Net(recipe.moe)
    parameters: Any = list(net.parameters())
    if recipe.moe:
        from deepspeed.moe.utils import split_params_into_different_moe_groups_for_optimizer

        parameters = split_params_into_different_moe_groups_for_optimizer(
            {"params": parameters, "name": "all"}
        )
    config = {
        "train_micro_batch_size_per_gpu": 4,
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-2, "torch_adam": True}},
        "scheduler": {"type": "WarmupLR", "params": {"warmup_num_steps": 8}},
        "zero_optimization": {"stage": recipe.stage, "stage3_param_persistence_threshold": 0},
        "bf16": {"enabled": recipe.stage > 0},
        "communication_data_type": "bf16" if recipe.stage else "fp32",
    }
    if recipe.stage == 3:
        config["zero_optimization"]["stage3_gather_16bit_weights_on_model_save"] = True
    engine, *_ = deepspeed.initialize(model=net, config=config, model_parameters=parameters)
    return engine


def train(engine: deepspeed.DeepSpeedEngine, recipe: Recipe, *steps: int) -> list[float]:
    """Trains these steps, whose data depends on the step and the rank; returns the losses."""
    losses = []
    for step in steps:
        generator = torch.Generator().manual_seed(1000 * step + engine.global_rank)
        x = torch.randn(4, 16, generator=generator).to(recipe.dtype)
        torch.manual_seed(step)  # experts draw noise
        loss = engine(x).float().pow(2).mean()
        engine.backward(loss)
        engine.step()
        losses.append(loss.item())
    return losses


def files_in(folder: Path) -> dict[str, bytes]:
    """All files below a folder, and empty folders as if they were files."""
    return {
        os.path.relpath(path, folder): path.read_bytes() if path.is_file() else b""
        for path in sorted(folder.rglob("*"))
        if path.is_file() or not any(path.iterdir())
    }
