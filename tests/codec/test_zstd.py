"""Contents of .tar.zst archives, for any bytes, and the programs that read them."""

import os
import random
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import pyckpt
from pyckpt import _core
from tests.codec.test_gzip import CONTENTS, floats, noise, source_text
from tests.zstd_command import compress, decompress

# Constants of csrc/codec/zstd/encoder.h, format.h and literal_frame.cc, and of csrc/codec/plan.cc.
CHUNK_NBYTES = 1 << 20
BLOCK_NBYTES = 128 << 10
FEW_LITERALS = 64
STRETCH_NBYTES = 16 << 10

pytestmark = [pytest.mark.usefixtures("frozen_time"), pytest.mark.timeout(300)]

DECODERS = {
    "zstd": ["zstd", "-dc"],
    "bsdtar's libarchive": ["bsdcat"],
    "7z": ["7z", "x", "-so", "-tzstd"],
}


def save(payload: bytes, path: Path, level: int | None = None, threads: int = 2) -> bytes:
    tensor = torch.frombuffer(bytearray(payload), dtype=torch.uint8) if payload else torch.empty(0)
    pyckpt.save(tensor, path, compression_level=level, fsync=False, num_threads=threads)
    return path.read_bytes()


def tar_of(payload: bytes, folder: Path) -> bytes:
    return save(payload, folder / "x.tar")


def check(payload: bytes, folder: Path, level: int | None = None) -> bytes:
    """zstd finds the tar, and so does our reader. Returns the archive."""
    archive = save(payload, folder / "x.tar.zst", level)
    assert decompress(archive) == tar_of(payload, folder)
    loaded = pyckpt.load(folder / "x.tar.zst")
    assert loaded.numpy().tobytes() == payload
    return archive


@pytest.mark.parametrize("name", CONTENTS)
def test_contents(tmp_path: Path, name: str) -> None:
    payload = CONTENTS[name]()
    assert len(check(payload, tmp_path)) < len(payload) * 1.001 + 4_000


@pytest.mark.parametrize("level", [1, 2, 9, 19])
@pytest.mark.parametrize("name", ["floats", "text", "indices", "text by turns with floats"])
def test_levels(tmp_path: Path, name: str, level: int) -> None:
    check(CONTENTS[name](), tmp_path, level)


def test_levels_are_those_of_zstd(tmp_path: Path) -> None:
    """They change what repeats, and nothing else."""
    for name, same in (("text", False), ("bfloat16", True)):
        payload = CONTENTS[name]()
        low, high = (save(payload, tmp_path / "x.tar.zst", level) for level in (1, 19))
        # Other frames have the archive's headers.
        assert (max(frames_of(low), key=len) == max(frames_of(high), key=len)) == same
        assert len(high) <= len(low)
    for level in (0, 20):
        with pytest.raises(pyckpt.OptionError, match="compression_level"):
            save(b"", tmp_path / "x.tar.zst", level)


@pytest.mark.parametrize("name", ["floats", "bfloat16", "float16", "tiles of 4 kB"])
def test_size_against_gzip(tmp_path: Path, name: str) -> None:
    payload = CONTENTS[name]()
    ours = len(save(payload, tmp_path / "x.tar.zst"))
    assert ours < 1.002 * len(save(payload, tmp_path / "x.tar.gz"))


def block_types(frame: bytes) -> list[int]:
    """0 for stored bytes, 1 for one byte many times, 2 for compressed ones. [] for libzstd's."""
    types, at = [], 9
    while frame[4] == 0xA4 and at < len(frame) - 4:
        header = int.from_bytes(frame[at : at + 3], "little")
        types.append(header >> 1 & 3)
        at += 3 + (1 if types[-1] == 1 else header >> 3)
    return types


