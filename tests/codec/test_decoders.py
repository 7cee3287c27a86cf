"""Every compressed file gives back its bytes, or an error that says where it is damaged."""

import bz2
import gzip
import lzma
import random
import subprocess
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import pyckpt
from pyckpt import _core
from tests import zstd_command

pytestmark = [pytest.mark.usefixtures("frozen_time"), pytest.mark.timeout(120)]

CHUNK_NBYTES = 1 << 20
BLOCK_NBYTES = 900_000


def decompress(file: bytes, threads: int = 2) -> bytes:
    """Decompresses as the reader does, and checks the checksums of the whole file."""
    with tempfile.NamedTemporaryFile() as place:
        place.write(file)
        place.flush()
        image = _core.StreamImage(place.name.encode(), threads=threads, mapped=False, progress=None)
        if image.compression == "":
            raise ValueError("not a compressed file")
        if image.nbytes is None:
            image.require((0, 1 << 60))
        assert image.nbytes is not None
        _, damages = image.fill([(0, image.nbytes)], keep=True, checksums=False)
        damages += image.finish()
        if damages:
            _, _, offset, message, _ = damages[0]
            raise _core.CorruptError(f"{message}, at byte {offset}")
        return image.read((0, image.nbytes))


def mixed(nbytes: int, seed: int = 0) -> bytes:
    """Floats, text, runs and noise."""
    rng = random.Random(seed)
    out = bytearray()
    while len(out) < nbytes:
        n = rng.choice([1, 3, 1_000, 40_000, 300_000])
        floats = torch.randn(n // 4 + 1, generator=torch.Generator().manual_seed(seed))
        out += rng.choice(
            [
                floats.view(torch.uint8).numpy().tobytes(),
                bytes([rng.randrange(256)]) * n,
                rng.randbytes(n),
                b"the same words again and again, %d times " % n * (n // 40),
            ]
        )
        seed += 1
    return bytes(out[:nbytes])


RAW = mixed(3_000_000)

TOOLS = {
    "gzip": ["gzip", "-c"],
    "gzip -1": ["gzip", "-1c"],
    "gzip -9, with a name": ["gzip", "-9", "-N", "-c"],
    "pigz": ["pigz", "-p2", "-c"],
    "pigz, independent blocks": ["pigz", "-p2", "-i", "-c"],
    "pigz, zopfli": ["pigz", "-11", "-p2", "-b512", "-I1", "-c"],
    "igzip": ["igzip", "-c"],
    "bzip2": ["bzip2", "-c"],
    "bzip2 -1": ["bzip2", "-1c"],
    "lbzip2": ["lbzip2", "-n2", "-c"],
    "pbzip2": ["pbzip2", "-p2", "-c"],
    "xz": ["xz", "-1", "-c"],
    "xz, blocks": ["xz", "-1", "-T2", "--block-size=500000", "-c"],
    "xz, blocks of unstated sizes": ["xz", "-1", "-T1", "--block-size=500000", "-c"],
    "xz, no check": ["xz", "-1", "--check=none", "-c"],
    "xz, CRC-32": ["xz", "-1", "--check=crc32", "--block-size=900000", "-c"],
    "xz, SHA-256": ["xz", "-1", "--check=sha256", "--block-size=900000", "-c"],
    "xz, filters": ["xz", "--x86", "--delta=dist=4", "--lzma2=preset=1", "-T2", "-c"],
    # The settings of pyckpt's blocks without matches; a special decoder reads them.
    "xz, our settings": [
        "xz",
        "--lzma2=dict=4KiB,lc=2,lp=2,pb=0",
        "--block-size=9000",
        "-T2",
        "-c",
    ],
    "xz, other positions": ["xz", "--lzma2=dict=4KiB,lc=0,lp=4", "--block-size=9000", "-T2", "-c"],
    "lzma": ["xz", "-1", "--format=lzma", "-c"],
    "zstd": ["zstd", "-c"],
    "zstd, no check": ["zstd", "--no-check", "-c"],
    "zstd, no size": ["zstd", "--no-content-size", "-c"],
    "zstd -19, long": ["zstd", "-19", "--long=27", "-c"],
    "zstd, no compression": ["zstd", "--fast=100", "-c"],
}
LIBRARIES: dict[str, Callable[[bytes], bytes]] = {
    "gzip": lambda raw: gzip.compress(raw, mtime=0),
    "bzip2": bz2.compress,
    "xz": lambda raw: lzma.compress(raw, preset=0),
    "zstd": zstd_command.compress,
}
LIBRARIES_READ = {
    "gzip": gzip.decompress,
    "bzip2": bz2.decompress,
    "xz": lzma.decompress,
    "zstd": zstd_command.decompress,
}
SUFFIXES = {"gzip": ".tar.gz", "bzip2": ".tar.bz2", "xz": ".tar.xz", "zstd": ".tar.zst"}


@pytest.mark.parametrize("tool", TOOLS)
def test_what_other_tools_write(tmp_path: Path, tool: str) -> None:
    path = tmp_path / "raw.bin"
    path.write_bytes(RAW)
    done = subprocess.run([*TOOLS[tool], path], capture_output=True, check=True)
    for threads in (1, 3):
        assert decompress(done.stdout, threads) == RAW


@pytest.mark.parametrize("library", LIBRARIES)
def test_what_python_writes(library: str) -> None:
    assert decompress(LIBRARIES[library](RAW)) == RAW


def saved(state: object, folder: Path, name: str, level: int | None = None) -> bytes:
    path = folder / f"x{SUFFIXES[name]}"
    pyckpt.save(state, path, compression_level=level, fsync=False, num_threads=2)
    return path.read_bytes()


@pytest.mark.parametrize("level", [0, 1, 6, 9])
@pytest.mark.parametrize("name", SUFFIXES)
def test_what_pyckpt_writes(tmp_path: Path, name: str, level: int) -> None:
    if name in ("bzip2", "zstd"):
        level = max(level, 1)
    state = torch.frombuffer(bytearray(RAW), dtype=torch.uint8)
    file = saved(state, tmp_path, name, level)
    want = LIBRARIES_READ[name](file)
    for threads in (1, 3):
        assert decompress(file, threads) == want


SIZES = [0, 1, 2, 65_535, CHUNK_NBYTES, 2 * BLOCK_NBYTES]


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("nbytes", [n + d for n in SIZES for d in (-1, 0, 1) if n + d >= 0])
def test_sizes_around_limits(library: str, nbytes: int) -> None:
    raw = mixed(nbytes, seed=nbytes)
    assert decompress(LIBRARIES[library](raw)) == raw


@pytest.mark.parametrize("library", LIBRARIES)
def test_one_after_the_other(library: str) -> None:
    """Members and streams follow one another, empty ones too."""
    pieces = [mixed(n, seed=n) for n in (0, 1_000_000, 0, 0, 5, 70_000)]
    whole = b"".join(map(LIBRARIES[library], pieces))
    assert decompress(whole) == b"".join(pieces)
    assert decompress(whole + bytes(512)) == b"".join(pieces)
    for behind in (b"x", bytes(512) + b"x" * 4):  # no stream
        assert decompress(whole + behind) == b"".join(pieces)
    with pytest.raises(RuntimeError, match=r", at byte \d+$"):
        decompress(whole + LIBRARIES[library](b"y")[:-1])


@pytest.mark.parametrize("library", ["gzip", "bzip2", "zstd"])
def test_streams_without_number(library: str) -> None:
    assert decompress(LIBRARIES[library](b"") * 300_000) == b""


def with_header_checksum(raw: bytes) -> bytes:
    """A gzip member whose header has a checksum of its own (flag FHCRC, RFC 1952)."""
    member = bytearray(gzip.compress(raw, mtime=0))
    member[3] |= 2
    checksum = zlib.crc32(member[:10]) & 0xFFFF
    return bytes(member[:10]) + checksum.to_bytes(2, "little") + bytes(member[10:])


def test_what_gzip_says_of_itself_is_compared() -> None:
    """Every field that guards the data: the header's checksum, the data's, and its length."""
    raw = mixed(300_000)
    file = with_header_checksum(raw)
    assert decompress(file) == raw == gzip.decompress(file)
    for at, message in (
        (4, "header"),  # the time, which the header's checksum covers
        (10, "header"),
        (len(file) - 8, "checksum does not match"),
        (len(file) - 4, "length does not match"),
        (len(file) - 1, "length does not match"),
    ):
        broken = bytearray(file)
        broken[at] ^= 1
        with pytest.raises(_core.CorruptError, match=message):
            decompress(bytes(broken))


@pytest.mark.parametrize("at", [-8, -4, -1])
def test_the_trailer_of_what_is_decoded_in_parallel_is_compared(tmp_path: Path, at: int) -> None:
    path = tmp_path / "x.tar.gz"
    # Fixed numbers: others may give an index that has the magic in it.
    pyckpt.save(torch.randn(1_000_000, generator=torch.Generator().manual_seed(0)), path)
    file = bytearray(path.read_bytes())
    end = file.rindex(b"PYCKPTIX")  # the index is a member of its own behind the data
    member = file.rindex(b"\x1f\x8b\x08", 0, end)
    file[member + at] ^= 1
    message = "checksum does not match" if at == -8 else "does not match"
    with pytest.raises(_core.CorruptError, match=message):
        decompress(bytes(file))


@pytest.mark.parametrize("threads", [1, 3])
def test_damage_to_a_block_of_bzip2_names_its_place(threads: int) -> None:
    file = bytearray(bz2.compress(mixed(3_000_000)))
    bits = "".join(f"{byte:08b}" for byte in file)
    magic = f"{0x314159265359:048b}"
    third = bits.index(magic, bits.index(magic, bits.index(magic) + 1) + 1)
    file[third // 8 + 7] ^= 1  # in the block's checksum
    with pytest.raises(
        _core.CorruptError, match=f"a block's checksum does not match, at byte {third // 8}$"
    ):
        decompress(bytes(file), threads)


@pytest.mark.parametrize("nbytes", [5_000, 2_000_000], ids=["one block", "several"])
def test_the_checksum_of_a_bzip2_stream_is_compared(nbytes: int) -> None:
    """It is about the order of the blocks, which have checksums of their own."""
    file = bytearray(bz2.compress(mixed(nbytes)))
    file[-3] ^= 1  # the last bits but seven at most
    with pytest.raises(_core.CorruptError, match="a stream's checksum does not match"):
        decompress(bytes(file))


def test_the_two_ends_of_an_xz_stream_are_compared(tmp_path: Path) -> None:
    """Also where blocks are decoded one by one, which need only the end of the file."""
    whole = saved(torch.randn(1_000_000), tmp_path, "xz")
    other = lzma.compress(b"", check=lzma.CHECK_CRC32)
    header_nbytes = 12
    with pytest.raises(_core.CorruptError, match="header"):
        decompress(other[:header_nbytes] + whole[header_nbytes:])


def test_magics_behind_the_end() -> None:
    """They look like blocks, but belong to no stream."""
    assert decompress(bz2.compress(RAW, 1) + bytes.fromhex("314159265359") * 3) == RAW


@pytest.mark.parametrize("file", [b"", b"\x1f", b"BZ", b"\xfd7zXZ", b"PK\3\4" + bytes(60), RAW])
def test_what_is_not_compressed(file: bytes) -> None:
    with pytest.raises(ValueError, match="not a compressed file"):
        decompress(file)


def damaged(file: bytes, kind: str, at: int, rng: random.Random) -> bytes:
    broken = bytearray(file)
    if kind == "flip":
        broken[at] ^= 1 << rng.randrange(8)
    elif kind == "cut":
        del broken[at:]
    elif kind == "zeros":
        n = min(rng.choice([1, 8, 512, 5_000]), len(file) - at)
        broken[at : at + n] = bytes(n)
    elif kind == "swap":
        other = rng.randrange(len(file))
        broken[at], broken[other] = broken[other], broken[at]
    elif kind == "noise":
        n = min(rng.choice([1, 8, 512]), len(file) - at)
        broken[at : at + n] = rng.randbytes(n)
    elif kind == "drop":
        del broken[at : at + rng.choice([1, 4, 1_000])]
    else:
        broken[at:at] = rng.randbytes(rng.choice([1, 4, 1_000]))
    return bytes(broken)


DAMAGES = ["flip", "cut", "zeros", "swap", "noise", "drop", "insert"]


def check_damaged(file: bytes, *want: bytes) -> None:
    try:
        got = decompress(file)
    except RuntimeError as error:
        assert ", at byte " in str(error)  # noqa: PT017
    except ValueError as error:
        assert str(error) == "not a compressed file"  # noqa: PT017
    else:
        assert got in want


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[bytes, bytes]]:
    """Compressed files of several kinds, and what they hold."""
    folder = tmp_path_factory.mktemp("samples")
    raw = mixed(1_500_000, seed=9)
    (folder / "raw.bin").write_bytes(raw)
    state = torch.frombuffer(bytearray(raw), dtype=torch.uint8)
    found = {}
    for name in SUFFIXES:
        file = saved(state, folder, name)
        found[f"pyckpt, {name}"] = file, LIBRARIES_READ[name](file)
    for name in ("pigz", "bzip2 -1", "xz", "xz, blocks", "xz, SHA-256", "zstd"):
        done = subprocess.run([*TOOLS[name], folder / "raw.bin"], capture_output=True, check=True)
        found[name] = done.stdout, raw
    for name, compress in LIBRARIES.items():
        small = mixed(5_000, seed=3)
        found[f"small, {name}"] = compress(small), small
        found[f"two, {name}"] = compress(small) + compress(raw[:9_000]), small + raw[:9_000]
    return found


@settings(max_examples=400)
@given(data=st.data())
def test_damage_is_an_error(samples: dict[str, tuple[bytes, bytes]], data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(samples)))
    file, want = samples[name]
    rng = random.Random(data.draw(st.integers(0, 2**32)))
    # Damage to headers, indexes and trailers can have the most different effects.
    where = data.draw(st.sampled_from(["begin", "end", "anywhere"]))
    near = min(len(file), 2_000)
    at = {
        "begin": rng.randrange(min(near, 64)),
        "end": len(file) - 1 - rng.randrange(min(near, 1_500)),
        "anywhere": rng.randrange(len(file)),
    }[where]
    broken = damaged(file, data.draw(st.sampled_from(DAMAGES)), at, rng)
    # A file that is cut behind a whole member or stream, or filled with zeros there, is valid.
    check_damaged(broken, want, mixed(5_000, seed=3) if name.startswith("two") else want)


@settings(max_examples=200)
@given(
    head=st.sampled_from(
        [
            b"\x1f\x8b\x08\x00" + bytes(6),
            b"\x1f\x8b\x08\x1e" + bytes(6),
            b"BZh91AY&SY",
            b"BZh9\x17\x72\x45\x38\x50\x90",
            b"\xfd7zXZ\x00\x00\x04\xe6\xd6\xb4\x46",
            b"\x5d\x00\x00\x80\x00" + b"\xff" * 8,
            b"\x28\xb5\x2f\xfd",
            b"\x28\xb5\x2f\xfd\x24\x40",
            b"\x50\x2a\x4d\x18\x00\x00\x00\x00\x28\xb5\x2f\xfd\x04\x68",
        ]
    ),
    rest=st.binary(max_size=400),
)
def test_made_up_files(head: bytes, rest: bytes) -> None:
    try:
        decompress(head + rest)
    except RuntimeError as error:
        assert ", at byte " in str(error)  # noqa: PT017


def test_every_byte_of_a_small_file_matters() -> None:
    raw = mixed(300, seed=5)
    for library, compress in LIBRARIES.items():
        file = compress(raw)
        for at in range(len(file)):
            for bit in range(8):
                broken = bytearray(file)
                broken[at] ^= 1 << bit
                check_damaged(bytes(broken), raw)
            with pytest.raises((RuntimeError, ValueError)):
                decompress(file[:at])
        assert decompress(file) == raw, library


def with_xz_index(blocks: bytes, index: bytes) -> bytes:
    """An xz file of blocks with a check of CRC-64, and an index without its checksum."""
    index += zlib.crc32(index).to_bytes(4, "little")
    flags = (len(index) // 4 - 1).to_bytes(4, "little") + b"\x00\x04"
    footer = zlib.crc32(flags).to_bytes(4, "little") + flags + b"YZ"
    return b"\xfd7zXZ\x00\x00\x04\xe6\xd6\xb4\x46" + blocks + index + footer


def test_an_index_of_claims_without_number() -> None:
    """The index of an xz file may claim 2^60 blocks; no memory is allocated for the claim."""
    with pytest.raises(RuntimeError, match="an index"):
        decompress(with_xz_index(b"", b"\x00" + b"\xff" * 8 + b"\x0f" + b"\x00" * 2))


@pytest.mark.parametrize("nbytes", [b"\x64", b"\x80" * 6 + b"\x01"], ids=["100", "2^42"])
def test_a_block_that_claims_more_than_its_code_can_hold(nbytes: bytes) -> None:
    whole = lzma.compress(bytes(100))
    index_nbytes = 4 * (int.from_bytes(whole[-8:-4], "little") + 1)
    blocks, index = whole[12 : -12 - index_nbytes], whole[-12 - index_nbytes : -16]
    assert index[:2] == b"\x00\x01"
    assert index[2] < 0x80  # the size of the block's code
    assert index[3] == 100
    claim = index[:3] + nbytes
    file = with_xz_index(blocks, claim + bytes(-len(claim) % 4))
    if nbytes == b"\x64":
        assert file == whole
        assert decompress(file) == bytes(100)
    else:
        with pytest.raises(_core.CorruptError, match="more bytes than its code can hold"):
            decompress(file)
