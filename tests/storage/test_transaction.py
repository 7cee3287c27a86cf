"""Transactions: several files appear together or not at all, whatever happens meanwhile."""

from __future__ import annotations

import errno
import json
import os
import signal
import stat
import subprocess
import sys
import threading
from concurrent.futures import wait
from pathlib import Path
from typing import Any

import pytest
import torch

import pyckpt
from tests.launch import WORKERS, private_mounts, run_ranks
from tests.preloads import preload

pytestmark = pytest.mark.timeout(120)

ROOT = WORKERS.parent.parent


def hidden(folder: Path) -> list[str]:
    return [name for name in os.listdir(folder) if name.startswith(".")]


# One process


def test_files_of_anybody_appear_together(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "first" / "checkpoint-500"
    with pyckpt.transaction(folder) as path:
        assert (path.parent, path.name[:16]) == (folder.parent, ".checkpoint-500.")
        assert path.name.endswith(".pyckpt-new")
        assert os.listdir(path) == []
        assert not folder.exists()
        pyckpt.save({"weight": torch.ones(3)}, path / "model.tar")
        (path / "deep").mkdir()
        (path / "deep" / "state.json").write_text("{}")
        subprocess.run(["sh", "-c", "echo 1 > step"], cwd=path, check=True, timeout=60)
    assert os.listdir(folder.parent) == ["checkpoint-500"]
    assert sorted(os.listdir(folder)) == ["deep", "model.tar", "step"]
    assert (folder / "step").read_text() == "1\n"
    assert torch.equal(pyckpt.load(folder / "model.tar")["weight"], torch.ones(3))


def test_parents_that_were_made_for_a_transaction_that_failed_go(tmp_path: Path) -> None:
    def fails() -> None:
        with pyckpt.transaction(tmp_path / "runs" / "first" / "checkpoint-500") as path:
            (path / "step").touch()
            raise RuntimeError("no more")

    with pytest.raises(pyckpt.CheckpointError, match="no more"):
        fails()
    assert os.listdir(tmp_path) == []


def test_a_folder_is_replaced_as_a_whole(tmp_path: Path) -> None:
    for step in ("1", "2", "3"):
        with pyckpt.transaction(tmp_path / "x") as path:
            (path / f"step-{step}").touch()
            (path / "step").write_text(step)
        assert sorted(os.listdir(tmp_path / "x")) == ["step", f"step-{step}"]
        assert (tmp_path / "x" / "step").read_text() == step
        assert os.listdir(tmp_path) == ["x"]


@pytest.mark.parametrize("fsync", [True, False])
def test_an_error_in_the_block(tmp_path: Path, fsync: bool) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "a").write_text("old")

    def fail() -> None:
        with pyckpt.transaction(tmp_path / "x", fsync=fsync) as path:
            (path / "a").write_text("new")
            raise ValueError("no")

    with pytest.raises(pyckpt.CheckpointError, match=r"writing .*/x failed.*: ValueError: no") as e:
        fail()
    assert isinstance(e.value.__cause__, ValueError)
    assert (tmp_path / "x" / "a").read_text() == "old"
    assert os.listdir(tmp_path) == ["x"]


def test_an_iterator_that_ends_in_the_block_does_not_look_like_success(tmp_path: Path) -> None:
    with pytest.raises(pyckpt.CheckpointError), pyckpt.transaction(tmp_path / "x"):
        next(iter(()))
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_interrupts_pass_unchanged(tmp_path: Path, kind: type[BaseException]) -> None:
    thrown = kind("now")
    with pytest.raises(kind) as caught, pyckpt.transaction(tmp_path / "x"):
        raise thrown
    assert caught.value is thrown
    assert os.listdir(tmp_path) == []


@pytest.mark.usefixtures("ctrl_c")
def test_a_real_interrupt(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), pyckpt.transaction(tmp_path / "x"):
        signal.raise_signal(signal.SIGINT)
    assert os.listdir(tmp_path) == []


