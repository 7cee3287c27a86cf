"""Streams that one thread decodes: the same results, whether at once or step by step."""

import bz2
import gzip
import lzma
import os
import random
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pyckpt import _core
from tests import zstd_command

pytestmark = pytest.mark.timeout(120)

MIB = 1 << 20
# Constants of csrc/read/: what is asked for at once is decoded at once from so many bytes on, if
# hardly more follows and at most an eighth was decoded before.
MANY_NBYTES = 4 * MIB
RAW = torch.randn(2_400_000, generator=torch.Generator().manual_seed(0)).numpy().tobytes() + bytes(
    300_000
)
FILE = gzip.compress(RAW, 1, mtime=0)


def opened(file: bytes, folder: Path) -> _core.StreamImage:
    path = folder / "x.gz"
    path.write_bytes(file)
    return _core.StreamImage(os.fsencode(path), threads=1, mapped=False, progress=None)


def at_once(image: _core.StreamImage, nbytes: int) -> str:
    """Asks for all bytes in one call. Returns the error's message and place."""
    _, damages = image.fill([(0, nbytes)], keep=True, checksums=False)
    return str([damage[2:] for damage in damages])


def in_steps(image: _core.StreamImage, nbytes: int) -> str:
    for end in [*range(MIB, nbytes, MIB), nbytes]:
        _, damages = image.fill([(0, end)], keep=True, checksums=False)
        if damages:
            break
    return str([damage[2:] for damage in damages])


def readable(image: _core.StreamImage, nbytes: int) -> bytes:
    """The bytes that can be read, in units of 1 MiB."""
    out = b""
    for begin in range(0, nbytes, MIB):
        try:
            out += image.read((begin, min(MIB, nbytes - begin)))
        except ValueError:
            break
    return out


WHOLE: dict[str, Callable[[], tuple[bytes, bytes]]] = {
    "one member": lambda: (FILE, RAW),
    "with zeros behind it": lambda: (FILE + bytes(512), RAW),
    "with others behind it": lambda: (FILE + b"others", RAW),
    "with a name": lambda: (FILE[:3] + b"\x08" + FILE[4:10] + b"name\0" + FILE[10:], RAW),
    "two members": lambda: (FILE + gzip.compress(b"more"), RAW + b"more"),
    "two members of one size": lambda: (FILE + FILE, RAW + RAW),
    "an empty member first": lambda: (gzip.compress(b"") + FILE, RAW),
}


@pytest.mark.parametrize("before", [0, 512, 3 * MIB])
@pytest.mark.parametrize("name", WHOLE)
def test_whole_streams(tmp_path: Path, name: str, before: int) -> None:
    """Also if a part was read before."""
    file, raw = WHOLE[name]()
    for read in (at_once, in_steps):
        image = opened(file, tmp_path)
        assert image.require((0, before))
        assert read(image, len(raw)) == "[]"
        assert image.read((0, len(raw))) == raw
        assert image.finish() == []
        assert image.nbytes == len(raw)
        assert image.trailing_nbytes == (6 if file.endswith(b"others") else 0)


def test_a_part_at_once(tmp_path: Path) -> None:
    image = opened(FILE, tmp_path)
    assert at_once(image, MANY_NBYTES + 1) == "[]"
    assert image.read((0, MANY_NBYTES)) == RAW[:MANY_NBYTES]
    assert at_once(image, len(RAW)) == "[]"
    assert image.read((0, len(RAW))) == RAW
    assert image.finish() == []


def test_what_is_taken_stays(tmp_path: Path) -> None:
    image = opened(FILE, tmp_path)
    assert image.require((0, len(RAW) - MANY_NBYTES))
    taken = image.take((0, 1000))
    view = memoryview(taken)
    view[:3] = b"new"
    with pytest.raises(ValueError, match="bytes are taken and must stay"):
        image.require((0, len(RAW)))
    assert bytes(view[:1000]) == b"new" + RAW[3:1000]


DAMAGES: dict[str, Callable[[bytearray], None]] = {
    "the checksum": lambda file: file.__setitem__(-8, file[-8] ^ 1),
    "the length, more": lambda file: file.__setitem__(-4, file[-4] ^ 1),
    "the length, less": lambda file: file.__setitem__(-4, file[-4] & 0x80),
    "the end": lambda file: file.__delitem__(slice(-100, None)),
    "the trailer": lambda file: file.__delitem__(slice(-4, None)),
}


def check_damaged(file: bytes, folder: Path, before: int) -> None:
    images = [opened(file, folder) for _ in range(2)]
    images[0].fill([(0, before)], keep=True, checksums=False)
    messages = [
        read(image, len(RAW)) for read, image in zip((at_once, in_steps), images, strict=True)
    ]
    assert messages[0] == messages[1]
    parts = [readable(image, len(RAW)) for image in images]
    assert parts[0] == parts[1]
    assert messages[0] != "[]" or images[0].finish() != [] or parts[0] == RAW
    assert messages[0] != "[]" or images[0].trailing_nbytes == images[1].trailing_nbytes


@pytest.mark.parametrize("before", [0, 512])
@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_trailers(tmp_path: Path, name: str, before: int) -> None:
    broken = bytearray(FILE)
    DAMAGES[name](broken)
    check_damaged(bytes(broken), tmp_path, before)


@pytest.mark.parametrize("seed", range(12))
def test_damage_is_where_it_was(tmp_path: Path, seed: int) -> None:
    """What precedes the damage can be read."""
    rng = random.Random(seed)
    broken = bytearray(FILE)
    broken[rng.randrange(10, len(FILE))] ^= 1 << rng.randrange(8)
    check_damaged(bytes(broken), tmp_path, 512 * (seed % 2))


COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": lambda raw: gzip.compress(raw, 1, mtime=0),
    "bzip2": bz2.compress,
    "xz": lzma.compress,
    "lzma": lambda raw: lzma.compress(raw, lzma.FORMAT_ALONE),
    "zstd": zstd_command.compress,
}


@pytest.mark.parametrize("name", COMPRESS)
def test_damage_stays_the_same(tmp_path: Path, name: str) -> None:
    """A decoder that has failed is not asked again: it does not know where it is."""
    broken = bytearray(COMPRESS[name](RAW[: MIB // 2]))
    broken[len(broken) // 2] ^= 1
    image = opened(bytes(broken), tmp_path)
    found = []
    for _ in range(3):
        with pytest.raises(_core.CorruptError) as caught:
            image.require((0, MIB))
        found.append((str(caught.value), image.placed_nbytes))
    assert found == found[:1] * 3


def test_a_file_that_claims_less_than_it_holds(tmp_path: Path) -> None:
    """Only so many bytes are decoded at once as were asked for, and hardly more."""
    encoder = zlib.compressobj(1, zlib.DEFLATED, 31)
    bomb = encoder.compress(bytes(400 * MIB)) + encoder.flush()
    claimed = 8 * MIB
    image = opened(bomb[:-4] + claimed.to_bytes(4, "little"), tmp_path)
    assert at_once(image, claimed) == "[]"
    assert image.nbytes is None
    assert image.read((0, claimed)) == bytes(claimed)
    with pytest.raises(ValueError, match="are not there"):
        image.read((0, claimed + 2 * MIB))
