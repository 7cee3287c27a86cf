"""Checksums by every kernel, compared with zlib's.

That a checksum goes on from piece to piece is tested by what is decoded piece by piece:
tests/codec/test_decoders.py.
"""

from __future__ import annotations

import os
import subprocess
import sys
import zlib

import numpy as np
import pytest

from pyckpt import _core

pytestmark = pytest.mark.timeout(120)

DATA = np.frombuffer(os.urandom(1 << 20), dtype=np.uint8)
LANES = 256  # bytes that are folded at once
FOLDED = 8 * LANES  # the least that is folded


def check(data: np.ndarray, start: int, nbytes: int) -> None:
    crc = _core.crc32(data.ctypes.data + start, nbytes)
    assert crc == zlib.crc32(data[start : start + nbytes]), (start, nbytes)


def test_every_length() -> None:
    for nbytes in range(FOLDED + 3 * LANES):
        check(DATA, nbytes % 64, nbytes)
    check(DATA, 0, len(DATA))


def test_every_alignment() -> None:
    for start in range(LANES + 1):
        for nbytes in (FOLDED - 1, FOLDED, FOLDED + LANES + 1, 10_000):
            check(DATA, start, nbytes)


@pytest.mark.parametrize("byte", [0, 0xFF])
def test_bytes_that_are_all_the_same(byte: int) -> None:
    for nbytes in (FOLDED, FOLDED + 77, 1 << 20):
        check(np.full(nbytes, byte, dtype=np.uint8), 0, nbytes)


def test_two_checksums_give_that_of_both() -> None:
    whole = zlib.crc32(DATA)
    for cut in (0, 1, 5000, len(DATA) - 1, len(DATA)):
        halves = zlib.crc32(DATA[:cut]), zlib.crc32(DATA[cut:])
        assert _core.crc32_combine(*halves, len(DATA) - cut) == whole


def test_without_the_kernel() -> None:
    code = """
import zlib
import numpy as np
from pyckpt import _core
assert _core.kernels() == []
data = np.arange(10_000_000, dtype=np.uint8)
for nbytes in (0, 1, 5000, len(data)):
    assert _core.crc32(data.ctypes.data, nbytes) == zlib.crc32(data[:nbytes])
"""
    environment = os.environ | {"PYCKPT_PORTABLE": "1"}
    subprocess.run([sys.executable, "-c", code], env=environment, timeout=100, check=True)