def test_asynchronous_saves_end_with_the_block(tmp_path: Path) -> None:
    weight = torch.randn(10_000_000)
    with pyckpt.transaction(tmp_path / "x") as path:
        pyckpt.async_save({"weight": weight}, path / "deep" / "a.tar.gz")
    assert torch.equal(pyckpt.load(tmp_path / "x" / "deep" / "a.tar.gz")["weight"], weight)

    def fail(*, before_the_end: bool) -> None:
        with pyckpt.transaction(tmp_path / "y") as path:
            pending = pyckpt.async_save({"weight": weight}, path / "a.tar")
            (path / "a.tar").mkdir()  # so that it cannot get its name
            if before_the_end:
                wait([pending])

    for before_the_end in (True, False):
        with pytest.raises(pyckpt.CheckpointError, match=r"saving .*a\.tar failed"):
            fail(before_the_end=before_the_end)
    given_up = []

    def fail_while_it_writes() -> None:
        with pyckpt.transaction(tmp_path / "y") as path:
            given_up.append(pyckpt.async_save({"weight": weight}, path / "a.tar.gz"))
            raise ValueError("no")

    with pytest.raises(pyckpt.CheckpointError, match="ValueError: no"):
        fail_while_it_writes()
    assert given_up[0].done()
    assert os.listdir(tmp_path) == ["x"]
    pyckpt.async_save(1, tmp_path / "z").result()  # no error is left to be told


def test_a_name_that_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "x").touch()
    with (
        pytest.raises(pyckpt.FilenameError, match="is not a folder"),
        pyckpt.transaction(tmp_path / "x"),
    ):
        pytest.fail("the block ran")
    assert os.listdir(tmp_path) == ["x"]
    with (
        pytest.raises(pyckpt.FilenameError, match="is not a folder"),
        pyckpt.transaction(tmp_path / "y"),
    ):
        (tmp_path / "y").write_text("made by somebody meanwhile")
    assert (tmp_path / "y").is_file()
    assert hidden(tmp_path) == []


@pytest.mark.parametrize("folder", ["/", "/proc", "", "x\0", "y" * 300])
def test_folders_that_cannot_be(folder: str) -> None:
    with pytest.raises(pyckpt.CheckpointError), pyckpt.transaction(folder):
        pytest.fail("the block ran")


def test_a_parent_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "x").touch()
    with pytest.raises(pyckpt.CheckpointError) as e, pyckpt.transaction(tmp_path / "x" / "y"):
        pytest.fail("the block ran")
    assert e.value.errno == errno.ENOTDIR


def test_wrong_options(tmp_path: Path) -> None:
    wrong: Any = "yes"
    with pytest.raises(pyckpt.OptionError), pyckpt.transaction(tmp_path / "x", fsync=wrong):
        pytest.fail("the block ran")
    assert os.listdir(tmp_path) == []


def test_a_name_as_long_as_a_name_can_be(tmp_path: Path) -> None:
    name = "ü" * 127
    for text in ("1", "2"):
        with pyckpt.transaction(tmp_path / name) as path:
            (path / "a").write_text(text)
    assert os.listdir(tmp_path) == [name]


def test_a_symbolic_link_stays(tmp_path: Path) -> None:
    (tmp_path / "disk" / "x").mkdir(parents=True)
    (tmp_path / "last").symlink_to("disk/x")
    with pyckpt.transaction(tmp_path / "last") as path:
        assert path.parent == tmp_path / "disk"
        (path / "a").touch()
    assert (tmp_path / "last").is_symlink()
    assert os.listdir(tmp_path / "disk" / "x") == ["a"]


def test_the_mode_is_that_of_mkdir(tmp_path: Path) -> None:
    for mask in (0o022, 0o077, 0o002):
        old = os.umask(mask)
        try:
            with pyckpt.transaction(tmp_path / "parent" / f"{mask}"):
                pass
        finally:
            os.umask(old)
        assert stat.S_IMODE((tmp_path / "parent" / f"{mask}").stat().st_mode) == 0o777 & ~mask


def test_what_is_no_file(tmp_path: Path) -> None:
    with pyckpt.transaction(tmp_path / "x") as path:
        os.mkfifo(path / "pipe")
        (path / "link").symlink_to("nowhere")
        (path / "up").symlink_to("..")
    assert sorted(os.listdir(tmp_path / "x")) == ["link", "pipe", "up"]


def test_transactions_inside_one_another(tmp_path: Path) -> None:
    with pyckpt.transaction(tmp_path / "x") as x, pyckpt.transaction(x / "y") as y:
        (y / "a").touch()
        with pyckpt.transaction(tmp_path / "z"):  # sweeps beside x
            pass
    assert [p.relative_to(tmp_path).as_posix() for p in sorted(tmp_path.rglob("*"))] == [
        *("x", "x/y", "x/y/a", "z"),
    ]


