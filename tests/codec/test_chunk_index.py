"""The index at the end of a gzip archive: each chunk can be decoded at the place that it gives."""

import gzip
import struct
import zlib
from pathlib import Path

import pytest
import torch

import pyckpt


def read_index(data: bytes) -> tuple[int, int, list[int]]:
    """Returns the first chunk's offset, the raw bytes per entry and each entry's compressed bytes.

    docs/format.md describes the layout.
    """
    assert data[-16:-8] == b"PYCKPTIX"  # then CRC and length
    (nbytes,) = struct.unpack_from("<I", data, len(data) - 20)
    assert nbytes % 512 == 0
    index = data[len(data) - 8 - nbytes : len(data) - 8]
    magic, version, first, raw, count = struct.unpack_from("<8sIQQQ", index)
    assert (magic, version) == (b"PYCKPTIX", 1)
    at = 36
    sizes = []
    for _ in range(count):
        size = shift = 0
        while True:
            byte = index[at]
            at += 1
            size |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                break
        sizes.append(size)
    return first, raw, sizes


@pytest.mark.parametrize("level", [0, 1, 6])
def test_every_chunk_decodes_alone(tmp_path: Path, level: int) -> None:
    state = {
        "floats": torch.randn(1_500_000),
        "zeros": torch.zeros(700_000),
        "ids": torch.arange(300_000),
    }
    path = tmp_path / "x.tar.gz"
    pyckpt.save(state, path, compression_level=level)
    data = path.read_bytes()
    whole = gzip.decompress(data)
    at, raw, sizes = read_index(data)
    decoded = b""
    for size in sizes:
        decoder = zlib.decompressobj(-15)
        chunk = decoder.decompress(data[at : at + size])
        assert whole[len(decoded) :].startswith(chunk)
        decoded += chunk
        assert len(decoded) % raw == 0 or size is sizes[-1]
        at += size
    # What is left is the index itself.
    assert decoded == whole[: len(decoded)]
    assert whole[len(decoded) :].startswith(b"PYCKPTIX")
    assert len(sizes) == -(-len(decoded) // raw)


def test_the_index_of_the_smallest_archive(tmp_path: Path) -> None:
    pyckpt.save([], tmp_path / "x.tgz")
    first, raw, sizes = read_index((tmp_path / "x.tgz").read_bytes())
    assert (first, raw, len(sizes)) == (10, 1 << 20, 1)
