"""Training that stops and goes on: plain, on two ranks, under DeepSpeed; and what must fail."""

from __future__ import annotations

import datetime
import json
import random
import shutil
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import pyckpt
from pyckpt.archive.formats import file_suffixes, usual_suffixes
from tests.launch import TIMEOUT_SECONDS, run_ranks

pytestmark = pytest.mark.timeout(3 * TIMEOUT_SECONDS)

SUFFIXES = ["", *usual_suffixes(), *file_suffixes()]
COMPRESSED = SUFFIXES[2:]


def build(seed: int) -> pyckpt.State:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 2))
    optimizers = [
        torch.optim.AdamW(model[0].parameters(), lr=0.1),
        torch.optim.SGD(model[1].parameters(), lr=0.1, momentum=0.9),
        torch.optim.AdamW(model[3].parameters(), lr=0.01),
    ]
    schedulers = [torch.optim.lr_scheduler.StepLR(one, 2, 0.5) for one in optimizers]
    return pyckpt.State(model, optimizers, schedulers)


def train(state: pyckpt.State, steps: int) -> list[float]:
    losses = []
    for _ in range(steps):
        x = torch.randn(6, 4) * random.random() + np.random.random()
        loss = state.model(x.float()).square().mean()
        loss.backward()
        for optimizer in state.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        for scheduler in state.schedulers:
            scheduler.step()
        state.timestamp.batch += 1
        losses.append(loss.item())
    return losses


def everything(state: pyckpt.State) -> str:
    return repr(state.state_dict())


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_losses_are_those_of_a_run_that_never_stopped(tmp_path: Path, suffix: str) -> None:
    state = build(seed=1)
    state.run_name = "first"
    state.extra = {"best": 0.25}
    state.timestamp.total_wct = datetime.timedelta(seconds=2.5)
    train(state, 3)
    [path] = pyckpt.save_checkpoint(state, tmp_path / f"ba{{batch}}{suffix}")
    saved = everything(state)
    expected = train(state, 4)

    resumed = build(seed=2)
    train(resumed, 1)
    states = pyckpt.load_checkpoint(path, resumed)
    assert everything(resumed) == saved
    assert states is not None
    assert list(states[0])[:3] == ["python", "numpy", "torch"]
    assert train(resumed, 4) == expected


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    state = build(seed=1)
    train(state, 3)
    [path] = pyckpt.save_checkpoint(state, tmp_path / "x.tar.gz")
    return path


def test_weights_only_restores_nothing_else(saved: Path) -> None:
    state = build(seed=2)
    train(state, 1)
    expected = state.state_dict()
    expected["model"] = pyckpt.load(saved)["state"]["model"]
    generator = torch.get_rng_state()
    assert pyckpt.load_checkpoint(saved, state, load_weights_only=True) is None
    assert everything(state) == repr(expected)
    assert torch.equal(torch.get_rng_state(), generator)


def test_a_checkpoint_of_weights_says_what_stays_as_it_is(tmp_path: Path) -> None:
    other, state = build(seed=1), build(seed=2)
    [path] = pyckpt.save_checkpoint(other, tmp_path / "x.tar", weights_only=True)
    with pytest.warns(UserWarning, match=r"x\.tar holds only weights: everything else stays"):
        pyckpt.load_checkpoint(path, state)
    assert torch.equal(state.model[0].weight, other.model[0].weight)


def test_an_optimizer_that_was_not_saved_is_named(saved: Path) -> None:
    state = build(seed=2)
    state.optimizers[1] = torch.optim.Adagrad(state.model[1].parameters())
    with pytest.warns(UserWarning, match="has no optimizers/Adagrad: it stays as it is"):
        pyckpt.load_checkpoint(saved, state)
    assert state.timestamp.batch == 3


