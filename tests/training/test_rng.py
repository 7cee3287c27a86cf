"""Random states: what is saved puts every generator back where it was."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import pyckpt
from pyckpt.training.rng import rng_state, set_rng_state


def draw() -> tuple[float, float, float]:
    return random.random(), float(np.random.random()), torch.rand(()).item()


@pytest.mark.parametrize("suffix", ["", ".tar.gz"])
def test_generators_go_on_from_what_was_saved(tmp_path: Path, suffix: str) -> None:
    draw()
    state = rng_state()
    assert [name for name in state if name != "cuda"] == ["python", "numpy", "torch"]
    pyckpt.save(state, tmp_path / f"x{suffix}")
    expected = [draw() for _ in range(3)]
    loaded = pyckpt.load(tmp_path / f"x{suffix}")
    set_rng_state(loaded)
    assert [draw() for _ in range(3)] == expected


def test_taking_the_states_draws_nothing() -> None:
    before = random.getstate(), torch.get_rng_state()
    rng_state()
    assert random.getstate() == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])


def test_cuda_is_left_alone_until_it_is_in_use() -> None:
    program = (
        "import torch\nfrom pyckpt.training.rng import rng_state\n"
        "assert 'cuda' not in rng_state() and not torch.cuda.is_initialized()\n"
        "if torch.cuda.is_available():\n"
        "    torch.cuda.init()\n"
        "    assert list(rng_state()) == ['python', 'numpy', 'torch', 'cuda']\n"
        "    assert torch.equal(rng_state()['cuda'], torch.cuda.get_rng_state())\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_cuda_is_restored_where_there_is_one() -> None:
    program = (
        "import torch\nfrom pyckpt.training.rng import rng_state, set_rng_state\n"
        "if torch.cuda.is_available():\n"
        "    torch.cuda.init()\n"
        "    state = rng_state()\n"
        "    expected = torch.rand(8, device='cuda')\n"
        "    set_rng_state(state)\n"
        "    assert torch.equal(torch.rand(8, device='cuda'), expected)\n"
        "else:\n"
        "    set_rng_state({'cuda': torch.zeros(16, dtype=torch.uint8)})\n"
        "    assert not torch.cuda.is_initialized()\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_only_what_is_named_is_restored() -> None:
    before = rng_state()
    expected = draw()
    set_rng_state({"python": before["python"]})
    again = draw()
    assert again[0] == expected[0]
    assert again[1:] != expected[1:]
