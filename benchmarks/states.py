"""The states that are saved: real ones, from a short training of a transformer.

How well bytes compress depends on the bytes. So every weight and every moment of AdamW comes from
training: a character model of the requested size learns the sources of Python's standard library.
Only the noise in ``CODEC_STATES``, ``REPETITIVE_STATES`` and ``INCOMPRESSIBLE`` is not trained.
Seeds are fixed, so two runs on one machine save the same bytes. A smaller state is a narrower
model, trained in the same way. The training is short: weights are still near the normal noise that
they start from, but moments are those of real gradients.
"""

from __future__ import annotations

import math
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pyckpt import State

__all__ = [
    "CODEC_STATES",
    "INCOMPRESSIBLE",
    "REPETITIVE_STATES",
    "STATES",
    "CharacterModel",
    "StateKind",
    "library_text",
    "tensors_of",
    "train",
    "trained",
    "untrained",
]

_BLOCKS = 8
_HEADS = 4
_WIDTH_STEP = 4 * _HEADS
_CONTEXT = 64  # characters
_CHARACTERS = 256  # one for each byte value
_TEXT_NBYTES = 2_000_000
_LEARNING_RATE = 1e-3


class CharacterModel(nn.Module):
    """A transformer that predicts the next character."""

    def __init__(self, width: int, blocks: int = _BLOCKS) -> None:
        super().__init__()
        self.characters = nn.Embedding(_CHARACTERS, width)
        self.positions = nn.Embedding(_CONTEXT, width)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width, _HEADS, 4 * width, dropout=0.0, batch_first=True, norm_first=True
            )
            for _ in range(blocks)
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, _CHARACTERS)
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, text: torch.Tensor) -> torch.Tensor:
        """Scores of every next character, for ``text`` of shape (batch, context)."""
        length = text.shape[1]
        positions = torch.arange(length, device=text.device)
        x = self.characters(text) + self.positions(positions)
        mask = nn.Transformer.generate_square_subsequent_mask(length, device=text.device)
        for block in self.blocks:
            x = block(x, src_mask=mask, is_causal=True)
        scores: torch.Tensor = self.head(self.norm(x))
        return scores