def test_readers_find_the_old_folder_or_the_new_one(tmp_path: Path) -> None:
    target = tmp_path / "x"

    def save(number: int) -> None:
        with pyckpt.transaction(target, fsync=False) as path:
            for name in "abc":
                (path / name).write_text(str(number))

    seen = set()
    wrong: list[object] = []
    ended = threading.Event()

    def look() -> None:
        while not ended.is_set():
            folder = -1
            try:
                folder = os.open(target, os.O_DIRECTORY)
                texts = []
                for name in "abc":
                    with open(os.open(name, os.O_RDONLY, dir_fd=folder)) as file:
                        texts.append(file.read())
                if len(set(texts)) != 1:
                    wrong.append(texts)
                seen.add(texts[0])
            except FileNotFoundError as error:
                # A file may be gone if the folder has been replaced since it was opened.
                if folder == -1 or os.path.samestat(os.fstat(folder), target.stat()):
                    wrong.append(error)
            finally:
                if folder != -1:
                    os.close(folder)

    save(0)
    reader = threading.Thread(target=look)
    reader.start()
    try:
        for number in range(1, 300):
            save(number)
    finally:
        ended.set()
        reader.join()
    assert wrong == []
    assert len(seen) > 10


# Failing calls and killed processes


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("calls")
    done = subprocess.run(
        [sys.executable, WORKERS / "transaction_worker.py", folder / "work"],
        cwd=ROOT,
        env={**os.environ, **preload("system_calls", folder), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def steps(report: dict[str, Any]) -> list[str]:
    """The calls that wait for the disk or change names, without repetitions."""
    names = [call.partition("(")[0] for call in report["calls"]]
    names = [n for n in names if "sync" in n or n in ("rename", "exchange", "unlinkat")]
    return [n for i, n in enumerate(names) if i == 0 or n != names[i - 1]]


FLUSH = ["fsync", "fsync-folder", "fsync", "fsync-folder"]


def test_all_is_on_disk_before_the_name_and_the_name_before_the_removal(
    reports: dict[str, Any],
) -> None:
    assert steps(reports["make:nothing"]) == [*FLUSH, "rename", "fsync-folder"]
    after = ["fsync-folder", "unlinkat"]
    assert steps(reports["replace:nothing"]) == [*FLUSH, "exchange", *after]
    assert steps(reports["replace:no exchange"]) == [*FLUSH, "exchange", "rename", *after]
    calls = [call.partition("(")[0] for call in reports["replace:nothing"]["calls"]]
    assert (calls.count("fsync"), calls.count("fsync-folder")) == (3, 3)


def test_without_fsync_nothing_waits_for_the_disk(reports: dict[str, Any]) -> None:
    assert steps(reports["no fsync"]) == ["exchange", "unlinkat"]
    assert reports["no fsync"]["found"] == "new"


@pytest.mark.parametrize("had", ["replace", "make"])
@pytest.mark.parametrize(
    "name", ["nothing", "no exchange", "no locks", "folders cannot be flushed"]
)
def test_what_a_transaction_can_do_without(reports: dict[str, Any], name: str, had: str) -> None:
    report = reports[f"{had}:{name}"]
    assert (report["error"], report["found"], report["hidden"]) == (None, "new", [])


KILLED = {
    "killed at the flush of a file": "old",
    "killed at the flush of a folder": "old",
    "killed before the exchange": "old",
    "killed after the rename": "new",
    "killed at the begin of the removal": "new",
    "killed in the removal": "new",
    "killed before the first of two renames": "old",
    "killed after two renames": "new",
    "killed in the removal after two renames": "new",
}


@pytest.mark.parametrize("name", KILLED)
def test_a_killed_process_that_replaces(reports: dict[str, Any], name: str) -> None:
    report = reports[f"replace:{name}"]
    assert report["killed"]
    assert report["found"] == report["found later"] == KILLED[name]
    assert "pyckpt-lock" in report["hidden"]
    assert report["hidden later"] == []


def test_a_process_killed_between_two_renames(reports: dict[str, Any]) -> None:
    report = reports["replace:killed between two renames"]
    assert report["killed"]
    assert (report["found"], report["found later"]) == (None, "old")
    assert report["hidden"] == ["pyckpt-lock", "pyckpt-new", "pyckpt-old"]
    assert report["hidden later"] == []


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("killed at the flush of a file", None),
        ("killed at the flush of a folder", None),
        ("killed before the rename", None),
        ("killed after the rename", "new"),
    ],
)
def test_a_killed_process_that_makes(reports: dict[str, Any], name: str, found: str | None) -> None:
    report = reports[f"make:{name}"]
    assert report["killed"]
    assert report["found"] == report["found later"] == found
    assert report["hidden later"] == []


