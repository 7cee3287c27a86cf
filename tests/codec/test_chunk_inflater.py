"""Chunks of gzip archives that are decoded in turn: each gives its bytes, or its own damage."""

import functools
import hashlib
import os
import random
import subprocess
import sys
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pyckpt import _core

pytestmark = pytest.mark.timeout(120)

# Constant of csrc/codec/gzip/literal_rounds.h.
LANES = 6
MAGIC = b"PYCKPTIX"
TRAILER_NBYTES = 8


def varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def archive(codes: Sequence[bytes], raw: bytes, chunk_nbytes: int) -> bytes:
    """A gzip file of these chunks of ``raw``, with the index that docs/format.md describes."""
    header = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03"
    index = MAGIC + (1).to_bytes(4, "little")
    for number in (len(header), chunk_nbytes, len(codes)):
        index += number.to_bytes(8, "little")
    index += b"".join(varint(len(code)) for code in codes)
    index += bytes(-(len(index) + 12) % 512)
    index += (len(index) + 12).to_bytes(4, "little") + MAGIC
    nbytes = len(index).to_bytes(2, "little")
    last = b"\x01" + nbytes + bytes(255 - byte for byte in nbytes) + index
    whole = raw + index
    trailer = zlib.crc32(whole).to_bytes(4, "little") + len(whole).to_bytes(4, "little")
    return header + b"".join(codes) + last + trailer


def deflated(raw: bytes, level: int, strategy: int) -> bytes:
    """Blocks without a last one, up to a byte."""
    encoder = zlib.compressobj(level, zlib.DEFLATED, -15, 9, strategy)
    return encoder.compress(raw) + encoder.flush(zlib.Z_FULL_FLUSH)


def mixed_blocks(raw: bytes) -> bytes:
    """Blocks of all kinds in one chunk: each third of the bytes in a different way."""
    n = len(raw) // 3 + 1
    ways = [(6, zlib.Z_HUFFMAN_ONLY), (0, zlib.Z_DEFAULT_STRATEGY), (6, zlib.Z_FIXED)]
    return b"".join(deflated(raw[i * n : i * n + n], *way) for i, way in enumerate(ways))


ENCODERS: dict[str, Callable[[bytes], bytes]] = {
    "stored": lambda raw: deflated(raw, 0, zlib.Z_DEFAULT_STRATEGY),
    "literals": lambda raw: deflated(raw, 6, zlib.Z_HUFFMAN_ONLY),
    "runs": lambda raw: deflated(raw, 6, zlib.Z_RLE),
    "matches": lambda raw: deflated(raw, 6, zlib.Z_DEFAULT_STRATEGY),
    "all matches": lambda raw: deflated(raw, 9, zlib.Z_FILTERED),
    "fixed codes": lambda raw: deflated(raw, 6, zlib.Z_FIXED),
    "mixed blocks": mixed_blocks,
}


