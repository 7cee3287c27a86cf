"""Which files are the same, under real mounts and under tables of mounts as proc(5) shows them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from pyckpt.ranks import file_identity as module
from pyckpt.ranks.file_identity import file_identity
from tests.launch import private_mounts

ROOT = "22 1 0:20 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n"


@pytest.fixture
def mounts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A mount table that the test extends."""
    table = tmp_path / "mountinfo"
    table.write_text(ROOT)
    monkeypatch.setattr(module, "_MOUNTS", table)
    return table


def add(mounts: Path, line: str) -> None:
    with mounts.open("a") as file:
        file.write(line + "\n")


def test_a_local_file_is_the_machines(tmp_path: Path) -> None:
    identity = file_identity(tmp_path / "x.tar")
    assert identity == file_identity(tmp_path / "sub" / ".." / "x.tar")
    assert socket.gethostname() in identity
    assert identity.endswith(f" {os.path.realpath(tmp_path)}/x.tar")
    assert identity != file_identity(tmp_path / "y.tar")


def test_links_and_relative_paths_lead_to_one_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "linked").symlink_to("real")
    (tmp_path / "x").symlink_to("real/x.tar")
    monkeypatch.chdir(tmp_path)
    names = ["real/x.tar", "linked/x.tar", "x", f"{tmp_path}/linked/../real/x.tar"]
    assert len({file_identity(Path(name)) for name in names}) == 1


@pytest.mark.parametrize("kind", ["nfs", "nfs4", "cifs", "lustre", "gpfs", "beegfs", "ceph"])
def test_a_shared_file_is_the_same_wherever_it_is_mounted(mounts: Path, kind: str) -> None:
    add(mounts, f"40 22 0:50 / /here rw - {kind} server:/export rw,vers=4.2")
    add(mounts, f"41 22 0:50 / /there/deep rw master:2 propagate_from:1 - {kind} server:/export rw")
    add(mounts, f"42 22 0:50 /runs /runs rw - {kind} server:/export rw")  # a bind mount
    add(mounts, f"43 22 0:51 / /other rw - {kind} server:/second rw")
    here = file_identity(Path("/here/runs/a/x.tar"))
    assert here == f"{kind} server:/export /runs/a/x.tar"
    assert here == file_identity(Path("/there/deep/runs/a/x.tar"))
    assert here == file_identity(Path("/runs/a/x.tar"))
    assert here != file_identity(Path("/other/runs/a/x.tar"))
    assert here != file_identity(Path("/here/runs/a/y.tar"))
    assert socket.gethostname() not in here


def test_local_mounts_are_the_machines(mounts: Path) -> None:
    add(mounts, "40 22 0:50 / /scratch rw - tmpfs server:/export rw")
    add(mounts, "41 22 0:51 / /here rw - nfs server:/export rw")
    assert file_identity(Path("/scratch/x")).endswith(" /scratch/x")
    assert file_identity(Path("/hereafter/x")).endswith(" /hereafter/x")  # not below /here


def test_the_deepest_and_the_latest_mount_counts(mounts: Path) -> None:
    add(mounts, "40 22 0:50 / /here rw - nfs old:/export rw")
    add(mounts, "41 22 0:51 / /here rw - nfs new:/export rw")
    add(mounts, "42 41 0:52 / /here/local rw - xfs /dev/sdb rw")
    assert file_identity(Path("/here/x")) == "nfs new:/export /x"
    assert file_identity(Path("/here/local/x")).endswith(" /here/local/x")


def test_names_of_mounts_may_hold_anything(mounts: Path) -> None:
    add(mounts, r"40 22 0:50 / /a\040b\011c\134d rw - nfs server:/with\040blank rw")
    assert file_identity(Path("/a b\tc\\d/x")).endswith("/x")
    assert file_identity(Path("/a b\tc\\d/x")).startswith("nfs server:")
    add(mounts, "41 22 0:51 / /läufe/中 rw - nfs server:/export rw")
    assert file_identity(Path("/läufe/中/x")) == "nfs server:/export /x"
    add(mounts, "42 22 0:52 / /thin\u2009space\u2028line\x0b rw - nfs server:/third rw")
    assert file_identity(Path("/thin\u2009space\u2028line\x0b/x")) == "nfs server:/third /x"
    with mounts.open("ab") as file:
        file.write(b"43 22 0:53 / /not\xffutf8 rw - nfs server:/fourth rw\n")
    assert file_identity(Path(os.fsdecode(b"/not\xffutf8/x"))) == "nfs server:/fourth /x"
    add(mounts, "44 22 0:54 / /fuse rw - fuse.glusterfs  rw")  # no source at all
    assert file_identity(Path("/fuse/x")) == "fuse.glusterfs  /x"


def test_without_a_table_of_mounts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOUNTS", tmp_path / "none")
    monkeypatch.setattr(module, "_BOOT_ID", tmp_path / "none")
    assert file_identity(Path("/x")) == f"{socket.gethostname()}  /x"


def test_real_mounts(tmp_path: Path) -> None:
    for name in ("one two", "three"):
        (tmp_path / name).mkdir()
    script = (
        'mount -t tmpfs none "$1/one two"; mount --bind "$1/one two" "$1/three"; shift; exec "$@"'
    )
    program = (
        "import sys\nfrom pathlib import Path\nfrom pyckpt.ranks.file_identity import _mount_of\n"
        "for folder in sys.argv[1:]: print(*_mount_of(folder + '/x'), sep='|')"
    )
    folders = [str(tmp_path / "one two"), str(tmp_path / "three")]
    command = [sys.executable, "-c", program, *folders]
    done = subprocess.run(
        [*private_mounts(script), "sh", str(tmp_path), *command],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines() == [f"{folder}|tmpfs|none|/" for folder in folders]
