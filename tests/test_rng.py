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
from pyckpt.rng import rng_state


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
    random.setstate(loaded["python"])
    np.random.set_state(loaded["numpy"])
    torch.set_rng_state(loaded["torch"])
    assert [draw() for _ in range(3)] == expected


def test_taking_the_states_draws_nothing() -> None:
    before = random.getstate(), torch.get_rng_state()
    rng_state()
    assert random.getstate() == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])


def test_cuda_is_left_alone_until_it_is_in_use() -> None:
    program = (
        "import torch\nfrom pyckpt.rng import rng_state\n"
        "assert 'cuda' not in rng_state() and not torch.cuda.is_initialized()\n"
        "if torch.cuda.is_available():\n"
        "    torch.cuda.init()\n"
        "    assert list(rng_state()) == ['python', 'numpy', 'torch', 'cuda']\n"
        "    assert torch.equal(rng_state()['cuda'], torch.cuda.get_rng_state())\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
