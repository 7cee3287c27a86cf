"""Saves while training goes on: on one process, on torchrun ranks, at the interpreter's end."""

from __future__ import annotations

import json
import logging
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Future
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import nn

import pyckpt
from pyckpt.archive.formats import archive_format, file_suffixes, usual_suffixes
from pyckpt.staging import pending_saves
from pyckpt.staging.buffers import BufferPool
from pyckpt.staging.copies import Copies
from pyckpt.staging.latch import Latch
from pyckpt.training import background
from pyckpt.training.save_checkpoint import Save
from tests.launch import TIMEOUT_SECONDS, WORKERS, private_mounts, run_ranks, torchrun

pytestmark = pytest.mark.timeout(120)

SUFFIXES = ["", ".pt", *usual_suffixes(), *file_suffixes()]
Stage = Literal["copy", "lazy"] | None
STAGES: list[Stage] = ["copy", "lazy", None]
WIDTH = 300

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)]


class Training:
    """A small model with statistics that forward changes, and a training loop."""

    def __init__(self, device: str = "cpu") -> None:
        torch.manual_seed(1)
        random.seed(1)
        self.device = device
        self.model = nn.Sequential(
            nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH), nn.Dropout(0.1), nn.Linear(WIDTH, WIDTH)
        ).to(device)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-2)
        self.scheduler = torch.optim.lr_scheduler.StepLR(self.optimizer, 2)
        self.state = pyckpt.State(self.model, self.optimizer, self.scheduler)

    def train(self, steps: int) -> None:
        for _ in range(steps):
            loss = self.model(torch.randn(8, WIDTH).to(self.device)).square().mean()
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.scheduler.step()
            self.state.timestamp.batch += 1
            random.random()


@pytest.fixture(params=DEVICES)
def training(request: pytest.FixtureRequest) -> Training:
    training = Training(request.param)
    training.train(3)
    return training


@pytest.fixture(autouse=True)
def _nothing_is_left_behind() -> Iterator[None]:
    yield
    pending_saves.raise_uncollected()
    pending_saves.check_may_begin(1)


def logged(caplog: pytest.LogCaptureFixture, count: int) -> None:
    """Waits until the background thread has logged, which it does after the save has ended."""
    pending_saves.wait_for_room(1)
    late = time.monotonic() + 60
    while len(caplog.records) < count and time.monotonic() < late:
        time.sleep(0.01)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.usefixtures("frozen_time")
def test_the_file_is_that_of_a_blocking_save(
    training: Training, tmp_path: Path, stage: Stage, suffix: str
) -> None:
    blocking, asynchronous = f"{tmp_path}/blocking{suffix}", f"{tmp_path}/async{suffix}"
    for _ in range(3):
        pyckpt.save_checkpoint(training.state, blocking)
        pending = pyckpt.async_save_checkpoint(training.state, asynchronous, stage=stage)
        training.train(3)
        assert pending.result() == [Path(asynchronous)]
        assert Path(asynchronous).read_bytes() == Path(blocking).read_bytes()


@pytest.mark.parametrize("suffix", ["", ".tar.gz"])
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.usefixtures("frozen_time")
def test_a_write_that_begins_late_still_finds_the_state(
    training: Training, tmp_path: Path, gate: Latch, stage: Stage, suffix: str
) -> None:
    blocking, asynchronous = f"{tmp_path}/blocking{suffix}", f"{tmp_path}/async{suffix}"
    pyckpt.save_checkpoint(training.state, blocking)
    pending = pyckpt.async_save_checkpoint(training.state, asynchronous, stage=stage)
    done, total = pending.progress()
    assert done == 0
    assert total > 12 * WIDTH * WIDTH
    training.train(3)
    assert not Path(asynchronous).exists()
    gate.set()
    pending.result()
    assert pending.progress() == (total, total)
    assert Path(asynchronous).read_bytes() == Path(blocking).read_bytes()


