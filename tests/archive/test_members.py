"""Which members of a tar count: what programs that extract the tar leave in the folder."""

import bz2
import gzip
import io
import lzma
import os
import random
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import pyckpt

STATES = "composer_states.pt"
COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "": lambda raw: raw,
    ".gz": lambda raw: gzip.compress(raw, 1),
    ".bz2": bz2.compress,
    ".xz": lambda raw: lzma.compress(raw, preset=0),
}


def saved(step: int, numel: int = 3) -> bytes:
    file = io.BytesIO()
    torch.save({"step": step, "t": torch.full((numel,), float(step))}, file)
    return file.getvalue()


def member(name: str, data: bytes = b"", *, kind: bytes = b"0", link: str = "") -> bytes:
    header = tarfile.TarInfo(name)
    header.type, header.linkname, header.size = kind, link, len(data)
    return header.tobuf(tarfile.PAX_FORMAT) + data + bytes(-len(data) % 512)


def link(name: str, target: str, kind: bytes = tarfile.LNKTYPE) -> bytes:
    return member(name, kind=kind, link=target)


def symlink(name: str, target: str) -> bytes:
    return link(name, target, tarfile.SYMTYPE)


def write(path: Path, *members: bytes, compression: str = "") -> Path:
    path.write_bytes(COMPRESS[compression](b"".join(members) + bytes(1024)))
    return path


def step_of(path: Path, **options: object) -> int:
    step = pyckpt.load(path, **options)["step"]  # type: ignore[arg-type]
    assert isinstance(step, int)
    return step


def test_what_tar_appends(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    for step, option in enumerate(("-cf", "-rf", "-rf"), start=1):
        (tmp_path / STATES).write_bytes(saved(step))
        subprocess.run(["tar", "-C", tmp_path, option, path, STATES], check=True)
        assert step_of(path) == step


@pytest.mark.parametrize("compression", COMPRESS)
@pytest.mark.parametrize("numel", [3, 700_000])
def test_the_last_one_counts(tmp_path: Path, compression: str, numel: int) -> None:
    members = [
        member(STATES, saved(1, numel)),
        member("other", bytes(3_000_000)),
        member(f"./{STATES}", saved(2, numel)),
        member("other", random.Random(0).randbytes(2_000_000)),
    ]
    path = write(tmp_path / "x", *members, compression=compression)
    for options in ({}, {"verify": False}, {"mmap": True}, {"keys": "step"}):
        assert step_of(path, **options) == 2
    assert pyckpt.load(path)["t"].tolist() == [2.0] * numel
    pyckpt.convert(path, tmp_path / "y.tar.gz")
    assert step_of(tmp_path / "y.tar.gz") == 2
    with tarfile.open(tmp_path / "y.tar.gz") as tar:
        assert sorted(tar.getnames()) == ["", STATES, "other"]
    pyckpt.extract(path, tmp_path / "out")
    assert torch.load(tmp_path / "out" / STATES)["step"] == 2
    assert (tmp_path / "out" / "other").read_bytes() == members[3][512:2_000_512]
    info = pyckpt.inspect(path)
    assert [one.name for one in info.members] == [f"./{STATES}", "other"]
    assert info.replaced == (STATES, "other")
    report = pyckpt.verify(path)
    assert (report.ok, report.replaced) == (True, [STATES, "other"])


@pytest.mark.parametrize("compression", COMPRESS)
@pytest.mark.parametrize(
    ("members", "step"),
    [
        ([member(f"./{STATES}", saved(1))], 1),
        ([member("./"), member(f".//./{STATES}", saved(1))], 1),
        ([member("a", saved(1)), link(STATES, "a")], 1),
        ([member("a", saved(1)), link(STATES, "./a"), member("a", saved(2))], 1),
        ([member("a", saved(1)), symlink(STATES, "a"), member("a", saved(2))], 2),
        ([symlink(STATES, "a"), member("a", saved(1))], 1),
        ([member(STATES, saved(1)), link(STATES, STATES)], 1),
        ([symlink(STATES, "d/b"), symlink("d/b", "../c"), member("c", saved(1))], 1),
        ([member(STATES, saved(1), kind=b"Q")], 1),
        ([member(STATES, saved(1), kind=b"\x91")], 1),
        ([member("v", b"1" * 600, kind=b"\xff"), member(STATES, saved(1))], 1),
        ([member("label", kind=b"V"), member(STATES, saved(1))], 1),
        ([member("d", b"Ya\0\0", kind=b"D"), member(STATES, saved(1))], 1),
        ([member("fifo", kind=b"6"), member("tty", kind=b"3"), member(STATES, saved(1))], 1),
        ([member("d", kind=b"5"), symlink("d/gone", "nowhere"), member(STATES, saved(1))], 1),
    ],
)
def test_links_and_rare_types(
    tmp_path: Path, compression: str, members: list[bytes], step: int
) -> None:
    filler = member("filler", random.Random(0).randbytes(2_500_000))
    path = write(tmp_path / "x", *members, filler, compression=compression)
    assert step_of(path) == step
    assert pyckpt.verify(path).ok


@pytest.mark.parametrize("compression", COMPRESS)
def test_a_link_to_data_that_was_passed(tmp_path: Path, compression: str) -> None:
    """The data is before the link, and was not kept when it was decoded."""
    members = [
        member("a", saved(1, 700_000)),
        *(member(f"f{n}", random.Random(n).randbytes(900_000)) for n in range(5)),
        link(STATES, "a"),
        member("behind", bytes(100_000)),
    ]
    path = write(tmp_path / "x", *members, compression=compression)
    assert pyckpt.load(path)["t"].tolist() == [1.0] * 700_000
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 20] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(pyckpt.CorruptArchiveError):
        pyckpt.load(path)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([member(STATES, saved(1)), member(STATES, kind=b"5")], "it is a folder"),
        ([symlink(STATES, "/etc/hostname")], "a link to '/etc/hostname', which is no file in it"),
        ([symlink(STATES, "../x")], "a link to '../x', which is no file in it"),
        ([symlink(STATES, "a"), symlink("a", STATES)], "a link to 'a', which is no file in it"),
        ([link(STATES, "a"), member("a", saved(1))], "a link to 'a', which is no file in it"),
        ([symlink(STATES, "d"), member("d", kind=b"5")], "a link to 'd', which is no file in it"),
        ([member(STATES, kind=b"6")], "it is a pipe"),
    ],
)
def test_names_that_are_no_files(tmp_path: Path, members: list[bytes], message: str) -> None:
    path = write(tmp_path / "x.tar", *members)
    with pytest.raises(pyckpt.OptionError, match=message):
        pyckpt.load(path)
    assert not pyckpt.verify(path).ok


