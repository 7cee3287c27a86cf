"""The system calls of a save: which are made, in which order, and what happens when they fail."""

from __future__ import annotations

import errno
import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import pyckpt
from tests.launch import WORKERS

pytestmark = pytest.mark.timeout(300)

NATIVE = WORKERS.parent / "native"
SUFFIXES = [".tar", ".tar.gz"]
UNKNOWN = ("no space to reserve", ".tar.gz")


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("calls")
    library = folder / "system_calls.so"
    compiler = shutil.which("cc") or shutil.which("gcc") or "g++"
    source = NATIVE / "system_calls.c"
    command = [compiler, "-x", "c", "-shared", "-fPIC", "-O1", source, "-o", library, "-ldl"]
    subprocess.run(command, check=True, timeout=100)
    (folder / "saves").mkdir()
    done = subprocess.run(
        [sys.executable, WORKERS / "system_calls_worker.py", folder / "saves"],
        cwd=WORKERS.parent.parent,
        env={**os.environ, "LD_PRELOAD": str(library), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def names(report: dict[str, Any]) -> list[str]:
    """The calls without details and repetitions; threads and owners do not count."""
    calls = [call.partition("(")[0] for call in report["calls"]]
    calls = [call for call in calls if call not in ("pthread_create", "fchown")]
    return [call for n, call in enumerate(calls) if n == 0 or call != calls[n - 1]]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_bytes_are_on_disk_before_the_name_and_the_name_after_it(
    reports: dict[str, Any], suffix: str
) -> None:
    report = reports[f"nothing {suffix}"]
    called = names(report)
    assert called[:2] == ["open-unnamed", "fchmod"]
    # A size that only compression tells cannot be reserved.
    before = ["fallocate"] if suffix == ".tar" else []
    assert called[2:-6] == [*before, "pwritev"]
    assert called[-6:] == [
        *("ftruncate", "fsync", "linkat", "rename"),
        *("open-folder", "fsync-folder"),
    ]
    reserved = [call for call in report["calls"] if call.startswith("fallocate")]
    assert len(reserved) == len(before)
    assert all(int(call[10:-1]) > 12_000_000 for call in reserved), "space for all the bytes"


def test_without_fsync_nothing_waits_for_the_disk(reports: dict[str, Any]) -> None:
    called = names(reports["no fsync"])
    assert "rename" in called
    assert not [call for call in called if "sync" in call]


FAIL = {
    "no space to reserve": errno.ENOSPC,
    "no space to write": errno.ENOSPC,
    "first write": errno.EIO,
    "flush": errno.EIO,
    "length": errno.EIO,
    "name": errno.EIO,
    "rename": errno.EXDEV,
}


@pytest.mark.parametrize(
    ("scenario", "suffix"),
    # Only a size that is known can be reserved.
    [(one, suffix) for one in FAIL for suffix in SUFFIXES if (one, suffix) != UNKNOWN],
)
def test_a_call_that_fails_leaves_the_old_file(
    reports: dict[str, Any], scenario: str, suffix: str
) -> None:
    report = reports[f"{scenario} {suffix}"]
    kind, number, message = report["error"]
    assert (kind, number) == ("CheckpointError", FAIL[scenario])
    assert os.strerror(number) in message
    assert f"x{suffix}" in message
    assert (report["new"], report["whole"], report["left"]) == (False, True, [])


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_name_that_cannot_be_flushed_is_told(reports: dict[str, Any], suffix: str) -> None:
    report = reports[f"flush folder {suffix}"]
    assert report["error"][:2] == ["CheckpointError", errno.EIO]
    assert (report["new"], report["whole"], report["left"]) == (True, True, [])


SUCCEED = [
    *("cannot reserve", "short first write", "short writes", "interrupted", "often interrupted"),
    *("short and interrupted", "folders cannot be flushed", "folder cannot be read"),
    *("no unnamed files", "no modes", "no threads", "two threads"),
]


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("scenario", SUCCEED)
def test_what_a_save_can_do_without(reports: dict[str, Any], scenario: str, suffix: str) -> None:
    report = reports[f"{scenario} {suffix}"]
    assert report["error"] is None
    assert (report["new"], report["whole"], report["left"]) == (True, True, [])


def test_what_the_scenarios_did(reports: dict[str, Any]) -> None:
    """They would prove nothing if no call had failed."""
    calls = {name: report["calls"] for name, report in reports.items()}
    written = {name: sum(call.startswith("pwritev") for call in calls[name]) for name in calls}
    assert written["short writes .tar"] > 2 * written["nothing .tar"]
    assert written["often interrupted .tar"] == written["nothing .tar"] + 8
    for call in ("fsync(0)", "fallocate"):
        assert sum(one.startswith(call) for one in calls["interrupted .tar"]) == 2
    assert "syncfs(0)" in calls["folder cannot be read .tar"]
    assert "pthread_create(0)" in calls["no threads .tar.gz"]


def test_an_asynchronous_save_without_threads(reports: dict[str, Any]) -> None:
    report = reports["asynchronous, no threads"]
    assert (report["error"], report["new"], report["whole"]) == (None, True, True)


# What a new file takes over from the old one


def save_over(path: Path) -> os.stat_result:
    pyckpt.save({"weight": torch.ones(3)}, path)
    return path.stat()


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o666, 0o444])
def test_the_mode_is_kept(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "x.tar"
    path.touch()
    path.chmod(mode)
    assert stat.S_IMODE(save_over(path).st_mode) == mode


def test_bits_that_lend_rights_are_not_kept(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    path.touch()
    path.chmod(0o6755)
    assert stat.S_IMODE(save_over(path).st_mode) == 0o755


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")


@needs_root
def test_the_owner_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    path.touch()
    path.chmod(0o640)
    os.chown(path, 1000, 1001)
    found = save_over(path)
    assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (1000, 1001, 0o640)


def as_user(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Runs code as user and group 12345, without root's rights, in a folder."""
    lines = [
        "import os, sys, torch, pyckpt",
        "os.chdir(sys.argv[1])",
        "if os.geteuid() == 0: os.setgroups([]); os.setgid(12345); os.setuid(12345)",
        code,
    ]
    return subprocess.run(
        [sys.executable, "-c", "\n".join(lines), folder],
        cwd=WORKERS.parent.parent,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


@pytest.fixture
def shared_folder() -> Any:
    """A folder that another user can reach."""
    folder = Path("/tmp") / f"pyckpt-shared-{os.getpid()}"
    folder.mkdir()
    folder.chmod(0o777)
    yield folder
    folder.chmod(0o777)
    shutil.rmtree(folder)


@needs_root
def test_a_group_that_cannot_be_kept_opens_the_file_to_no_other(shared_folder: Path) -> None:
    path = shared_folder / "x.tar"
    path.touch()
    path.chmod(0o664)
    os.chown(path, 12345, 1)
    done = as_user("pyckpt.save({}, 'x.tar')", shared_folder)
    assert done.returncode == 0, done.stderr
    found = path.stat()
    assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (12345, 12345, 0o644)


def test_user_attributes_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    path.touch()
    try:
        os.setxattr(path, "user.note", b"mine")
    except OSError:
        pytest.skip("this file system has no user attributes")
    save_over(path)
    assert os.getxattr(path, "user.note") == b"mine"


@needs_root
@pytest.mark.parametrize(
    ("mode", "owner", "message"),
    [
        (0o555, 0, "cannot make a new file in its folder (which a save needs, since it never"),
        (0o1777, 0, "cannot replace it (its folder is sticky, and the file is another user's)"),
    ],
)
def test_files_that_cannot_be_replaced(
    shared_folder: Path, mode: int, owner: int, message: str
) -> None:
    path = shared_folder / "x.tar"
    path.write_bytes(b"old")
    path.chmod(0o666)
    os.chown(path, owner, owner)
    shared_folder.chmod(mode)
    done = as_user("pyckpt.save({}, 'x.tar')", shared_folder)
    assert message in done.stderr
    assert "x.tar" in done.stderr
    assert path.read_bytes() == b"old"
    assert os.listdir(shared_folder) == ["x.tar"]


@needs_root
def test_a_folder_that_cannot_be_read(shared_folder: Path) -> None:
    shared_folder.chmod(0o333)
    done = as_user("pyckpt.save({'a': 1}, 'x.tar')", shared_folder)
    assert done.returncode == 0, done.stderr
    assert pyckpt.load(shared_folder / "x.tar") == {"a": 1}
