"""Contents of .tar.bz2 archives, for any bytes, and the tools that read them."""

import bz2
import hashlib
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import pyckpt
from pyckpt import _core

BLOCK_NBYTES = 899_981  # of level 9, after run-length coding
SMALL_BLOCK_NBYTES = 99_981  # of level 1

pytestmark = pytest.mark.usefixtures("frozen_time")  # so that equal states give equal tars

DECODERS = {
    "bzip2": ["bzip2", "-dc"],
    "lbzip2": ["lbzip2", "-dc", "-n2"],
    "pbzip2": ["pbzip2", "-dc", "-p2"],
    "7z": ["7z", "x", "-so"],
    "busybox": ["busybox", "bzcat"],
}


def to_bytes(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()


def normal(numel: int, scale: float = 1.0) -> torch.Tensor:
    return torch.randn(numel, generator=torch.Generator().manual_seed(1)) * scale


def adam(numel: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Adam's two moments after ten steps."""
    generator = torch.Generator().manual_seed(2)
    first, second = torch.zeros(numel), torch.zeros(numel)
    for _ in range(10):
        gradient = torch.randn(numel, generator=generator) * 1e-3
        first.mul_(0.9).add_(gradient, alpha=0.1)
        second.mul_(0.999).addcmul_(gradient, gradient, value=0.001)
    return first, second


def trained(numel: int) -> torch.Tensor:
    """Weights that an optimizer has moved: sums of many outer products."""
    generator = torch.Generator().manual_seed(3)
    rows = int(numel**0.5)
    left = torch.randn(rows, 16, generator=generator)
    right = torch.randn(16, rows, generator=generator)
    return left @ right * 1e-3 + torch.randn(rows, rows, generator=generator) * 0.02


def source_text(nbytes: int) -> bytes:
    """Source text of Python's standard library."""
    text = b"".join(p.read_bytes() for p in sorted(Path(os.__file__).parent.glob("*.py")))
    assert len(text) >= nbytes
    return text[:nbytes]


def noise(nbytes: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(nbytes)


def no_runs(nbytes: int) -> bytes:
    """Noise in which no two neighbours are equal: run-length coding leaves it as it is."""
    rng = random.Random(4)
    out = bytearray(noise(nbytes, 5))
    for i in range(1, nbytes):
        if out[i] == out[i - 1]:
            out[i] = (out[i] + rng.randrange(1, 255)) % 256
            if i + 1 < nbytes and out[i] == out[i + 1]:
                out[i + 1] ^= 0x80
    return bytes(out)


def runs(nbytes: int, lengths: list[int], seed: int = 0) -> bytes:
    """Runs of random bytes with these lengths, in random order; neighbouring runs differ."""
    rng = random.Random(seed)
    out = bytearray()
    byte = 0
    while len(out) < nbytes:
        byte = (byte + rng.randrange(1, 256)) % 256
        out += bytes([byte]) * rng.choice(lengths)
    return bytes(out[:nbytes])


def fibonacci_word(nbytes: int) -> bytes:
    before, word = b"a", b"ab"
    while len(word) < nbytes:
        before, word = word, word + before
    return word[:nbytes]


def thue_morse(nbytes: int) -> bytes:
    return bytes(i.bit_count() & 1 for i in range(nbytes))


def fibonacci_counts(nbytes: int) -> bytes:
    """Bytes whose counts grow like Fibonacci numbers, which gives the deepest Huffman codes."""
    out = bytearray()
    a, b, symbol = 1, 1, 0
    while len(out) < nbytes:
        out += bytes([symbol]) * a
        a, b, symbol = b, a + b, symbol + 1
    random.Random(6).shuffle(out)
    return bytes(out[:nbytes])


def periodic(period: int, nbytes: int) -> bytes:
    return (noise(period, period) * (nbytes // period + 1))[:nbytes]


def zero_rows(nbytes: int) -> bytes:
    """Rows of an embedding's moments: most are noise, some stretches are zero."""
    rng = random.Random(7)
    out = bytearray()
    while len(out) < nbytes:
        row = 4 * rng.choice([96, 192, 768])
        out += rng.randbytes(row * rng.randrange(20)) + bytes(row * rng.choice([1, 1, 2, 3, 40]))
    return bytes(out[:nbytes])


def stretches(nbytes: int, longest: int, repeats: int = 1) -> bytes:
    """Noise with stretches of a few bytes, which repeat with periods up to 7.

    Smaller and larger bytes end them. ``repeats`` is how often the same stretch comes in the same
    surroundings. The first one goes on where the last one stops.
    """
    rng = random.Random(8)
    tiles = [rng.randbytes(period) for period in (2, 3, 5, 5, 7)] + [b"\0\0\0\0\xfb"]
    out = bytearray(tiles[-1] * (longest // 10))
    while len(out) < nbytes - longest:
        tile = rng.choice(tiles)
        stretch = (tile * longest)[rng.randrange(len(tile)) : rng.randrange(longest)]
        out += (stretch + rng.randbytes(40)) * repeats + rng.randbytes(rng.randrange(longest))
    return bytes(out) + tiles[-1] * (longest // 5)


N = 1_000_000  # more than a block

CONTENTS = {
    "floats": to_bytes(normal(N // 4)),
    "small floats": to_bytes(normal(N // 4, 1e-4)),
    "bfloat16": to_bytes(normal(N // 2).bfloat16()),
    "float16": to_bytes(normal(N // 2, 0.02).half()),
    "float64": to_bytes(normal(N // 8).double()),
    "bfloat16 in floats": to_bytes(normal(N // 4).bfloat16().float()),
    "masked floats": to_bytes(normal(N // 4).relu()),
    "moments": b"".join(map(to_bytes, adam(N // 8))),
    "weights": to_bytes(trained(N // 4)),
    "noise": noise(N),
    "text": source_text(N),
    "zeros": bytes(3 * N),
    "indices": to_bytes(torch.arange(N // 8)),
    "mask": to_bytes(normal(N) > 0.5),
    "one byte": b"\x80" * N,
    "period 2": periodic(2, N),
    "period 3": periodic(3, N),
    "period 64": periodic(64, N),
    "period 4096": periodic(4096, N),
    "noise twice": noise(N // 2) * 2,
    "noise and its mirror": noise(N // 2) + noise(N // 2)[::-1],
    "rows": noise(3000) * 200 + noise(N // 4),
    "zero rows": zero_rows(N),
    "stretches": stretches(N, 3000),
    "long stretches": stretches(N, 60_000),
    "equal stretches": stretches(N, 900, repeats=5),
    "Fibonacci word": fibonacci_word(N),
    "Thue-Morse": thue_morse(N),
    "seldom broken": b"".join(b"ab" * 2500 + b"c" for _ in range(200)),
    "all but the last": b"a" * (N - 1) + b"b",
    "Fibonacci counts": fibonacci_counts(N),
    "ramp": bytes(range(256)) * (N // 256),
    "no runs": no_runs(N),
    "runs": runs(N, [1, 2, 3, 4, 5, 6]),
    "runs of four": runs(N, [4]),
    "long runs": runs(N, [253, 254, 255, 256, 257, 258, 259, 260, 511]),
}


def save(payload: bytes, path: Path, level: int | None = None) -> bytes:
    memory = bytearray(payload)
    tensor = torch.frombuffer(memory, dtype=torch.uint8) if payload else torch.empty(0)
    pyckpt.save(tensor, path, compression_level=level, fsync=False, num_threads=2)
    return path.read_bytes()


def check(payload: bytes, folder: Path, level: int = 9) -> None:
    archive = save(payload, folder / "x.tar.bz2", level)
    assert bz2.decompress(archive) == save(payload, folder / "x.tar")


@pytest.mark.parametrize("name", CONTENTS)
def test_every_content_comes_back(tmp_path: Path, name: str) -> None:
    check(CONTENTS[name], tmp_path)


@pytest.mark.parametrize("level", range(1, 10))
def test_every_level(tmp_path: Path, level: int) -> None:
    check(CONTENTS["floats"] + CONTENTS["text"] + CONTENTS["runs"], tmp_path, level)


@pytest.mark.parametrize("tool", DECODERS)
def test_every_tool_decodes(tmp_path: Path, tool: str) -> None:
    payload = b"".join(CONTENTS[name][:300_000] for name in CONTENTS)
    path = tmp_path / "x.tar.bz2"
    save(payload, path)
    done = subprocess.run([*DECODERS[tool], path], stdout=subprocess.PIPE, timeout=60, check=True)
    assert done.stdout == save(payload, tmp_path / "x.tar")


def test_bzip2_finds_no_fault(tmp_path: Path) -> None:
    path = tmp_path / "x.tar.bz2"
    save(CONTENTS["floats"] + CONTENTS["text"], path)
    subprocess.run(["bzip2", "-t", path], timeout=60, check=True)


# A few bytes, and about as many as a block of level 1 holds.
@pytest.mark.parametrize("nbytes", [0, 1, 2, 3, 4, 5, 255, 256, 99_980, 99_981, 99_982])
def test_sizes(tmp_path: Path, nbytes: int) -> None:
    check(CONTENTS["no runs"][:nbytes], tmp_path, level=1)


@pytest.mark.parametrize("extra", range(-3, 4))
@pytest.mark.parametrize("blocks", [1, 2])
def test_sizes_around_a_block(tmp_path: Path, blocks: int, extra: int) -> None:
    payload = CONTENTS["no runs"] * 2
    start = save(payload, tmp_path / "x.tar").index(payload)
    check(payload[: blocks * BLOCK_NBYTES - start + extra], tmp_path)


@pytest.mark.parametrize("coded_runs", range(1, 8))
def test_a_chunk_that_is_a_little_longer_than_a_block(tmp_path: Path, coded_runs: int) -> None:
    """Run-length coding adds a byte to each run of four. The excess goes to a second block."""
    payload = CONTENTS["no runs"] + CONTENTS["no runs"]
    for i in range(coded_runs):
        at = BLOCK_NBYTES + 1000 * (i + 1)
        payload = payload[:at] + b"\x11\x22\x22\x22\x22\x33" + payload[at + 6 :]
    check(payload, tmp_path)


@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 6, 7, 8, 254, 255, 256, 257, 258, 259, 260])
def test_runs_across_the_end_of_a_block(tmp_path: Path, length: int) -> None:
    """Runs at many distances from the end of a block; a chunk has ten blocks at level 1."""
    plain = CONTENTS["no runs"]
    payload = bytearray()
    for distance in range(-2, 9):
        payload += plain[: SMALL_BLOCK_NBYTES - distance] + b"\x77" * length
    check(bytes(payload), tmp_path, level=1)


fragments = st.one_of(
    st.binary(max_size=40),
    st.tuples(st.binary(min_size=1, max_size=1), st.integers(1, 1200)).map(lambda t: t[0] * t[1]),
    st.tuples(st.binary(min_size=1, max_size=9), st.integers(1, 300)).map(lambda t: t[0] * t[1]),
    st.tuples(st.integers(0, 5000), st.integers(0, 9)).map(lambda t: noise(*t)),
)


@settings(max_examples=150)
@given(st.lists(fragments, max_size=12), st.sampled_from([1, 1, 40, 100]), st.sampled_from([1, 9]))
def test_any_bytes(tmp_path: Path, parts: list[bytes], times: int, level: int) -> None:
    payload = b"".join(parts) * times
    check(payload[:2_000_000], tmp_path, level)


# Compared with the reference encoder on the same tar. Its blocks hold 900 kB after run-length
# coding, ours before it: where that coding gains much, its blocks cover more input.
@pytest.mark.parametrize(
    ("name", "percent_more"),
    [
        ("floats", 0.2),
        ("small floats", 0.2),
        ("bfloat16", 0.2),
        ("float16", 0.2),
        ("moments", 0.2),
        ("weights", 0.2),
        ("noise", 0.2),
        ("noise twice", 0.2),
        ("text", 1.5),
        ("indices", 2),
        ("masked floats", 3),
    ],
)
def test_size_is_the_reference_encoder_s(tmp_path: Path, name: str, percent_more: float) -> None:
    payload = CONTENTS[name] * 2
    ours = len(save(payload, tmp_path / "x.tar.bz2"))
    theirs = len(bz2.compress(save(payload, tmp_path / "x.tar"), 9))
    assert ours <= theirs * (1 + percent_more / 100)


def test_zeros_take_next_to_nothing(tmp_path: Path) -> None:
    payload = bytes(20 * BLOCK_NBYTES)
    assert len(save(payload, tmp_path / "x.tar.bz2")) < 3000


SAVE_ALL = """
import sys
from pathlib import Path
from types import SimpleNamespace
import torch
import pyckpt
from pyckpt.archive import writer

writer.time = SimpleNamespace(time=lambda: 1_700_000_000.0)
tensor = torch.frombuffer(bytearray(Path(sys.argv[1]).read_bytes()), dtype=torch.uint8)
for path in sys.argv[2:]:
    pyckpt.save(tensor, path, fsync=False)
print(*pyckpt._core.kernels())
"""


def cpu_flags() -> list[str]:
    """The instruction sets of this CPU; see proc(5)."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split() for line in lines if line.startswith("flags")), [])


def test_every_kernel_writes_the_same(tmp_path: Path) -> None:
    """PYCKPT_PORTABLE=1 limits the kernels to instructions that every CPU of this kind has."""
    payload = b"".join(CONTENTS[name][:400_000] for name in CONTENTS)
    (tmp_path / "payload").write_bytes(payload)
    portable = [tmp_path / "portable.tar.bz2", tmp_path / "portable.tar.gz"]
    done = subprocess.run(
        [sys.executable, "-c", SAVE_ALL, tmp_path / "payload", *portable],
        env=os.environ | {"PYCKPT_PORTABLE": "1"},
        timeout=120,
        check=True,
        capture_output=True,
        text=True,
    )
    assert done.stdout.split() == []
    assert _core.kernels() == [
        name for name in ("avx2", "bmi2", "vpclmulqdq") if name in cpu_flags()
    ]
    for path in portable:
        suffixes = "".join(path.suffixes)
        assert path.read_bytes() == save(payload, tmp_path / f"x{suffixes}")


READ_ALL = """
import hashlib, sys
from pyckpt import _core

for path in sys.argv[1:]:
    image = _core.StreamImage(path.encode(), threads=2, mapped=False, progress=None)
    image.require((0, 1 << 60))
    _, damages = image.fill([(0, image.nbytes)], keep=True, checksums=False)
    assert damages + image.finish() == []
    print(hashlib.sha256(image.read((0, image.nbytes))).hexdigest())
"""


@pytest.mark.parametrize("portable", ["0", "1"])
def test_every_kernel_reads_the_same(tmp_path: Path, portable: str) -> None:
    """Long and short blocks of every content, as the reference encoder writes them."""
    hashes = []
    for number, payload in enumerate(CONTENTS.values()):
        raw = payload[:400_000]
        hashes.append(hashlib.sha256(raw).hexdigest())
        (tmp_path / f"{number:02d}.bz2").write_bytes(bz2.compress(raw, 1 + 8 * (number % 2)))
    done = subprocess.run(
        [sys.executable, "-c", READ_ALL, *sorted(map(str, tmp_path.glob("*.bz2")))],
        env=os.environ | {"PYCKPT_PORTABLE": portable},
        timeout=120,
        check=True,
        capture_output=True,
        text=True,
    )
    assert done.stdout.split() == hashes