@functools.cache
def floats(nbytes: int, seed: int) -> bytes:
    numbers = torch.randn(nbytes // 4 + 1, generator=torch.Generator().manual_seed(seed))
    return numbers.view(torch.uint8).numpy().tobytes()[:nbytes]


def rows(nbytes: int, seed: int, distance: int) -> bytes:
    """Floats with repeats, each of them ``distance`` after what it repeats."""
    out = bytearray(floats(nbytes, seed))
    rng = random.Random(seed)
    for begin in range(1000, nbytes - 1000, 1500):
        n = rng.choice([3, 16, 64, 259, 700])
        for i in range(begin, begin + n):
            out[i] = out[i - distance]
    return bytes(out)


def steep(nbytes: int, seed: int) -> bytes:
    """Codes of up to fifteen bits."""
    weights = [2.0**-i for i in range(16)]
    return bytes(random.Random(seed).choices(range(16), weights, k=nbytes))


CONTENTS: dict[str, Callable[[int, int], bytes]] = {
    "floats": floats,
    "noise": lambda nbytes, seed: random.Random(seed).randbytes(nbytes),
    "zeros": lambda nbytes, seed: bytes(nbytes),
    "text": lambda nbytes, seed: (b"%d words, again and again; " % seed * nbytes)[:nbytes],
    "steep": steep,
    "rows, 1": lambda nbytes, seed: rows(nbytes, seed, 1),
    "rows, 3": lambda nbytes, seed: rows(nbytes, seed, 3),
    "rows, 8": lambda nbytes, seed: rows(nbytes, seed, 8),
    "rows, 12": lambda nbytes, seed: rows(nbytes, seed, 12),
    "rows, 999": lambda nbytes, seed: rows(nbytes, seed, 999),
    "floats, then text": lambda nbytes, seed: (
        floats(nbytes - nbytes // 4, seed) + (b"some words; " * nbytes)[: nbytes // 4]
    ),
}


def made(parts: Sequence[tuple[str, str]], chunk_nbytes: int, last: int) -> tuple[bytes, bytes]:
    """A file with a chunk for each (content, encoder), and its bytes before the index."""
    sizes = [chunk_nbytes] * (len(parts) - 1) + [last]
    raws = [CONTENTS[parts[i][0]](nbytes, i) for i, nbytes in enumerate(sizes)]
    codes = [ENCODERS[parts[i][1]](raw) for i, raw in enumerate(raws)]
    raw = b"".join(raws)
    return archive(codes, raw, chunk_nbytes), raw


def opened(file: bytes, folder: Path) -> _core.StreamImage:
    path = folder / "x.gz"
    path.write_bytes(file)
    return _core.StreamImage(os.fsencode(path), threads=1, mapped=False, progress=None)


def check_whole(file: bytes, raw: bytes, folder: Path) -> None:
    for keep in (True, False):
        image = opened(file, folder)
        crcs, damages = image.fill([(0, len(raw))], keep=keep, checksums=True)
        assert damages == []
        assert crcs == [zlib.crc32(raw)]
        assert not keep or image.read((0, len(raw))) == raw
        assert image.finish() == []


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("content", CONTENTS)
def test_every_content_by_every_encoder(tmp_path: Path, content: str, encoder: str) -> None:
    check_whole(*made([(content, encoder)] * (LANES + 1), 100_000, 1), tmp_path)


@pytest.mark.parametrize("count", range(2, 2 * LANES + 2))
def test_any_number_of_chunks(tmp_path: Path, count: int) -> None:
    check_whole(*made([("floats", "literals")] * count, 70_000, 30_000), tmp_path)


@settings(max_examples=60)
@given(
    st.lists(
        st.tuples(st.sampled_from(sorted(CONTENTS)), st.sampled_from(sorted(ENCODERS))),
        min_size=2,
        max_size=2 * LANES,
    ),
    st.integers(1, 60_000),
    st.integers(1, 60_000),
)
def test_any_mixture(
    tmp_path: Path, parts: list[tuple[str, str]], chunk_nbytes: int, last: int
) -> None:
    check_whole(*made(parts, chunk_nbytes, min(last, chunk_nbytes)), tmp_path)


MIXTURE = [
    ("floats", "literals"),
    ("rows, 8", "matches"),
    ("noise", "stored"),
    ("floats", "mixed blocks"),
    ("text", "matches"),
    ("rows, 1", "runs"),
    ("floats", "literals"),
]


@settings(max_examples=150)
@given(data=st.data())
def test_damage_is_that_of_one_chunk(tmp_path: Path, data: st.DataObject) -> None:
    """The same as if the chunk were decoded alone, and the others come back."""
    chunk_nbytes = 40_000
    file, raw = made(MIXTURE, chunk_nbytes, 10_000)
    at = data.draw(st.integers(10, len(file) - 1500))
    count = data.draw(st.sampled_from([1, 1, 1, 2, 9, 100]))
    broken = bytearray(file)
    broken[at : at + count] = data.draw(st.binary(min_size=count, max_size=count))
    extents = [(i, min(chunk_nbytes, len(raw) - i)) for i in range(0, len(raw), chunk_nbytes)]
    image = opened(bytes(broken), tmp_path)
    _, damages = image.fill(extents, keep=True, checksums=False)
    alone = []
    for extent in extents:
        one = opened(bytes(broken), tmp_path)
        _, its = one.fill([extent], keep=True, checksums=False)
        alone += its
        if not its:  # intact, or damaged into another valid code
            assert image.read(extent) == one.read(extent)
    assert damages == alone
    intact = sum(image.read(e) == raw[e[0] : sum(e)] for e in extents if (*e,) not in alone)
    assert intact >= len(extents) - 2  # what is overwritten may lie in two chunks
    assert damages or image.finish() or bytes(broken) == file


@pytest.mark.parametrize("hit", range(len(MIXTURE)))
def test_damage_names_its_chunk(tmp_path: Path, hit: int) -> None:
    """A block of a type that does not exist: any decoder sees it."""
    chunk_nbytes = 40_000
    sizes = [chunk_nbytes] * (len(MIXTURE) - 1) + [10_000]
    raws = [CONTENTS[MIXTURE[i][0]](nbytes, i) for i, nbytes in enumerate(sizes)]
    codes = [ENCODERS[MIXTURE[i][1]](raw) for i, raw in enumerate(raws)]
    codes[hit] = bytes([codes[hit][0] | 6]) + codes[hit][1:]
    raw = b"".join(raws)
    image = opened(archive(codes, raw, chunk_nbytes), tmp_path)
    extents = [(chunk_nbytes * i, nbytes) for i, nbytes in enumerate(sizes)]
    _, damages = image.fill(extents, keep=True, checksums=False)
    where = 10 + sum(map(len, codes[:hit]))
    message = "gzip: a chunk does not match the chunk index"
    assert damages == [(*extents[hit], where, message, True)]
    for i, extent in enumerate(extents):
        assert i == hit or image.read(extent) == raws[i]


def test_chunks_that_are_shorter_or_longer_than_said(tmp_path: Path) -> None:
    raw = floats(300_000, 0)
    for wrong in (49_999, 50_001):
        codes = [ENCODERS["literals"](raw[i : i + 50_000]) for i in range(0, 300_000, 50_000)]
        codes[2] = ENCODERS["literals"](raw[:wrong])
        image = opened(archive(codes, raw, 50_000), tmp_path)
        _, damages = image.fill([(0, len(raw))], keep=True, checksums=False)
        assert [damage[:2] for damage in damages] == [(100_000, 50_000)]


DECODE_ALL = """
import hashlib, sys
from pathlib import Path
from pyckpt import _core
for path in sorted(Path(sys.argv[1]).glob("*.gz")):
    image = _core.StreamImage(bytes(path), threads=1, mapped=False, progress=None)
    whole = (0, image.nbytes)
    _, damages = image.fill([whole], keep=True, checksums=False)
    good = not damages and not image.finish()
    print(path.name, hashlib.sha256(image.read(whole)).hexdigest() if good else damages)
print(*_core.kernels())
"""


def test_results_do_not_depend_on_the_cpu(tmp_path: Path) -> None:
    """PYCKPT_PORTABLE=1 limits the kernels to instructions that every CPU of this kind has."""
    expected = []
    for number, content in enumerate(CONTENTS):
        file, raw = made([(content, encoder) for encoder in ENCODERS], 60_000, 20_000)
        path = tmp_path / f"{number:02d}.gz"
        path.write_bytes(file)
        index_nbytes = int.from_bytes(file[-4:], "little") - len(raw)
        index = file[-TRAILER_NBYTES - index_nbytes : -TRAILER_NBYTES]
        expected.append(f"{path.name} {hashlib.sha256(raw + index).hexdigest()}")
        broken = bytearray(file)
        broken[len(file) // 3] ^= 255
        (tmp_path / f"{number:02d}-broken.gz").write_bytes(broken)
    results = []
    for portable in ("0", "1"):
        done = subprocess.run(
            [sys.executable, "-c", DECODE_ALL, str(tmp_path)],
            env={**os.environ, "PYCKPT_PORTABLE": portable},
            timeout=100,
            check=True,
            capture_output=True,
            text=True,
        )
        lines = done.stdout.split("\n")
        assert portable == "0" or lines[-2] == ""
        assert [line for line in lines if "broken" not in line][:-2] == expected
        results.append(lines[:-2])
    assert results[0] == results[1]
