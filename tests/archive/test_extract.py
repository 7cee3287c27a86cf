"""pyckpt.extract, and single tensors as files: the right bytes, or nothing."""

import _thread
import bz2
import gzip
import io
import lzma
import os
import pty
import resource
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import pyckpt
from pyckpt.archive.extract import extract_tensor, write_tensor
from pyckpt.cli import main
from tests import zstd_command
from tests.tar_members import add

COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    ".tar": lambda raw: raw,
    ".tar.gz": lambda raw: gzip.compress(raw, 1),
    ".tar.bz2": bz2.compress,
    ".tar.xz": lambda raw: lzma.compress(raw, preset=0),
    ".tar.zst": zstd_command.compress,
}


def entries(folder: Path) -> dict[str, bytes | None]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


@pytest.mark.parametrize("suffix", COMPRESS)
@pytest.mark.parametrize("check", [True, False])
def test_everything_in_a_tar(tmp_path: Path, suffix: str, check: bool) -> None:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        add(tar, "./", type=tarfile.DIRTYPE)
        add(tar, "./d/note", b"old")
        add(tar, "large", b"12345678" * 400_000)
        add(tar, "empty/", type=tarfile.DIRTYPE)
        add(tar, "d/hard", type=tarfile.LNKTYPE, linkname="d/note")
        add(tar, "d/note", b"new")
        add(tar, "d/soft", type=tarfile.SYMTYPE, linkname="../large")
        add(tar, "zero")
    path = tmp_path / f"x{suffix}"
    path.write_bytes(COMPRESS[suffix](file.getvalue()))
    written = pyckpt.extract(path, tmp_path / "out", check=check)
    assert entries(tmp_path / "out") == {
        "d": None,
        "empty": None,
        "large": b"12345678" * 400_000,
        "d/hard": b"old",
        "d/note": b"new",
        "d/soft": b"12345678" * 400_000,
        "zero": b"",
    }
    names = {one.relative_to(tmp_path / "out").as_posix() for one in written}
    assert names == {"large", "d/hard", "d/note", "d/soft", "zero"}
    pyckpt.extract(path, tmp_path / "part", members=["d", "./zero"], check=check)
    assert set(entries(tmp_path / "part")) == {"d", "d/hard", "d/note", "d/soft", "zero"}


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        add(tar, "a/b/one", b"1" * 3_000_000)
        add(tar, "a/two", b"2" * 3_000_000)
        add(tar, "a/zz", b"2" * 3_000_000)
    return tmp_path / "x.tar"


def test_files_that_are_there_stay(tmp_path: Path, archive: Path) -> None:
    """And nothing else is written beside them."""
    there = tmp_path / "out" / "a" / "zz"
    for make in (
        lambda: there.write_text("mine"),
        lambda: there.symlink_to("nowhere"),
        there.mkdir,
    ):
        there.parent.mkdir(parents=True)
        make()
        before = os.lstat(there)
        with pytest.raises(FileExistsError, match="zz"):
            pyckpt.extract(archive, tmp_path / "out")
        assert os.lstat(there) == before
        assert [path.name for path in (tmp_path / "out").rglob("*")] == ["a", "zz"]
        there.rmdir() if there.is_dir() else there.unlink()
        there.parent.rmdir()
        (tmp_path / "out").rmdir()


def limit_file_size() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))


@pytest.mark.timeout(120)
def test_a_write_that_fails_leaves_nothing(tmp_path: Path, archive: Path) -> None:
    command = [sys.executable, "-m", "pyckpt", "extract", archive, "-C", tmp_path / "new" / "out"]
    done = subprocess.run(command, capture_output=True, text=True, preexec_fn=limit_file_size)
    assert done.returncode == 2
    assert "File too large" in done.stderr
    assert not (tmp_path / "new").exists()


@pytest.mark.timeout(120)
@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_leaves_nothing(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar.gz", "w:gz", compresslevel=1) as tar:
        add(tar, "zeros", bytes(400_000_000))

    def interrupt() -> None:
        while not list(tmp_path.glob("out/.pyckpt-*/*")):
            time.sleep(0.001)
        _thread.interrupt_main()

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        pyckpt.extract(tmp_path / "x.tar.gz", tmp_path / "out", check=False)
    thread.join()
    assert [path.name for path in tmp_path.iterdir()] == ["x.tar.gz"]


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ({"type": tarfile.FIFOTYPE}, "it is a pipe"),
        ({"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"}, "it is a link to '/etc/passwd'"),
        ({"type": tarfile.SYMTYPE, "linkname": "../x"}, r"it is a link to '../x'"),
        ({"type": tarfile.LNKTYPE, "linkname": "nowhere"}, "it is a link to 'nowhere'"),
    ],
)
def test_members_that_are_no_files(tmp_path: Path, kind: dict[str, object], message: str) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        add(tar, "note", b"1")
        add(tar, "odd", b"", **kind)
    with pytest.raises(pyckpt.CorruptArchiveError, match=f"neither a file nor a folder: {message}"):
        pyckpt.extract(tmp_path / "x.tar", tmp_path / "out")
    with pytest.raises(pyckpt.CorruptArchiveError, match="neither a file nor a folder"):
        pyckpt.convert(tmp_path / "x.tar", tmp_path / "y.tar")
    assert [path.name for path in tmp_path.iterdir()] == ["x.tar"]
    pyckpt.extract(tmp_path / "x.tar", tmp_path / "out", members=["note"])
    assert entries(tmp_path / "out") == {"note": b"1"}


def test_a_member_that_is_not_there(tmp_path: Path, archive: Path) -> None:
    with pytest.raises(pyckpt.OptionError, match="no member 'a/to'; it has 'a/two'"):
        pyckpt.extract(archive, tmp_path / "out", members=["a/zz", "a/to"])
    assert not (tmp_path / "out").exists()