@pytest.mark.parametrize("byte", [0, 7])
def test_one_byte_many_times(tmp_path: Path, byte: int) -> None:
    """A frame never begins with such a block: zstd up to 1.4.3 refuses that."""
    archive = check(bytes([byte]) * 8 * CHUNK_NBYTES, tmp_path)
    for frame in frames_of(archive)[2:8]:
        assert block_types(frame) == [2] + 7 * [1]


@pytest.mark.parametrize("seed", range(4))
def test_one_byte_many_times_among_others(tmp_path: Path, seed: int) -> None:
    """The table of the literals before holds for those behind."""
    rng = random.Random(seed)
    parts = []
    for _ in range(30):
        parts.append(bytes([rng.choice([0, 0x3F])]) * rng.choice([5000, 140_000, 300_000]))
        parts.append(floats(rng.choice([1, 40, 20_000, 200_000])))
    payload = b"".join(parts)
    archive = check(payload, tmp_path)
    assert any(1 in block_types(frame) for frame in frames_of(archive))


LIMITS = [
    *(0, 32, FEW_LITERALS, STRETCH_NBYTES, 32 << 10, BLOCK_NBYTES, 2 * BLOCK_NBYTES),
    *(CHUNK_NBYTES, CHUNK_NBYTES + BLOCK_NBYTES),
]


@pytest.mark.parametrize("nbytes", [n + d for n in LIMITS for d in (-1, 0, 1) if n + d >= 0])
def test_sizes_around_limits(tmp_path: Path, nbytes: int) -> None:
    check(floats(nbytes + 3)[:nbytes], tmp_path)


@pytest.mark.parametrize("name", ["floats", "zeros", "noise", "text", "floats with rare runs"])
@pytest.mark.parametrize("decoder", DECODERS)
def test_programs_that_decompress(tmp_path: Path, name: str, decoder: str) -> None:
    payload = CONTENTS[name]()
    save(payload, tmp_path / "x.tar.zst")
    command = [*DECODERS[decoder], tmp_path / "x.tar.zst"]
    done = subprocess.run(command, capture_output=True, check=True)
    assert done.stdout == tar_of(payload, tmp_path)


@pytest.mark.frameworks
def test_python_reads_it(tmp_path: Path) -> None:
    """Python 3.14's zstd and tarfile, for any Python."""
    if sys.version_info >= (3, 14):
        import tarfile

        from compression import zstd
    else:
        from backports import zstd
        from backports.zstd import tarfile
    payload = CONTENTS["text by turns with floats"]() + floats(3 * CHUNK_NBYTES)
    archive = save(payload, tmp_path / "x.tar.zst")
    tar = tar_of(payload, tmp_path)
    assert zstd.decompress(archive) == tar
    with zstd.open(tmp_path / "x.tar.zst") as file:
        assert b"".join(iter(lambda: file.read(70_000), b"")) == tar
    for mode in ("r", "r:zst"):
        with tarfile.open(tmp_path / "x.tar.zst", mode) as opened:
            assert opened.getnames() == ["", "composer_states.pt"]
    zipped = zstd.compress(tar, options={zstd.CompressionParameter.checksum_flag: 1})
    (tmp_path / "y.tar.zst").write_bytes(zipped)
    assert pyckpt.load(tmp_path / "y.tar.zst").numpy().tobytes() == payload


def test_portable_code_and_threads_write_the_same_bytes(tmp_path: Path) -> None:
    payload = b"".join(CONTENTS[name]()[:400_000] for name in sorted(CONTENTS))
    (tmp_path / "payload").write_bytes(payload)
    archive = save(payload, tmp_path / "one.tar.zst", threads=1)
    assert save(payload, tmp_path / "three.tar.zst", threads=3) == archive
    script = (
        "import sys, torch, pyckpt; data = bytearray(open(sys.argv[1], 'rb').read());"
        "pyckpt.save(torch.frombuffer(data, dtype=torch.uint8), sys.argv[2], fsync=False)"
    )
    command = [sys.executable, "-c", script, tmp_path / "payload", tmp_path / "portable.tar.zst"]
    for portable in ("0", "1"):
        environment = {**os.environ, "PYCKPT_PORTABLE": portable, "SOURCE_DATE_EPOCH": "0"}
        subprocess.run(command, env=environment, check=True)
        twin = (tmp_path / "portable.tar.zst").read_bytes()
        assert len(twin) > 100_000
        if portable == "0":
            want = twin
        assert frames_of(twin)[1:] == frames_of(want)[1:]  # the first frame has the time


