"""pyckpt.inspect: members, records and tensors of files by any writer."""

import tarfile
from pathlib import Path

import pytest
import torch

import pyckpt
from pyckpt.archive.formats import usual_suffixes
from pyckpt.archive.writer import ArchiveWriter
from pyckpt.options import WriteOptions
from tests.states import mixed_state

FORMAT_SUFFIXES = usual_suffixes()


@pytest.mark.parametrize("suffix", [*FORMAT_SUFFIXES, ".pt"])
def test_what_save_wrote(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x{suffix}"
    pyckpt.save(mixed_state(), path)
    info = pyckpt.inspect(path)
    assert info.path == path
    assert info.file_nbytes == path.stat().st_size
    member = info.members[-1]
    assert member.name == ("" if suffix == ".pt" else "composer_states.pt")
    assert [m.is_directory for m in info.members] == [True] * (len(info.members) - 1) + [False]
    assert {e.info.key_path: (e.info.dtype, e.info.shape) for e in member.tensors} == {
        key: (value.dtype, tuple(value.shape))
        for key, value in mixed_state().items()
        if isinstance(value, torch.Tensor)
    }
    assert {record.name for record in member.records} >= {"data.pkl", "data/0", "data/3"}
    shares = {entry.info.key_path: entry.code_nbytes for entry in member.tensors}
    if info.compression == "bzip2":
        assert set(shares.values()) == {None}
        return
    floats = shares["floats"]
    assert floats is not None
    if info.compression:
        assert 0.8 * 1_600_000 < floats < 1.0 * 1_600_000
        zeros = shares["zeros"]
        assert zeros is not None
        assert zeros < 0.5 * floats
    else:
        assert floats == 1_600_000


def test_other_members(tmp_path: Path) -> None:
    (tmp_path / "note").write_text("hello")
    path = tmp_path / "x.tar.gz"
    with ArchiveWriter(path, WriteOptions()) as writer:
        writer.add_object("deepspeed/a.pt", {"t": torch.zeros(3)})
        writer.add_file("deepspeed/note", tmp_path / "note")
        writer.write()
        writer.commit()
    info = pyckpt.inspect(path)
    assert [(m.name, m.nbytes > 5, len(m.tensors)) for m in info.members] == [
        ("", False, 0),
        ("deepspeed", False, 0),
        ("deepspeed/a.pt", True, 1),
        ("deepspeed/note", False, 0),
    ]


def test_composers_file_without_loading_it(tmp_path: Path) -> None:
    """A pickle that weights_only would refuse can still be inspected."""
    torch.save({"t": torch.zeros(3), "path": Path("x")}, tmp_path / "composer_states.pt")
    with tarfile.open(tmp_path / "x.tar.bz2", "w:bz2") as tar:
        tar.add(tmp_path / "composer_states.pt", arcname="composer_states.pt")
    info = pyckpt.inspect(tmp_path / "x.tar.bz2")
    assert info.compression == "bzip2"
    assert [entry.info.key_path for entry in info.members[0].tensors] == ["t"]


def test_damage_is_raised(tmp_path: Path) -> None:
    pyckpt.save(mixed_state(), tmp_path / "x.tar")
    contents = bytearray((tmp_path / "x.tar").read_bytes())
    contents[600] ^= 1  # in the second header
    (tmp_path / "x.tar").write_bytes(contents)
    with pytest.raises(pyckpt.CorruptArchiveError, match="checksum"):
        pyckpt.inspect(tmp_path / "x.tar")