def test_what_is_ignored_stays_as_it_is(saved: Path) -> None:
    state = build(seed=2)
    train(state, 1)
    weight, generator = state.model[0].weight.clone(), torch.get_rng_state()
    states = pyckpt.load_checkpoint(
        saved,
        state,
        strict_model_weights=False,
        ignore_keys=["state/model/0.weight", "state/timestamp", "rng"],
    )
    assert states is None
    assert torch.equal(state.model[0].weight, weight)
    assert torch.equal(state.model[0].bias, pyckpt.load(saved)["state"]["model"]["0.bias"])
    assert state.timestamp.batch == 1
    assert torch.equal(torch.get_rng_state(), generator)

    def forget_model(contents: dict[str, Any]) -> None:
        del contents["state"]["model"]

    pyckpt.load_checkpoint(saved, state, ignore_keys=forget_model)
    assert torch.equal(state.model[0].weight, weight)
    assert state.timestamp.batch == 3


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (nn.Sequential(nn.Linear(4, 8)), "'1.weight', which the model lacks"),
        (
            nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8)),
            r"'0.weight' of \[8, 4\], not \[8, 5\]",
        ),
        (nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 8)), "no '2.weight'"),
    ],
)
@pytest.mark.parametrize("load_weights_only", [False, True])
def test_weights_that_do_not_fit_change_nothing(
    saved: Path, module: nn.Module, message: str, load_weights_only: bool
) -> None:
    state = pyckpt.State(module)
    before = everything(state)
    with pytest.raises(pyckpt.StateMismatchError, match=message) as caught:
        pyckpt.load_checkpoint(saved, state, load_weights_only=load_weights_only)
    assert caught.value.rank == 0
    assert everything(state) == before


def test_weights_that_are_there_suffice_when_not_strict(saved: Path) -> None:
    state = pyckpt.State(nn.Sequential(nn.Linear(4, 8), nn.Identity(), nn.Linear(8, 8)))
    weight = state.model[2].weight.clone()
    pyckpt.load_checkpoint(saved, state, load_weights_only=True, strict_model_weights=False)
    assert torch.equal(state.model[0].weight, pyckpt.load(saved)["state"]["model"]["0.weight"])
    assert torch.equal(state.model[2].weight, weight)


def test_an_optimizer_of_other_parameters_changes_nothing(saved: Path) -> None:
    state = build(seed=2)
    state.optimizers[0] = torch.optim.AdamW(state.model.parameters())
    before = everything(state)
    with pytest.raises(pyckpt.StateMismatchError, match=r"AdamW has \[6\] parameters by group"):
        pyckpt.load_checkpoint(saved, state)
    assert everything(state) == before


def test_what_is_no_checkpoint(tmp_path: Path, saved: Path) -> None:
    state = build(seed=2)
    with pytest.raises(pyckpt.CheckpointError, match="on rank 0: FileNotFoundError") as caught:
        pyckpt.load_checkpoint(tmp_path / "absent.tar", state)
    assert caught.value.errno == 2
    assert caught.value.path == str(tmp_path / "absent.tar")
    pyckpt.save([1, 2], tmp_path / "list.tar")
    with pytest.raises(pyckpt.StateMismatchError, match="holds no training state"):
        pyckpt.load_checkpoint(tmp_path / "list.tar", state)
    pyckpt.save({"state": {"run_name": "x"}}, tmp_path / "bare.tar")
    with pytest.raises(pyckpt.StateMismatchError, match="holds no weights"):
        pyckpt.load_checkpoint(tmp_path / "bare.tar", state, load_weights_only=True)
    (tmp_path / "cut.tar.gz").write_bytes(saved.read_bytes()[:-100])
    with pytest.raises(pyckpt.CorruptArchiveError, match="on rank 0") as caught:
        pyckpt.load_checkpoint(tmp_path / "cut.tar.gz", state)
    assert caught.value.path == str(tmp_path / "cut.tar.gz")


