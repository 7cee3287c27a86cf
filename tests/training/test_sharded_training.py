"""Training that ranks share, saved and resumed: in other layouts too, and beside torch's own saves.

All runs are saved by a few launches of ranks, and resumed by a few more, since each launch takes
seconds. See tests/layouts.py for the runs and tests/workers/sharded_worker.py for what ranks do.
"""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tarfile
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

import pyckpt
from tests.launch import TIMEOUT_SECONDS, run_ranks
from tests.layouts import build

pytestmark = [
    pytest.mark.newest_torch,
    pytest.mark.timeout(3 * TIMEOUT_SECONDS),
    pytest.mark.xdist_group("sharded training"),  # so that only one process starts the ranks
]


@dataclass(frozen=True)
class Saved:
    """A run that is saved: by how many ranks, and how."""

    ranks: int
    layout: str
    optimizer: str
    suffix: str
    stage: str

    @property
    def name(self) -> str:
        return f"{self.layout}-{self.optimizer}-{self.ranks}"


@dataclass(frozen=True)
class Resumed:
    """A saved run that goes on: on how many ranks, and in which layout."""

    saved: Saved
    ranks: int
    layout: str

    def __str__(self) -> str:
        return f"{self.saved.name} to {self.layout}-{self.ranks}"

    @property
    def same_arithmetic(self) -> bool:
        return (self.ranks, self.layout) == (self.saved.ranks, self.saved.layout)


SAVED = [
    Saved(4, "ddp", "adamw", ".tar.gz", "copy"),
    Saved(4, "fsdp2", "adamw", ".tar.gz", "lazy"),
    Saved(4, "hsdp", "adamw", ".tar", "blocking"),
    Saved(4, "fsdp1", "adamw", ".tar.bz2", "blocking"),
    Saved(4, "fsdp1-flat", "adamw", ".tar", "lazy"),
    Saved(4, "tp", "adamw", ".tar", "copy"),
    Saved(4, "fsdp2-tp", "adamw", ".tar.lzma", "blocking"),
    Saved(4, "pipeline", "adamw", ".tar.gz", "blocking"),
    Saved(4, "fsdp2", "sgd", ".tar", "copy"),
    Saved(4, "hsdp", "sgd", ".tar.bz2", "copy"),
    Saved(4, "fsdp1-flat", "sgd", ".tar.gz", "copy"),
    Saved(4, "fsdp2-tp", "sgd", ".tar.gz", "lazy"),
    Saved(4, "pipeline", "sgd", ".tar", "lazy"),
    Saved(4, "fsdp2", "muon", ".tar.lzma", "lazy"),
    Saved(4, "tp", "muon", ".tar.gz", "blocking"),
    Saved(4, "fsdp2-tp", "muon", ".tar.lzma", "copy"),
    Saved(2, "pipeline", "muon", ".tar", "blocking"),
    Saved(2, "tp", "adamw", ".tar.gz", "blocking"),
    Saved(1, "single", "adamw", ".tar.gz", "blocking"),
]
BY_NAME = {saved.name: saved for saved in SAVED}

RESUMED = [
    *(Resumed(saved, 4, saved.layout) for saved in SAVED if saved.ranks == 4),
    Resumed(BY_NAME["fsdp2-adamw-4"], 4, "tp"),
    Resumed(BY_NAME["tp-adamw-4"], 4, "fsdp2-tp"),
    Resumed(BY_NAME["fsdp2-tp-sgd-4"], 4, "fsdp1-flat"),
    Resumed(BY_NAME["fsdp1-flat-adamw-4"], 4, "hsdp"),
    Resumed(BY_NAME["pipeline-adamw-4"], 4, "fsdp2"),
    Resumed(BY_NAME["pipeline-muon-2"], 4, "fsdp2-tp"),
    Resumed(BY_NAME["tp-adamw-2"], 4, "fsdp2"),
    Resumed(BY_NAME["single-adamw-1"], 4, "fsdp2-tp"),
    *(Resumed(saved, 2, saved.layout) for saved in SAVED if saved.ranks > 1),
    *(Resumed(saved, 1, "single") for saved in SAVED),
]


