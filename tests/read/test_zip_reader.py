"""What a zip file says twice must be the same."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
import torch

import pyckpt

STATE = {"a": torch.arange(9.0), "b": torch.arange(9)}


def refused(path: Path, data: bytes, text: str) -> None:
    path.write_bytes(data)
    with pytest.raises(pyckpt.CorruptArchiveError, match=text):
        pyckpt.load(path)
    assert not pyckpt.verify(path).ok


def test_the_checksum_of_a_record(tmp_path: Path) -> None:
    """Programs that know the sizes before they write put the checksum into both headers."""
    saved, path = tmp_path / "saved.pt", tmp_path / "x.pt"
    pyckpt.save(STATE, saved)
    with zipfile.ZipFile(saved) as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    data = bytearray(path.read_bytes())
    assert pyckpt.verify(path).ok
    name = next(one for one in old.namelist() if one.endswith("data/1"))
    header = data.index(name.encode()) - 30
    assert data[header : header + 4] == b"PK\x03\x04"
    data[header + 14] ^= 1
    refused(path, data, "the two checksums of record .*data/1 differ")


@pytest.mark.parametrize("field", [10, 12, 16], ids=["entries", "size", "offset"])
def test_the_ends_of_the_directory(tmp_path: Path, field: int) -> None:
    """There is one for 32 bits and one for 64."""
    path = tmp_path / "x.pt"
    pyckpt.save(STATE, path)
    data = bytearray(path.read_bytes())
    end = data.rindex(b"PK\x05\x06")
    data[end + field] ^= 1
    refused(path, data, "its two end records differ")


def test_the_name_of_a_record(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    pyckpt.save(STATE, path)
    data = path.read_bytes()
    assert data.count(b"/data/1") == 2
    refused(path, data.replace(b"/data/1", b"/data/0"), "record .*data/0 appears twice")
    renamed = data.replace(b"/data/1", b"/data/2", 1)  # in its own header
    refused(path, renamed, "the header of record .*data/1 does not match the directory")


def test_what_follows_the_last_entry_of_the_directory(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    pyckpt.save(STATE, path)
    data = bytearray(path.read_bytes())
    ends = data.rindex(b"PK\x06\x06"), data.rindex(b"PK\x05\x06")
    for at in (ends[0] + 24, ends[0] + 32, ends[1] + 8, ends[1] + 10):  # one entry less
        data[at] -= 1
    refused(path, data, "bytes follow the last entry")
