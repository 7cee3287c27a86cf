"""The suffix that decides the format."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import pyckpt
from pyckpt.archive.formats import (
    add_tar_suffix,
    archive_format,
    file_format,
    file_suffixes,
    is_compressed,
    match_suffix,
    tar_suffixes,
)

PLAIN = st.text(st.characters(exclude_characters="/\0{}", exclude_categories=["Cs"]), min_size=1)


@pytest.mark.parametrize(
    ("name", "format_name"),
    [
        ("x.tar", "tar"),
        ("x.tar.gz", "tar.gz"),
        ("x.tgz", "tar.gz"),
        ("x.tar.bz2", "tar.bz2"),
        ("x.tar.bzip", "tar.bz2"),
        ("x.tar.bzip2", "tar.bz2"),
        ("x.tbz2", "tar.bz2"),
        ("x.tar.lzma", "tar.xz"),
        ("x.tar.xz", "tar.xz"),
        ("x.txz", "tar.xz"),
        ("x.tar.zst", "tar.zst"),
        ("x.tzst", "tar.zst"),
        (".x.tar", "tar"),
        ("a.tar.x.tar.gz", "tar.gz"),
        ("x.tar.tgz", "tar.gz"),
    ],
)
def test_suffixes_of_tars(name: str, format_name: str) -> None:
    row = archive_format(Path("folder.zip") / name)
    assert row is not None
    assert row.name == format_name
    assert add_tar_suffix(Path("f") / name, tar_suffixes()) == Path("f") / name


@pytest.mark.parametrize(
    "name",
    ["x", "x.pt", "x.ckpt", "gz", "x.gz.pt", "tar", "xtar", "x.tar.a.b", "x.gz.", "ep1.5"],
)
def test_names_of_torch_files(name: str) -> None:
    assert archive_format(Path("folder.tar") / name) is None
    suffixed = add_tar_suffix(Path("f") / name, tar_suffixes())
    assert suffixed == Path("f") / f"{name}.tar"


@pytest.mark.parametrize("name", ["x.tar.zstd", "x.tar.lz4", "x.tar.Z", "x.tar.GZ", "ep1.5.tar.br"])
def test_tars_of_unknown_kinds(name: str) -> None:
    with pytest.raises(pyckpt.FilenameError, match=r"is not a suffix.*\.tar\.lzma") as caught:
        archive_format(Path(name))
    assert caught.value.path == name
    with pytest.raises(pyckpt.FilenameError):
        add_tar_suffix(Path(name), tar_suffixes())


@pytest.mark.parametrize(
    "name",
    [
        *("x.gz", "x.npy.gz", "x.bz2", "x.ckpt.lz4", "x.lzma", "x.pt.lzo", "x.PT.GZ", "x.tbz"),
        *("x.zip", "x.pt.zip", "x.pt.br", "x.7z", "x.tar.zst.age", "x.pt.GZ", "x.pt.tgz2.age"),
        *("x.TAR", "x.TAR.GZ", "x.tar.GZ", "x.Tgz", ".tar", ".tar.gz", ".gz", "x.Tzst"),
    ],
)
def test_names_of_compressed_files(tmp_path: Path, name: str) -> None:
    """Nothing that is not compressed gets such a name."""
    pyckpt.save([1], tmp_path / "source.tar")
    state = pyckpt.State(nn.Linear(1, 1))
    for write in (
        lambda path: pyckpt.save([1], path),
        lambda path: pyckpt.save_checkpoint(state, path),
        lambda path: pyckpt.async_save_checkpoint(state, path).result(),
        lambda path: pyckpt.convert(tmp_path / "source.tar", path),
    ):
        with pytest.raises(pyckpt.FilenameError, match="looks like a"):
            write(tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["source.tar"]


@pytest.mark.parametrize(
    ("name", "compression"),
    [
        *(("x.pt.gz", "gzip"), ("x.pth.bz2", "bzip2"), ("x.ckpt.xz", "xz"), ("x.bin.lzma", "lzma")),
        *((".pt.gz", "gzip"), ("ep1.5.pt.gz", "gzip"), ("x.tar.pt.gz", "gzip")),
    ],
)
def test_names_of_one_compressed_file(name: str, compression: str) -> None:
    found = file_format(Path("folder.tar") / name)
    assert found.row is not None
    assert (found.is_tar, found.row.compression) == (False, compression)
    assert archive_format(Path(name)) is None


def test_what_one_rank_should_decompress_for_all(tmp_path: Path) -> None:
    for name, level, expected in [
        ("x.pt", None, False),
        ("x.tar", None, False),
        ("deflated.pt", 6, True),
        *((f"x{suffix}", None, True) for suffix in (*file_suffixes(), *tar_suffixes()[1:])),
    ]:
        pyckpt.save([1], tmp_path / name, compression_level=level)
        assert is_compressed(tmp_path / name) == expected


def test_a_refusal_lists_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(pyckpt.FilenameError) as caught:
        pyckpt.save([1], tmp_path / "x.pt.lz4")
    for suffix in (*tar_suffixes(), *file_suffixes(), ".ckpt"):
        assert suffix in str(caught.value)


@given(PLAIN.filter(lambda text: text[0] != "."), st.sampled_from(tar_suffixes()))
def test_every_name_with_a_suffix_matches_it(stem: str, suffix: str) -> None:
    matched = match_suffix(stem + suffix, tar_suffixes())
    assert matched is not None
    assert matched.endswith(suffix)