# Tensors.


def cat(path: Path, key: str, **options: object) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "pyckpt", "cat-tensor", path, key]
    return subprocess.run(command, stderr=subprocess.PIPE, **options)  # type: ignore[call-overload, no-any-return]


@pytest.mark.timeout(120)
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_an_output_that_takes_only_a_part(tmp_path: Path, unbuffered: str) -> None:
    pyckpt.save({"w": torch.arange(500_000)}, tmp_path / "x.pt")
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    with (tmp_path / "out").open("wb") as out:
        done = cat(tmp_path / "x.pt", "w", stdout=out, env=environment, preexec_fn=limit_file_size)
    assert done.returncode == 2
    assert b"File too large" in done.stderr
    done = cat(tmp_path / "x.pt", "w", stdout=subprocess.PIPE, env=environment)
    assert done.stdout == torch.arange(500_000).numpy().tobytes()


@pytest.mark.timeout(120)
def test_an_output_that_is_not_ready(tmp_path: Path) -> None:
    pyckpt.save({"w": torch.arange(500_000)}, tmp_path / "x.pt")
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", "pyckpt", "cat-tensor", tmp_path / "x.pt", "w"]
    process = subprocess.Popen(command, stdout=writer, env=environment)
    os.close(writer)
    with os.fdopen(reader, "rb") as file:
        assert file.read() == torch.arange(500_000).numpy().tobytes()
    assert process.wait() == 0


@pytest.mark.timeout(120)
def test_a_terminal_gets_no_raw_bytes(tmp_path: Path) -> None:
    pyckpt.save({"w": torch.ones(3)}, tmp_path / "x.pt")
    leader, follower = pty.openpty()
    done = cat(tmp_path / "x.pt", "w", stdout=follower)
    os.close(follower)
    os.close(leader)
    assert done.returncode == 2
    assert b"write them to a file" in done.stderr


LAZY = {
    "conj": torch.tensor([[1 + 2j, 3 - 4j], [5j, 6]]).conj(),
    "neg": torch._neg_view(torch.tensor([1.0, -2.0])),
    "both": torch.tensor([1 + 2j, 3 - 4j]).conj().imag,
    "transposed": torch.arange(6).view(2, 3).t(),
    "expanded": torch.ones(1).expand(3),
    "scalar": torch.tensor(7.5),
    "empty": torch.zeros(0, 4),
    "parameter": torch.nn.Parameter(torch.ones(3)),
}


@pytest.mark.parametrize("name", LAZY)
def test_the_values_that_a_tensor_shows(tmp_path: Path, name: str) -> None:
    path = tmp_path / "x.tar"
    pyckpt.save(LAZY, path)
    plain = LAZY[name].detach().resolve_conj().resolve_neg().numpy()
    expected = np.array(LAZY[name].tolist(), dtype=plain.dtype).reshape(plain.shape)
    done = cat(path, name, stdout=subprocess.PIPE)
    assert (done.returncode, done.stdout) == (0, expected.tobytes())
    for suffix in (".bin", ".npy", ".pt"):
        write_tensor(extract_tensor(path, name), tmp_path / f"t{suffix}")
    assert (tmp_path / "t.bin").read_bytes() == expected.tobytes()
    loaded = np.load(tmp_path / "t.npy")
    assert (loaded.dtype, loaded.shape) == (expected.dtype, expected.shape)
    assert np.array_equal(loaded, expected)
    assert torch.equal(torch.load(tmp_path / "t.pt"), LAZY[name])


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensors_that_are_no_run_of_values(tmp_path: Path) -> None:
    class Odd(torch.Tensor):
        pass

    tensors = {
        "is sparse": torch.eye(3).to_sparse(),
        "is quantized": torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
        "is nested": torch.nested.nested_tensor([torch.ones(1), torch.ones(2)]),
        "on the device 'meta'": torch.empty(3, device="meta"),
        "Odd": torch.ones(3).as_subclass(Odd),
    }
    for message, tensor in tensors.items():
        for path in (None, tmp_path / "t.bin", tmp_path / "t.npy"):
            with pytest.raises(pyckpt.OptionError, match=message):
                write_tensor(tensor, path)
    assert list(tmp_path.iterdir()) == []
    pyckpt.save(tensors["on the device 'meta'"], tmp_path / "x.tar")
    assert cat(tmp_path / "x.tar", "", stdout=subprocess.PIPE).returncode == 2


@pytest.mark.timeout(120)
@pytest.mark.parametrize("name", ["t.bin", "t.npy", "t.pt"])
def test_a_file_of_a_tensor_is_replaced_as_a_whole(tmp_path: Path, name: str) -> None:
    pyckpt.save({"w": torch.arange(500_000)}, tmp_path / "x.pt")
    (tmp_path / name).write_text("old")
    before = sorted(path.name for path in tmp_path.iterdir())
    command = [sys.executable, "-m", "pyckpt", "cat-tensor", tmp_path / "x.pt", "w"]
    command += ["-o", tmp_path / name]
    done = subprocess.run(command, capture_output=True, preexec_fn=limit_file_size)
    assert done.returncode == 2
    assert (tmp_path / name).read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    assert main([str(argument) for argument in command[3:]]) == 0
    assert (tmp_path / name).stat().st_size > 3_999_999


@pytest.mark.parametrize("name", ["t.tar", "t.tar.gz", "t.gz", "t.npy.zst"])
def test_a_tensor_is_no_archive(tmp_path: Path, name: str) -> None:
    with pytest.raises((pyckpt.OptionError, pyckpt.FilenameError)):
        write_tensor(torch.ones(3), tmp_path / name)
    assert list(tmp_path.iterdir()) == []
