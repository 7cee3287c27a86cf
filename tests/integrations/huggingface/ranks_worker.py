"""Trains on two ranks: ranks_worker.py FOLDER. Each rank writes what it has seen to rank-R.json."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import transformers

import pyckpt
from pyckpt.integrations import huggingface
from pyckpt.integrations.accelerate import Accelerator
from tests.integrations.huggingface.training import AsynchronousTrainer, losses, make_trainer

FOLDER, RANK = Path(sys.argv[1]), int(os.environ["RANK"])


def failing(cls: Any, rank: int, method: str) -> Any:
    """A class of Trainer whose second save fails on one rank, in one method."""

    def fail(self: Any, *args: Any, **kwargs: Any) -> Any:
        if rank == RANK and self.state.global_step == 4:
            raise OSError(28, "No space left on device")
        return getattr(stock, method)(self, *args, **kwargs)

    stock = type("Stock", (transformers.Trainer,), {})
    failing = type("Failing", (stock,), {method: fail})
    return type("Ours", (huggingface.CheckpointMixin, failing), {"asynchronous": cls.asynchronous})


def train(cls: Any, name: str, **arguments: Any) -> Any:
    trainer = make_trainer(cls, FOLDER / name, **arguments)
    try:
        trainer.train(resume_from_checkpoint=arguments.pop("resume", None))
    except pyckpt.CheckpointError as error:
        return f"{type(error).__name__}: {error}".replace(str(FOLDER), "")
    return losses(trainer)


def resumed(cls: Any, checkpoint: str) -> Any:
    trainer = make_trainer(cls, FOLDER / "resumed", save_strategy="no")
    trainer.train(resume_from_checkpoint=str(FOLDER / checkpoint))
    return losses(trainer)


def accelerated(asynchronous: bool) -> Any:
    """Whether a stock load brings random states back; and the error of a failed save."""
    accelerator = Accelerator(cpu=True)
    model = torch.nn.Linear(3, 3)
    model, optimizer = accelerator.prepare(model, torch.optim.AdamW(model.parameters()))
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    torch.manual_seed(RANK)
    folder = accelerator.save_state(FOLDER / f"state-{asynchronous}", asynchronous=asynchronous)
    before = torch.rand(1).item()
    accelerator.wait_for_checkpoint()
    super(Accelerator, accelerator).load_state(str(folder))
    after = torch.rand(1).item()

    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    if RANK == 1:
        accelerator.register_save_state_pre_hook(fail)
    try:
        accelerator.save_state(folder, asynchronous=asynchronous)
    except pyckpt.CheckpointError as error:
        return [before == after, str(error).replace(str(FOLDER), "")]


def main() -> None:
    torch.set_num_threads(1)
    best: dict[str, Any] = {
        "eval_strategy": "steps",
        "eval_steps": 2,
        "load_best_model_at_end": True,
        "metric_for_best_model": "loss",
        "save_total_limit": 1,
    }
    seen = {"stock": train(transformers.Trainer, "stock")}
    for cls in (huggingface.Trainer, AsynchronousTrainer):
        name = cls.__name__
        seen[name] = train(cls, name)
        seen[f"{name} resumed"] = resumed(transformers.Trainer, f"{name}/checkpoint-4")
        # Between the two the Trainer waits in a barrier, if it looks for the best checkpoint.
        seen[f"{name} model"] = train(failing(cls, 0, "save_model"), f"{name}-model", **best)
        seen[f"{name} random"] = train(failing(cls, 1, "_save_rng_state"), f"{name}-random", **best)
    seen["accelerate"] = [accelerated(False), accelerated(True)]
    (FOLDER / f"rank-{RANK}.json").write_text(json.dumps(seen))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