@pytest.mark.usefixtures("frozen_time")
def test_wait_staged_frees_the_state_for_any_change(
    training: Training, tmp_path: Path, gate: Latch
) -> None:
    pyckpt.save_checkpoint(training.state, tmp_path / "blocking.tar")
    pending = pyckpt.async_save_checkpoint(training.state, tmp_path / "async.tar", stage="lazy")
    assert not pending.staged.is_set()
    pending.wait_staged()
    assert pending.staged.is_set()
    with torch.no_grad():
        for parameter in training.model.parameters():
            parameter.fill_(7)
    gate.set()
    pending.result()
    assert (tmp_path / "async.tar").read_bytes() == (tmp_path / "blocking.tar").read_bytes()


def test_a_copy_is_staged_when_the_call_returns(training: Training, tmp_path: Path) -> None:
    pending = pyckpt.async_save_checkpoint(training.state, tmp_path / "x", stage="copy")
    if training.device == "cpu":
        assert pending.staged.is_set()
    pending.wait_staged()
    pending.result()


@pytest.mark.parametrize("waits", [False, True])
def test_a_copy_that_takes_its_time_is_staged_though_another_save_is_being_written(
    training: Training, tmp_path: Path, gate: Latch, monkeypatch: pytest.MonkeyPatch, waits: bool
) -> None:
    """Copies of CUDA memory take their time, too."""
    monkeypatch.setattr(Copies, "is_complete", False)
    pending = pyckpt.async_save_checkpoint(training.state, tmp_path / "x", stage="copy")
    if waits:
        pending.wait_staged()
        assert pending.staged.is_set()
    assert pending.staged.wait(60)
    assert not pending.done()
    gate.set()
    pending.result()


@pytest.mark.usefixtures("frozen_time")
def test_a_frozen_average_may_change_before_the_step(tmp_path: Path, gate: Latch) -> None:
    """Even through .data: by default frozen parameters are copied, not watched for changes."""
    model = nn.ModuleList([nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)])
    average = model[1].requires_grad_(False)
    state = pyckpt.State(model, torch.optim.SGD(model[0].parameters(), lr=0.1))
    pyckpt.save_checkpoint(state, tmp_path / "blocking.tar")
    pending = pyckpt.async_save_checkpoint(state, tmp_path / "async.tar")
    assert not pending.staged.is_set()
    for slow, fast in zip(average.parameters(), model[0].parameters(), strict=True):
        slow.data.mul_(0.9).add_(fast.data, alpha=0.1)
    gate.set()
    pending.result()
    assert (tmp_path / "async.tar").read_bytes() == (tmp_path / "blocking.tar").read_bytes()


@pytest.mark.usefixtures("frozen_time")
def test_an_average_that_an_optimizer_has_may_change_before_the_step(
    tmp_path: Path, gate: Latch
) -> None:
    """All parameters are often handed to the optimizer, those of a momentum encoder too."""
    model = nn.ModuleList([nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)])
    model[1].requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model[0](torch.ones(1, WIDTH)).sum().backward()
    state = pyckpt.State(model, optimizer)
    pyckpt.save_checkpoint(state, tmp_path / "blocking.tar")
    pending = pyckpt.async_save_checkpoint(state, tmp_path / "async.tar")
    assert not pending.staged.is_set(), "what is trained is read in place"
    for slow, fast in zip(model[1].parameters(), model[0].parameters(), strict=True):
        slow.data.mul_(0.9).add_(fast.data, alpha=0.1)
    gate.set()
    pending.result()
    assert (tmp_path / "async.tar").read_bytes() == (tmp_path / "blocking.tar").read_bytes()


# Torn saves


def add_one(training: Training) -> None:
    with torch.no_grad():
        training.model[3].weight.add_(1)


def decay_moments(training: Training) -> None:
    training.optimizer.state[training.model[0].bias]["exp_avg"].mul_(0.5)


def enlarge_memory(training: Training) -> None:
    storage = training.model[3].weight.untyped_storage()
    storage.resize_(storage.nbytes() + 8)