@dataclass
class Trained:
    """The folder of all runs, and what their ranks reported."""

    folder: Path
    saves: dict[str, list[dict[str, Any]]]
    loads: dict[str, list[dict[str, Any]]]

    def losses(self, saved: Saved) -> list[float]:
        """After the save, in the run that was never stopped."""
        losses: list[float] = self.saves[f"{saved.name} {saved.stage}"][0]["losses"]
        return losses


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("sharded")
    trained = Trained(folder, {}, {})
    for ranks in (4, 2, 1):
        runs = [(one.name, *astuple(one)[1:]) for one in SAVED if one.ranks == ranks]
        trained.saves.update(launch("save", folder, ranks, runs))
    for ranks in (4, 2, 1):
        loads = [
            (one.saved.name, *astuple(one.saved)[1:4], one.layout)
            for one in RESUMED
            if one.ranks == ranks
        ]
        reports = launch("load", folder, ranks, loads)
        trained.loads.update({f"{key} {ranks}": report for key, report in reports.items()})
    return trained


def launch(mode: str, folder: Path, ranks: int, runs: list[Any]) -> dict[str, list[Any]]:
    """By run, what each rank reported."""
    run_ranks("sharded_worker.py", mode, folder, json.dumps(runs), ranks=ranks)
    reports = [
        json.loads((folder / f"{mode}-{ranks}-{rank}.json").read_text()) for rank in range(ranks)
    ]
    return {key: [report[key] for report in reports] for key in reports[0]}


@pytest.mark.parametrize("way", ["dcp", "full", "sharded"])
@pytest.mark.parametrize("resumed", RESUMED, ids=str)
def test_a_run_goes_on_as_if_it_had_never_stopped(
    trained: Trained, resumed: Resumed, way: str
) -> None:
    reports = trained.loads[f"{resumed.saved.name} {resumed.layout} {resumed.ranks}"]
    for report in reports:
        assert report[way]["differs"] == []
        # Torch's own resume is the same, to the bit, since it goes on from the same bits.
        assert report[way]["losses"] == report["stock"]["losses"]
    losses = reports[0][way]["losses"]
    if resumed.same_arithmetic:
        assert losses == trained.losses(resumed.saved)
    else:  # Muon computes in bfloat16
        tolerance = 2e-2 if resumed.saved.optimizer == "muon" else 1e-5
        assert losses == pytest.approx(trained.losses(resumed.saved), abs=tolerance)


@pytest.mark.parametrize("saved", SAVED, ids=lambda saved: saved.name)
def test_a_full_file_is_that_of_a_model_on_one_device(trained: Trained, saved: Saved) -> None:
    """Nothing is needed to load it but load_state_dict, by keys that a plain State has."""
    contents = pyckpt.load(trained.folder / saved.name / f"full{saved.suffix}")["state"]
    state = build("single", saved.optimizer, seed=1, tied=saved.layout != "pipeline").state
    assert list(contents) == list(state.state_dict())
    state.model.load_state_dict(contents["model"])
    for optimizer in state.optimizers:
        optimizer.load_state_dict(contents["optimizers"][type(optimizer).__name__])
    assert_weights(state.model.state_dict(), trained.folder / saved.name)
    assert_moments(state, trained.folder / saved.name)


READ_BY_TORCH = """
import sys
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
dcp_to_torch_save(*sys.argv[1:])
assert "pyckpt" not in sys.modules
"""


@pytest.mark.parametrize("saved", SAVED, ids=lambda saved: saved.name)
def test_extracted_archives_are_read_by_torch_alone(
    trained: Trained, saved: Saved, tmp_path: Path
) -> None:
    archives = sorted((trained.folder / saved.name).glob(f"rank*{saved.suffix}"))
    assert len(archives) == saved.ranks
    extracted = tmp_path / "extracted"
    extracted.mkdir()
    for archive in archives:
        subprocess.run(["tar", "xf", archive, "-C", extracted], check=True)
    command = [sys.executable, "-W", "ignore", "-c", READ_BY_TORCH, extracted, tmp_path / "all.pt"]
    subprocess.run(command, check=True, timeout=TIMEOUT_SECONDS)
    contents = torch.load(tmp_path / "all.pt", weights_only=False)["state"]
    assert_weights(contents["model"], trained.folder / saved.name)


