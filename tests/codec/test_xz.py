"""Contents of .tar.xz archives, for any bytes, and the tools that read them."""

import hashlib
import io
import lzma
import os
import random
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import pyckpt
from pyckpt import _core

# Constants of csrc/codec/xz/lanes.h and csrc/codec/xz/encoder.h: a lane is an LZMA2 chunk of
# literals, a group of sixteen lanes is coded at once, and four groups make a block.
LANE_NBYTES = 16_320
GROUP_NBYTES = 16 * LANE_NBYTES
BLOCK_NBYTES = 4 * GROUP_NBYTES
TAR_RECORD_NBYTES = 10_240  # tars are padded to a multiple of it

# Literals refer to no earlier bytes, so their blocks state the smallest dictionary.
LITERALS = "--lzma2=dict=4KiB"

pytestmark = pytest.mark.usefixtures("frozen_time")  # so that equal states give equal tars

DECODERS = {
    "xz": ["xz", "-dc"],
    "xz -T2": ["xz", "-dc", "-T2"],
    "7z": ["7z", "x", "-so"],
    "busybox": ["busybox", "xzcat"],
}


def normal(numel: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(numel, generator=torch.Generator().manual_seed(seed))


def noise(nbytes: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(nbytes)


def as_tensor(raw: bytes, dtype: torch.dtype = torch.uint8) -> torch.Tensor:
    # frombuffer() refuses an empty buffer.
    return torch.frombuffer(bytearray(raw), dtype=dtype) if raw else torch.empty(0, dtype=dtype)


def source_text(nbytes: int) -> bytes:
    """Source text of Python's standard library."""
    text = b"".join(p.read_bytes() for p in sorted(Path(os.__file__).parent.glob("*.py")))
    assert len(text) >= nbytes
    return text[:nbytes]


def moments(numel: int, *, rows_seen: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Adam's two moments after five steps of an embedding; rows not seen have no gradient."""
    torch.manual_seed(2)
    table = torch.nn.Embedding(numel // 64, 64)
    optimizer = torch.optim.Adam(table.parameters())
    seen = torch.randperm(numel // 64)[: int(numel // 64 * rows_seen)]
    for _ in range(5):
        optimizer.zero_grad()
        (table(seen) * torch.randn(len(seen), 64)).pow(2).sum().backward()
        optimizer.step()
    state = optimizer.state[table.weight]
    return state["exp_avg"], state["exp_avg_sq"]


def trained(numel: int) -> torch.Tensor:
    """Weights that an optimizer has moved."""
    rows = int(numel**0.5)
    torch.manual_seed(3)
    layer = torch.nn.Linear(rows, rows)
    optimizer = torch.optim.Adam(layer.parameters())
    for _ in range(3):
        optimizer.zero_grad()
        layer(torch.randn(4, rows)).pow(2).sum().backward()
        optimizer.step()
    return layer.weight.detach()


def surprises(numel: int) -> torch.Tensor:
    """Two noisy bytes, then two that are nearly always the same. Where both of these differ, one
    pair of bytes takes more code than the vectorised coder holds between two flushes."""
    rng = random.Random(6)
    words = bytearray(noise(4 * numel, 7))
    words[2::4] = words[3::4] = bytes(numel)
    for i in range(0, numel, 64):
        words[4 * i + 2] = words[4 * i + 3] = 0x55
    for _ in range(numel // 500):
        at = 4 * rng.randrange(numel)
        words[at + 2 : at + 4] = rng.randbytes(2)
        words[at + 2] ^= 0x54
    return as_tensor(bytes(words), torch.float32)


FLOATS: dict[str, Callable[[], torch.Tensor]] = {
    "fp32": lambda: normal(400_000),
    "bf16": lambda: normal(800_000).bfloat16(),
    "fp16": lambda: normal(800_000).half(),
    "fp64": lambda: normal(200_000).double() * 3,
    "uniform": lambda: torch.rand(400_000, generator=torch.Generator().manual_seed(4)),
    "bf16 as fp32": lambda: normal(400_000).bfloat16().float(),
    "complex": lambda: torch.complex(normal(200_000), normal(200_000, 2)),
    "first moment": lambda: moments(400_000)[0],
    "second moment": lambda: moments(400_000)[1],
    "moment with zero rows": lambda: moments(400_000, rows_seen=0.3)[0],
    "pruned": lambda: normal(400_000) * (normal(400_000, 5) > 1.2),
    "trained": lambda: trained(400_000),
    "fp32 as bytes": lambda: normal(400_000).view(torch.uint8),
}
REPETITIVE: dict[str, Callable[[], torch.Tensor]] = {
    "text": lambda: as_tensor(source_text(1_500_000)),
    "counting int64": lambda: torch.arange(200_000),
    "counting int32": lambda: torch.arange(400_000, dtype=torch.int32),
    "ids": lambda: torch.randint(50_000, (200_000,), generator=torch.Generator().manual_seed(5)),
    "bools": lambda: normal(1_000_000) > 1.5,
}
OTHERS: dict[str, Callable[[], torch.Tensor]] = {
    "zeros": lambda: torch.zeros(400_000),
    "tiled": lambda: normal(5_000).repeat(80),
    "noise": lambda: as_tensor(noise(1_500_000)),
    "noise, then floats": lambda: torch.cat(
        [as_tensor(noise(4 * 200_000), torch.float32), normal(200_000)]
    ),
    "surprises": lambda: surprises(400_000),
}
CONTENTS = {**FLOATS, **REPETITIVE, **OTHERS}


def saved(tensor: torch.Tensor, folder: Path, **options: int | None) -> Path:
    path = folder / "x.tar.xz"
    pyckpt.save(tensor, path, fsync=False, **{"num_threads": 2, **options})  # type: ignore[arg-type]
    return path


def plain_tar(tensor: torch.Tensor, folder: Path) -> bytes:
    path = folder / "x.tar"
    pyckpt.save(tensor, path, fsync=False)
    return path.read_bytes()


def check(tensor: torch.Tensor, folder: Path) -> None:
    """The archive holds exactly the tar that is written without compression."""
    assert lzma.decompress(saved(tensor, folder).read_bytes()) == plain_tar(tensor, folder)


def blocks(path: Path) -> list[list[str]]:
    """The rows of ``xz --list`` for blocks; fields as in xz's manual, "block" first."""
    done = subprocess.run(
        ["xz", "--robot", "--list", "-vv", path], capture_output=True, text=True, check=True
    )
    rows = [line.split("\t") for line in done.stdout.splitlines()]
    assert [row[0] for row in rows].count("stream") == 1
    return [row for row in rows if row[0] == "block"]


@pytest.mark.parametrize("content", CONTENTS)
def test_every_reader_reads_every_content(tmp_path: Path, content: str) -> None:
    tensor = CONTENTS[content]()
    tar = plain_tar(tensor, tmp_path)
    path = saved(tensor, tmp_path)
    assert lzma.decompress(path.read_bytes()) == tar
    for name, command in DECODERS.items():
        done = subprocess.run([*command, path], capture_output=True, check=True)
        assert done.stdout == tar, name
    subprocess.run(["xz", "-t", path], check=True)
    for reader in (["bsdtar", "-xOf"], ["tar", "-xJOf"]):
        done = subprocess.run(
            [*reader, path, "composer_states.pt"], capture_output=True, check=True
        )
        back = torch.load(io.BytesIO(done.stdout))
        assert torch.equal(back.view(torch.uint8), tensor.view(torch.uint8))


@pytest.mark.parametrize("mode", ["r:xz", "r|xz"])
def test_python_reads_it_at_random_and_as_a_stream(tmp_path: Path, mode: str) -> None:
    tensor = normal(1_000_000)
    with tarfile.open(saved(tensor, tmp_path), mode) as archive:  # type: ignore[call-overload]
        for member in archive:
            if member.name == "composer_states.pt":
                back = torch.load(io.BytesIO(archive.extractfile(member).read()))
    assert torch.equal(back, tensor)


RECORDS = [1, 2, 3, 8, 25, 26, 51, 52, 101, 102, 103, 153, 204, 205]


def test_records_meet_the_limits() -> None:
    assert BLOCK_NBYTES == 102 * TAR_RECORD_NBYTES
    assert 25 * TAR_RECORD_NBYTES < GROUP_NBYTES < 26 * TAR_RECORD_NBYTES


@pytest.mark.parametrize("records", RECORDS)
def test_tars_around_every_limit(tmp_path: Path, records: int) -> None:
    around = len(plain_tar(torch.zeros(0, dtype=torch.uint8), tmp_path))
    nbytes = records * TAR_RECORD_NBYTES
    if records > 1:
        # Almost fills the tar: 4096 bytes are left for headers and the zip's other records.
        tensor = as_tensor(normal(nbytes // 4).view(torch.uint8).numpy().tobytes()[: nbytes - 4096])
    else:
        tensor = torch.zeros(0, dtype=torch.uint8)
        assert around == nbytes
    path = saved(tensor, tmp_path)
    assert lzma.decompress(path.read_bytes()) == plain_tar(tensor, tmp_path)
    sizes = [int(row[7]) for row in blocks(path)]
    assert sum(sizes) == nbytes
    assert sizes[:-1] == [BLOCK_NBYTES] * (len(sizes) - 1)
    assert 0 < sizes[-1] <= BLOCK_NBYTES


@pytest.mark.parametrize("nbytes", [0, 1, 2, 3, 7, 8, 9, 255, LANE_NBYTES, 65_535, 65_536, 65_537])
def test_tensors_of_few_bytes(tmp_path: Path, nbytes: int) -> None:
    check(as_tensor(noise(nbytes)) if nbytes else torch.zeros(0, dtype=torch.uint8), tmp_path)


@pytest.mark.parametrize("value", [0x00, 0x01, 0x55, 0x7F, 0x80, 0xFF])
@pytest.mark.parametrize(
    "dtype", [torch.uint8, torch.bfloat16, torch.float32, torch.float64], ids=str
)
def test_one_symbol(tmp_path: Path, value: int, dtype: torch.dtype) -> None:
    check(as_tensor(bytes([value]) * 600_000, dtype), tmp_path)


@st.composite
def byte_strings(draw: st.DrawFn) -> bytes:
    """Pieces of noise, runs, repeats and skewed noise, up to two groups long."""
    out = bytearray()
    for _ in range(draw(st.integers(1, 5))):
        nbytes = draw(st.sampled_from([1, 7, 500, 8_000, LANE_NBYTES, 70_000, GROUP_NBYTES // 2]))
        rng = random.Random(draw(st.integers(0, 2**16)))
        kind = draw(st.sampled_from(["noise", "run", "period", "skewed", "again", "rare"]))
        if kind == "noise":
            out += rng.randbytes(nbytes)
        elif kind == "run":
            out += bytes([rng.randrange(256)]) * nbytes
        elif kind == "period":
            out += (rng.randbytes(draw(st.integers(1, 300))) * nbytes)[:nbytes]
        elif kind == "skewed":
            alphabet = rng.randbytes(draw(st.integers(1, 20)))
            out += bytes(rng.choices(alphabet, k=nbytes))
        elif kind == "again":
            out += out[-nbytes:]
        else:
            piece = bytearray(nbytes)
            for _ in range(nbytes // 300):
                piece[rng.randrange(nbytes)] = rng.randrange(256)
            out += piece
    return bytes(out)


@settings(max_examples=40)
@given(
    raw=byte_strings(),
    dtype=st.sampled_from([torch.uint8, torch.bfloat16, torch.float32, torch.float64]),
    level=st.sampled_from([0, 6]),
)
def test_any_bytes_come_back(tmp_path: Path, raw: bytes, dtype: torch.dtype, level: int) -> None:
    raw += bytes(-len(raw) % dtype.itemsize)
    tensor = as_tensor(raw, dtype)
    path = saved(tensor, tmp_path, compression_level=level)
    assert lzma.decompress(path.read_bytes()) == plain_tar(tensor, tmp_path)


SAVE_ALL = """
import sys, types
from pathlib import Path
import torch, pyckpt
from pyckpt.archive import writer
writer.time = types.SimpleNamespace(time=lambda: float(sys.argv[2]))
for path in sorted(Path(sys.argv[1]).glob("*.pt")):
    pyckpt.save(torch.load(path), path.with_suffix(".tar.xz"), fsync=False, num_threads=2)
print(*pyckpt._core.kernels())
"""


def test_the_bytes_do_not_depend_on_the_cpu(tmp_path: Path, frozen_time: int) -> None:
    for number, build in enumerate(CONTENTS.values()):
        torch.save(build().clone(), tmp_path / f"{number:02d}.pt")
    written = []
    for portable in ("0", "1"):
        done = subprocess.run(
            [sys.executable, "-c", SAVE_ALL, str(tmp_path), str(frozen_time)],
            env={**os.environ, "PYCKPT_PORTABLE": portable},
            check=True,
            capture_output=True,
            text=True,
        )
        assert done.stdout.split() == ([] if portable == "1" else _core.kernels())
        written.append([path.read_bytes() for path in sorted(tmp_path.glob("*.tar.xz"))])
    assert len(written[0]) == len(CONTENTS)
    assert written[0] == written[1]


LOAD_AND_HASH = """
import hashlib, sys
import torch, pyckpt
for threads in (1, 3):
    state = pyckpt.load(sys.argv[1], num_threads=threads)
    for name, tensor in sorted(state.items()):
        print(name, hashlib.sha256(tensor.view(torch.uint8).numpy()).hexdigest())
"""


def many_kinds() -> dict[str, torch.Tensor]:
    """More blocks than are decoded in turn, of all kinds, and a short one at the end."""
    return {
        "fp32": normal(1_500_000),
        "bf16": normal(1_500_000, 2).bfloat16(),
        "noise": as_tensor(noise(2_500_000)),
        "fp64": normal(600_000, 3).double(),
        "text": as_tensor(source_text(1_200_000)),
        "bytes": normal(500_000, 4).view(torch.uint8),
        "mixed": torch.cat([as_tensor(noise(500_000), torch.float32), normal(400_000, 5)]),
        "rest": normal(1_000_000, 6),
    }


@pytest.mark.parametrize("portable", ["0", "1"])
def test_many_kinds_of_blocks_are_decoded_in_turn(tmp_path: Path, portable: str) -> None:
    state = many_kinds()
    path = tmp_path / "x.tar.xz"
    pyckpt.save(state, path, fsync=False, num_threads=2)
    rows = blocks(path)
    assert len(rows) > 16
    assert len({row[15] for row in rows}) > 1  # literals and matches
    assert int(rows[-1][7]) < BLOCK_NBYTES
    done = subprocess.run(
        [sys.executable, "-c", LOAD_AND_HASH, str(path)],
        env={**os.environ, "PYCKPT_PORTABLE": portable},
        check=True,
        capture_output=True,
        text=True,
        timeout=120,
    )
    want = [
        f"{name} {hashlib.sha256(tensor.view(torch.uint8).numpy()).hexdigest()}"
        for name, tensor in sorted(state.items())
    ]
    assert done.stdout.splitlines() == want * 2


@pytest.mark.timeout(120)
def test_damage_to_one_of_several_blocks_does_not_touch_the_others(tmp_path: Path) -> None:
    path = saved(normal(4_800_000), tmp_path)
    whole = path.read_bytes()
    raw = lzma.decompress(whole)
    rows = blocks(path)
    assert len(rows) > 16
    rng = random.Random(1)
    for number in (0, 7, 16, len(rows) - 1):
        begin, raw_begin, nbytes, raw_nbytes = (int(field) for field in rows[number][4:8])
        # The header, the code, its last chunk, and the check.
        for at in (5, rng.randrange(50, nbytes - 50), nbytes - 60, nbytes - 8):
            broken = bytearray(whole)
            broken[begin + at] ^= 1 << rng.randrange(8)
            path.write_bytes(broken)
            image = _core.StreamImage(bytes(path), threads=2, mapped=False, progress=None)
            assert image.nbytes == len(raw)
            _, damages = image.fill([(0, len(raw))], keep=True, checksums=False)
            assert [damage[:3] for damage in damages] == [(raw_begin, raw_nbytes, begin)], at
            assert image.read((0, raw_begin)) == raw[:raw_begin]
            raw_end = raw_begin + raw_nbytes
            assert image.read((raw_end, len(raw) - raw_end)) == raw[raw_end:]


def test_blocks_state_their_sizes(tmp_path: Path) -> None:
    tensor = normal(1_000_000)
    path = saved(tensor, tmp_path)
    tar = plain_tar(tensor, tmp_path)
    rows = blocks(path)
    assert len(rows) == -(-len(tar) // BLOCK_NBYTES)
    for row in rows:
        check_name, flags = row[9], row[12]
        assert check_name == "CRC64"
        assert flags == "cu"  # compressed and uncompressed size are in the header
    # Floats do not repeat as text does. So no block uses a match finder, not even the first one,
    # which begins with headers and a pickle.
    assert [row[15] for row in rows] == [LITERALS] * len(rows)


def ratio(tensor: torch.Tensor, folder: Path) -> float:
    return saved(tensor, folder).stat().st_size / tensor.nbytes


@pytest.mark.parametrize("content", FLOATS)
def test_floats_take_no_more_than_with_xz_9e(tmp_path: Path, content: str) -> None:
    tensor = FLOATS[content]()
    theirs = lzma.compress(plain_tar(tensor, tmp_path), preset=9 | lzma.PRESET_EXTREME)
    assert saved(tensor, tmp_path).stat().st_size <= len(theirs)


def test_noise_comes_close_to_its_entropy(tmp_path: Path) -> None:
    assert ratio(normal(1_000_000), tmp_path) <= 0.845
    assert ratio(normal(1_000_000).bfloat16(), tmp_path) <= 0.680
    assert ratio(as_tensor(noise(2_000_000)), tmp_path) <= 1.005


@pytest.mark.parametrize("content", REPETITIVE)
def test_the_rest_takes_little_more_than_with_xz_6(tmp_path: Path, content: str) -> None:
    tensor = REPETITIVE[content]()
    theirs = lzma.compress(plain_tar(tensor, tmp_path), preset=6)
    assert saved(tensor, tmp_path).stat().st_size <= 1.1 * len(theirs)


def test_zeros_and_tiles_take_almost_nothing(tmp_path: Path) -> None:
    assert ratio(torch.zeros(1_000_000), tmp_path) <= 0.002
    assert ratio(normal(2_000).repeat(300), tmp_path) <= 0.02
    assert ratio(normal(20_000).repeat(50), tmp_path) <= 0.1


def test_the_level_is_that_of_the_match_finder(tmp_path: Path) -> None:
    text = as_tensor(source_text(1_200_000))
    sizes = [saved(text, tmp_path, compression_level=n).stat().st_size for n in (0, 3, 6, 9)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] > sizes[2]
    floats = normal(300_000)
    written = {saved(floats, tmp_path, compression_level=n).read_bytes() for n in range(10)}
    assert len(written) == 1


def test_the_bytes_do_not_depend_on_the_threads(tmp_path: Path) -> None:
    tensor = torch.cat([normal(700_000), torch.arange(300_000).view(torch.float32)])
    written = {saved(tensor, tmp_path, num_threads=n).read_bytes() for n in (1, 2, 5)}
    assert len(written) == 1
