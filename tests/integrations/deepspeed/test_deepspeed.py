"""Real DeepSpeed engines on two gloo ranks, whose checkpoints go through pyckpt."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.documents import run_page
from tests.integrations.deepspeed.training import files_in
from tests.launch import private_mounts, run_ranks, run_without_agent

ROOT = Path(__file__).parents[3]

WORKER = Path(__file__).parent / "worker.py"
TIMEOUT_SECONDS = 150
BOTH_WAYS = pytest.mark.parametrize("way", ["blocking", "asynchronous"])

pytestmark = pytest.mark.timeout(2 * TIMEOUT_SECONDS)


def run(scenario: str, out: Path, *arguments: object) -> list[dict[str, Any]]:
    """Runs two ranks of a scenario, and returns what they report."""
    run_ranks(str(WORKER), scenario, out, *arguments, timeout=TIMEOUT_SECONDS)
    return reports(out)


def reports(out: Path) -> list[Any]:
    return [json.loads(path.read_text()) for path in sorted(out.glob("report-*.json"))]


def contents(path: Path) -> Any:
    return torch.load(path, weights_only=False, mmap=True)


def assert_same(one: Any, other: Any) -> None:
    # DeepSpeed's clones for torch.save make plain tuples of torch.Size.
    assert type(one) is type(other) or isinstance(one, tuple)
    if isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert list(one) == list(other)
        for key in one:
            assert_same(one[key], other[key])
    elif isinstance(one, list | tuple):
        assert len(one) == len(other)
        for pair in zip(one, other, strict=True):
            assert_same(*pair)
    elif hasattr(one, "__dict__"):
        assert_same(vars(one), vars(other))
    else:
        assert one == other


@pytest.mark.parametrize("recipe", [["0"], ["1"], ["2"], ["3"], ["2", "moe"]], ids="-".join)
def test_losses_after_a_load_are_those_of_a_run_that_never_stopped(
    tmp_path: Path, recipe: list[str]
) -> None:
    for report in run("resume", tmp_path, *recipe):
        expected = report.pop("never stopped")
        assert len(set(expected)) == 3
        assert report == dict.fromkeys(report, expected)
    stock, ours = tmp_path / "stock", tmp_path / "ours"
    assert (ours / "latest").read_text() == "global_step3"
    assert_same_files(ours, stock)
    assert_same_files(ours, tmp_path / "asynchronous")
    for converted in ("fp32", "universal"):
        one, other = tmp_path / f"stock-{converted}", tmp_path / f"ours-{converted}"
        assert one.exists() == (recipe in (["1"], ["2"], ["3"]))
        assert_same_files(one, other)


def assert_same_files(one: Path, other: Path) -> None:
    assert list(files_in(one)) == list(files_in(other))
    for name in files_in(one):
        if name.endswith((".pt", ".bin")):
            assert_same(contents(one / name), contents(other / name))


@BOTH_WAYS
def test_a_failing_rank_fails_all_and_leaves_the_old_checkpoint(tmp_path: Path, way: str) -> None:
    first, second = run("fails", tmp_path, way)
    assert first == {**second, "losses": first["losses"]}
    assert first["losses"] != second["losses"]  # they have data of their own
    for name in ("pickle new", "pickle old"):
        assert first[name][0] == "CheckpointError"
        assert "this state cannot be pickled" in first[name][1]
        assert first[name][2] == 1
    for name in ("size new", "size old"):
        assert "File too large" in first[name][1]
        assert first[name][2] == 1
    assert first["unchanged"]
    for name in ("latest", "zero_to_fp32.py"):
        kind, message, rank = first[f"blocked {name}"]
        assert (kind, rank) == ("CheckpointError", 0)
        assert f"Is a directory: '{tmp_path}/blocked/{name}/{name}'" in message
    assert first["half"][0] == "FilenameError"
    assert f"{tmp_path}/blocked/latest/latest exists and is not a regular file" in first["half"][1]
    assert [name for name in first["nothing new"] if name.endswith("states.pt")] == []
    assert first["latest"] == "new"


def test_an_error_in_the_background_is_raised_by_the_next_save(tmp_path: Path) -> None:
    first, second = run("later-errors", tmp_path)
    assert first == second
    assert first["next"][0] == "CheckpointError"
    assert "an earlier asynchronous save failed" in first["next"][1]
    assert "File too large" in first["next"][1]
    assert "latest" not in first["none has names"]
    assert first["loaded"] == f"{tmp_path}/folder/c/mp_rank_00_model_states.pt"


@BOTH_WAYS
def test_a_save_that_is_stopped_anywhere_leaves_a_latest_that_loads(
    tmp_path: Path, way: str
) -> None:
    for report in run("every-write", tmp_path, way):
        assert report["wrong"] == []
        # Rank 0 writes and commits two files and the pointer, rank 1 one file.
        assert report["stops"] == 2 * (2 * 2 + 2) + 2 * 2
        assert report["moved"] == 1  # the stop after the last step
        assert report["at last"] == "new"


@BOTH_WAYS
@pytest.mark.parametrize("step", ["write", "commit"])
def test_when_a_rank_is_killed_the_others_raise_and_the_old_checkpoint_stays(
    tmp_path: Path, step: str, way: str, extensions: Path
) -> None:
    environment = {"TORCH_EXTENSIONS_DIR": str(extensions)}
    ended = run_without_agent(
        str(WORKER), "killed", tmp_path, step, way, environment=environment, timeout=TIMEOUT_SECONDS
    )
    assert ended == [0, -signal.SIGKILL]
    [survivor] = reports(tmp_path)
    assert survivor["error"][0] == "CheckpointError"
    assert "rank 1 does not answer" in survivor["error"][1]
    assert survivor["seconds"] < 60
    folder = tmp_path / "folder"
    assert (folder / "latest").read_text() == "global_step3"
    assert [name for name in files_in(folder) if name.startswith("global_step5/m")] == []
    first, _ = run("goes-on", tmp_path)
    assert first["path"].startswith(f"{folder}/global_step3/")
    assert first["losses"] == survivor["losses"]


def test_a_full_disk(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [
            *private_mounts(f'mount -t tmpfs -o size=2m tmpfs "{tmp_path}/disk"; exec "$@"'),
            *("sh", *launch, str(WORKER), "full-disk", str(tmp_path)),
        ],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    first, second = reports(tmp_path)
    assert first == second
    for error, unchanged, latest in first:
        assert "No space left on device" in error[1]
        assert unchanged
        assert latest == "new"


def test_the_ends_of_engine_and_process_wait(tmp_path: Path) -> None:
    for report in run("ends", tmp_path):
        assert report == {"too early": False, "destroyed": "a", "under way": "a"}
    assert (tmp_path / "folder" / "latest").read_text() == "b"
    for path in (tmp_path / "folder" / "b").iterdir():
        contents(path)


def test_attach_and_detach(tmp_path: Path) -> None:
    for report in run("attachment", tmp_path):
        errors = {name: error for name, error in report.items() if isinstance(error, list)}
        for name in ("no engine", "level", "nice", "other", "twice"):
            assert errors[name][0] == "OptionError"
        assert "deepspeed.initialize returns, not Net" in errors["no engine"][1]
        assert "OtherEngine" in errors["other"][1]
        assert "detach(engine) first" in errors["twice"][1]
        assert errors["whole"] == ["whole-0.tar", "whole-1.tar"]
        assert report["own"] == 1
        assert report["latest"] == "a"
        urls = {name: error for name, error in errors.items() if "://" in name}
        assert len(urls) == 6
        for name, error in urls.items():
            assert error[0] == "FilenameError"
            assert f"{name.split()[2]!r} is a URL" in error[1]
        assert report["no folders"]
        assert report["detached"]
        assert errors["unsafe"][0] == "UnpicklingError"
        assert "attach(engine, weights_only=False)" in errors["unsafe"][1]
        assert report["device"] == "meta"
        assert errors["damaged"][0] == "CorruptArchiveError"
        assert errors["warned"] == [
            "pyckpt was tried with DeepSpeed up to 0.19, and this is 1.2rc1"
        ]


def test_the_page(tmp_path: Path) -> None:
    run_page(ROOT / "docs" / "deepspeed.md", tmp_path)