def test_a_path_names_ranks_and_nothing_of_the_time_of_saving(saved: Path) -> None:
    state = build(seed=2)
    for template in ("{rank}-{epoch}", "{run_name}"):
        with pytest.raises(pyckpt.FilenameError, match=r"unknown variable .*available are {rank}"):
            pyckpt.load_checkpoint(saved.parent / template, state)
    ranked = saved.rename(saved.parent / "x-0-0-of-1-1-0.tar.gz")
    template = "x-{rank}-{local_rank}-of-{world_size}-{local_world_size}-{node_rank}.tar.gz"
    pyckpt.load_checkpoint(ranked.parent / template, state)
    assert state.timestamp.batch == 3


def test_a_path_that_was_returned_is_found(tmp_path: Path) -> None:
    state = build(seed=1)
    state.run_name = "{rank}"
    [path] = pyckpt.save_checkpoint(state, tmp_path / "{run_name}-{{batch}}.tar")
    assert path.name == "{rank}-{batch}.tar"
    pyckpt.load_checkpoint(path, build(seed=2))
    pyckpt.load_checkpoint(str(path), build(seed=2))
    path.unlink()
    with pytest.raises(pyckpt.FilenameError, match=r"unknown variable \{batch\}"):
        pyckpt.load_checkpoint(path, state)


def test_the_random_states_print_in_a_line(saved: Path) -> None:
    states = pyckpt.load_checkpoint(saved, build(seed=2))
    assert repr(states) == "<random states of 1 rank>"
    assert isinstance(states, list)
    assert states[0]["python"] == pyckpt.load(saved)["rng"][0]["python"]


def test_a_state_that_fails_half_way_is_told(saved: Path) -> None:
    class Mine(pyckpt.State):
        prepare_to_load = None

        def load_state_dict(self, state_dict: Any, *, strict: bool = True) -> None:
            raise pyckpt.StateMismatchError("it does not fit")

    state = build(seed=2)
    with pytest.raises(pyckpt.CheckpointError, match="restoring the state failed on rank") as error:
        pyckpt.load_checkpoint(saved, Mine(state.model))
    assert type(error.value) is pyckpt.CheckpointError  # a mismatch leaves the state unchanged


def test_a_state_that_can_only_be_saved(saved: Path) -> None:
    state: Any = SimpleNamespace(model=nn.Identity(), run_name="x", timestamp=None, state_dict=dict)
    with pytest.raises(pyckpt.OptionError, match=r"SimpleNamespace has no load_state_dict"):
        pyckpt.load_checkpoint(saved, state)
    with pytest.raises(pyckpt.OptionError, match=r"not Linear: pass pyckpt.State\(model"):
        pyckpt.load_checkpoint(saved, nn.Linear(2, 2))


def reports(out: Path, mode: str, ranks: int = 2) -> list[dict[str, Any]]:
    return [json.loads((out / f"{mode}-{rank}.json").read_text()) for rank in range(ranks)]


