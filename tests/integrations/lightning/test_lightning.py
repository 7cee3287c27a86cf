"""One process: formats, resuming, rotation, names, errors."""

from __future__ import annotations

import copy
import json
import os
import pickle
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import (
    Callback,
    EMAWeightAveraging,
    ModelCheckpoint,
    OnExceptionCheckpoint,
)
from lightning.pytorch.plugins.io import AsyncCheckpointIO

import pyckpt
import pyckpt.integrations.lightning as integration
from pyckpt.integrations.lightning import PyckptCallback, PyckptIO, load_from_checkpoint
from tests.integrations.lightning.training import (
    EPOCHS,
    STEPS,
    Net,
    Run,
    data,
    files,
    fit,
    is_equal,
    is_same,
    make_trainer,
)
from tests.launch import private_mounts
from tests.stops import preloaded

pytestmark = [
    pytest.mark.timeout(100),
    pytest.mark.filterwarnings("ignore::UserWarning:lightning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

WORKER = str(Path(__file__).parent / "stops_worker.py")
SUFFIXES = [".ckpt", ".tgz", ".txz", ".tbz2", ".tzst"]
BALLAST = 1_500_000  # a .tbz2 of it takes about a second
SLOW = {"num_threads": 1}


@pytest.fixture(scope="module")
def never_stopped(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """What stock Lightning does."""
    return fit(tmp_path_factory.mktemp("stock"))


def switched_on(how: str) -> dict[str, Any]:
    """Options of the Trainer for each way to switch pyckpt on."""
    return {
        "plugin": {"plugins": [PyckptIO()]},
        "plugin, asynchronous": {"plugins": [PyckptIO(asynchronous=True)]},
        "callback": {"callbacks": [PyckptCallback()]},
        "callback, asynchronous": {"callbacks": [PyckptCallback(asynchronous=True)]},
        "lazy": {"callbacks": [PyckptCallback(asynchronous=True, stage="lazy")]},
        "in Lightning's": {"plugins": [AsyncCheckpointIO(PyckptIO())]},
        "stock": {},
    }[how]


@pytest.mark.parametrize("how", ["callback", "callback, asynchronous"])
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_resuming_in_every_format(
    tmp_path: Path, suffix: str, how: str, never_stopped: Run
) -> None:
    stopped = fit(tmp_path, suffix, epochs=2, **switched_on(how))
    assert files(tmp_path) == [
        f"epoch=0-step=4{suffix}",
        f"epoch=1-step=8{suffix}",
        f"last{suffix}",
    ]
    assert stopped.losses == never_stopped.losses[: 2 * STEPS]
    resumed = fit(tmp_path, suffix, ckpt_path="last", **switched_on(how))
    assert len(resumed.losses) == 2 * STEPS
    assert is_same(resumed, never_stopped)
    assert files(tmp_path) == [
        f"epoch=2-step=12{suffix}",
        f"epoch=3-step=16{suffix}",
        f"last{suffix}",
    ]
    assert all(pyckpt.verify(tmp_path / name).ok for name in files(tmp_path))


@pytest.mark.parametrize(
    ("saves", "resumes"),
    [
        ("plugin", "plugin"),
        ("plugin, asynchronous", "plugin, asynchronous"),
        ("lazy", "lazy"),
        ("in Lightning's", "in Lightning's"),
        ("callback", "stock"),
        ("stock", "callback"),
    ],
)
def test_ways_to_switch_it_on(tmp_path: Path, saves: str, resumes: str, never_stopped: Run) -> None:
    fit(tmp_path, epochs=2, **switched_on(saves))
    assert is_same(fit(tmp_path, ckpt_path="last", **switched_on(resumes)), never_stopped)


@pytest.mark.parametrize("how", ["callback", "callback, asynchronous", "plugin, asynchronous"])
def test_the_file_is_as_the_state_was(tmp_path: Path, how: str) -> None:
    """Training goes on while it is written."""
    saved = fit(tmp_path, ".tbz2", ballast=100_000, epochs=2, **switched_on(how))
    stock = fit(tmp_path / "stock", ballast=100_000, epochs=2)
    for name in ("epoch=0-step=4", "epoch=1-step=8"):
        found = pyckpt.load(tmp_path / f"{name}.tbz2")
        wanted = torch.load(tmp_path / "stock" / f"{name}.ckpt")
        assert is_equal(found["state_dict"], wanted["state_dict"])
        assert is_equal(found["optimizer_states"], wanted["optimizer_states"])
    assert is_same(saved, stock)


def test_weights_are_read_in_place(tmp_path: Path) -> None:
    """The callback knows the optimizers; without it, all is copied before training goes on."""

    class AfterSave(Callback):
        def __init__(self) -> None:
            self.staged: list[bool] = []

        def on_train_epoch_start(self, trainer: Any, module: Any) -> None:
            for _, pending in trainer.strategy.checkpoint_io._under_way:
                self.staged.append(pending.staged.is_set())

    seen = {}
    for how in ("callback, asynchronous", "plugin, asynchronous"):
        options = switched_on(how)
        after = AfterSave()
        callbacks = [*options.pop("callbacks", []), after]
        fit(
            tmp_path / how,
            ".tbz2",
            ballast=BALLAST,
            epochs=2,
            callbacks=callbacks,
            saving={"save_last": False},
            **options,
        )
        seen[how] = after.staged
    assert seen == {"callback, asynchronous": [False], "plugin, asynchronous": [True]}


@pytest.mark.parametrize("asynchronous", [False, True])
def test_tied_weights_are_saved_once(tmp_path: Path, asynchronous: bool) -> None:
    weight = torch.randn(1000, 100)
    io = PyckptIO(asynchronous)
    io.save_checkpoint({"a": weight, "b": weight}, tmp_path / "tied.ckpt")
    io.teardown()
    assert (tmp_path / "tied.ckpt").stat().st_size < 1.2 * weight.nbytes
    loaded = io.load_checkpoint(tmp_path / "tied.ckpt")
    assert loaded["a"].data_ptr() == loaded["b"].data_ptr()


@pytest.mark.parametrize("asynchronous", [False, True])
def test_options_of_one_checkpoint(tmp_path: Path, asynchronous: bool) -> None:
    run = fit(tmp_path, epochs=1, callbacks=[PyckptCallback(asynchronous)])
    for level in (0, 9):
        run.trainer.save_checkpoint(
            tmp_path / f"{level}.tar.gz", storage_options={"compression_level": level}
        )
    run.trainer.strategy.checkpoint_io.wait()
    sizes = [(tmp_path / f"{level}.tar.gz").stat().st_size for level in (0, 9)]
    assert sizes[0] > sizes[1]
    with pytest.raises(pyckpt.OptionError, match="compression_level"):
        run.trainer.save_checkpoint(tmp_path / "x.tar.gz", storage_options={"levle": 9})
    with pytest.raises(pyckpt.OptionError, match="compression_level"):
        run.trainer.save_checkpoint(
            tmp_path / "x.tar.gz", storage_options={"compression_level": 99}
        )
    assert not (tmp_path / "x.tar.gz").exists()


def test_wrong_options() -> None:
    for options in ({"nice": 50}, {"stage": "no"}, {"max_pending": 0}, {"num_threads": 0}):
        with pytest.raises(pyckpt.OptionError):
            PyckptIO(asynchronous=True, **options)


# Names


@pytest.mark.parametrize(
    ("suffix", "instead"),
    [(".tar.gz", ".tgz"), (".tar.xz", ".txz"), (".tar.zst", ".tzst"), (".ckpt.bz2", ".tbz2")],
)
def test_names_with_two_dots_are_refused_for_last(
    tmp_path: Path, suffix: str, instead: str
) -> None:
    """Lightning would not find them, and train from scratch."""
    steps = []

    class Steps(Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            steps.append(1)

    for how in ("callback", "plugin"):
        options = switched_on(how)
        callbacks = [*options.pop("callbacks", []), Steps()]
        with pytest.raises(pyckpt.FilenameError, match=f"FILE_EXTENSION be .*'{instead}'"):
            fit(tmp_path, suffix, callbacks=callbacks, **options)
        assert len(steps) == (0 if how == "callback" else STEPS)
    assert f"last{suffix}" not in files(tmp_path)
    fit(tmp_path, suffix, epochs=1, saving={"save_last": False}, **switched_on("callback"))


def test_links_to_what_is_not_written_yet_are_refused(tmp_path: Path) -> None:
    for how in ("callback, asynchronous", "plugin, asynchronous"):
        with pytest.raises(pyckpt.OptionError, match="save_last=True"):
            fit(tmp_path, saving={"save_last": "link"}, **switched_on(how))
    run = fit(tmp_path / "b", epochs=2, saving={"save_last": "link"}, **switched_on("callback"))
    assert os.path.islink(tmp_path / "b" / "last.ckpt")
    assert pyckpt.load(tmp_path / "b" / "last.ckpt")["global_step"] == run.trainer.global_step


@pytest.mark.parametrize("how", ["callback, asynchronous", "plugin", "plugin, asynchronous"])
def test_a_link_that_becomes_a_file_leaves_the_other_checkpoint(tmp_path: Path, how: str) -> None:
    kept = {"save_top_k": -1}
    fit(tmp_path, epochs=2, saving={**kept, "save_last": "link"}, **switched_on("callback"))
    assert os.readlink(tmp_path / "last.ckpt") == "epoch=1-step=8.ckpt"
    fit(tmp_path, epochs=3, ckpt_path="last", saving=kept, **switched_on(how))
    names = [*(f"epoch={epoch}-step={(epoch + 1) * STEPS}.ckpt" for epoch in range(3)), "last.ckpt"]
    assert files(tmp_path) == names
    steps = [torch.load(tmp_path / name)["global_step"] for name in names]
    assert steps == [STEPS, 2 * STEPS, 3 * STEPS, 3 * STEPS]


def test_a_name_that_is_being_written_is_taken(tmp_path: Path) -> None:
    """Lightning numbers equal names, if it sees them."""
    names = {}
    for how in ("stock", "callback, asynchronous"):
        fit(
            tmp_path / how,
            ".tbz2" if how != "stock" else ".ckpt",
            ballast=BALLAST,
            epochs=1,
            saving={
                "filename": "same",
                "every_n_train_steps": 2,
                "save_top_k": -1,
                "save_last": False,
            },
            **switched_on(how),
        )
        names[how] = sorted(name.partition(".")[0] for name in files(tmp_path / how))
    assert names["callback, asynchronous"] == names["stock"] == ["same", "same-v1"]


def test_callbacks_can_be_used_again_without_pyckpt(tmp_path: Path) -> None:
    used = ModelCheckpoint(tmp_path, "x", save_last=True)
    fit(tmp_path / "a", epochs=1, callbacks=[used, PyckptCallback(asynchronous=True)])
    for epochs, again in enumerate(
        (used, copy.deepcopy(used), pickle.loads(pickle.dumps(used))), 2
    ):
        fit(tmp_path / "b", epochs=epochs, callbacks=[again])
        assert torch.load(tmp_path / "last.ckpt")["epoch"] == epochs - 1


@pytest.mark.parametrize("module", [lightning.pytorch.strategies, integration])
def test_strategies_that_ask_no_plugin_are_warned_of(module: Any) -> None:
    sharded = {"data_parallel_size": 1, "tensor_parallel_size": 1}
    for options in ({}, {"save_distributed_checkpoint": False}):
        strategy = module.ModelParallelStrategy(**sharded, **options)
        trainer = lightning.Trainer(accelerator="cpu", devices=1, strategy=strategy, logger=False)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            PyckptCallback().setup(trainer, Net(), "fit")
        is_stock = module is not integration
        assert [str(one.message)[:38] for one in caught] == (
            ["ModelParallelStrategy saves shards by "] if is_stock and not options else []
        )


def test_urls_are_refused(tmp_path: Path) -> None:
    with pytest.raises(pyckpt.FilenameError, match="URL"):
        fit("memory://bucket/run", **switched_on("callback"))


@pytest.mark.parametrize("url", ["s3://bucket/run", "memory://run"])
def test_urls_of_shards_are_refused(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    strategy = integration.ModelParallelStrategy(data_parallel_size=1, tensor_parallel_size=1)
    with pytest.raises(pyckpt.FilenameError, match=f"'{url}' is a URL"):
        strategy.save_checkpoint({"state_dict": {}}, url)
    with pytest.raises(pyckpt.FilenameError, match=f"'{url}' is a URL"):
        strategy.load_checkpoint(url)
    assert os.listdir() == []


# Rotation


class Watch:
    """Looks at a folder all the time."""

    def __init__(self, folder: Path, suffix: str) -> None:
        self.fewest: list[int] = []
        self._folder, self._suffix = folder, suffix
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.is_set():
            if self._folder.is_dir():
                names = [name for name in files(self._folder) if name.startswith("epoch")]
                if not self.fewest or self.fewest[-1] != len(names):
                    self.fewest.append(len(names))
            time.sleep(0.002)


def test_rotation_waits_for_slow_saves(tmp_path: Path) -> None:
    """Once there are k files, there are never fewer; nothing stays that should go."""
    with Watch(tmp_path, ".tbz2") as watch:
        run = fit(
            tmp_path,
            ".tbz2",
            ballast=BALLAST,
            callbacks=[PyckptCallback(asynchronous=True, max_pending=4, **SLOW)],
        )
    reached = watch.fewest.index(2)
    assert watch.fewest[:reached] in ([0, 1], [1])
    assert set(watch.fewest[reached:]) <= {2, 3}
    kept = sorted(map(os.path.basename, run.model_checkpoint.best_k_models))
    assert files(tmp_path) == [*kept, "last.tbz2"]
    assert all(pyckpt.verify(tmp_path / name).ok for name in files(tmp_path))


@contextmanager
def small_files(nbytes: int) -> Iterator[None]:
    """Lets no file become larger, as a full disk would."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, handler)


class FailFrom(Callback):
    """From an epoch on, no save succeeds."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch
        self.limit: Any = None

    def on_train_epoch_start(self, trainer: Any, module: Any) -> None:
        if trainer.current_epoch == self.epoch:
            if hasattr(trainer.strategy.checkpoint_io, "wait"):
                trainer.strategy.checkpoint_io.wait()
            self.limit = small_files(1000)
            self.limit.__enter__()

    def end(self) -> None:
        if self.limit is not None:
            self.limit.__exit__(None, None, None)


@pytest.mark.parametrize("save_last", [True, False])
@pytest.mark.parametrize(
    "how", ["callback", "callback, asynchronous", "plugin", "plugin, asynchronous"]
)
def test_a_failed_save_keeps_what_is_there(tmp_path: Path, how: str, save_last: bool) -> None:
    options = switched_on(how)
    failing = FailFrom(EPOCHS - 1)
    try:
        with pytest.raises(pyckpt.CheckpointError, match="File too large"):
            fit(
                tmp_path,
                callbacks=[*options.pop("callbacks", []), failing],
                saving={"save_top_k": 1, "save_last": save_last},
                **options,
            )
    finally:
        failing.end()
    last = ["last.ckpt"] if save_last else []
    assert files(tmp_path) == ["epoch=2-step=12.ckpt", *last]
    assert all(pyckpt.verify(tmp_path / name).ok for name in files(tmp_path))
    if save_last:
        resumed = fit(tmp_path, ckpt_path="last", **switched_on(how))
        assert len(resumed.losses) == STEPS


def test_an_error_of_training_is_not_hidden_by_one_of_a_save(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Fails(Callback):
        def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
            if trainer.current_epoch == 1:
                raise ZeroDivisionError

    failing = FailFrom(0)
    try:
        with pytest.raises(ZeroDivisionError):
            fit(
                tmp_path,
                callbacks=[PyckptCallback(asynchronous=True), failing, Fails()],
                saving={"save_last": False},
            )
    finally:
        failing.end()
    assert any("an asynchronous save failed" in record.message for record in caplog.records)
    with pytest.raises(pyckpt.CheckpointError, match="earlier"):
        PyckptIO(asynchronous=True).save_checkpoint({}, tmp_path / "x.ckpt")
    assert files(tmp_path) == []


def test_a_save_on_an_exception(tmp_path: Path) -> None:
    class Fails(Callback):
        def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
            raise ZeroDivisionError

    callbacks = [
        PyckptCallback(asynchronous=True),
        Fails(),
        OnExceptionCheckpoint(tmp_path, "exception"),
    ]
    with pytest.raises(ZeroDivisionError):
        fit(tmp_path, callbacks=callbacks)
    assert files(tmp_path) == ["exception.ckpt"]
    assert pyckpt.verify(tmp_path / "exception.ckpt").ok


def test_swapped_weights_do_not_tear_a_save(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Averages take the place of the weights for each validation."""
    results = {}
    for how in ("stock", "callback, asynchronous"):
        options = switched_on(how)
        run_folder = tmp_path / how
        callbacks = [*options.pop("callbacks", []), EMAWeightAveraging(decay=0.5)]
        lightning.seed_everything(0, verbose=False)
        trainer, _ = make_trainer(
            run_folder, ".ckpt", callbacks=callbacks, saving={"save_top_k": -1}, **options
        )
        trainer.fit(Net(), data(), data())
        results[how] = {
            name: pyckpt.load(run_folder / name)["state_dict"] for name in files(run_folder)
        }
    assert is_equal(results["stock"], results["callback, asynchronous"])
    assert not caplog.records


class Bounded(Net):
    """With an embedding whose weights change in forward."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.table = torch.nn.Embedding(4, 32, max_norm=0.1)

    def training_step(self, batch: Any, index: int) -> torch.Tensor:
        shifted = batch[0] + self.table(torch.tensor([index % 4]))
        return super().training_step((shifted, batch[1]), index)


def test_weights_that_change_in_forward_are_copied(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    options = {"kind": Bounded, "ballast": BALLAST, "epochs": 2, "saving": {"save_last": False}}
    fit(tmp_path, ".tbz2", **options, **switched_on("callback, asynchronous"))
    assert files(tmp_path) == ["epoch=0-step=4.tbz2", "epoch=1-step=8.tbz2"]
    assert not caplog.records


# Reading


def test_what_is_tested_is_complete(tmp_path: Path) -> None:
    run = fit(
        tmp_path,
        ".tbz2",
        ballast=BALLAST,
        epochs=1,
        callbacks=[PyckptCallback(asynchronous=True, **SLOW)],
    )
    io = run.trainer.strategy.checkpoint_io
    run.trainer.save_checkpoint(tmp_path / "more.tbz2")  # under way when it is loaded
    assert io.is_under_way(tmp_path / "more.tbz2")
    [found] = run.trainer.test(run.module, data(), ckpt_path=tmp_path / "more.tbz2", verbose=False)
    assert found["val_loss"] > 0
    assert not io.is_under_way(tmp_path / "more.tbz2")
    [best] = run.trainer.test(run.module, data(), ckpt_path="best", verbose=False)
    assert best == found


@pytest.mark.parametrize("suffix", [*SUFFIXES, ".tar", ".tar.lzma", ".ckpt.gz"])
def test_modules_of_every_format(tmp_path: Path, suffix: str) -> None:
    run = fit(tmp_path, epochs=1, ballast=48, callbacks=[PyckptCallback()])
    path = tmp_path / f"x{suffix}"
    run.trainer.save_checkpoint(path)
    module = load_from_checkpoint(Net, path)
    assert isinstance(module, Net)
    assert module.hparams.ballast == 48
    assert is_equal(dict(module.state_dict()), run.weights)
    assert load_from_checkpoint(Net, path, map_location="cpu", strict=True).ballast.shape == (48,)
    if suffix not in (".ckpt", ".tar"):
        raw = bytearray(path.read_bytes())
        raw[len(raw) // 2] ^= 1
        path.write_bytes(raw)
        with pytest.raises(pyckpt.CorruptArchiveError, match=path.name):
            load_from_checkpoint(Net, path)


def test_what_is_no_weight_needs_permission(tmp_path: Path) -> None:
    """As in Lightning, which leaves the choice to torch."""
    io = PyckptIO()
    io.save_checkpoint({"path": Path("x"), "when": time.gmtime()}, tmp_path / "x.ckpt")
    for weights_only in (None, True):
        with pytest.raises(Exception, match="weights_only"):
            io.load_checkpoint(tmp_path / "x.ckpt", weights_only=weights_only)
    assert io.load_checkpoint(tmp_path / "x.ckpt", weights_only=False)["path"] == Path("x")


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        fit(tmp_path, ckpt_path=str(tmp_path / "x.ckpt"), **switched_on("callback"))


@pytest.mark.parametrize("asynchronous", [False, True])
def test_fabric(tmp_path: Path, asynchronous: bool) -> None:
    fabric = lightning.Fabric(accelerator="cpu", plugins=[PyckptIO(asynchronous)])
    model = torch.nn.Linear(3, 4)
    optimizer = torch.optim.AdamW(model.parameters())
    model, optimizer = fabric.setup(model, optimizer)
    fabric.backward(model(torch.ones(1, 3)).sum())
    optimizer.step()
    state = {"model": model, "optimizer": optimizer, "step": 3}
    fabric.save(tmp_path / "x.tgz", state)
    saved = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        model.weight.zero_()
    rest = fabric.load(tmp_path / "x.tgz", {"model": model, "optimizer": optimizer})
    assert rest == {"step": 3}
    assert is_equal(dict(model.state_dict()), saved)
    fabric.save(tmp_path / "y.tgz", {"callbacks": ["any"]})  # names are the user's own
    assert fabric.load(tmp_path / "y.tgz") == {"callbacks": ["any"]}


# The end of the process


def test_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The job ends when Lightning tells Slurm to start it again: the file is complete then."""
    commands = tmp_path / "commands"
    commands.mkdir()
    (commands / "scontrol").write_text(f"#!/bin/sh\nls -A {tmp_path}/run > {tmp_path}/seen\n")
    (commands / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", f"{commands}:{os.environ['PATH']}")
    job = {"JOB_ID": 7, "NTASKS": 1, "NTASKS_PER_NODE": 1, "NODELIST": "localhost"}
    for name, value in {"JOB_NAME": "x", "PROCID": 0, "LOCALID": 0, "NODEID": 0, **job}.items():
        monkeypatch.setenv(f"SLURM_{name}", str(value))

    class Signalled(Callback):
        def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
            if trainer.global_step == 6:
                os.kill(os.getpid(), signal.SIGUSR1)
                raise KeyboardInterrupt

    resumed = {}
    saving = {"save_top_k": 0, "save_last": False}
    folder = tmp_path / "run"
    for how in ("stock", "callback, asynchronous"):
        options = switched_on(how)
        callbacks = [*options.pop("callbacks", []), Signalled()]
        with pytest.raises(SystemExit):
            fit(folder, callbacks=callbacks, saving=saving)
        assert (tmp_path / "seen").read_text().split() == ["hpc_ckpt_1.ckpt"]
        # What a killed save has left does not count.
        (folder / f".slurm.{os.getpid()}.ckpt").write_bytes(b"")
        resumed[how] = fit(folder, saving=saving, **switched_on(how))
        shutil.rmtree(folder)
    assert len(resumed["stock"].losses) == EPOCHS * STEPS - 6
    assert is_same(resumed["callback, asynchronous"], resumed["stock"])


@pytest.mark.timeout(250)
@pytest.mark.parametrize("suffix", [".ckpt", ".tgz"])
def test_stopping_at_every_write(tmp_path: Path, suffix: str) -> None:
    """Killed, or with a full disk: ckpt_path="last" finds a whole file, the old or the new one."""
    done = subprocess.run(
        [sys.executable, WORKER, str(tmp_path / "run"), suffix, "stops"],
        env={**os.environ, "OMP_NUM_THREADS": "1", **preloaded(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    reports = json.loads(done.stdout.splitlines()[-1])
    assert len(reports) == 4  # blocking or not, killed or not
    for name, stops in reports.items():
        assert len(stops) > 10
        steps = [stop["step"] for stop in stops]
        assert {*steps} == {2 * STEPS, 3 * STEPS}
        assert all(stop["whole"] for stop in stops)
        if "killed" in name:
            assert steps == sorted(steps)  # the old one, and then the new one
        else:
            # Some calls may fail: there is another way, or the new file is safe already.
            assert all(stop["error"] for stop in stops if stop["step"] == 2 * STEPS)


def test_a_full_disk(tmp_path: Path) -> None:
    script = 'mount -t tmpfs -o size=2200k none "$0"; "$@"'
    done = subprocess.run(
        [
            *private_mounts(script),
            str(tmp_path),
            *(sys.executable, WORKER, str(tmp_path), ".ckpt", "full disk"),
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=90,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert "No space left" in report["error"]
    assert report["files"] == ["epoch=0-step=4.ckpt", "last.ckpt"]
    assert report["whole"]