def add_one_and_step(training: Training) -> None:
    add_one(training)
    training.train(1)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (add_one, r"parameter 3\.weight"),
        (add_one_and_step, r"parameter 3\.weight"),
        (decay_moments, "'exp_avg' of AdamW"),
        (enlarge_memory, r"parameter 3\.weight"),
    ],
)
def test_a_change_behind_lazys_back_commits_nothing(
    training: Training, tmp_path: Path, gate: Latch, change: Callable[[Training], None], name: str
) -> None:
    path = tmp_path / "x.tar"
    path.write_bytes(b"old")
    pending = pyckpt.async_save_checkpoint(training.state, path, stage="lazy")
    change(training)
    gate.set()
    error = pending.exception()
    assert isinstance(error, pyckpt.TornSaveError)
    assert error.rank == 0
    with pytest.raises(pyckpt.TornSaveError, match=f"{name} was changed"):
        pending.result()
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["x.tar"]


def test_a_torn_save_is_copied_the_next_time(
    training: Training, tmp_path: Path, gate: Latch, caplog: pytest.LogCaptureFixture
) -> None:
    """Weights that something else swaps in, such as averages, tear the first save alone."""
    torn = pyckpt.async_save_checkpoint(training.state, tmp_path / "1.tar")
    add_one(training)
    gate.set()
    logged(caplog, 2)
    assert [record.levelname for record in caplog.records] == ["WARNING", "ERROR"]
    assert "copied from now on" in caplog.text
    saved = []
    for name in ("2.tar", "3.tar"):  # not raised again: the next saves are whole
        saved.append(pyckpt.async_save_checkpoint(training.state, tmp_path / name))
        assert training.device != "cpu" or saved[-1].staged.is_set()
        add_one(training)
        pending_saves.wait_for_room(1)
    assert [pending.exception() for pending in saved] == [None, None]
    assert isinstance(torn.exception(), pyckpt.TornSaveError)
    assert sorted(os.listdir(tmp_path)) == ["2.tar", "3.tar"]
    assert len(caplog.records) == 2


