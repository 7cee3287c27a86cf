"""One rank of a real DeepSpeed run.

``save`` trains, saves and trains on. ``resume`` loads the extracted archives with DeepSpeed and
trains on. ``load...`` loads the archives with pyckpt and trains on. ``fail...`` makes the save
fail. With ``nvme`` the optimizer's tensors are in files, and DeepSpeed saves as well. Every rank
reports paths, error and the losses after the save to OUT/MODE-RANK.json.

Usage: torchrun ... deepspeed_worker.py MODE STAGE OUT FILENAME [moe | nvme]
"""

import gc
import json
import os
import sys
from pathlib import Path

os.environ.setdefault("DS_ACCELERATOR", "cpu")

import deepspeed
import torch
from torch import nn

import pyckpt

MODE, STAGE, OUT, FILENAME = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4]
MOE = "moe" in sys.argv[5:]
NVME = "nvme" in sys.argv[5:]
# DeepSpeed swaps out tensors of 1 MiB and more.
WIDTH = 16384 if NVME else 32
TRAINED, MORE = 3, 3


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(16, WIDTH)
        self.experts = self._experts() if MOE else nn.Identity()
        self.norm = nn.LayerNorm(WIDTH)
        self.last = nn.Linear(WIDTH, 16)

    @staticmethod
    def _experts() -> nn.Module:
        from deepspeed.moe.layer import MoE

        expert = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU())
        return MoE(WIDTH, expert, num_experts=4, ep_size=2, k=1, min_capacity=4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.first(x)))
        x = self.experts(x)[0] if MOE else self.experts(x)
        return self.last(x)


def start() -> deepspeed.DeepSpeedEngine:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    deepspeed.init_distributed("gloo")
    net = Net()
    parameters = list(net.parameters())
    if MOE:
        from deepspeed.moe.utils import split_params_into_different_moe_groups_for_optimizer

        parameters = split_params_into_different_moe_groups_for_optimizer(
            {"params": parameters, "name": "all"}
        )
    config = {
        "train_micro_batch_size_per_gpu": 4,
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-2, "torch_adam": True}},
        "zero_optimization": {"stage": STAGE, "stage3_param_persistence_threshold": 0},
        "bf16": {"enabled": True},
    }
    if NVME:
        swap = {"device": "nvme", "nvme_path": str(OUT / f"nvme-{MODE}"), "pin_memory": False}
        config["zero_optimization"]["offload_optimizer"] = swap
        config["zero_force_ds_cpu_optimizer"] = False
    engine, *_ = deepspeed.initialize(model=net, config=config, model_parameters=parameters)
    return engine


def train(engine: deepspeed.DeepSpeedEngine, first: int, last: int) -> list[float]:
    losses = []
    for step in range(first, last):
        generator = torch.Generator().manual_seed(1000 * step + engine.global_rank)
        x = torch.randn(4, 16, generator=generator).bfloat16()
        loss = engine(x).float().pow(2).mean()
        engine.backward(loss)
        engine.step()
        losses.append(loss.item())
    return losses


def load(engine: deepspeed.DeepSpeedEngine) -> dict[str, object]:
    torch.manual_seed(99)
    state = pyckpt.State(model=engine)
    before = engine.checkpoint_engine
    weights = [parameter.detach().clone() for parameter in engine.module.parameters()]
    report: dict[str, object] = {}
    try:
        states = pyckpt.load_checkpoint(FILENAME, state, load_weights_only=MODE == "load-weights")
        report["random_states"] = states and len(states)
    except pyckpt.CheckpointError as error:
        report["error"] = [type(error).__name__, str(error), error.rank, error.path]
        report["unchanged"] = all(map(torch.equal, weights, engine.module.parameters()))
    report["batch"] = state.timestamp.batch
    report["per_rank"] = state.per_rank
    report["restored"] = engine.checkpoint_engine is before
    report["drawn"] = torch.rand(()).item()
    return report


class Unpicklable:
    def __reduce__(self) -> str:
        raise RuntimeError("this state cannot be pickled")


def main() -> None:
    run()
    # The engine is part of a reference cycle. If it still holds the group at exit, the process may
    # abort.
    gc.collect()
    torch.distributed.destroy_process_group()


def in_a_group(state: pyckpt.State) -> list[str]:
    """What a save and a load raise in a group that has this rank alone."""
    group = [torch.distributed.new_group([rank]) for rank in range(2)][torch.distributed.get_rank()]
    errors = []
    for call in (
        lambda: pyckpt.save_checkpoint(state, FILENAME, process_group=group),
        lambda: pyckpt.load_checkpoint(FILENAME, state, process_group=group),
    ):
        try:
            call()
        except pyckpt.OptionError as error:
            errors.append(str(error))
    return errors


def run() -> None:
    engine = start()
    rank = engine.global_rank
    report: dict[str, object] = {}
    if MODE == "save" or MODE.startswith("fail"):
        train(engine, 0, TRAINED)
        before = engine.checkpoint_engine
        kind = Sabotaged if MODE == "fail-commit" else pyckpt.State
        state = kind(
            engine,
            run_name="ds",
            timestamp=pyckpt.Timestamp(batch=TRAINED),
            per_rank={"seen": 5 + rank},
        )
        if MODE == "fail" and rank == 1:
            # In ZeRO 3 every rank saves the scheduler, and only DeepSpeed's save notices the error.
            engine.lr_scheduler = Unsavable()
        try:
            paths = pyckpt.save_checkpoint(state, FILENAME, weights_only=MODE == "fail-weights")
            report["paths"] = [str(p) for p in paths]
            report["drawn"] = torch.rand(()).item()
        except pyckpt.CheckpointError as error:
            report["error"] = [type(error).__name__, str(error), error.rank]
        if NVME:
            engine.save_checkpoint(str(OUT / "by-deepspeed"), tag="deepspeed")
        report["restored"] = engine.checkpoint_engine is before
    elif MODE.startswith("load"):
        report |= load(engine)
    elif MODE == "group":
        report["errors"] = in_a_group(pyckpt.State(engine))
    else:
        engine.load_checkpoint(str(OUT / "extracted"), tag="deepspeed")
    report["losses"] = train(engine, TRAINED, TRAINED + MORE)
    (OUT / f"{MODE}-{rank}.json").write_text(json.dumps(report))


class Sabotaged(pyckpt.State):
    """While the state is collected, a folder takes the place of rank 1's file."""

    def state_dict(self) -> dict[str, object]:
        if self.model.global_rank == 1:
            Path(FILENAME.format(run_name=self.run_name, rank=1)).mkdir()
        return super().state_dict()


class Unsavable:
    """A scheduler whose state cannot be saved."""

    def step(self, *_: object, **__: object) -> None:
        pass

    def state_dict(self) -> dict[str, object]:
        return {"bad": Unpicklable()}


if __name__ == "__main__":
    main()
