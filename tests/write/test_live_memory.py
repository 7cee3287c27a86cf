"""Memory that is read in place until it is staged, by threads that race each other."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pyckpt import _core
from tests.launch import WORKERS
from tests.preloads import preload

PIECE = 1 << 20
ALIGNMENT = 64

pytestmark = pytest.mark.timeout(120)


def read(source: _core.Source, offset: int, nbytes: int) -> bytes:
    memory = (ctypes.c_uint8 * nbytes)()
    source.read(offset, nbytes, ctypes.addressof(memory))
    return bytes(memory)


def noise(nbytes: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (nbytes,), dtype=torch.uint8, generator=generator)


def add(live: _core.LiveMemory, tensor: torch.Tensor) -> _core.Source:
    return live.add(tensor.data_ptr(), tensor.nbytes)


def stage(live: _core.LiveMemory) -> torch.Tensor:
    buffer = torch.empty(live.staging_nbytes, dtype=torch.uint8)
    live.stage(buffer.data_ptr(), 2)
    return buffer


@given(
    sizes=st.lists(st.integers(1, 3 * PIECE), min_size=1, max_size=4),
    read_before=st.floats(0, 1),
    piece=st.integers(100_000, 5 * PIECE),
)
def test_whatever_was_read_before_the_rest_stays_as_it_was(
    sizes: list[int], read_before: float, piece: int
) -> None:
    tensors = [noise(nbytes, seed) for seed, nbytes in enumerate(sizes)]
    expected = [tensor.numpy().tobytes() for tensor in tensors]
    live = _core.LiveMemory()
    sources = [add(live, tensor) for tensor in tensors]
    reads = [
        (index, offset, min(piece, nbytes - offset))
        for index, nbytes in enumerate(sizes)
        for offset in range(0, nbytes, piece)
    ]
    before = round(read_before * len(reads))
    found = {r: read(sources[r[0]], *r[1:]) for r in reads[:before]}
    copies = stage(live)
    assert live.released
    for tensor in tensors:
        tensor.zero_()
    found.update({r: read(sources[r[0]], *r[1:]) for r in reads[before:]})
    for index, offset, nbytes in reads:
        assert found[index, offset, nbytes] == expected[index][offset : offset + nbytes]
    del copies


def test_only_what_is_unread_is_copied() -> None:
    tensors = [noise(5 * PIECE), noise(100)]
    live = _core.LiveMemory()
    large, small = (add(live, tensor) for tensor in tensors)
    assert live.staging_nbytes == 5 * PIECE + 2 * ALIGNMENT
    read(large, 0, 2 * PIECE)
    assert live.staging_nbytes == 3 * PIECE + 2 * ALIGNMENT
    read(large, 2 * PIECE, 10)  # a piece that is partly read is copied whole
    assert live.staging_nbytes == 3 * PIECE + 2 * ALIGNMENT
    read(small, 0, 100)
    assert live.staging_nbytes == 3 * PIECE
    assert not live.released
    read(large, 2 * PIECE + 10, 3 * PIECE - 10)
    assert live.staging_nbytes == 0
    assert live.released


@pytest.mark.parametrize("seed", range(10))
def test_readers_race_with_the_owner(seed: int) -> None:
    """Workers go on reading while the owner stages the memory and then overwrites it."""
    tensor = noise(24 * PIECE + 12_345, seed)
    expected = tensor.numpy().tobytes()
    live = _core.LiveMemory()
    source = add(live, tensor)
    piece = 700_001
    begun = threading.Event()

    def one(offset: int) -> bytes:
        begun.set()
        return read(source, offset, min(piece, len(expected) - offset))

    with ThreadPoolExecutor(3) as pool:
        pieces = pool.map(one, range(0, len(expected), piece))
        begun.wait()
        copies = stage(live)
        tensor.fill_(seed)
        assert b"".join(pieces) == expected
    assert live.released
    del copies


def test_memory_that_is_being_read_is_staged_late(tmp_path: Path) -> None:
    """Whoever has staged it may overwrite it at once."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.workers.slow_reads_worker"],
        cwd=WORKERS.parent.parent,
        env={**os.environ, **preload("slow_reads", tmp_path)},
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
    )
    assert done.stdout == "{1}\n"


@given(sizes=st.lists(st.integers(0, 9 * PIECE), max_size=5), threads=st.integers(1, 4))
def test_parallel_copies(sizes: list[int], threads: int) -> None:
    sources = [noise(nbytes, seed) for seed, nbytes in enumerate(sizes)]
    targets = [torch.zeros(nbytes + 1, dtype=torch.uint8) for nbytes in sizes]
    _core.parallel_copy(
        [
            (target.data_ptr(), source.data_ptr(), source.nbytes)
            for target, source in zip(targets, sources, strict=True)
        ],
        threads,
    )
    for target, source in zip(targets, sources, strict=True):
        assert torch.equal(target[:-1], source)
        assert target[-1] == 0
