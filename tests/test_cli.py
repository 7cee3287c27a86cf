"""The command pyckpt, as a program: what it prints, writes and returns."""

import fcntl
import io
import json
import os
import pty
import struct
import subprocess
import sys
import tarfile
import termios
import zipfile
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import pyckpt
from pyckpt.archive.formats import file_suffixes, usual_suffixes
from pyckpt.cli import main
from tests.states import assert_equal, mixed_state

SUFFIXES = [*usual_suffixes(), ".pt", *file_suffixes()]


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    pyckpt.save({"state": {"model": mixed_state()}}, tmp_path / "x.tar.gz")
    return tmp_path / "x.tar.gz"


def test_as_a_program(archive: Path) -> None:
    command = [sys.executable, "-m", "pyckpt"]
    done = subprocess.run([*command, "verify", archive], capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"{archive}: whole (2 members, 10 records, ")
    assert done.stderr == ""
    done = subprocess.run([*command, "--help"], capture_output=True, text=True, check=True)
    assert "exit codes:" in done.stdout
    assert "examples:" in done.stdout
    failed = subprocess.run([*command, "ls", "/no/such.tar"], capture_output=True, text=True)
    assert failed.returncode == 2
    assert "No such file" in failed.stderr
    assert "Traceback" not in failed.stderr


@pytest.mark.timeout(120)
@pytest.mark.parametrize("arguments", [["ls", "-t"], ["ls", "--json"], ["verify"]])
def test_whoever_reads_may_stop(archive: Path, arguments: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "pyckpt", *arguments, archive], stdout=writer, stderr=subprocess.PIPE
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.timeout(120)
def test_a_bar_on_a_terminal(archive: Path) -> None:
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    done = subprocess.run(
        [sys.executable, "-m", "pyckpt", "verify", archive],
        stdout=subprocess.PIPE,
        stderr=follower,
        check=True,
    )
    assert b"whole" in done.stdout
    assert b"x.tar.gz" in os.read(leader, 10_000)
    os.close(follower)
    os.close(leader)