def skippable(contents: bytes, number: int = 0) -> bytes:
    return struct.pack("<II", 0x184D2A50 + number, len(contents)) + contents


def seek_table(frames: list[tuple[int, int]], *, checksums: bool = False) -> bytes:
    entries = b"".join(struct.pack("<II", *frame) + bytes(4 * checksums) for frame in frames)
    footer = struct.pack("<IBI", len(frames), 0x80 * checksums, 0x8F92EAB1)
    return skippable(entries + footer, 0xE)


def sizes_in_table(archive: bytes) -> list[tuple[int, int]]:
    (count,) = struct.unpack_from("<I", archive, len(archive) - 9)
    at = len(archive) - 9 - 8 * count
    sizes = [struct.unpack_from("<II", archive, at + 8 * i) for i in range(count)]
    assert archive[at - 8 :] == seek_table(sizes)
    return sizes


def frames_of(archive: bytes) -> list[bytes]:
    frames = []
    at = 0
    for code_nbytes, _ in sizes_in_table(archive):
        frames.append(archive[at : at + code_nbytes])
        at += code_nbytes
    return frames


def test_headers(tmp_path: Path) -> None:
    """Each frame says its size and has a checksum; the table has the sizes of all."""
    payload = floats(3 * CHUNK_NBYTES) + source_text(CHUNK_NBYTES) + noise(CHUNK_NBYTES)
    archive = save(payload, tmp_path / "x.tar.zst")
    tar = tar_of(payload, tmp_path)
    sizes = sizes_in_table(archive)
    assert sum(raw for _, raw in sizes) == len(tar)
    assert max(raw for _, raw in sizes) <= CHUNK_NBYTES
    at = 0
    for frame, (_, raw_nbytes) in zip(frames_of(archive), sizes, strict=True):
        assert frame[:4] == bytes.fromhex("28b52ffd")
        assert frame[4] & 0b0010_0100 == 0b0010_0100  # one segment, checksum
        assert frame[4] & 0b0001_1011 == 0  # nothing reserved, no dictionary
        assert decompress(frame) == tar[at : at + raw_nbytes]
        at += raw_nbytes
    floats_only = frames_of(archive)[2]
    assert floats_only[:9] == bytes.fromhex("28b52ffda4") + CHUNK_NBYTES.to_bytes(4, "little")
    listing = subprocess.run(
        ["zstd", "-lv", tmp_path / "x.tar.zst"], capture_output=True, text=True, check=True
    ).stdout
    assert f"({len(tar)} B)" in listing
    assert f"# Zstandard Frames: {len(sizes)}" in listing
    assert "# Skippable Frames: 1" in listing


def test_every_checksum_is_compared(tmp_path: Path) -> None:
    """By zstd too: a literal of the wrong value changes nothing else."""
    archive = bytearray(save(noise(300_000), tmp_path / "x.tar.zst"))
    archive[100_000] ^= 1
    (tmp_path / "x.tar.zst").write_bytes(archive)
    done = subprocess.run(["zstd", "-t", tmp_path / "x.tar.zst"], capture_output=True)
    assert done.returncode != 0
    assert b"checksum" in done.stderr
    with pytest.raises(pyckpt.CorruptArchiveError, match="checksum of a frame does not match"):
        pyckpt.load(tmp_path / "x.tar.zst")