def test_without_locks_nothing_is_known_to_be_dead(reports: dict[str, Any]) -> None:
    report = reports["killed without locks"]
    assert report["killed"]
    assert (report["found"], report["found later"]) == ("old", "old")
    assert report["hidden"] == report["hidden later"] == ["pyckpt-lock", "pyckpt-new"]


@pytest.mark.parametrize(
    ("name", "had"),
    [
        *((f"a {what} fails", had) for what in ("file", "folder") for had in ("replace", "make")),
        ("the exchange fails", "replace"),
        ("the rename fails", "make"),
        ("the parent fails", "replace"),
        ("the parent fails", "make"),
        ("the second rename fails", "replace"),
        ("the parent fails after two renames", "replace"),
    ],
)
def test_a_call_that_fails_leaves_the_old_folder(
    reports: dict[str, Any], name: str, had: str
) -> None:
    report = reports[f"{had}:{name}"]
    number, message = report["error"]
    assert number == errno.EIO
    assert os.strerror(errno.EIO) in message
    assert report["found"] == ("old" if had == "replace" else None)
    assert report["hidden"] == []


def test_a_full_disk(tmp_path: Path) -> None:
    code = """
import os, sys, errno, pyckpt, torch
target = sys.argv[1] + "/x"
with pyckpt.transaction(target) as path:
    (path / "a").write_text("old")
for write in (
    lambda path: (path / "a").write_bytes(bytes(5 << 20)),
    lambda path: pyckpt.save(torch.zeros(5 << 20), path / "a.tar"),
):
    try:
        with pyckpt.transaction(target) as path:
            write(path)
    except pyckpt.CheckpointError as error:
        assert error.errno == errno.ENOSPC, error
    else:
        raise AssertionError
    assert os.listdir(sys.argv[1]) == ["x"] and os.listdir(target) == ["a"]
"""
    run_in_tmpfs(code, tmp_path)


