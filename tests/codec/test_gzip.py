"""Contents of .tar.gz archives, for any bytes, and the tools that read them."""

import functools
import gzip
import os
import random
import subprocess
import sys
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import pyckpt
from pyckpt import _core

# Constants of csrc/codec/gzip/encoder.h, csrc/codec/plan.cc and csrc/codec/repeats.h: the
# chunk, the stretch (neighbouring stretches may share a block) and the shortest repeat that becomes
# a match.
CHUNK_NBYTES = 1 << 20
STRETCH_NBYTES = 16 << 10
SHORTEST_REPEAT = 16
STORED_BLOCK_NBYTES = 65_535
WINDOW_NBYTES = 32 << 10

pytestmark = [pytest.mark.usefixtures("frozen_time"), pytest.mark.timeout(300)]

DECODERS = {
    "gzip": ["gzip", "-dc"],
    "pigz": ["pigz", "-dc", "-p2"],
    "igzip": ["igzip", "-dc"],
    "busybox": ["busybox", "zcat"],
    "7z": ["7z", "x", "-so", "-tgzip"],
}


def noise(nbytes: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(nbytes)


def floats(nbytes: int, dtype: torch.dtype = torch.float32, scale: float = 1.0) -> bytes:
    generator = torch.Generator().manual_seed(1)
    tensor = torch.randn(nbytes // dtype.itemsize, generator=generator) * scale
    return tensor.to(dtype).view(torch.uint8).numpy().tobytes()


@functools.cache
def source_text(nbytes: int) -> bytes:
    """Source text of Python's standard library."""
    text = b"".join(p.read_bytes() for p in sorted(Path(os.__file__).parent.glob("*.py")))
    assert len(text) >= nbytes
    return text[:nbytes]


def steep_counts(nbytes: int, ratio: str, *, shuffled: bool = True) -> bytes:
    """Symbols whose counts give the deepest codes: Fibonacci numbers, or powers of two."""
    out = bytearray()
    before, count, symbol = 1, 1, 0
    while len(out) < nbytes:
        out += bytes([symbol % 256]) * min(count, nbytes - len(out))
        before, count = count, before + count if ratio == "Fibonacci" else 2 * count
        symbol += 1
    if shuffled:
        random.Random(2).shuffle(out)
    return bytes(out)


def alphabet(symbols: int, nbytes: int) -> bytes:
    return bytes(random.Random(symbols).choices(range(symbols), k=nbytes))


def tiled(period: int, nbytes: int) -> bytes:
    return (noise(period, period) * (nbytes // period + 1))[:nbytes]


def stretches(kinds: int, nbytes: int) -> bytes:
    """Stretches of alternating kinds. Neighbours need separate blocks and must not be joined."""
    parts = [floats(STRETCH_NBYTES, scale=10.0**-i) for i in range(kinds)]
    parts[0] = alphabet(7, STRETCH_NBYTES)
    return (b"".join(parts) * (nbytes // (kinds * STRETCH_NBYTES) + 1))[:nbytes]


def with_rare_runs(nbytes: int) -> bytes:
    """Noise with a few runs of many lengths: one match for some thousand literals."""
    out = bytearray(floats(nbytes))
    for run, begin in enumerate(range(50_000, nbytes - 1000, 30_000)):
        out[begin : begin + SHORTEST_REPEAT + 16 * run] = bytes(SHORTEST_REPEAT + 16 * run)
    return bytes(out)


def quantized(nbytes: int) -> bytes:
    """Eight-bit weights: many byte values are rare, so short codes for all cost too much."""
    weights = torch.frombuffer(bytearray(floats(4 * nbytes)), dtype=torch.float32)
    return (weights * 16).round().clamp(-127, 127).to(torch.int8).numpy().tobytes()


N = 1_200_000  # more than a chunk

BUILDERS: dict[str, Callable[[], bytes]] = {
    "floats": lambda: floats(N),
    "bfloat16": lambda: floats(N, torch.bfloat16),
    "float16": lambda: floats(N, torch.float16, 0.02),
    "float64": lambda: floats(N, torch.float64),
    "eight-bit weights": lambda: quantized(N),
    "floats with rare runs": lambda: with_rare_runs(N),
    "zeros": lambda: bytes(N),
    "one symbol": lambda: b"\x80" * N,
    "two symbols": lambda: alphabet(2, N),
    "two symbols, one of them once": lambda: b"a" * (N // 2) + b"b" + b"a" * (N // 2),
    "three symbols": lambda: alphabet(3, N),
    "all symbols, equally often": lambda: bytes(range(256)) * (N // 256),
    "noise": lambda: noise(N),
    "text": lambda: source_text(N),
    "indices": lambda: torch.arange(N // 8).view(torch.uint8).numpy().tobytes(),
    "Fibonacci counts": lambda: steep_counts(N, "Fibonacci"),
    "Fibonacci counts, in order": lambda: steep_counts(N, "Fibonacci", shuffled=False),
    "powers of two": lambda: steep_counts(N, "two"),
    "powers of two, in order": lambda: steep_counts(N, "two", shuffled=False),
    "tiles of 4 kB": lambda: tiled(4096, N),
    "tiles of the window": lambda: tiled(WINDOW_NBYTES, N),
    "tiles of more": lambda: tiled(WINDOW_NBYTES + 32, N),
    "two kinds by turns": lambda: stretches(2, N),
    "five kinds by turns": lambda: stretches(5, N),
    "text by turns with floats": lambda: b"".join(
        source_text(200_000)[i : i + 20_000] + floats(N)[i : i + 20_000]
        for i in range(0, 200_000, 20_000)
    ),
}
# Each is built once, at its first use.
CONTENTS = {name: functools.cache(build) for name, build in BUILDERS.items()}


def save(payload: bytes, path: Path, level: int | None = None, element_nbytes: int = 1) -> bytes:
    dtypes = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    dtype = dtypes[element_nbytes]
    payload = payload[: len(payload) // element_nbytes * element_nbytes]
    tensor = torch.frombuffer(bytearray(payload), dtype=dtype) if payload else torch.empty(0)
    pyckpt.save(tensor, path, compression_level=level, fsync=False, num_threads=2)
    return path.read_bytes()


def check(payload: bytes, folder: Path, level: int | None = None) -> None:
    """zlib and our reader (with libdeflate) find the same tar; nothing follows the gzip member."""
    path = folder / "x.tar.gz"
    archive = save(payload, path, level)
    tar = save(payload, folder / "x.tar")
    decoder = zlib.decompressobj(31)
    decoded = decoder.decompress(archive)
    assert decoder.eof
    assert decoder.unused_data == b""
    assert decoded[: len(tar)] == tar
    image = _core.StreamImage(os.fsencode(path), threads=2, mapped=False, progress=None)
    _, damages = image.fill([(0, len(tar))], keep=True, checksums=False)
    assert damages == []
    assert image.read((0, len(tar))) == tar
    assert image.finish() == []


@pytest.mark.parametrize("level", [6, 9])
@pytest.mark.parametrize("name", CONTENTS)
def test_every_content_comes_back(tmp_path: Path, name: str, level: int) -> None:
    check(CONTENTS[name](), tmp_path, level)


@pytest.mark.parametrize("level", [0, 1, 2, 3, 4, 5, 7, 8])
def test_every_level(tmp_path: Path, level: int) -> None:
    check(b"".join(build()[:100_000] for build in CONTENTS.values()), tmp_path, level)


@pytest.mark.parametrize("tool", DECODERS)
def test_every_tool_decodes(tmp_path: Path, tool: str) -> None:
    payload = b"".join(build()[:300_000] for build in CONTENTS.values())
    path = tmp_path / "x.tar.gz"
    save(payload, path)
    tar = save(payload, tmp_path / "x.tar")
    done = subprocess.run([*DECODERS[tool], path], stdout=subprocess.PIPE, timeout=60, check=True)
    assert done.stdout[: len(tar)] == tar


@pytest.mark.parametrize("reader", ["tar -xzOf", "bsdtar -xOf", "busybox tar -xzOf"])
def test_every_tar_extracts(tmp_path: Path, reader: str) -> None:
    payload = CONTENTS["text by turns with floats"]() * 3
    path = tmp_path / "x.tar.gz"
    save(payload, path)
    command = [*reader.split(), path, "composer_states.pt"]
    done = subprocess.run(command, stdout=subprocess.PIPE, timeout=60, check=True)
    assert payload in done.stdout


@pytest.mark.parametrize("mode", ["r:gz", "r|gz"])
def test_python_reads_it_at_random_and_as_a_stream(tmp_path: Path, mode: str) -> None:
    payload = CONTENTS["text by turns with floats"]() * 3
    path = tmp_path / "x.tar.gz"
    save(payload, path)
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        found = [archive.extractfile(member).read() for member in archive if member.isfile()]
    assert any(payload in member for member in found)
    assert gzip.decompress(path.read_bytes()).startswith(save(payload, tmp_path / "x.tar"))


@pytest.mark.parametrize(
    "nbytes",
    [0, 1, 2, 3, 15, 16, 17, 31, 32, 33, 127, 128, 257, 258, 259]
    + [
        limit + extra
        for limit in (STRETCH_NBYTES, WINDOW_NBYTES, STORED_BLOCK_NBYTES)
        for extra in (-1, 0, 1)
    ],
)
@pytest.mark.parametrize("name", ["floats", "noise", "zeros", "text"])
def test_sizes(tmp_path: Path, name: str, nbytes: int) -> None:
    check(CONTENTS[name]()[:nbytes], tmp_path)


@pytest.mark.parametrize("extra", [-3, -2, -1, 0, 1, 2, 3])
@pytest.mark.parametrize("name", ["floats", "noise", "zeros", "text"])
def test_tensors_that_end_around_a_chunk(tmp_path: Path, name: str, extra: int) -> None:
    payload = CONTENTS[name]()
    # The offset of a tensor's bytes does not depend on their values.
    mark = CONTENTS["noise"]()
    start = save(mark, tmp_path / "x.tar").index(mark)
    check(payload[: CHUNK_NBYTES - start + extra], tmp_path)


@pytest.mark.parametrize("nbytes", [1, 15, 16, 17, 31, 32, 33, 255, 256, 257, 258, 259, 260, 517])
@pytest.mark.parametrize("value", [0, 0x55])
def test_runs_of_every_length_in_noise(tmp_path: Path, nbytes: int, value: int) -> None:
    payload = bytearray()
    for i in range(64):  # at every offset modulo 32
        payload += noise(1000 + i, i) + bytes([value]) * nbytes
    check(bytes(payload), tmp_path)


fragments = st.one_of(
    st.binary(max_size=40),
    st.tuples(st.binary(min_size=1, max_size=9), st.integers(1, 3000)).map(lambda t: t[0] * t[1]),
    st.tuples(st.integers(0, 40_000), st.integers(0, 9)).map(lambda t: noise(*t)),
    st.tuples(st.integers(1, 256), st.integers(1, 40_000)).map(lambda t: alphabet(*t)),
    st.integers(1, 40_000).map(lambda n: steep_counts(n, "Fibonacci")),
    st.integers(1, 40_000).map(lambda n: floats(4 * n)),
    st.integers(1, 40_000).map(source_text),
)


@settings(max_examples=40)
@given(
    st.lists(fragments, max_size=8),
    st.integers(0, 4000),
    st.sampled_from([1, 2, 5]),
    st.sampled_from([1, 6, 9]),
)
def test_any_bytes(tmp_path: Path, parts: list[bytes], phase: int, times: int, level: int) -> None:
    payload = (noise(phase) + b"".join(parts)) * times
    check(payload[:2_000_000], tmp_path, level)


SAVE_ALL = """
import sys, types
from pathlib import Path
import torch, pyckpt
from pyckpt.archive import writer
writer.time = types.SimpleNamespace(time=lambda: float(sys.argv[2]))
for path in sorted(Path(sys.argv[1]).glob("*.bin")):
    tensor = torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.uint8)
    for level in (1, 6, 9):
        to = path.with_suffix(f".{level}.tar.gz")
        pyckpt.save(tensor, to, fsync=False, num_threads=2, compression_level=level)
print(*pyckpt._core.kernels())
"""


def test_the_bytes_do_not_depend_on_the_cpu(tmp_path: Path, frozen_time: int) -> None:
    """PYCKPT_PORTABLE=1 limits the kernels to instructions that every CPU of this kind has."""
    for number, build in enumerate(CONTENTS.values()):
        (tmp_path / f"{number:02d}.bin").write_bytes(build())
    written = []
    for portable in ("0", "1"):
        done = subprocess.run(
            [sys.executable, "-c", SAVE_ALL, str(tmp_path), str(frozen_time)],
            env={**os.environ, "PYCKPT_PORTABLE": portable},
            timeout=200,
            check=True,
            capture_output=True,
            text=True,
        )
        assert done.stdout.split() == ([] if portable == "1" else _core.kernels())
        written.append([path.read_bytes() for path in sorted(tmp_path.glob("*.tar.gz"))])
    assert len(written[0]) == 3 * len(CONTENTS)
    assert written[0] == written[1]


def size(payload: bytes, folder: Path) -> float:
    """The file's size divided by the payload's."""
    return len(save(payload, folder / "x.tar.gz", element_nbytes=4)) / len(payload)


@pytest.mark.parametrize("name", ["text", "indices", "two symbols"])
def test_what_repeats_takes_little_more_than_with_gzip_6(tmp_path: Path, name: str) -> None:
    payload = CONTENTS[name]()
    theirs = len(gzip.compress(save(payload, tmp_path / "x.tar"), 6))
    assert len(save(payload, tmp_path / "x.tar.gz")) <= 1.1 * theirs


def test_zeros_and_tiles_take_almost_nothing(tmp_path: Path) -> None:
    assert size(bytes(8 * CHUNK_NBYTES), tmp_path) <= 0.0013
    assert size(tiled(4096, 8 * CHUNK_NBYTES), tmp_path) <= 0.011


def test_noise_grows_by_a_thousandth_at_most(tmp_path: Path) -> None:
    assert size(noise(8 * CHUNK_NBYTES), tmp_path) <= 1.001


def test_repeats_beyond_the_window_are_not_matches(tmp_path: Path) -> None:
    assert size(tiled(WINDOW_NBYTES, 8 * CHUNK_NBYTES), tmp_path) <= 0.05
    assert size(tiled(WINDOW_NBYTES + 32, CHUNK_NBYTES), tmp_path) >= 0.99


@pytest.mark.parametrize("nbytes", [SHORTEST_REPEAT, 64, 300])
def test_literals_between_repeats(tmp_path: Path, nbytes: int) -> None:
    """One row many times, with noise between: blocks of few literals and many matches."""
    row = noise(nbytes)
    check(b"".join(row + noise(i % 40, i) for i in range(3000)), tmp_path)