def library_text(nbytes: int = _TEXT_NBYTES) -> torch.Tensor:
    """The first ``nbytes`` of the standard library's top-level modules, in order of their names."""
    text = bytearray()
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        text += path.read_bytes()
        if len(text) >= nbytes:
            break
    return torch.frombuffer(text[:nbytes], dtype=torch.uint8).long()


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    text: torch.Tensor,
    *,
    steps: int,
    batch: int,
) -> Iterator[float]:
    """Trains on random passages of ``text``, on its device; yields the loss of each step.

    Uses one thread, so that sums do not depend on the number of CPUs.
    """
    torch.set_num_threads(1)
    for _ in range(steps):
        starts = torch.randint(len(text) - _CONTEXT - 1, (batch,))
        passages = torch.stack([text[start : start + _CONTEXT + 1] for start in starts.tolist()])
        scores = model(passages[:, :-1])
        loss = nn.functional.cross_entropy(scores.flatten(0, 1), passages[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        yield float(loss.detach())


def tensors_of(tree: Any) -> Iterator[torch.Tensor]:
    """Every tensor in nested dicts, lists and tuples."""
    if isinstance(tree, torch.Tensor):
        yield tree
    elif isinstance(tree, dict):
        for value in tree.values():
            yield from tensors_of(value)
    elif isinstance(tree, list | tuple):
        for value in tree:
            yield from tensors_of(value)


@dataclass(frozen=True)
class StateKind:
    """A kind of state, of any size.

    Attributes:
        name: What it holds.
        build: Makes a state of about the given number of bytes.
    """

    name: str
    build: Callable[[int], dict[str, Any]]


def untrained(parameters: int) -> CharacterModel:
    """A new model of about ``parameters`` parameters."""
    # A block has about 12 width^2 weights; the rest of the model is small.
    width = math.sqrt(parameters / (12 * _BLOCKS))
    torch.manual_seed(0)
    return CharacterModel(max(1, round(width / _WIDTH_STEP)) * _WIDTH_STEP)


def trained(
    parameters: int, *, steps: int, batch: int, device: str = "cpu"
) -> tuple[nn.Module, torch.optim.Optimizer]:
    """A model of about ``parameters`` parameters, and its optimizer, after ``steps`` steps."""
    model = untrained(parameters).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=_LEARNING_RATE, foreach=False)
    for _ in train(model, optimizer, library_text().to(device), steps=steps, batch=batch):
        pass
    return model, optimizer


def _weights_and_moments(nbytes: int) -> dict[str, Any]:
    """A whole training state in float32: weights and the two moments of AdamW."""
    model, optimizer = trained(nbytes // 12, steps=12, batch=2)
    return State(model, optimizer).state_dict()


def _half_weights(nbytes: int) -> dict[str, Any]:
    """Weights alone, rounded to bfloat16 after training."""
    model, _ = trained(nbytes // 2, steps=6, batch=1)
    return State(model.to(torch.bfloat16)).state_dict()


def _moments(nbytes: int) -> dict[str, Any]:
    """The two moments of AdamW alone, after real steps."""
    _, optimizer = trained(nbytes // 8, steps=12, batch=2)
    moments = optimizer.state_dict()["state"].values()
    return {name: [m[name] for m in moments] for name in ("exp_avg", "exp_avg_sq")}


def _noise(nbytes: int) -> dict[str, Any]:
    """Normal noise in float32, as fresh weights are, of four scales."""
    generator = torch.Generator().manual_seed(0)
    scales = (1.0, 0.02, 1e-3, 30.0)
    count = nbytes // 4 // len(scales)
    return {f"{scale:g}": scale * torch.randn(count, generator=generator) for scale in scales}


def _half_noise(nbytes: int) -> dict[str, Any]:
    """The same in bfloat16."""
    noise = _noise(2 * nbytes)
    return {name: tensor.to(torch.bfloat16) for name, tensor in noise.items()}


STATES = (
    StateKind("fp32 weights and AdamW moments", _weights_and_moments),
    StateKind("bf16 weights", _half_weights),
)

CODEC_STATES = (
    StateKind("fp32 noise", _noise),
    StateKind("bf16 noise", _half_noise),
    StateKind("AdamW moments", _moments),
    StateKind("trained state", _weights_and_moments),
)


def _tiled(tile_nbytes: int) -> Callable[[int], dict[str, Any]]:
    def build(nbytes: int) -> dict[str, Any]:
        tile = torch.randn(tile_nbytes // 4, generator=torch.Generator().manual_seed(0))
        return {"tiled": tile.repeat(max(2, nbytes // tile_nbytes))}

    return build


def _token_ids(nbytes: int) -> dict[str, Any]:
    """Random token ids of a vocabulary of 50,257, as int64."""
    generator = torch.Generator().manual_seed(0)
    return {"ids": torch.randint(50_257, (nbytes // 8,), generator=generator)}


def _bytes_of_noise(nbytes: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    return {"noise": torch.randint(256, (nbytes,), dtype=torch.uint8, generator=generator)}


REPETITIVE_STATES = (
    StateKind("zeros", lambda nbytes: {"zeros": torch.zeros(nbytes // 4)}),
    StateKind("token ids", _token_ids),
    StateKind("a counter", lambda nbytes: {"counter": torch.arange(nbytes // 8)}),
    StateKind("text", lambda nbytes: {"text": library_text(nbytes).to(torch.uint8)}),
    StateKind("4 kB, tiled", _tiled(4096)),
    StateKind("3 MB, tiled", _tiled(3_000_000)),
)
INCOMPRESSIBLE = StateKind("incompressible bytes", _bytes_of_noise)
