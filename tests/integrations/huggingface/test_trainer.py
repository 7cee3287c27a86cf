"""A Trainer that saves through pyckpt: resumed by itself and by the stock Trainer."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import transformers

import pyckpt
from pyckpt.integrations import huggingface
from pyckpt.training.async_save import ObjectSave
from tests.integrations.huggingface.training import TRAINERS, losses, make_trainer
from tests.launch import private_mounts, run_ranks
from tests.stops import preloaded

HERE = Path(__file__).parent
BEST = {
    "eval_strategy": "steps",
    "eval_steps": 2,
    "load_best_model_at_end": True,
    "metric_for_best_model": "loss",
}

pytestmark = pytest.mark.timeout(100)


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, list[float]]:
    """The losses of stock trainings that never stopped, by whether weights are tied."""
    found = {}
    for tied in (False, True):
        folder = tmp_path_factory.mktemp("expected")
        trainer = make_trainer(TRAINERS["stock"], folder, tied=tied)
        trainer.train()
        found[tied] = losses(trainer)
    return found


@pytest.mark.parametrize("kind", ["blocking", "asynchronous"])
@pytest.mark.parametrize("tied", [False, True])
def test_training_goes_on_as_if_it_had_never_stopped(
    tmp_path: Path, expected: dict[bool, list[float]], kind: str, tied: bool
) -> None:
    first = make_trainer(TRAINERS[kind], tmp_path, tied=tied)
    first.train()
    assert losses(first) == expected[tied]
    assert sorted(os.listdir(tmp_path)) == ["checkpoint-2", "checkpoint-4", "checkpoint-6"]
    for resuming in ("stock", kind):
        trainer = make_trainer(TRAINERS[resuming], tmp_path / resuming, tied=tied)
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
        assert losses(trainer) == expected[tied]


@pytest.mark.parametrize("arguments", [{}, {"save_only_model": True}, BEST], ids=str)
def test_the_files_are_those_of_stock(tmp_path: Path, arguments: dict[str, Any]) -> None:
    found = {}
    for kind, cls in TRAINERS.items():
        make_trainer(cls, tmp_path / "run", max_steps=2, **arguments).train()
        state = json.loads((tmp_path / "run/checkpoint-2/trainer_state.json").read_text())
        for entry in state["log_history"]:
            for timing in ("eval_runtime", "eval_samples_per_second", "eval_steps_per_second"):
                entry.pop(timing, None)
        found[kind] = sorted(os.listdir(tmp_path / "run/checkpoint-2")), state
        (tmp_path / "run").rename(tmp_path / kind)
    assert found["blocking"] == found["stock"]
    assert found["asynchronous"] == found["stock"]


@pytest.mark.parametrize("kind", list(TRAINERS))
@pytest.mark.parametrize(
    ("limit", "best", "left"),
    [(1, 6, [6]), (2, 6, [4, 6]), (1, 2, [2]), (2, 2, [2, 6]), (3, 2, [2, 4, 6])],
)
def test_old_checkpoints_go_as_with_stock(
    tmp_path: Path, kind: str, limit: int, best: int, left: list[int]
) -> None:
    class Judged(TRAINERS[kind]):  # type: ignore[name-defined, misc]
        def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
            return {"eval_loss": abs(self.state.global_step - best) + 1.0}

    trainer = make_trainer(Judged, tmp_path, save_total_limit=limit, **BEST)
    trainer.train()
    assert sorted(os.listdir(tmp_path)) == [f"checkpoint-{step}" for step in left]
    assert trainer.state.best_model_checkpoint == str(tmp_path / f"checkpoint-{best}")


@pytest.mark.parametrize("kind", ["blocking", "asynchronous"])
def test_a_failed_save_ends_the_training_and_leaves_the_last_one(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: Any, before: Any = None, after: Any = None) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    class Failing(TRAINERS[kind]):  # type: ignore[name-defined, misc]
        def _save_checkpoint(self, *args: Any) -> None:
            if self.state.global_step == 4:
                self.wait_for_checkpoint()
                monkeypatch.setattr(ObjectSave, "write", fail)
                monkeypatch.setattr("pyckpt.training.folder_save.save", fail)
            super()._save_checkpoint(*args)

    trainer = make_trainer(Failing, tmp_path, save_total_limit=1)
    with pytest.raises(pyckpt.CheckpointError, match=r"checkpoint-4 failed on rank 0: .*Input/out"):
        trainer.train()
    assert os.listdir(tmp_path) == ["checkpoint-2"]


def test_a_checkpoint_of_the_same_name_is_replaced(
    tmp_path: Path, expected: dict[bool, list[float]]
) -> None:
    make_trainer(huggingface.Trainer, tmp_path).train()
    (tmp_path / "checkpoint-4/optimizer.pt").write_bytes(b"damaged")
    trainer = make_trainer(huggingface.Trainer, tmp_path)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    trainer = make_trainer(transformers.Trainer, tmp_path)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert losses(trainer) == expected[True]


def test_a_push_begins_when_the_checkpoint_has_its_name(tmp_path: Path) -> None:
    pushed = []

    class Pushing(transformers.Trainer):  # type: ignore[misc]
        def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
            pushed.append((checkpoint_folder, "optimizer.pt" in os.listdir(checkpoint_folder)))

    class Ours(huggingface.CheckpointMixin, Pushing):
        pass

    trainer = make_trainer(Ours, tmp_path, max_steps=2)
    trainer.args.push_to_hub = True
    trainer.train()
    assert pushed == [(str(tmp_path / "checkpoint-2"), True)]
    Ours.asynchronous = True
    with pytest.raises(pyckpt.OptionError, match="push_to_hub"):
        trainer.train()


@pytest.mark.parametrize("kind", list(TRAINERS))
def test_a_checkpoint_just_in_time_is_there_when_its_save_returns(
    tmp_path: Path, kind: str
) -> None:
    """transformers makes it when a signal says that the machine goes soon."""
    found: list[str] = []

    class Ends(TRAINERS[kind]):  # type: ignore[name-defined, misc]
        def _save_checkpoint(self, *args: Any, **options: Any) -> None:
            super()._save_checkpoint(*args, **options)
            found.extend(os.listdir(tmp_path / f"checkpoint-{self.state.global_step}"))

    class Signalled(transformers.TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            for callback in trainer.callback_handler.callbacks:
                if hasattr(callback, "jit_manager") and state.global_step == 3:
                    callback.jit_manager.is_checkpoint_requested = True

    trainer = make_trainer(Ends, tmp_path, enable_jit_checkpoint=True, save_strategy="no")
    trainer.add_callback(Signalled)
    trainer.train()
    assert trainer.state.global_step == 4
    assert {"model.safetensors", "optimizer.pt", "trainer_state.json"} <= set(found)
    assert os.listdir(tmp_path) == ["checkpoint-3"]
    assert "checkpoint-is-incomplete.txt" not in os.listdir(tmp_path / "checkpoint-3")


def test_the_mixin_goes_in_front() -> None:
    with pytest.raises(TypeError, match=r"class Wrong\(CheckpointMixin, Seq2SeqTrainer\)"):
        type("Wrong", (transformers.Seq2SeqTrainer, huggingface.CheckpointMixin), {})


@pytest.mark.parametrize("url", ["s3://bucket/run", "memory://run"])
def test_a_folder_that_is_a_url_is_refused(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(pyckpt.FilenameError, match=f"'{url}' is a URL"):
        make_trainer(huggingface.Trainer, url)  # type: ignore[arg-type]
    assert os.listdir() == []


def test_save_model_is_left_alone(tmp_path: Path) -> None:
    trainer = make_trainer(huggingface.Trainer, tmp_path / "run")
    trainer.save_model(str(tmp_path / "model"))
    transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model")


def worker(name: str, disk: Path, nbytes: str, *arguments: object, **environment: str) -> Any:
    """What a worker reports that runs on a disk of its own, in memory."""
    script = f'mount -t tmpfs -o size={nbytes} none "$0"; exec "$@"'
    disk.mkdir()
    done = subprocess.run(
        [*private_mounts(script), str(disk), sys.executable, HERE / name, disk, *arguments],
        cwd=HERE.parents[2],
        env={**os.environ, "PYTHONPATH": ".", "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.timeout(550)
@pytest.mark.parametrize("kind", ["blocking", "asynchronous"])
def test_a_save_may_stop_at_any_write(tmp_path: Path, kind: str) -> None:
    report = worker("stops_worker.py", tmp_path / "disk", "1g", kind, **preloaded(tmp_path))
    old = whole_checkpoints(report["stops"]["0"][0]["tree"])  # killed before the first write
    for error, stops in report["stops"].items():
        assert len(stops) > 30
        whole = whole_checkpoints(stops[-1]["tree"])
        assert (list(old), list(whole)) == (["checkpoint-2"], ["checkpoint-4"])
        for stop in stops:
            found = whole_checkpoints(stop["tree"])
            assert found in (old, whole, old | whole), stop
            if int(error):
                assert not stop["killed"]
                assert (found == old) == (stop["error"] == "CheckpointError"), stop
    assert sorted({one["from"] for one in report["resumed"]}) == ["checkpoint-2", "checkpoint-4"]
    for one in report["resumed"]:
        # The worker saves before the Trainer logs step 4, so the loss of that step may be missing.
        assert [found[-2:] for found in one["losses"]] == [report["losses"][-2:]] * 2
        assert one["files"] == ["checkpoint-6"]  # nothing hidden is left either


def whole_checkpoints(tree: dict[str, str]) -> dict[str, dict[str, str]]:
    """The files of what is not hidden, by folder."""
    found: dict[str, dict[str, str]] = {}
    for path, digest in tree.items():
        folder, _, file = path.partition("/")
        if not folder.startswith("."):
            # One random state has several pickles, by which of its numbers are one object.
            found.setdefault(folder, {})[file] = "" if file == "rng_state.pth" else digest
    return found


@pytest.mark.timeout(550)
@pytest.mark.parametrize("kind", ["blocking", "asynchronous"])
def test_a_full_disk(tmp_path: Path, kind: str) -> None:
    """It has room for one checkpoint and a half."""
    found = worker("full_disk_worker.py", tmp_path / "disk", "9m", kind)
    assert "checkpoint-4 failed on rank 0: " in found["error"]
    assert found["left"] == ["checkpoint-2"]


@pytest.mark.timeout(300)
def test_two_ranks(tmp_path: Path) -> None:
    run_ranks(str(HERE / "ranks_worker.py"), tmp_path, timeout=200)
    first, second = (json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in range(2))
    assert first == second
    full = "failed on rank {}: OSError: [Errno 28] No space left on device"
    for name in ("Trainer", "AsynchronousTrainer"):
        assert first[name] == first[f"{name} resumed"] == first["stock"]
        files = os.listdir(tmp_path / name / "checkpoint-4")
        assert {"rng_state_0.pth", "rng_state_1.pth"} <= set(files)
        for rank, failing in enumerate(("model", "random")):
            error = first[f"{name} {failing}"]
            assert (
                error
                == f"CheckpointError: writing /{name}-{failing}/checkpoint-4 {full.format(rank)}"
            )
            assert os.listdir(tmp_path / f"{name}-{failing}") == ["checkpoint-2"]
    assert first["accelerate"] == [
        [True, f"writing /state-{asynchronous} {full.format(1)}"] for asynchronous in (False, True)
    ]
