"""pyckpt.convert and pyckpt.pack: what is written, and what is refused."""

import os
import tarfile
from pathlib import Path

import pytest
import torch

import pyckpt
from pyckpt.archive.parts import ImageReader
from pyckpt.archive.reader import ArchiveReader
from pyckpt.torch_format.torch_file import TorchFile
from tests.tar_members import add


def contents(path: Path) -> dict[str, bytes | None]:
    with tarfile.open(path) as tar:
        files = {member.name: tar.extractfile(member) for member in tar.getmembers()}
        return {name: file.read() if file else None for name, file in files.items()}


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_links_become_files(tmp_path: Path, mode: str) -> None:
    large = os.urandom(1_500_000)
    with tarfile.open(tmp_path / "x", mode) as tar:
        add(tar, "./", type=tarfile.DIRTYPE)
        add(tar, "./a/zz", large)
        add(tar, "./a/hard", type=tarfile.LNKTYPE, linkname="./a/zz")
        add(tar, "latest", type=tarfile.SYMTYPE, linkname="a/zz")
        add(tar, "a/zz", b"new")
    pyckpt.convert(tmp_path / "x", tmp_path / "y.tar.gz")
    assert contents(tmp_path / "y.tar.gz") == {
        "": None,
        "a": None,
        "a/hard": large,
        "a/zz": b"new",
        "latest": b"new",
    }


def test_one_file_with_two_names_needs_no_tar(tmp_path: Path) -> None:
    torch.save([1], tmp_path / "x.pt")
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        tar.add(tmp_path / "x.pt", "ep1.pt")
        add(tar, "latest.pt", type=tarfile.SYMTYPE, linkname="ep1.pt")
    pyckpt.convert(tmp_path / "x.tar", tmp_path / "y.pt")
    assert torch.load(tmp_path / "y.pt") == [1]


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("link to a folder", "is a link to a folder"),
        ("link to nowhere", "is a link that leads nowhere"),
        ("link to itself", "is a link that leads nowhere"),
        ("pipe", "is neither a file nor a folder"),
    ],
)
def test_pack_leaves_nothing_out(tmp_path: Path, kind: str, message: str) -> None:
    folder = tmp_path / "in" / "deep"
    (folder / "sub").mkdir(parents=True)
    (folder / "sub" / "note").write_text("1")
    (folder / "link").symlink_to("sub/note")
    pyckpt.pack(tmp_path / "in", tmp_path / "x.tar")
    assert contents(tmp_path / "x.tar")["deep/link"] == b"1"
    odd = folder / "odd"
    if kind == "pipe":
        os.mkfifo(odd)
    else:
        odd.symlink_to({"link to a folder": "sub", "link to itself": "odd"}.get(kind, "gone"))
    with pytest.raises(pyckpt.OptionError, match=f"odd {message}"):
        pyckpt.pack(tmp_path / "in", tmp_path / "y.tar")
    assert not (tmp_path / "y.tar").exists()


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    name = os.fsdecode(b"a\xff")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / name).write_text("1")
    with pytest.raises(pyckpt.OptionError, match=r"'a\\udcff' is not UTF-8"):
        pyckpt.pack(tmp_path / "in", tmp_path / "x.tar")
    with tarfile.open(tmp_path / "y.tar", "w") as tar:
        add(tar, name, b"1")
    with pytest.raises(pyckpt.OptionError, match=r"'a\\udcff' is not UTF-8"):
        pyckpt.convert(tmp_path / "y.tar", tmp_path / "x.tar")
    assert not (tmp_path / "x.tar").exists()
    pyckpt.extract(tmp_path / "y.tar", tmp_path / "out")
    assert os.listdir(os.fsencode(tmp_path / "out")) == [b"a\xff"]


def test_pack_of_what_torch_did_not_write(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"\x04\x22\x4d\x18" + bytes(99))
    with pytest.raises(pyckpt.CorruptArchiveError, match=r"x is not a file of torch\.save"):
        pyckpt.pack(tmp_path / "x", tmp_path / "y.tar")
    assert not (tmp_path / "y.tar").exists()


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz", ".tar.bz2", ".pt"])
def test_pieces_are_read_in_any_order(tmp_path: Path, suffix: str) -> None:
    """The writer's threads do not wait for each other before they read."""
    state = {"noise": torch.randn(6 << 20)}
    path = tmp_path / f"x{suffix}"
    pyckpt.save(state, path, compression_level=1 if suffix == ".pt" else None)
    reader = ArchiveReader(path, num_threads=1)
    member = reader.find("composer_states.pt") if reader.is_tar else reader.whole()
    file = TorchFile(reader, member.offset, member.nbytes)
    [group] = file.opened([file.records["data/0"]])
    offset, nbytes = group.places[0]
    source = ImageReader(group.stream, offset, nbytes)
    expected = state["noise"].view(torch.uint8)
    half = nbytes // 2
    for begin in (half, 0):
        out = torch.empty(half, dtype=torch.uint8)
        source.read(begin, half, out.data_ptr())
        assert torch.equal(out, expected[begin : begin + half])