@pytest.fixture(scope="module")
def faults(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """By what happened to a checkpoint, what each rank reported of loading it."""
    folder = tmp_path_factory.mktemp("faults")
    worker = "sharded_faults_worker.py"
    run_ranks(worker, "save", folder, folder / "whole-{rank}.tar", folder / "later-{rank}.tar")
    (folder / "saved").unlink()
    run_ranks(worker, "kill", folder, folder / "whole-{rank}.tar", must_succeed=False)
    assert not (folder / "saved").exists()
    archives = [(folder / f"whole-{rank}.tar").read_bytes() for rank in range(2)]
    later = (folder / "later-1.tar").read_bytes()
    broken = {
        "missing": [archives[0], None],
        "mixed": [archives[0], later],
        "damaged": [archives[0], damaged(archives[1], "up.weight")],
        "cut": [archives[0], archives[1][: len(archives[1]) // 2]],
    }
    paths = {"whole": folder / "whole-{rank}.tar"}
    for kind, contents in broken.items():
        (folder / kind).mkdir()
        paths[kind] = folder / kind / "whole-{rank}.tar"
        for rank, content in enumerate(contents):
            if content is not None:
                (folder / kind / f"whole-{rank}.tar").write_bytes(content)
    run_ranks(worker, "load", folder, *paths.values())
    reports = [json.loads((folder / f"load-{rank}.json").read_text()) for rank in range(2)]
    return {kind: [report[str(path)] for report in reports] for kind, path in paths.items()}


def damaged(archive: bytes, key: str) -> bytes:
    """The archive with one bit changed in the shard of the tensor whose name ends with ``key``."""
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        [name] = [one for one in tar.getnames() if one.endswith(f"model.{key}/rank1.pt")]
        shard = torch.load(tar.extractfile(name)).numpy().tobytes()
    at = archive.index(shard)
    return archive[:at] + bytes([archive[at] ^ 1]) + archive[at + 1 :]


def test_ranks_killed_in_a_save_leave_the_checkpoint_before_it(
    faults: dict[str, list[dict[str, Any]]],
) -> None:
    assert [report.get("batch") for report in faults["whole"]] == [1, 1]


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("missing", ["rank 1", "missing/whole-1.tar"]),
        ("mixed", ["mixed/whole-0.tar", "mixed/whole-1.tar"]),
        ("damaged", ["damaged/whole-1.tar", "up.weight"]),
        ("cut", ["cut/whole-1.tar"]),
    ],
)
def test_a_checkpoint_that_is_not_whole_is_refused_by_every_rank(
    faults: dict[str, list[dict[str, Any]]], kind: str, says: list[str]
) -> None:
    first, second = faults[kind]
    assert first["error"] == second["error"]
    for words in says:
        assert words in first["error"][1]
    assert first["unchanged"]
    assert second["unchanged"]


def assert_weights(weights: dict[str, torch.Tensor], folder: Path) -> None:
    reference = of(torch.load(folder / "reference"), "model ")
    assert sorted(weights) == sorted(reference)
    for name, value in reference.items():
        assert weights[name].dtype == value.dtype
        assert torch.equal(weights[name], value), name


def assert_moments(state: pyckpt.State, folder: Path) -> None:
    reference = of(torch.load(folder / "reference"), "optimizer state.")
    names = {parameter: name for name, parameter in state.model.named_parameters()}
    moments = {
        f"{names[parameter]}.{key}": value
        for optimizer in state.optimizers
        for parameter, values in optimizer.state.items()
        for key, value in values.items()
    }
    assert sorted(moments) == sorted(reference)
    for name, value in reference.items():
        assert torch.equal(moments[name], value), name


def of(reference: dict[str, Any], prefix: str) -> dict[str, Any]:
    return {
        name.removeprefix(prefix): value
        for name, value in reference.items()
        if name.startswith(prefix)
    }