def run_in_tmpfs(code: str, folder: Path) -> None:
    """Runs code in another process, in which ``folder``, ``sys.argv[1]``, is a tmpfs of 4 MB."""
    script = 'mount -t tmpfs -o size=4m none "$1"; exec "$2" -c "$3" "$1"'
    done = subprocess.run(
        [*private_mounts(script), "sh", folder, sys.executable, code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr


# Leftovers


def test_a_living_process_keeps_what_it_has(tmp_path: Path) -> None:
    code = f"""
import sys, pyckpt
with pyckpt.transaction({str(tmp_path / "x")!r}) as path:
    (path / "a").touch()
    print("begun", flush=True)
    sys.stdin.readline()
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT
    ) as other:
        assert other.stdin is not None
        assert other.stdout is not None
        assert other.stdout.readline() == b"begun\n"
        before = sorted(hidden(tmp_path))
        assert len(before) == 2
        with pyckpt.transaction(tmp_path / "y"):
            pass
        assert sorted(hidden(tmp_path)) == before
        other.communicate(b"\n", timeout=60)
    assert other.returncode == 0
    assert os.listdir(tmp_path / "x") == ["a"]
    assert hidden(tmp_path) == []


def dead_claim(folder: Path, **changed: object) -> str:
    """Makes what a killed process leaves. Returns the beginning of its names."""
    child = os.fork()
    if child == 0:
        with pyckpt.transaction(folder / "x") as path:
            (path / "a").touch()
            os._exit(0)
    os.waitpid(child, 0)
    [lock] = [name for name in hidden(folder) if name.endswith("lock")]
    if changed:
        record = json.loads((folder / lock).read_text())
        assert set(record) == {"host", "system", "pid", "target", "locked"}
        assert record["pid"] == child
        (folder / lock).write_text(json.dumps({**record, **changed}))
    return lock.removesuffix(".pyckpt-lock")


def sweep(folder: Path) -> list[str]:
    with pyckpt.transaction(folder / "other"):
        pass
    return sorted(os.listdir(folder))


def test_a_dead_process(tmp_path: Path) -> None:
    dead_claim(tmp_path)
    assert sweep(tmp_path) == ["other"]


def of_another_system(folder: Path) -> str:
    """Renames what a dead process has left, as if it had been under another boot id."""
    stem = dead_claim(folder)
    start, _, code = stem.rpartition(".")
    other = f"{start}.{'0' * 8}{code[8:]}"
    for kind in ("lock", "new"):
        (folder / f"{stem}.pyckpt-{kind}").rename(folder / f"{other}.pyckpt-{kind}")
    return other


def test_a_dead_process_before_the_machine_was_started_again(tmp_path: Path) -> None:
    command = ["stat", "--file-system", "--format=%T", tmp_path]
    kind = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    is_local = kind.stdout.strip() in ("ext2/ext3", "xfs", "btrfs", "f2fs")
    stem = of_another_system(tmp_path)
    left = [] if is_local else [f"{stem}.pyckpt-lock", f"{stem}.pyckpt-new"]
    assert sweep(tmp_path) == [*left, "other"]


def test_a_dead_process_of_another_machine(tmp_path: Path) -> None:
    """Nobody says that other machines do not have this tmpfs."""
    code = """
import sys
from pathlib import Path
from tests.storage.test_transaction import of_another_system, sweep
stem = of_another_system(Path(sys.argv[1]))
assert sweep(Path(sys.argv[1])) == [f"{stem}.pyckpt-lock", f"{stem}.pyckpt-new", "other"]
"""
    run_in_tmpfs(code, tmp_path)


@pytest.mark.parametrize("target", ["y", "../x", "", ".", "..", 3, None])
def test_a_record_that_does_not_fit(tmp_path: Path, target: object) -> None:
    stem = dead_claim(tmp_path, target=target)
    (tmp_path / f"{stem}.pyckpt-new").rename(tmp_path / f"{stem}.pyckpt-old")
    assert sweep(tmp_path) == [f"{stem}.pyckpt-lock", f"{stem}.pyckpt-old", "other"]


@pytest.mark.parametrize("record", [b"[]", b"{", b"\xff", b"3"])
def test_a_record_that_is_none(tmp_path: Path, record: bytes) -> None:
    stem = dead_claim(tmp_path)
    (tmp_path / f"{stem}.pyckpt-lock").write_bytes(record)
    assert sweep(tmp_path) == [f"{stem}.pyckpt-lock", f"{stem}.pyckpt-new", "other"]


def test_a_process_that_died_before_its_record(tmp_path: Path) -> None:
    stem = dead_claim(tmp_path)
    (tmp_path / f"{stem}.pyckpt-lock").write_bytes(b"")
    (tmp_path / f"{stem}.pyckpt-new" / "a").unlink()
    (tmp_path / f"{stem}.pyckpt-new").rmdir()
    assert sweep(tmp_path) == ["other"]


def test_links_in_leftovers_are_not_followed(tmp_path: Path) -> None:
    folder, precious = tmp_path / "work", tmp_path / "precious"
    folder.mkdir()
    precious.mkdir()
    (precious / "file").touch()
    stem = dead_claim(folder)
    (folder / f"{stem}.pyckpt-new" / "link").symlink_to(precious)
    (folder / f"{stem}.pyckpt-old").symlink_to(precious)
    sweep(folder)
    assert os.listdir(precious) == ["file"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_what_another_user_has_left(tmp_path: Path) -> None:
    stem = dead_claim(tmp_path)
    os.chown(tmp_path / f"{stem}.pyckpt-lock", 12345, 12345)
    assert sweep(tmp_path) == [f"{stem}.pyckpt-lock", f"{stem}.pyckpt-new", "other"]


# Ranks


def test_two_ranks(tmp_path: Path) -> None:
    run_ranks("transaction_ranks_worker.py", tmp_path, timeout=100)


def test_ranks_on_two_machines(tmp_path: Path) -> None:
    """Each rank has a host name, and where it matters a file system, of its own."""
    code = "import sys; from tests.launch import run_ranks; run_ranks(*sys.argv[1:], timeout=90)"
    command = [sys.executable, "-c", code, "transaction_machines_worker.py", str(tmp_path)]
    done = subprocess.run(
        [*private_mounts('exec "$@"'), "sh", *command],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_rank_that_is_killed(tmp_path: Path) -> None:
    run_ranks("transaction_killed_worker.py", tmp_path, must_succeed=False, timeout=100)
    assert (tmp_path / "survivor").read_text().startswith("writing")
    assert sweep(tmp_path / "work") == ["other", "x"]
    assert (tmp_path / "work" / "x" / "a").read_text() == "old"
