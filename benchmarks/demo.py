"""A training run that is saved in every format, loaded again, and compared bit by bit.

    python -m benchmarks.demo [--keep DIR]

A character model learns from the standard library's sources for a few dozen steps. Each format is
saved once by pyckpt and once in Composer's way, both waiting for the disk.
"""

from __future__ import annotations

import argparse
import datetime
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import pyckpt
from benchmarks.equality import differences
from benchmarks.rivals import composers_way
from benchmarks.states import CharacterModel, library_text, tensors_of, train
from benchmarks.table import format_table
from pyckpt.archive.formats import file_suffixes, usual_suffixes
from pyckpt.training.rng import rng_state

__all__ = ["main"]

_FORMATS = (*usual_suffixes(), *file_suffixes(), "")
_FILENAME = "{run_name}/ep{epoch}-ba{batch}-rank{rank}"
_WIDTH = 160
_BLOCKS = 4
_STEPS = 40
_BATCH = 8


def main(arguments: Sequence[str] | None = None) -> int:
    """Trains, saves, loads and compares; returns 1 if anything differs."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.demo", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--keep", type=Path, metavar="DIR", help="leave the checkpoints there")
    keep = parser.parse_args(arguments).keep
    state = _train()
    if keep is not None:
        return _save_all(state, keep)
    with tempfile.TemporaryDirectory(prefix="pyckpt-demo-") as folder:
        return _save_all(state, Path(folder))


def _train() -> pyckpt.State:
    torch.manual_seed(0)
    text = library_text()
    model = CharacterModel(_WIDTH, _BLOCKS)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, _STEPS)
    start = time.perf_counter()
    losses = []
    for loss in train(model, optimizer, text, steps=_STEPS, batch=_BATCH):
        losses.append(loss)
        scheduler.step()
    seconds = time.perf_counter() - start
    parameters = sum(parameter.numel() for parameter in model.parameters())
    _say(
        f"{_STEPS} batches through {parameters:,} parameters in {seconds:.1f} s: "
        f"loss {losses[0]:.2f} to {losses[-1]:.2f}"
    )
    timestamp = pyckpt.Timestamp(
        batch=_STEPS,
        batch_in_epoch=_STEPS,
        sample=_STEPS * _BATCH,
        sample_in_epoch=_STEPS * _BATCH,
        total_wct=datetime.timedelta(seconds=seconds),
    )
    return pyckpt.State(model, optimizer, scheduler, run_name="demo", timestamp=timestamp)


def _save_all(state: pyckpt.State, folder: Path) -> int:
    nbytes = sum(tensor.nbytes for tensor in tensors_of(state.state_dict()))
    _say(f"a state of {nbytes:,} bytes of tensors, into {folder}\n")
    rows: list[tuple[str, ...]] = []
    failures: list[str] = []
    for suffix in _FORMATS:
        expected = {"state": state.state_dict(), "rng": [rng_state()]}
        start = time.perf_counter()
        (path,) = pyckpt.save_checkpoint(state, folder / f"{_FILENAME}{suffix}")
        ours = _columns(path, nbytes, time.perf_counter() - start)
        failures += _read_back(expected, path)

        rival = folder / "composers-way" / path.name
        rival.parent.mkdir(parents=True, exist_ok=True)
        start = time.perf_counter()
        composers_way(expected, rival, fsync=True)
        theirs = _columns(rival, nbytes, time.perf_counter() - start)
        rows.append((suffix or "(none)", *ours, *theirs))
    columns = ("bytes", "ratio", "seconds", "MB/s")
    header = ("", *columns, *(f"Composer's {column}" for column in columns))
    _say(format_table(header, rows))
    for failure in failures:
        _say(f"FAILED: {failure}")
    if not failures:
        _say("\nEvery checkpoint loads back as it was saved, bit by bit.")
    return 1 if failures else 0


def _columns(path: Path, nbytes: int, seconds: float) -> tuple[str, ...]:
    size = path.stat().st_size
    return (
        f"{size:,}",
        f"{size / nbytes:.4f}",
        f"{seconds:.3f}",
        f"{nbytes / seconds / 1e6:.1f}",
    )


def _read_back(expected: dict[str, Any], path: Path) -> list[str]:
    return [f"{path.name}: {difference}" for difference in differences(expected, pyckpt.load(path))]


def _say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
