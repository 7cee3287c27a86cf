"""What an archive says of the set that it belongs to."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import pyckpt
from pyckpt.archive.reader import ArchiveReader
from pyckpt.archive.writer import ArchiveWriter
from pyckpt.options import WriteOptions
from pyckpt.sharded.part import METADATA, Part, find_part
from pyckpt.storage.urls import Url


def written(path: Path, members: dict[str, bytes]) -> ArchiveReader:
    with ArchiveWriter(path, WriteOptions(num_threads=1)) as writer:
        for name, data in members.items():
            writer.add_bytes(name, data)
        writer.write()
        writer.commit()
    return ArchiveReader(path, num_threads=1)


def test_files_are_seen_from_the_folder_of_the_archive(tmp_path: Path) -> None:
    paths = [tmp_path / "0" / "a.tar", tmp_path / "1" / "a.tar", tmp_path / "1" / "b.tar"]
    assert Part.of("id", 0, paths).files == ("a.tar", "../1/a.tar", "../1/b.tar")
    assert Part.of("id", 2, paths).files == ("../0/a.tar", "a.tar", "b.tar")


def test_objects_have_their_keys_as_they_are() -> None:
    urls = [Url(f"s3://bucket//run//{rank}/a b#%2F.tar") for rank in range(2)]
    assert Part.of("id", 0, urls).files == ("a b#%2F.tar", "../1/a b#%2F.tar")
    other = Url("s3://elsewhere/a.tar")
    with pytest.raises(pyckpt.FilenameError, match="no name leads"):
        Part.of("id", 0, [urls[0], other])


def test_it_is_found_in_an_archive(tmp_path: Path) -> None:
    part = Part("id", 1, ("a-0.tar", "é 1.tar"))
    members = {METADATA: b"first", part.member: part.to_bytes(), "state.model.a/rank1.pt": b"x"}
    assert find_part(written(tmp_path / "a.tar.gz", members)) == part
    assert Part.from_bytes(part.to_bytes()) == part


def test_other_files_have_none(tmp_path: Path) -> None:
    assert find_part(written(tmp_path / "a.tar", {METADATA: b"", "b/rank0.pt": b"x"})) is None
    assert find_part(written(tmp_path / "b.tar", {METADATA: b""})) is None
    torch.save({"a": 1}, tmp_path / "a.pt")
    assert find_part(ArchiveReader(tmp_path / "a.pt", num_threads=1)) is None


GOOD: dict[str, Any] = {"save_id": "id", "rank": 0, "files": ["a"]}


@pytest.mark.parametrize(
    "data",
    [
        *(b"", b"\xff\xfe", b"[]", b"3", b"{}", b"null", b"{", b"9" * 5000),
        *(
            json.dumps({**GOOD, key: value}).encode()
            for key, value in [
                *(("save_id", 3), ("save_id", None)),
                *(("rank", 1), ("rank", -1), ("rank", True), ("rank", 0.0), ("rank", "0")),
                *(("files", []), ("files", "a"), ("files", [3]), ("files", None)),
            ]
        ),
        *(json.dumps({k: v for k, v in GOOD.items() if k != key}).encode() for key in GOOD),
    ],
)
def test_damage_is_named(tmp_path: Path, data: bytes) -> None:
    reader = written(tmp_path / "a.tar", {".pyckpt/rank0.json": data})
    with pytest.raises(pyckpt.CorruptArchiveError, match=r"damaged in '\.pyckpt/rank0\.json'"):
        find_part(reader)
