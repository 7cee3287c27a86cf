"""The containers byte by byte: tar's headers, and torch's zip file beside torch's own."""

import io
import os
import struct
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

import pyckpt
from pyckpt import _core
from pyckpt.archive import formats
from pyckpt.archive.writer import ArchiveWriter
from pyckpt.options import WriteOptions

BLOCK = 512


def some_state() -> dict[str, Any]:
    return {
        "a": torch.arange(1000, dtype=torch.float32),
        "b": torch.zeros(0),
        "c": torch.ones(3, dtype=torch.bfloat16),
        "d": {"step": 3, "name": "größe"},
    }


def ours(state: Any, folder: Path) -> bytes:
    pyckpt.save(state, folder / "x.pt", fsync=False)
    return (folder / "x.pt").read_bytes()


def theirs(state: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def local_header(data: bytes, info: zipfile.ZipInfo) -> dict[str, Any]:
    """A local header's fixed fields, name and tags of extra fields, and the data descriptor."""
    at = info.header_offset
    signature, version, flags, method, time, date, crc, packed, raw, n_name, n_extra = (
        struct.unpack_from("<4sHHHHHIIIHH", data, at)
    )
    name = data[at + 30 : at + 30 + n_name]
    extra = data[at + 30 + n_name : at + 30 + n_name + n_extra]
    tags = []
    while extra:
        tag, size = struct.unpack_from("<2sH", extra)
        tags.append(tag)
        extra = extra[4 + size :]
    begin = at + 30 + n_name + n_extra
    return {
        "fixed": (signature, version, flags, method, time, date, crc, packed, raw),
        "name": name,
        "tags": tags,
        "begin": begin,
        "descriptor": data[begin + info.file_size : begin + info.file_size + 16],
    }


def test_the_zip_file_is_laid_out_like_torchs(tmp_path: Path) -> None:
    state = some_state()
    files = ours(state, tmp_path), theirs(state)
    listings = [zipfile.ZipFile(io.BytesIO(data)).infolist() for data in files]
    names = [[info.filename for info in listing] for listing in listings]
    assert names[0] == names[1]
    assert names[0] == [
        f"archive/{name}"
        for name in (
            "data.pkl",
            ".format_version",
            ".storage_alignment",
            "byteorder",
            "data/0",
            "data/1",
            "data/2",
            "version",
            ".data/serialization_id",
        )
    ]
    for info, torchs in zip(*listings, strict=True):
        mine = local_header(files[0], info)
        other = local_header(files[1], torchs)
        for key in ("fixed", "name", "tags"):
            assert mine[key] == other[key], (info.filename, key)
        assert mine["begin"] % 64 == other["begin"] % 64 == 0
        assert (info.date_time, info.flag_bits, info.compress_type, info.external_attr) == (
            torchs.date_time,
            torchs.flag_bits,
            torchs.compress_type,
            torchs.external_attr,
        )
        if info.filename not in ("archive/data.pkl", "archive/.data/serialization_id"):
            assert (info.CRC, info.file_size) == (torchs.CRC, torchs.file_size)
            assert mine["descriptor"][:16] == other["descriptor"][:16] or info.file_size == 0


def test_the_first_local_header_is_golden(tmp_path: Path) -> None:
    data = ours([], tmp_path)
    name = b"archive/data.pkl"
    padding = 64 - (30 + len(name) + 4)
    assert data[:64] == (
        b"PK\3\4" + bytes(2) + b"\x08\x08" + bytes(2 + 4 + 4 + 8)
        + struct.pack("<HH", len(name), 4 + padding) + name
        + b"FB" + struct.pack("<H", padding) + b"Z" * padding
    )  # fmt: skip


def test_every_record_has_its_checksum(tmp_path: Path) -> None:
    data = ours(some_state(), tmp_path)
    assert zipfile.ZipFile(io.BytesIO(data)).testzip() is None


def test_the_end_of_the_zip_file(tmp_path: Path) -> None:
    """There are always a zip64 end record, its locator, and an end record without a comment."""
    data = ours([torch.ones(3)], tmp_path)
    end = data[-22:]
    assert end[:4] == b"PK\5\6"
    locator = data[-42:-22]
    assert locator[:4] == b"PK\6\7"
    (at,) = struct.unpack_from("<Q", locator, 8)
    signature, size = struct.unpack_from("<4sQ", data, at)
    assert signature == b"PK\6\6"
    assert at + 12 + size == len(data) - 42


@pytest.mark.parametrize("suffix", [".pt", ".tar"])
def test_torch_computes_the_same_offsets(tmp_path: Path, suffix: str) -> None:
    """With TORCH_SERIALIZATION_DEBUG torch compares computed offsets with those in the file."""
    state = [torch.ones(n, dtype=torch.uint8) for n in (0, 1, 63, 64, 65, 4096, 100_001)]
    pyckpt.save(state, tmp_path / f"x{suffix}")
    if suffix == ".tar":
        with tarfile.open(tmp_path / "x.tar") as tar:
            tar.extractall(tmp_path, filter="data")
        (tmp_path / formats.STATES_MEMBER).rename(tmp_path / "x.pt")
    program = f"""
import torch
from torch.utils.serialization import config
config.load.calculate_storage_offsets = True
state = torch.load({str(tmp_path / "x.pt")!r}, mmap=True)
assert [len(t) for t in state] == [0, 1, 63, 64, 65, 4096, 100_001]
assert all(bool((t == 1).all()) for t in state)
"""
    environment = {**os.environ, "TORCH_SERIALIZATION_DEBUG": "1"}
    subprocess.run([sys.executable, "-c", program], env=environment, check=True, timeout=120)


def tar_of(folder: Path, member: str) -> bytes:
    with ArchiveWriter(folder / "x.tar", WriteOptions(fsync=False)) as writer:
        writer.add_object(member, 1)
        writer.write()
        writer.commit()
    return (folder / "x.tar").read_bytes()


def test_tar_headers_are_golden(tmp_path: Path, frozen_time: int) -> None:
    data = tar_of(tmp_path, "a.pt")
    with tarfile.open(tmp_path / "x.tar") as tar:
        size = tar.getmember("a.pt").size

    def expected(name: bytes, mode: bytes, size: int, kind: bytes) -> bytes:
        fields = [
            name.ljust(100, b"\0"),
            mode,
            b"%07o\0" % os.geteuid(),
            b"%07o\0" % os.getegid(),
            b"%011o\0" % size,
            b"%011o\0" % frozen_time,
            b" " * 8,
            kind,
            bytes(100),
            b"ustar\x0000",
        ]
        header = b"".join(fields)
        start = data[data.index(name.ljust(100, b"\0")) :][:BLOCK]
        whole = header + start[len(header) :]
        checksum = b"%06o\0 " % sum(whole)
        return whole[:148] + checksum + whole[156:]

    root = expected(b"/", b"0000700\0", 0, b"5")
    file = expected(b"a.pt", b"0000644\0", size, b"0")
    assert data[:BLOCK] == root
    assert data[BLOCK : 2 * BLOCK] == file


# A record of 997 bytes and its length: the length has four digits because it has four.
LONG_NAMES = ["n" * 100, "n" * 101, "d" * 120 + "/f", "n" * 989, "n" * 990, "x" * 3000]


@pytest.mark.parametrize("member", [*LONG_NAMES, "ü.pt"])
def test_names_that_ustar_cannot_hold_have_a_pax_header(tmp_path: Path, member: str) -> None:
    data = tar_of(tmp_path, member)
    fits = member.isascii() and len(member) <= 100
    with tarfile.open(tmp_path / "x.tar") as tar:
        members = tar.getmembers()
        assert members[-1].name == member
        kinds = [data[m.offset + 156 : m.offset + 157] for m in members]
    assert kinds[-1] == (b"0" if fits else b"x")
    if not fits:
        header = members[-1].offset
        size = int(data[header + 124 : header + 135], 8)
        record = data[header + BLOCK : header + BLOCK + size].decode()
        assert f" path={member}\n" in record
        length = record.split(" ")[0]
        assert record[: int(length)].endswith("\n")


@pytest.mark.parametrize("nbytes", [0, (8 << 30) - 1, 8 << 30, 1 << 50])
@pytest.mark.parametrize("number", [0, 0o7777777, 0o7777777 + 1, (1 << 32) - 2])
def test_large_sizes_and_ids(nbytes: int, number: int) -> None:
    """ustar has 33 bits for a size and 21 for an id. Larger ones need records of pax."""
    header = _core.tar_header("x.pt", nbytes, uid=number, gid=number)
    records = {}
    if nbytes >= 8 << 30:
        records["size"] = str(nbytes)
    if number > 0o7777777:
        records |= {"uid": str(number), "gid": str(number)}
    with tarfile.open(fileobj=io.BytesIO(header), mode="r:") as tar:
        member = tar.firstmember
        assert member is not None
        assert (member.name, member.size, member.uid, member.gid) == (
            *("x.pt", nbytes),
            *(number, number),
        )
        assert member.pax_headers == records
    # Readers that skip these records find the numbers in base-256.
    plain = tarfile.TarInfo.frombuf(header[-BLOCK:], "utf-8", "strict")
    assert (plain.size, plain.uid, plain.gid) == (nbytes, number, number)


@pytest.mark.parametrize("numel", [1, 1_000, 2_000, 2_560, 3_000, 12_345])
def test_tars_end_as_tar_programs_end_them(tmp_path: Path, numel: int) -> None:
    """Two blocks of zeros at least, then zeros up to a multiple of 10,240 bytes."""
    path = tmp_path / "x.tar"
    pyckpt.save(torch.ones(numel, dtype=torch.uint8), path)
    data = path.read_bytes()
    assert len(data) % 10_240 == 0
    with tarfile.open(path) as tar:
        last = tar.getmembers()[-1]
    end = last.offset_data + -(-last.size // BLOCK) * BLOCK
    assert 2 * BLOCK <= len(data) - end < 2 * BLOCK + 10_240
    assert not any(data[end:])