def test_without_its_hook_lazy_is_caught(
    training: Training, tmp_path: Path, gate: Latch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pyckpt.staging.lazy._watch", lambda *_: None)
    pending = pyckpt.async_save_checkpoint(training.state, tmp_path / "x.tar", stage="lazy")
    training.train(1)
    gate.set()
    with pytest.raises(pyckpt.TornSaveError):
        pending.result()
    assert not any(tmp_path.iterdir())


# Errors


def full_disk_script(stage: str) -> str:
    return (
        "mkdir -p $OUT/x; mount -t tmpfs -o size=1m none $OUT/x; echo old > $OUT/x/a.tar; "
        f"$PYTHON tests/workers/async_worker.py full {stage} $OUT/x/a.tar; "
        "cat $OUT/x/a.tar; ls -A $OUT/x"
    )


@pytest.mark.parametrize("stage", ["copy", "lazy"])
def test_a_full_disk(tmp_path: Path, stage: str) -> None:
    done = subprocess.run(
        private_mounts(full_disk_script(stage)),
        env={**os.environ, "OUT": str(tmp_path), "PYTHON": sys.executable},
        cwd=WORKERS.parent.parent,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    error, *rest = done.stdout.splitlines()
    assert error.startswith("CheckpointError 28 writing the checkpoint failed on rank 0")
    assert "No space left on device" in error
    assert rest == ["old", "a.tar"]


def broken(folder: Path) -> str:
    """A path that cannot be written; only the write notices it."""
    (folder / "file").write_bytes(b"")
    return f"{folder}/file/x.tar"


@pytest.mark.parametrize("next_save", [pyckpt.save_checkpoint, pyckpt.async_save_checkpoint])
def test_an_error_that_nobody_collects(
    training: Training,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    next_save: Callable[..., Any],
) -> None:
    pending = pyckpt.async_save_checkpoint(training.state, broken(tmp_path))
    logged(caplog, 1)
    [record] = caplog.records
    assert (record.name, record.levelno) == ("pyckpt", logging.ERROR)
    assert f"{tmp_path}/file" in record.getMessage()
    with pytest.raises(
        pyckpt.CheckpointError, match="an earlier asynchronous save failed"
    ) as caught:
        next_save(training.state, tmp_path / "y.tar")
    assert caught.value.errno is not None
    assert caught.value.rank == 0
    assert not (tmp_path / "y.tar").exists()
    # The error is raised only once.
    pyckpt.save_checkpoint(training.state, tmp_path / "y.tar")
    assert pending.done()


def test_an_error_that_is_collected_is_not_raised_again(training: Training, tmp_path: Path) -> None:
    pending = pyckpt.async_save_checkpoint(training.state, broken(tmp_path))
    with pytest.raises(pyckpt.CheckpointError):
        pending.result()
    pyckpt.save_checkpoint(training.state, tmp_path / "y.tar")


def test_files_that_cannot_be_removed_end_the_save_with_an_error(
    training: Training, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def close(_: Any) -> None:
        raise OSError("the temporary folder is busy")

    pending = pyckpt.async_save_checkpoint(training.state, tmp_path / "x.tar")
    monkeypatch.setattr(Save, "close", close)
    with pytest.raises(OSError, match="the temporary folder is busy"):
        pending.result(60)


def test_ctrl_c_at_the_last_moment_of_the_call_leaves_nothing(
    training: Training, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin = pending_saves.begin

    def interrupted(pending: pyckpt.PendingSave[Any], paths: Sequence[Path]) -> None:
        begin(pending, paths)
        raise KeyboardInterrupt

    threads = threading.active_count()
    monkeypatch.setattr(pending_saves, "begin", interrupted)
    with pytest.raises(KeyboardInterrupt):
        pyckpt.async_save_checkpoint(training.state, tmp_path / "x.tar")
    monkeypatch.undo()
    pyckpt.async_save_checkpoint(training.state, tmp_path / "y.tar", when_busy="raise").result()
    assert [path.name for path in tmp_path.iterdir()] == ["y.tar"]
    for thread in threading.enumerate():
        if thread.name == "pyckpt-save":
            thread.join(60)
    assert threading.active_count() == threads


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"filename": "{epok}"}, r"unknown variable \{epok\}"),
        ({"filename": "x", "stage": "snapshot"}, "stage must be"),
        ({"filename": "x", "nice": 20}, "nice must be 0 to 19"),
        ({"filename": "x", "nice": True}, "nice must be an int"),
        ({"filename": "x", "num_threads": 0}, "num_threads must be 1 to 4096"),
        ({"filename": "x", "max_pending": 0}, "max_pending must be"),
        ({"filename": "x", "when_busy": "drop"}, "when_busy must be"),
        ({"filename": "x.tar", "compression_level": 3}, "compression_level"),
    ],
)
def test_wrong_arguments_raise_at_the_call(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    options["filename"] = f"{tmp_path}/{options['filename']}"
    threads = threading.active_count()
    with pytest.raises(ValueError, match=message):
        pyckpt.async_save_checkpoint(Training().state, **options)
    assert not any(tmp_path.iterdir())
    assert threading.active_count() == threads


def test_a_state_that_cannot_be_saved_raises_at_the_call(
    training: Training, tmp_path: Path
) -> None:
    training.state.extra = {"bad": lambda: None}
    with pytest.raises(pyckpt.CheckpointError, match=r"pickle|local object"):
        pyckpt.async_save_checkpoint(training.state, tmp_path / "x.tar")
    assert not any(tmp_path.iterdir())


# Several saves


def test_saves_beyond_max_pending(training: Training, tmp_path: Path, gate: Latch) -> None:
    first = pyckpt.async_save_checkpoint(training.state, tmp_path / "1.tar")
    with pytest.raises(pyckpt.SaveInProgressError, match="1 asynchronous saves are under way"):
        pyckpt.async_save_checkpoint(training.state, tmp_path / "2.tar", when_busy="raise")
    training.train(1)
    second = pyckpt.async_save_checkpoint(training.state, tmp_path / "2.tar", max_pending=2)
    training.train(1)
    assert not first.done()
    threading.Timer(0.3, gate.set).start()
    third = pyckpt.async_save_checkpoint(training.state, tmp_path / "3.tar")
    assert first.done()
    assert second.done()
    third.result()
    batches = [
        pyckpt.load(tmp_path / f"{n}.tar")["state"]["timestamp"]["Timestamp"]["batch"]
        for n in (1, 2, 3)
    ]
    assert batches == [3, 4, 5]


def test_a_blocking_save_has_the_last_word(training: Training, tmp_path: Path, gate: Latch) -> None:
    """Both write the same name, such as ``latest``, which every save replaces."""
    path = tmp_path / "latest.tar"
    earlier = pyckpt.async_save_checkpoint(training.state, path)
    training.train(1)
    threading.Timer(0.3, gate.set).start()
    pyckpt.save_checkpoint(training.state, path)
    assert earlier.done()
    assert pyckpt.load(path)["state"]["timestamp"]["Timestamp"]["batch"] == 4


def test_the_result_is_a_future_that_cannot_be_cancelled(
    training: Training, tmp_path: Path
) -> None:
    pending = pyckpt.async_save_checkpoint(training.state, tmp_path / "x.tar")
    assert isinstance(pending, Future)
    assert not pending.cancel()
    heard: list[Future[Any]] = []
    try:
        pending.add_done_callback(heard.append)
        assert pending.exception() is None
    except CancelledError:
        pytest.fail("it was cancelled")
    assert heard == [pending]


def test_copies_use_the_same_memory_again(
    training: Training, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = BufferPool()
    monkeypatch.setattr(background, "_pool", pool)
    buffers = set()
    for _ in range(3):
        pyckpt.async_save_checkpoint(training.state, tmp_path / "x", stage="copy").result()
        [buffer] = pool._free
        buffers.add(buffer)
    assert len(buffers) == 1


def test_memory_stays_within_the_published_formula(tmp_path: Path) -> None:
    """The formulas: docs/async.md for copies in host memory, docs/format.md for the writer."""
    done = subprocess.run(
        [sys.executable, WORKERS / "async_memory_worker.py", tmp_path / "x.tar.gz"],
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
    )
    found = json.loads(done.stdout)
    row = archive_format(tmp_path / "x.tar.gz")
    assert row is not None
    writing = 7 * row.chunk_nbytes + 600_000  # with one thread
    writing += 1 << 20  # the interpreter's own use varies
    stepped, other = found["stepped_nbytes"], found["other_nbytes"]
    copies = {
        "copy": stepped + other,
        "two copies": 2 * (stepped + other),
        "lazy, no step": other,
        "lazy, all unread": stepped + other,
    }
    for case, nbytes in copies.items():
        assert 0.9 * nbytes <= found[case] <= nbytes + writing, case
    # The pool keeps its memory. Memory for what is neither parameter nor moment is freed.
    assert found["copy again"] <= writing
    assert found["lazy, all unread again"] <= other + writing


# Threads and the end of the process


def nice_of_new_threads(before: set[str]) -> list[int]:
    """The nice value of each new thread: the 19th field of /proc/.../stat, see proc(5)."""
    found = []
    for thread in set(os.listdir("/proc/self/task")) - before:
        try:
            stat = Path(f"/proc/self/task/{thread}/stat").read_text()
        except (FileNotFoundError, ProcessLookupError):  # it has ended
            continue
        found.append(int(stat.rpartition(")")[2].split()[16]))
    return found


@pytest.mark.parametrize("nice", [0, 7])
def test_worker_threads_have_a_lower_priority(tmp_path: Path, nice: int) -> None:
    own = os.getpriority(os.PRIO_PROCESS, 0)
    state = pyckpt.State(nn.Identity(), extra={"weights": torch.randn(8_000_000)})
    before = set(os.listdir("/proc/self/task"))
    pending = pyckpt.async_save_checkpoint(
        state, tmp_path / "x.tar.lzma", stage="copy", nice=nice, num_threads=3
    )
    seen: list[int] = []
    while not pending.done():
        seen = max(seen, nice_of_new_threads(before), key=len)
    pending.result()
    assert len(seen) >= 4, "three workers and the thread that waits for them"
    assert set(seen) == {min(19, own + nice)}
    assert os.getpriority(os.PRIO_PROCESS, 0) == own


@pytest.mark.parametrize("scenario", ["exit", "raise"])
def test_the_interpreter_ends_after_the_save(tmp_path: Path, scenario: str) -> None:
    path = tmp_path / "x.tar.lzma"
    done = subprocess.run(
        [sys.executable, WORKERS / "async_worker.py", scenario, "copy", path],
        cwd=WORKERS.parent.parent,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == (1 if scenario == "raise" else 0), done.stderr
    assert "unfinished" in done.stdout
    assert list(pyckpt.load(path)["state"]["extra"]) == ["weights"]


def test_a_forked_process_does_not_wait_for_its_parents_saves(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, WORKERS / "async_worker.py", "fork", "lazy", tmp_path / "x.tar"],
        cwd=WORKERS.parent.parent,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["unfinished", "child", "parent"]


def test_an_error_at_the_end_of_the_interpreter_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    done = subprocess.run(
        [sys.executable, WORKERS / "async_worker.py", "exit", "copy", tmp_path / "file/x.tar"],
        cwd=WORKERS.parent.parent,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert "an asynchronous save failed" in done.stderr
    assert f"{tmp_path}/file" in done.stderr


# Ranks

ranks_take_long = pytest.mark.timeout(2 * TIMEOUT_SECONDS)


def run_async_ranks(
    tmp_path: Path,
    scenario: str,
    *zero: int,
    launch: Callable[..., Any] = run_ranks,
    **options: Any,
) -> list[Any]:
    """Runs two ranks that save to ``tmp_path / "folder"``; returns the reports of the survivors."""
    out, folder = tmp_path / "out", tmp_path / "folder"
    out.mkdir()
    folder.mkdir(exist_ok=True)
    launch("async_ranks_worker.py", scenario, out, folder, *zero, **options)
    return [json.loads(path.read_text()) for path in sorted(out.iterdir())]


@pytest.mark.frameworks
@ranks_take_long
@pytest.mark.parametrize("zero", [[], [0], [1], [2], [3]])
def test_on_all_ranks_the_files_are_those_of_a_blocking_save(
    tmp_path: Path, zero: list[int]
) -> None:
    assert run_async_ranks(tmp_path, "equal", *zero) == [{"wrong": []}] * 2


@pytest.mark.frameworks
@ranks_take_long
@pytest.mark.parametrize(
    ("scenario", "kind", "message"),
    [
        ("disk", "CheckpointError", "committing the checkpoint failed on rank 1"),
        ("torn", "TornSaveError", "'exp_avg' of AdamW was changed"),
    ],
)
def test_a_rank_that_fails_in_the_background_fails_all(
    tmp_path: Path, scenario: str, kind: str, message: str
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "x-0.tar").write_bytes(b"old")
    first, second = run_async_ranks(tmp_path, scenario, 1)
    assert first["error"] == second["error"]
    assert first["error"][0] == kind
    assert message in first["error"][1]
    assert first["error"][2] == 1
    assert (folder / "x-0.tar").read_bytes() == b"old"
    assert not list(folder.glob(".*"))


@ranks_take_long
def test_a_rank_that_is_killed_in_the_background_hangs_nobody(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "x-0.tar").write_bytes(b"old")
    [survivor] = run_async_ranks(tmp_path, "killed", must_succeed=False)
    assert "rank 1 does not answer" in survivor["error"][1]
    assert survivor["seconds"] < 60
    assert [path.name for path in folder.iterdir()] == ["x-0.tar"]
    assert (folder / "x-0.tar").read_bytes() == b"old"


@pytest.mark.frameworks
@ranks_take_long
def test_ranks_end_after_the_save_though_their_groups_are_destroyed(tmp_path: Path) -> None:
    run_async_ranks(tmp_path, "exit", 2, launch=torchrun)
    names = [f"x-{rank}.tar.lzma" for rank in range(2)]
    assert sorted(os.listdir(tmp_path / "folder")) == names
    assert list(pyckpt.load(tmp_path / "folder" / names[0])["state"])


@ranks_take_long
@pytest.mark.parametrize(
    ("scenario", "kind", "message", "written"),
    [
        ("uncollected", "CheckpointError", "an earlier asynchronous save failed", ["file"]),
        ("busy", "SaveInProgressError", "max_pending is 1", ["x.tar"]),
    ],
)
def test_what_stops_a_save_on_one_rank_stops_it_on_all(
    tmp_path: Path, scenario: str, kind: str, message: str, written: list[str]
) -> None:
    first, second = run_async_ranks(tmp_path, scenario)
    assert first["error"] == second["error"]
    assert first["error"][0] == kind
    assert message in first["error"][1]
    assert os.listdir(tmp_path / "folder") == written
