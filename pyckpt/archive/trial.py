"""Measures how fast this machine saves and loads each format, for ``pyckpt bench``."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import torch

from pyckpt.archive.formats import usual_suffixes
from pyckpt.archive.load import load
from pyckpt.archive.save import save
from pyckpt.options import WriteOptions, whole_number

__all__ = ["measure"]

_TENSORS = 8


def measure(
    folder: Path, nbytes: int, *, num_threads: int | None = None
) -> dict[str, dict[str, float]]:
    """Saves and loads ``nbytes`` of float32 noise once in every format, without fsync.

    Returns:
        For each suffix: ``save_seconds``, ``load_seconds`` and ``file_nbytes``. The key ``"torch"``
        is for torch.save and torch.load.

    Raises:
        OptionError: ``nbytes`` is less than 1, or ``num_threads`` is wrong.
    """
    nbytes = whole_number("nbytes", nbytes, 1)
    WriteOptions(num_threads=num_threads)
    generator = torch.Generator().manual_seed(0)
    numel = max(1, nbytes // (4 * _TENSORS))
    state = {
        str(n): 0.02 * torch.randn(numel, generator=generator, device="cpu")
        for n in range(_TENSORS)
    }
    results = {}
    with tempfile.TemporaryDirectory(prefix="pyckpt-bench-", dir=folder) as name:
        for suffix in ["torch", *usual_suffixes()]:
            path = Path(name) / f"x{suffix}"
            start = time.perf_counter()
            if suffix == "torch":
                torch.save(state, path)
            else:
                save(state, path, num_threads=num_threads, fsync=False)
            saved = time.perf_counter()
            if suffix == "torch":
                torch.load(path, weights_only=True)
            else:
                load(path, num_threads=num_threads)
            loaded = time.perf_counter()
            results[suffix] = {
                "save_seconds": saved - start,
                "load_seconds": loaded - saved,
                "file_nbytes": float(path.stat().st_size),
            }
            path.unlink()
    return results