@pytest.mark.parametrize("suffix", ["", ".tar.gz", ".tar.lzma"])
def test_two_ranks_go_on_as_if_they_had_never_stopped(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x{suffix}"
    for mode in ("save", "load"):
        run_ranks("resume_worker.py", mode, tmp_path, path)
    first, second = reports(tmp_path, "save")
    assert first["losses"] != second["losses"]
    resumed = reports(tmp_path, "load")
    assert [r["losses"] for r in resumed] == [first["losses"], second["losses"]]
    assert [r["batch"] for r in resumed] == [3, 3]
    assert [r["warnings"] for r in resumed] == [[], []]
    assert resumed[0]["read"] == [str(path)]
    # One rank decompresses a compressed file for both, and leaves nothing behind.
    [read] = resumed[1]["read"]
    assert (read == str(path)) == (suffix not in COMPRESSED)
    assert read == str(path) or not Path(read).parent.exists()


def test_two_ranks_share_deflated_records(tmp_path: Path) -> None:
    run_ranks("resume_worker.py", "save", tmp_path, tmp_path / "x.pt")
    path = tmp_path / "deflated.pt"
    pyckpt.convert(tmp_path / "x.pt", path, compression_level=6)
    run_ranks("resume_worker.py", "load", tmp_path, path)
    resumed = reports(tmp_path, "load")
    assert [r["losses"] for r in resumed] == [r["losses"] for r in reports(tmp_path, "save")]
    assert resumed[0]["read"] == [str(path)]
    assert resumed[1]["read"] != [str(path)]


def test_without_room_to_hand_on_every_rank_decompresses(tmp_path: Path) -> None:
    path = tmp_path / "x.tar.gz"
    for mode in ("save", "load-no-room"):
        run_ranks("resume_worker.py", mode, tmp_path, path)
    resumed = reports(tmp_path, "load-no-room")
    assert [r["read"] for r in resumed] == [[str(path)], [str(path)]]
    assert [r["losses"] for r in resumed] == [r["losses"] for r in reports(tmp_path, "save")]


def test_another_number_of_ranks_is_warned_of(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    run_ranks("resume_worker.py", "save", tmp_path, path)
    for ranks in (1, 3):
        run_ranks("resume_worker.py", "load", tmp_path, path, ranks=ranks)
        for report in reports(tmp_path, "load", ranks):
            [warning] = report["warnings"]
            assert f"random states of 2 ranks, and there are {ranks}" in warning
            assert report["batch"] == 3


@pytest.mark.parametrize("trouble", ["missing", "cut", "flipped"])
def test_one_rank_that_cannot_read_stops_all(tmp_path: Path, trouble: str) -> None:
    paths = [tmp_path / f"x-{rank}.tar.gz" for rank in range(2)]
    run_ranks("resume_worker.py", "save", tmp_path, paths[0])
    whole = paths[0].read_bytes()
    middle = len(whole) // 2
    if trouble == "cut":
        paths[1].write_bytes(whole[:middle])
    elif trouble == "flipped":
        flipped = bytes([whole[middle] ^ 1])
        paths[1].write_bytes(whole[:middle] + flipped + whole[middle + 1 :])
    run_ranks("resume_worker.py", "load", tmp_path, tmp_path / "x-{rank}.tar.gz")
    first, second = reports(tmp_path, "load")
    assert first["error"] == second["error"]
    kind, message, rank, path = first["error"]
    assert kind == ("CheckpointError" if trouble == "missing" else "CorruptArchiveError")
    assert "failed on rank 1: " in message
    assert str(paths[1]) in message
    assert (rank, path) == (1, str(paths[1]))
    assert first["unchanged"]
    assert second["unchanged"]


def test_weights_that_fit_no_rank_stop_all(tmp_path: Path) -> None:
    run_ranks("resume_worker.py", "save", tmp_path, tmp_path / "x.tar")
    run_ranks("resume_worker.py", "load-wider", tmp_path, tmp_path / "x.tar")
    first, second = reports(tmp_path, "load-wider")
    assert first["error"] == second["error"]
    assert first["error"][0] == "StateMismatchError"
    assert "'0.weight' of [8, 4], not [16, 4]" in first["error"][1]
    assert first["unchanged"]
    assert second["unchanged"]


def test_all_ranks_check_before_one_restores(tmp_path: Path) -> None:
    run_ranks("resume_worker.py", "save", tmp_path, tmp_path / "x.tar")
    run_ranks("resume_worker.py", "load-one-wider", tmp_path, tmp_path / "x.tar")
    first, second = reports(tmp_path, "load-one-wider")
    assert first["error"] == second["error"]
    assert first["error"][0] == "StateMismatchError"
    assert "failed on rank 1: the checkpoint's weights do not fit" in first["error"][1]
    assert first["unchanged"]
    assert second["unchanged"]


@pytest.mark.frameworks
@pytest.mark.parametrize(
    ("stage", "suffix", "extra"),
    [
        (0, ".tar.bz2", []),
        (1, ".tar", []),
        (3, ".tar.lzma", []),
        (2, ".tar.gz", ["moe"]),
    ],
)
def test_deepspeed_goes_on_as_if_it_had_never_stopped(
    tmp_path: Path, stage: int, suffix: str, extra: list[str]
) -> None:
    filename = f"{tmp_path}/x-rank{{rank}}{suffix}"
    before = set(Path(tempfile.gettempdir()).glob("pyckpt-*"))
    for mode in ("save", "load"):
        run_ranks("deepspeed_worker.py", mode, stage, tmp_path, filename, *extra)
    saved, loaded = reports(tmp_path, "save"), reports(tmp_path, "load")
    assert [r["losses"] for r in loaded] == [r["losses"] for r in saved]
    assert [r["drawn"] for r in loaded] == [r["drawn"] for r in saved]
    assert all(r["batch"] == 3 and r["random_states"] == 2 and r["restored"] for r in loaded)
    assert [r["per_rank"] for r in loaded] == [{"seen": 5}, {"seen": 6}]
    assert set(Path(tempfile.gettempdir()).glob("pyckpt-*")) <= before


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ZeRO 1 archives of two ranks, x-rank0.tar and x-rank1.tar."""
    folder = tmp_path_factory.mktemp("sharded")
    run_ranks("deepspeed_worker.py", "save", 1, folder, f"{folder}/x-rank{{rank}}.tar")
    return folder


@pytest.mark.frameworks
@pytest.mark.parametrize("trouble", ["missing", "damaged", "same"])
def test_a_rank_without_its_shard_stops_all(tmp_path: Path, sharded: Path, trouble: str) -> None:
    paths = [tmp_path / f"x-rank{rank}.tar" for rank in range(2)]
    for path in paths:
        shutil.copy(sharded / path.name, path)
    template = f"{tmp_path}/x-rank{{rank}}"
    if trouble == "missing":
        paths[1].unlink()
    elif trouble == "damaged":
        with paths[1].open("r+b") as file:
            file.seek(paths[1].stat().st_size // 2)
            file.write(b"\xff" * 64)
    else:
        template = str(paths[0])
    run_ranks("deepspeed_worker.py", "load", 1, tmp_path, template)
    first, second = reports(tmp_path, "load")
    assert first["error"] == second["error"]
    kind, message, rank, path = first["error"]
    assert kind == ("CheckpointError" if trouble == "missing" else "CorruptArchiveError")
    assert "failed on rank 1: " in message
    assert rank == 1
    assert path == str(paths[0 if trouble == "same" else 1])
    if trouble == "same":
        assert "rank_1_mp_rank_00_optim_states.pt', nor has another rank's archive" in message
    assert first["unchanged"]
    assert second["unchanged"]
    assert first["batch"] == second["batch"] == 0


@pytest.mark.frameworks
def test_shards_of_another_number_of_ranks(tmp_path: Path, sharded: Path) -> None:
    run_ranks("deepspeed_worker.py", "load", 1, tmp_path, f"{sharded}/x-rank{{rank}}", ranks=1)
    [report] = reports(tmp_path, "load", ranks=1)
    assert report["error"][0] == "StateMismatchError"
    assert "was saved by 2 ranks, and there are 1" in report["error"][1]
    assert report["unchanged"]


@pytest.mark.frameworks
def test_weights_alone_under_deepspeed(tmp_path: Path, sharded: Path) -> None:
    template = f"{sharded}/x-rank{{rank}}"
    run_ranks("deepspeed_worker.py", "load-weights", 1, tmp_path, template)
    loaded, saved = reports(tmp_path, "load-weights"), reports(sharded, "save")
    assert all(r["batch"] == 0 and r["random_states"] is None for r in loaded)
    # The first loss has the same weights and input. After it the optimizer starts from scratch.
    assert [r["losses"][0] for r in loaded] == [r["losses"][0] for r in saved]
    assert [r["losses"][1:] for r in loaded] != [r["losses"][1:] for r in saved]

    run_ranks("deepspeed_worker.py", "load-weights", 3, tmp_path, template)
    for report in reports(tmp_path, "load-weights"):
        assert report["error"][0] == "OptionError"
        assert "not possible with ZeRO 3" in report["error"][1]