def output(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main([str(argument) for argument in arguments]) == 0
    return capsys.readouterr().out


def test_ls(archive: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = output(capsys, "ls", archive).splitlines()
    assert [line.split()[0] for line in lines] == ["d", "-"]
    assert lines[1].endswith("4 tensors  composer_states.pt")
    floats = output(capsys, "ls", "-t", archive).splitlines()[0].split()
    assert floats[:3] == ["float32", "400000", "1,600,000"]
    assert 1_300_000 < int(floats[3].replace(",", "")) < 1_600_000
    assert floats[4] == "state/model/floats"
    info = json.loads(output(capsys, "ls", "--json", archive))
    assert info["compression"] == "gzip"
    tensor = info["members"][1]["tensors"][2]
    assert (tensor["key_path"], tensor["dtype"], tensor["shape"]) == (
        "state/model/bf16",
        "bfloat16",
        [200_000],
    )


def test_verify_tells_by_its_exit_code(
    archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    contents = bytearray(archive.read_bytes())
    contents[len(contents) // 2] ^= 1
    broken = tmp_path / "broken.tar.gz"
    broken.write_bytes(contents)
    assert main(["verify", str(archive), str(broken)]) == 1
    printed = capsys.readouterr().out
    assert f"{archive}: whole" in printed
    assert f"{broken}: " in printed
    assert main(["verify", "--json", str(archive), str(broken)]) == 1
    first, second = json.loads(capsys.readouterr().out)
    assert (first["ok"], second["ok"]) == (True, False)
    assert second["problems"]
    assert main(["extract", str(broken), "-C", str(tmp_path / "out")]) == 1
    assert not (tmp_path / "out").exists()
    assert main(["verify", str(tmp_path / "none.tar")]) == 2
    assert main(["verify", str(tmp_path / "none.tar"), str(broken), str(archive)]) == 2
    printed = capsys.readouterr()
    assert f"{archive}: whole" in printed.out
    assert "none.tar" in printed.err


@pytest.mark.parametrize("source", SUFFIXES)
@pytest.mark.parametrize("target", SUFFIXES)
def test_convert(tmp_path: Path, source: str, target: str) -> None:
    pyckpt.save(mixed_state(), tmp_path / f"a{source}")
    assert main(["convert", str(tmp_path / f"a{source}"), str(tmp_path / f"b{target}")]) == 0
    assert_equal(pyckpt.load(tmp_path / f"b{target}"), mixed_state())
    assert pyckpt.verify(tmp_path / f"b{target}").ok
    pyckpt.save(mixed_state(), tmp_path / f"c{target}")
    size = (tmp_path / f"b{target}").stat().st_size
    assert size < 1.02 * (tmp_path / f"c{target}").stat().st_size


@pytest.mark.parametrize("source", usual_suffixes()[1:])
def test_convert_more_than_is_read_ahead(tmp_path: Path, source: str) -> None:
    torch.manual_seed(0)
    state = {
        "large": torch.randn(2_500_000),
        "next": torch.randn(5),
        "half": torch.randn(9999).half(),
    }
    pyckpt.save(state, tmp_path / f"a{source}")
    arguments = ["convert", str(tmp_path / f"a{source}"), str(tmp_path / "b.tar"), "--threads", "1"]
    assert main(arguments) == 0
    assert_equal(pyckpt.load(tmp_path / "b.tar"), state)


def test_save_and_extract(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(mixed_state(), tmp_path / "x.pt")
    output(capsys, "save", tmp_path / "x.pt", tmp_path / "x.tar.lzma")
    assert_equal(pyckpt.load(tmp_path / "x.tar.lzma"), mixed_state())
    folder = tmp_path / "in"
    (folder / "deep" / "empty").mkdir(parents=True)
    (folder / "deep" / "note").write_text("hello")
    (folder / "nothing").write_text("")
    torch.save(mixed_state(), folder / "composer_states.pt")
    output(capsys, "save", folder, tmp_path / "folder.tar.gz", "--level", "9", "--threads", "1")
    printed = output(capsys, "extract", tmp_path / "folder.tar.gz", "-C", tmp_path / "out")
    assert len(printed.splitlines()) == 3
    for name in ["composer_states.pt", "deep/note", "nothing"]:
        assert (tmp_path / "out" / name).read_bytes() == (folder / name).read_bytes()
    assert (tmp_path / "out" / "deep" / "empty").is_dir()
    assert main(["extract", str(tmp_path / "folder.tar.gz"), "-C", str(tmp_path / "out")]) == 2
    assert "File exists" in capsys.readouterr().err
    one = tmp_path / "one"
    output(capsys, "extract", tmp_path / "folder.tar.gz", "deep/note", "-C", one)
    assert [path.name for path in one.rglob("*")] == ["deep", "note"]
    assert main(["extract", str(tmp_path / "folder.tar.gz"), "other", "-C", str(one)]) == 2
    assert "no member 'other'; it has 'composer_states.pt', " in capsys.readouterr().err
    assert main(["save", str(folder / "deep" / "note"), str(tmp_path / "y.tar")]) == 1
    assert main(["save", str(folder), str(tmp_path / "y.pt")]) == 2


@pytest.mark.parametrize("out", [None, "t.bin", "t.npy", "t.pt"])
def test_cat_tensor(
    archive: Path, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes], out: str | None
) -> None:
    expected = mixed_state()["doubles"]
    arguments = ["cat-tensor", str(archive), "state/model/doubles"]
    path = tmp_path / (out or "")
    assert main([*arguments, *(["-o", str(path)] if out else [])]) == 0
    read: dict[str | None, Any] = {
        None: lambda: torch.frombuffer(
            bytearray(capfdbinary.readouterr().out), dtype=torch.float64
        ),
        "t.bin": lambda: torch.from_numpy(np.fromfile(path, np.float64)),
        "t.npy": lambda: torch.from_numpy(np.load(path)),
        "t.pt": lambda: torch.load(path),
    }
    assert torch.equal(read[out](), expected)


def test_cat_tensor_of_no_tensor(archive: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cat-tensor", str(archive), "state/model/text"]) == 2
    assert "is not a tensor" in capsys.readouterr().err
    assert main(["cat-tensor", str(archive), "state/*"]) == 2
    assert "nothing matches" in capsys.readouterr().err


def test_bench(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = json.loads(
        output(capsys, "bench", "--nbytes", 400_000, "--folder", tmp_path, "--json")
    )
    assert list(result) == ["torch", *usual_suffixes()]
    assert 300_000 < result[".tar.gz"]["file_nbytes"] < 400_000
    assert list(tmp_path.iterdir()) == []
    assert main(["bench", "--nbytes", "0", "--folder", str(tmp_path)]) == 2
    assert "at least 1" in capsys.readouterr().err


def test_what_weights_only_forbids_is_no_damage(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pyckpt.save({"t": torch.ones(3), "d": Path("x")}, tmp_path / "x.tar")
    assert main(["cat-tensor", str(tmp_path / "x.tar"), "d"]) == 2
    assert "weights_only" in capsys.readouterr().err
    # The rest of the file does not matter.
    assert main(["cat-tensor", str(tmp_path / "x.tar"), "t", "-o", str(tmp_path / "t.npy")]) == 0


def test_tensors_in_tuples(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = {"pair": (torch.zeros(2), (torch.ones(2), torch.arange(3.0)))}
    pyckpt.save(state, tmp_path / "x.tar")
    last = output(capsys, "ls", "-t", tmp_path / "x.tar").splitlines()[-1].split()[-1]
    assert last == "pair/1/1"
    output(capsys, "cat-tensor", tmp_path / "x.tar", last, "-o", tmp_path / "t.npy")
    assert np.load(tmp_path / "t.npy").tolist() == [0, 1, 2]


def tar_of(path: Path, *members: tarfile.TarInfo) -> None:
    with tarfile.open(path, "w") as tar:
        for member in members:
            tar.addfile(member)


def test_names_that_would_steer_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tar_of(tmp_path / "x.tar", tarfile.TarInfo("a\x1b[2J\udcff\nb"))
    printed = output(capsys, "ls", tmp_path / "x.tar")
    assert printed.endswith("a\\x1b[2J\\udcff\\nb\n")
    printed = output(capsys, "extract", tmp_path / "x.tar", "-C", tmp_path / "out")
    assert printed.endswith("a\\x1b[2J\\udcff\\nb\n")
    assert os.listdir(os.fsencode(tmp_path / "out")) == [b"a\x1b[2J\xff\nb"]


@pytest.mark.parametrize("name", ["link/new/file", "dangling/file", "link/new/", "dangling/"])
def test_nothing_is_extracted_through_links(tmp_path: Path, name: str) -> None:
    member = tarfile.TarInfo(name)
    if name.endswith("/"):
        member.type = tarfile.DIRTYPE
    tar_of(tmp_path / "x.tar", member)
    (tmp_path / "outside").mkdir()
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "link").symlink_to(tmp_path / "outside")
    (tmp_path / "in" / "dangling").symlink_to(tmp_path / "nowhere")
    assert main(["extract", str(tmp_path / "x.tar"), "-C", str(tmp_path / "in")]) == 2
    assert list((tmp_path / "outside").iterdir()) == []
    assert not (tmp_path / "nowhere").exists()


ODD = "a\x1b[2J\x9b1m\udcff\u00e9\nb"


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_nothing_from_a_file_steers_the_terminal(tmp_path: Path, encoding: str) -> None:
    """Names of files, members and records, in output and in errors."""
    folder = tmp_path / ODD
    folder.mkdir()
    pyckpt.save({ODD.replace("\udcff", ""): torch.ones(3)}, folder / "x.tar")
    (folder / "damaged.tar").write_bytes(b"1" * 5000)
    tar_of(folder / "odd.tar", tarfile.TarInfo(ODD), tarfile.TarInfo(ODD))
    for arguments, code in (
        (["ls", folder / "x.tar"], 0),
        (["ls", "-t", folder / "x.tar"], 0),
        (["ls", "--json", folder / "odd.tar"], 0),
        (["ls", folder / "odd.tar"], 0),
        (["ls", folder / "damaged.tar"], 1),
        (["ls", folder / "missing.tar"], 2),
        (["verify", folder / "x.tar", folder / "odd.tar"], 0),
        (["verify", folder / "x.tar", folder / "damaged.tar"], 1),
        (["verify", "--json", folder / "x.tar"], 0),
        (["cat-tensor", folder / "x.tar", "b\u00e9"], 2),
        (["cat-tensor", folder / "odd.tar", "w", "-m", ODD], 1),
        (["convert", folder / "x.tar", folder / "x.tar.foo"], 2),
        (["extract", folder / "odd.tar", "-C", folder / "out"], 0),
        (["extract", folder / "odd.tar", "-C", folder / "out"], 2),
        (["extract", folder / "odd.tar", "a", "-C", folder / "out2"], 2),
    ):
        terminal = io.TextIOWrapper(io.BytesIO(), encoding, errors="strict")
        with redirect_stdout(terminal), redirect_stderr(terminal):
            assert main([str(argument) for argument in arguments]) == code, arguments
        terminal.seek(0)
        printed = terminal.read()
        assert all(c.isprintable() or c == "\n" for c in printed), printed


def test_members_on_both_sides_of_the_folder(tmp_path: Path) -> None:
    """As tar takes them."""
    tar_of(tmp_path / "x.tar", *(tarfile.TarInfo(name) for name in "abc"))
    for number, arguments in enumerate(
        (
            ["x.tar", "a", "b", "-C", "OUT"],
            ["-C", "OUT", "x.tar", "a", "b"],
            ["x.tar", "-C", "OUT", "a", "b"],
            ["x.tar", "a", "-C", "OUT", "b"],
        )
    ):
        out = tmp_path / f"out{number}"
        words = {"OUT": str(out), "x.tar": str(tmp_path / "x.tar")}
        assert main(["extract", *(words.get(word, word) for word in arguments)]) == 0
        assert sorted(path.name for path in out.iterdir()) == ["a", "b"]
    with pytest.raises(SystemExit) as stopped:
        main(["ls", str(tmp_path / "x.tar"), "more"])
    assert stopped.value.code == 2
    with pytest.raises(SystemExit):
        main(["extract", str(tmp_path / "x.tar"), "--what"])


def test_replaced_members_and_links(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    link = tarfile.TarInfo("latest")
    link.type, link.linkname = tarfile.SYMTYPE, "a"
    tar_of(tmp_path / "x.tar", tarfile.TarInfo("a"), tarfile.TarInfo("a"), link)
    assert main(["ls", str(tmp_path / "x.tar")]) == 0
    printed = capsys.readouterr()
    assert [line.split()[0] for line in printed.out.splitlines()] == ["-", "l"]
    assert printed.out.endswith("  latest -> a\n")
    assert printed.err == "1 members are not listed: later ones have their names\n"
    assert "1 members do not count: later" in output(capsys, "verify", tmp_path / "x.tar")
    info = json.loads(output(capsys, "ls", "--json", tmp_path / "x.tar"))
    assert info["replaced"] == ["a"]


def test_an_empty_path(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["ls", ""], ["verify", ""], ["save", "", "x.tar"], ["convert", "x.tar", ""]):
        assert main(arguments) == 2
        assert "the path is empty" in capsys.readouterr().err


@pytest.mark.timeout(120)
def test_shapes_that_are_no_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Such a pickle is none of torch.save."""
    torch.save({"t": torch.ones(3)}, tmp_path / "x.pt")
    with zipfile.ZipFile(tmp_path / "x.pt") as file:
        records = {name: file.read(name) for name in file.namelist()}
    [name] = [name for name in records if name.endswith("/data.pkl")]
    assert records[name].count(b"K\x03\x85") == 1
    records[name] = records[name].replace(b"K\x03\x85", b"X\x01\0\0\0a\x85")
    with zipfile.ZipFile(tmp_path / "y.pt", "w") as file:
        for record, data in records.items():
            file.writestr(record, data)
    assert (
        json.loads(output(capsys, "ls", "--json", tmp_path / "y.pt"))["members"][0]["tensors"] == []
    )
    output(capsys, "ls", "-t", tmp_path / "y.pt")
