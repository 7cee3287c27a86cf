"""A tiny training by a Trainer."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM, TrainingArguments

from pyckpt.integrations import huggingface

transformers.utils.logging.disable_progress_bar()


class AsynchronousTrainer(huggingface.Trainer):
    asynchronous = True


TRAINERS = {
    "stock": transformers.Trainer,
    "blocking": huggingface.Trainer,
    "asynchronous": AsynchronousTrainer,
}


class Tokens(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    """Random sequences, the same ones every time."""

    def __len__(self) -> int:
        return 64

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(index)
        tokens = torch.randint(0, 100, (16,), generator=generator)
        return {"input_ids": tokens, "labels": tokens}


def tiny_model(*, tied: bool = True, hidden_size: int = 32) -> LlamaForCausalLM:
    """A model of two layers with dropout, so that random states matter."""
    transformers.set_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=100,
            hidden_size=hidden_size,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=4,
            attention_dropout=0.1,
            tie_word_embeddings=tied,
        )
    )


def make_trainer(
    cls: Any, folder: Path, *, tied: bool = True, hidden_size: int = 32, **arguments: Any
) -> Any:
    """A Trainer that saves every second of six steps."""
    defaults: dict[str, Any] = {"max_steps": 6, "save_steps": 2}
    return cls(
        model=tiny_model(tied=tied, hidden_size=hidden_size),
        args=TrainingArguments(
            str(folder),
            per_device_train_batch_size=4,
            logging_steps=1,
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
            **{**defaults, **arguments},
        ),
        train_dataset=Tokens(),
        eval_dataset=Tokens(),
    )


def losses(trainer: Any) -> list[float]:
    """The loss of every step, and of the steps before it resumed."""
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
