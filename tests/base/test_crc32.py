"""Checksums by every kernel, compared with zlib's."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyckpt import _core

pytestmark = pytest.mark.timeout(120)

DATA = memoryview(os.urandom(1 << 20))
LANES = 256  # bytes that are folded at once
FOLDED = 8 * LANES  # the least that is folded


def test_every_length() -> None:
    for nbytes in range(FOLDED + 3 * LANES):
        bytes_ = DATA[nbytes % 64 : nbytes % 64 + nbytes]
        assert _core.crc32(bytes_) == zlib.crc32(bytes_), nbytes


def test_every_alignment() -> None:
    for start in range(LANES + 1):
        for nbytes in (FOLDED - 1, FOLDED, FOLDED + LANES + 1, 10_000):
            bytes_ = DATA[start : start + nbytes]
            assert _core.crc32(bytes_, 0x12345678) == zlib.crc32(bytes_, 0x12345678)


@given(
    cuts=st.lists(st.integers(0, len(DATA)), max_size=5),
    before=st.integers(0, 0xFFFFFFFF),
)
def test_a_checksum_goes_on(cuts: list[int], before: int) -> None:
    crc = before
    edges = [0, *sorted(cuts), len(DATA)]
    for begin, end in itertools.pairwise(edges):
        crc = _core.crc32(DATA[begin:end], crc)
    assert crc == zlib.crc32(DATA, before)


@pytest.mark.parametrize("byte", [0, 0xFF])
@pytest.mark.parametrize("before", [0, 1, 0xFFFFFFFF])
def test_bytes_that_are_all_the_same(byte: int, before: int) -> None:
    for nbytes in (FOLDED, FOLDED + 77, 1 << 20):
        bytes_ = bytes([byte]) * nbytes
        assert _core.crc32(bytes_, before) == zlib.crc32(bytes_, before)


def test_without_the_kernel() -> None:
    code = """
import zlib
from pyckpt import _core
assert _core.kernels() == []
data = bytes(range(251)) * 40_000
for nbytes in (0, 1, 5000, len(data)):
    assert _core.crc32(data[:nbytes], 7) == zlib.crc32(data[:nbytes], 7)
"""
    environment = os.environ | {"PYCKPT_PORTABLE": "1"}
    subprocess.run([sys.executable, "-c", code], env=environment, timeout=100, check=True)


def test_only_one_run_of_bytes() -> None:
    with pytest.raises(ValueError, match="one run of bytes"):
        _core.crc32(DATA[::2])