def test_near_names_are_named(tmp_path: Path) -> None:
    path = write(tmp_path / "x.tar", member(f"ep1/{STATES}", saved(1)), member("note", b"1"))
    with pytest.raises(pyckpt.OptionError, match=f"no member '{STATES}'; it has 'ep1/{STATES}'"):
        pyckpt.load(path)
    with pytest.raises(pyckpt.OptionError, match="no member 'notes'; it has 'note'"):
        pyckpt.load(path, member="notes")
    with pytest.raises(pyckpt.OptionError, match="it has no files"):
        pyckpt.load(write(tmp_path / "y.tar", member("d", kind=b"5")))
    assert step_of(path, member=f"./ep1//{STATES}") == 1


@pytest.mark.parametrize("tar_format", ["gnu", "0.0", "0.1", "1.0"])
@pytest.mark.parametrize("holes", [1, 40])
def test_sparse_files(tmp_path: Path, tar_format: str, holes: int) -> None:
    """They are passed over. Nothing of them is taken for the file's contents."""
    with (tmp_path / "holes").open("wb") as file:
        for hole in range(holes):
            file.seek((hole + 1) * 100_000)
            file.write(b"1" * 5000)
    (tmp_path / STATES).write_bytes(saved(1))
    kind = ["--format=gnu"] if tar_format == "gnu" else [f"--sparse-version={tar_format}"]
    pack = ["tar", "-C", tmp_path, "-S", *kind, *(["--format=pax"] if len(kind[0]) > 12 else [])]
    subprocess.run([*pack, "-cf", tmp_path / "x.tar", "holes", STATES], check=True)
    assert step_of(tmp_path / "x.tar") == 1
    assert pyckpt.verify(tmp_path / "x.tar").ok
    with pytest.raises(pyckpt.CorruptArchiveError, match="'holes' is a sparse file"):
        pyckpt.load(tmp_path / "x.tar", member="holes")
    os.truncate(tmp_path / STATES, 200_000)
    subprocess.run([*pack, "-cf", tmp_path / "y.tar", STATES], check=True)
    with pytest.raises(pyckpt.CorruptArchiveError, match=f"'{STATES}' is a sparse file"):
        pyckpt.load(tmp_path / "y.tar")
    assert not pyckpt.verify(tmp_path / "y.tar").ok


def test_the_size_in_a_pax_record_counts(tmp_path: Path) -> None:
    """Also if the header has room for it, and says something else."""
    data = saved(7)
    header = tarfile.TarInfo(STATES)
    header.pax_headers = {"size": str(len(data))}
    tar = header.tobuf(tarfile.PAX_FORMAT) + data + bytes(-len(data) % 512) + bytes(1024)
    (tmp_path / "x.tar").write_bytes(tar)
    with tarfile.open(tmp_path / "x.tar") as file:
        assert [one.size for one in file] == [len(data)]
    assert pyckpt.load(tmp_path / "x.tar")["step"] == 7


@given(data=st.data())
@pytest.mark.timeout(300)
def test_any_tar_is_read_as_tar_extracts_it(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("any")
    names = st.sampled_from([STATES, f"./{STATES}", "a", "d/b", "./d//b"])
    # Not "../a": tar makes such links last, and may confuse them with files made in between.
    targets = st.sampled_from(["a", STATES, "d/b", "b", "nowhere"])
    made = st.one_of(
        st.builds(lambda name, step: member(name, saved(step)), names, st.integers(0, 9)),
        st.builds(link, names, targets),
        st.builds(symlink, names, targets),
    )
    path = write(folder / "x.tar", *data.draw(st.lists(made, min_size=1, max_size=5)))
    (folder / "out").mkdir()
    tar = subprocess.run(["tar", "-C", folder / "out", "-xf", path], capture_output=True)
    extracted = folder / "out" / STATES
    try:
        step = step_of(path)
    except pyckpt.OptionError:
        # tar says so if a hard link leads nowhere, and leaves what was there before.
        assert tar.returncode != 0 or not extracted.is_file()
    else:
        assert step == torch.load(extracted)["step"]


def test_damage_behind_the_member(tmp_path: Path) -> None:
    """A later member of the same name may be lost, so this is an error, unless one asks for it."""
    for compression in COMPRESS:
        filler = member("filler", random.Random(0).randbytes(1_500_000))
        raw = member(STATES, saved(1)) + filler + filler
        path = tmp_path / f"x{compression}"
        path.write_bytes(COMPRESS[compression](raw[:-1_000_000]))
        with pytest.raises(pyckpt.CorruptArchiveError, match=r"cut off|no end mark"):
            pyckpt.load(path)
        assert step_of(path, verify=False) == 1