def test_one_tensor_without_the_rest(tmp_path: Path) -> None:
    state = {name: torch.randn(1_000_000) for name in "abc"}
    path = tmp_path / "x.tar.zst"
    pyckpt.save(state, path, fsync=False)
    archive = bytearray(path.read_bytes())
    archive[len(archive) // 2] ^= 1  # in b
    path.write_bytes(archive)
    assert torch.equal(pyckpt.load(path, keys="a")["a"], state["a"])
    assert torch.equal(pyckpt.load(path, keys="c")["c"], state["c"])
    with pytest.raises(pyckpt.CorruptArchiveError, match="tensor 'b'"):
        pyckpt.load(path)


def read(file: bytes, folder: Path, threads: int = 2) -> bytes:
    """What the reader finds, and that nothing is wrong with it."""
    path = folder / "file"
    path.write_bytes(file)
    image = _core.StreamImage(os.fsencode(path), threads=threads, mapped=False, progress=None)
    assert image.compression == "zstd"
    if image.nbytes is None:
        image.require((0, 1 << 60))
    _, damages = image.fill([(0, image.nbytes)], keep=True, checksums=False)
    damages += image.finish()
    if damages:
        raise _core.CorruptError(damages[0][3])
    return image.read((0, image.nbytes))


PIECES = [floats(200_000), b"", source_text(70_000), b"x", bytes(300_000)]
RAW = b"".join(PIECES)


def has_places(file: bytes, folder: Path) -> bool:
    """Whether frames are found without decoding, so that they are decoded in parallel."""
    (folder / "file").write_bytes(file)
    name = os.fsencode(folder / "file")
    image = _core.StreamImage(name, threads=1, mapped=False, progress=None)
    return image.nbytes is not None


def test_frames_of_others(tmp_path: Path) -> None:
    frames = [compress(piece) for piece in PIECES]
    sizes = [(len(frame), len(piece)) for frame, piece in zip(frames, PIECES, strict=True)]
    whole = b"".join(frames)
    files = {
        "no table": whole,
        "a table": whole + seek_table(sizes),
        "a table with checksums": whole + seek_table(sizes, checksums=True),
        "skippable frames between": b"".join(skippable(b"abc", 5) + frame for frame in frames),
        "skippable frames behind": whole + skippable(b"") + skippable(b"x" * 100, 15),
        "zeros behind": whole + bytes(512),
    }
    for name, file in files.items():
        assert has_places(file, tmp_path), name
        for threads in (1, 3):
            assert read(file, tmp_path, threads) == RAW, name


def test_frames_that_do_not_say_their_sizes(tmp_path: Path) -> None:
    command = ["zstd", "-q", "--no-content-size"]
    frames = [
        subprocess.run(command, input=piece, capture_output=True, check=True).stdout
        for piece in PIECES
    ]
    for file in (b"".join(frames), compress(PIECES[0]) + b"".join(frames[1:])):
        assert not has_places(file, tmp_path)
        assert read(file, tmp_path) == RAW
        assert read(skippable(b"first") + file + skippable(b"last"), tmp_path) == RAW


def test_one_frame(tmp_path: Path) -> None:
    assert not has_places(compress(RAW), tmp_path)
    assert read(compress(RAW), tmp_path) == RAW


def test_tables_that_are_wrong(tmp_path: Path) -> None:
    """A table that cannot be right is not used. One that could be is found to be wrong."""
    frames = [compress(piece) for piece in PIECES]
    sizes = [(len(frame), len(piece)) for frame, piece in zip(frames, PIECES, strict=True)]
    whole = b"".join(frames)
    code_nbytes, raw_nbytes = sizes[0]
    unused = [
        sizes[1:],  # the sum is less than the file
        [(code_nbytes + 1, raw_nbytes), *sizes[1:]],
        [(code_nbytes, 1 << 31), *sizes[1:]],  # too large
        [(0, 0), *sizes],  # no frame is as short
        [],
    ]
    for table in unused:
        assert read(whole + seek_table(table), tmp_path) == RAW
    wrong = [
        [(code_nbytes, raw_nbytes + 1), *sizes[1:]],
        [(code_nbytes, raw_nbytes - 1), *sizes[1:]],
        [(code_nbytes + 1, raw_nbytes), (sizes[1][0] - 1, 0), *sizes[2:]],
        [sizes[1], sizes[0], *sizes[2:]],
    ]
    for table in wrong:
        with pytest.raises(_core.CorruptError):
            read(whole + seek_table(table), tmp_path)
    # Several frames may share an entry.
    joined = (code_nbytes + sizes[1][0], raw_nbytes)
    assert read(whole + seek_table([joined, *sizes[2:]]), tmp_path) == RAW


def test_what_cannot_be_decoded_is_named(tmp_path: Path) -> None:
    raw = floats(2_000_000)
    wide = subprocess.run(
        ["zstd", "-q", "--long=28", "--no-content-size"], input=raw, capture_output=True, check=True
    ).stdout
    with pytest.raises(_core.CorruptError, match="window of more than 128 MiB"):
        read(wide, tmp_path)
    (tmp_path / "dictionary").write_bytes(b"7\xa40\xec" + noise(4))
    whole = bytearray(compress(raw))
    whole[4] |= 1  # the header has a dictionary's number of one byte
    whole[5:5] = b"\x07"
    with pytest.raises(_core.CorruptError, match="asks for a dictionary"):
        read(bytes(whole), tmp_path)
    with pytest.raises(_core.CorruptError, match="ends within a frame"):
        read(compress(raw)[:-1], tmp_path)
    two = compress(raw) * 2
    with pytest.raises(_core.CorruptError, match="ends within a frame"):
        read(two[:-1], tmp_path)


@pytest.mark.parametrize("lost", [1, 9, 16])
def test_a_file_that_ends_within_its_table(tmp_path: Path, lost: int) -> None:
    """All data is there, but the file is not whole, and zstd says so too."""
    whole = save(PIECES[0], tmp_path / "x.tar.zst")
    (tmp_path / "x.tar.zst").write_bytes(whole[:-lost])
    done = subprocess.run(["zstd", "-t", tmp_path / "x.tar.zst"], capture_output=True)
    assert done.returncode != 0
    with pytest.raises(_core.CorruptError, match="ends within a frame"):
        read(whole[:-lost], tmp_path)
    assert not pyckpt.verify(tmp_path / "x.tar.zst").ok


@settings(max_examples=60, deadline=None)
@given(
    parts=st.lists(
        st.one_of(
            st.binary(max_size=300),
            st.tuples(st.binary(min_size=1, max_size=9), st.integers(1, 40_000)).map(
                lambda part: (part[0] * part[1])[:60_000]
            ),
            st.integers(0, 100_000).map(lambda n: floats(n + 8)[:n]),
            st.integers(0, 30_000).map(lambda n: noise(n, n)),
            st.integers(0, 30_000).map(source_text),
        ),
        max_size=8,
    ),
    repeat=st.integers(1, 3),
    level=st.integers(1, 19),
)
def test_any_bytes(
    tmp_path_factory: pytest.TempPathFactory, parts: list[bytes], repeat: int, level: int
) -> None:
    folder = tmp_path_factory.mktemp("any")
    check(b"".join(parts) * repeat, folder, level)


@pytest.mark.parametrize("seed", range(4))
def test_long_repeats_among_literals(tmp_path: Path, seed: int) -> None:
    """Rows that repeat others or are zero, of all lengths and at all distances in a chunk."""
    rng = random.Random(seed)
    out = bytearray(floats(400_000))
    while len(out) < 1_500_000:
        n = rng.choice([16, 33, 100, 1_000, 20_000, 200_000])
        at = rng.randrange(len(out) - n)
        kind = rng.randrange(3)
        out += bytes(n) if kind == 0 else out[at : at + n] if kind == 1 else rng.randbytes(n)
    check(bytes(out), tmp_path)
