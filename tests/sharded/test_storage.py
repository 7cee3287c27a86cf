"""torch.distributed.checkpoint on pyckpt's storage, with real ranks."""

import os
import tarfile
from pathlib import Path

import pytest
import torch
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from tests.launch import run_ranks

pytestmark = [pytest.mark.timeout(300), pytest.mark.newest_torch]

WORKER = "dcp_worker.py"


@pytest.mark.parametrize("compression", [None, "gz", "bz2", "xz"])
def test_fsdp2_and_adamw_on_4_ranks_and_back_on_any_number(
    tmp_path: Path, compression: str | None
) -> None:
    arguments = [compression] if compression else []
    run_ranks(WORKER, "fsdp_save", tmp_path, *arguments, ranks=4)
    names = sorted(os.listdir(tmp_path / "c"))
    assert names[0] == ".metadata"
    save_id = names[1].partition("-")[0]
    suffix = f".tar.{compression}" if compression else ".tar"
    assert names[1:] == [f"{save_id}-rank{rank}{suffix}" for rank in range(4)]
    for ranks in (4, 2, 1) if compression in (None, "gz") else (1,):
        run_ranks(WORKER, "fsdp_load", tmp_path, ranks=ranks)


def test_torch_converts_and_tar_lists_an_uncompressed_folder(tmp_path: Path) -> None:
    run_ranks(WORKER, "fsdp_save", tmp_path, ranks=2)
    dcp_to_torch_save(tmp_path / "c", tmp_path / "flat.pt")
    flat = torch.load(tmp_path / "flat.pt")
    whole = torch.load(tmp_path / "whole.pt")
    assert torch.equal(flat["model"]["0.weight"], whole["/model/0.weight"])
    [path] = (tmp_path / "c").glob("*-rank1.tar")
    with tarfile.open(path) as tar:
        assert "model.0.weight/rank1.pt" in tar.getnames()


@pytest.mark.parametrize(
    "scenario",
    [
        *("async_thread", "async_process", "cached_plans", "one_writer"),
        *("full_disk", "bad_value", "damaged", "no_collectives"),
    ],
)
def test_scenario(tmp_path: Path, scenario: str) -> None:
    run_ranks(WORKER, scenario, tmp_path, ranks=4 if scenario == "damaged" else 2)


@pytest.mark.parametrize("scenario", ["async_thread", "full_disk"])
def test_scenario_with_compression(tmp_path: Path, scenario: str) -> None:
    run_ranks(WORKER, scenario, tmp_path, "gz", ranks=2)


@pytest.mark.parametrize("when", ["before", "after", "finish"])
def test_a_rank_that_is_killed_leaves_the_older_checkpoint(tmp_path: Path, when: str) -> None:
    run_ranks(WORKER, "killed_first", tmp_path, ranks=2)
    older = set(os.listdir(tmp_path / "c"))
    run_ranks(WORKER, f"killed_{when}", tmp_path, ranks=2, must_succeed=False, timeout=120)
    new = set(os.listdir(tmp_path / "c")) - older
    assert any("-rank1." in name for name in new) == (when != "before")
    run_ranks(WORKER, "older_stays", tmp_path, ranks=2)
