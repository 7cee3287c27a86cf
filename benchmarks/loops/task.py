"""What is trained, how often it is saved and in which ways, and a clock."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import torch
from torch import nn

from benchmarks.states import CharacterModel, library_text, untrained

__all__ = [
    "LEARNING_RATE",
    "NO_SAVES",
    "PYCKPT",
    "STOCK",
    "Clock",
    "Task",
    "Way",
    "last",
    "loss_of",
]

LEARNING_RATE = 1e-3


@dataclass(frozen=True)
class Way:
    """One way to save. The framework's own do not flush their files to the disk."""

    name: str
    by_pyckpt: bool = False
    asynchronous: bool = False
    fsync: bool = False


NO_SAVES = Way("no saves")
STOCK = Way("stock")
PYCKPT = tuple(
    Way(
        f"pyckpt{', asynchronous' if asynchronous else ''}{', fsync' if fsync else ''}",
        by_pyckpt=True,
        asynchronous=asynchronous,
        fsync=fsync,
    )
    for asynchronous in (False, True)
    for fsync in (False, True)
)


@dataclass(frozen=True)
class Task:
    """What is trained.

    Attributes:
        nbytes: Of weights and AdamW moments, about.
        every: Steps from save to save. The first ones warm up.
        saves: How many are measured, each with the steps that follow it. One more ends the run.
        characters: In a step.
    """

    nbytes: int
    every: int
    saves: int
    characters: int

    @property
    def steps(self) -> int:
        """How many a run has."""
        return self.every * (self.saves + 1)

    def model(self) -> CharacterModel:
        """The model, always with the same weights."""
        return untrained(self.nbytes // 12)

    def passages(self) -> torch.Tensor:
        """One for each step, each a character longer than what the model sees of it."""
        length = self.characters + 1
        return library_text(self.steps * length).view(self.steps, length)


def loss_of(model: nn.Module, passages: torch.Tensor) -> torch.Tensor:
    """How well the model predicts each next character."""
    scores = model(passages[:, :-1])
    return nn.functional.cross_entropy(scores.flatten(0, 1), passages[:, 1:].flatten())


@dataclass
class Clock:
    """Notes when each step ended."""

    ends: list[float] = field(default_factory=list)

    def step(self) -> None:
        """A step has ended, and what may be saved after it has not begun."""
        self.ends.append(time.perf_counter())

    def seconds(self, task: Task) -> list[float]:
        """Of each save that is measured, with the steps from it to the next one."""
        before = self.ends[task.every - 1 :: task.every]
        return [end - start for start, end in pairwise(before)]


def last(folder: Path, pattern: str) -> Path:
    """The file or folder with the highest number in its name, which is the only number there."""
    found = folder.glob(pattern)
    return max(found, key=lambda path: int("".join(filter(str.isdigit, path.name))))
