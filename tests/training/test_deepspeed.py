"""Real DeepSpeed engines on two gloo ranks: save, extract, resume."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch

import pyckpt
from tests.launch import TIMEOUT_SECONDS, private_mounts, run_ranks, torchrun

pytestmark = [pytest.mark.frameworks, pytest.mark.timeout(2 * TIMEOUT_SECONDS)]

COMPILE_SECONDS = 1800


def reports(out: Path, mode: str) -> list[dict[str, Any]]:
    return [json.loads((out / f"{mode}-{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize(
    ("stage", "suffix", "extra"),
    [
        (0, "", []),
        (1, ".pt", []),
        (2, ".tar.gz", []),
        (3, ".tar.lzma", []),
        (2, ".tar.bz2", ["moe"]),
    ],
)
def test_training_goes_on_from_the_extracted_archives(
    tmp_path: Path, stage: int, suffix: str, extra: list[str]
) -> None:
    filename = f"{tmp_path}/{{run_name}}-ba{{batch}}-rank{{rank}}{suffix}"
    run_ranks("deepspeed_worker.py", "save", stage, tmp_path, filename, *extra)
    saved = reports(tmp_path, "save")
    tar_suffix = suffix if suffix.startswith(".tar") else f"{suffix}.tar"
    paths = [str(tmp_path / f"ds-ba3-rank{rank}{tar_suffix}") for rank in range(2)]
    assert [report["paths"] for report in saved] == [paths, paths]
    assert all(report["restored"] for report in saved)

    extracted = tmp_path / "extracted"
    extracted.mkdir()
    for rank, path in enumerate(paths):
        subprocess.run(["tar", "xf", path, "-C", extracted], check=True, capture_output=True)
        with tarfile.open(path) as tar:
            names = tar.getnames()
        assert names[0] == ""
        assert names[1:] == sorted(names[1:], key=lambda name: name.split("/"))
        assert ("composer_states.pt" in names) == ("latest" in names) == (rank == 0)
        own = [".pyckpt", f".pyckpt/rank{rank}.json"]
        assert names[1:3] == own
        assert all(n.startswith("deepspeed") for n in names[3:]) or rank == 0
    assert (extracted / "latest").read_text() == "deepspeed"
    assert len(torch.load(extracted / "composer_states.pt", weights_only=False)["rng"]) == 2
    assert "timestamp" in pyckpt.load(paths[0])["state"]

    run_ranks("deepspeed_worker.py", "resume", stage, tmp_path, "unused", *extra)
    resumed = reports(tmp_path, "resume")
    assert [r["losses"] for r in resumed] == [r["losses"] for r in saved]


@pytest.mark.nvme
@pytest.mark.timeout(4 * COMPILE_SECONDS)
def test_what_is_offloaded_to_nvme_is_saved_as_by_deepspeed(tmp_path: Path) -> None:
    filename = f"{tmp_path}/rank{{rank}}.tar.gz"
    torchrun("deepspeed_worker.py", "save", 3, tmp_path, filename, "nvme", timeout=COMPILE_SECONDS)
    saved = reports(tmp_path, "save")
    extracted, theirs = tmp_path / "extracted", tmp_path / "by-deepspeed"
    extracted.mkdir()
    for path in saved[0]["paths"]:
        subprocess.run(["tar", "xf", path, "-C", extracted], check=True, capture_output=True)
    ours = ["composer_states.pt", ".pyckpt", ".pyckpt/rank0.json", ".pyckpt/rank1.json"]
    assert names_below(extracted) == sorted([*names_below(theirs), *ours])
    swapped = [name for name in names_below(theirs) if name.endswith(".swp")]
    assert len(swapped) == 6  # weights and two moments, on two ranks
    for name in swapped:
        assert (extracted / name).read_bytes() == (theirs / name).read_bytes()

    torchrun("deepspeed_worker.py", "resume", 3, tmp_path, "unused", "nvme")
    resumed = reports(tmp_path, "resume")
    # Only the first: DeepSpeed restarts Adam's step count at 0, from its own folder too.
    assert [r["losses"][0] for r in resumed] == [r["losses"][0] for r in saved]


def names_below(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def test_archives_of_two_saves_are_refused(tmp_path: Path) -> None:
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        filename = f"{tmp_path / name}/rank{{rank}}.tar"
        run_ranks("deepspeed_worker.py", "save", 1, tmp_path, filename)
    mixed = tmp_path / "first" / "rank1.tar"
    mixed.write_bytes((tmp_path / "second" / "rank1.tar").read_bytes())
    run_ranks("deepspeed_worker.py", "load", 1, tmp_path, f"{tmp_path}/first/rank{{rank}}.tar")
    for report in reports(tmp_path, "load"):
        kind, message, rank, path = report["error"]
        assert (kind, rank, path) == ("MixedFilesError", 1, str(mixed))
        assert "rank1.tar is not of the same save as" in message
        assert report["unchanged"]
    # The command sees it too, and misses no archive that may be on another machine.
    archives = [str(tmp_path / name) for name in ("first/rank0.tar", "second/rank0.tar")]
    command = [sys.executable, "-m", "pyckpt", "verify", *archives]
    found = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert found.returncode == 1
    assert "first/rank1.tar is another one" in found.stdout
    mixed.unlink()
    subprocess.run(command, check=True, capture_output=True, timeout=100)


def test_a_failing_rank_fails_all_and_training_goes_on(tmp_path: Path) -> None:
    out, folder = tmp_path / "out", tmp_path / "folder"
    out.mkdir()
    folder.mkdir()
    old = {f"ds-rank{rank}.tar.gz": f"old {rank}".encode() for rank in range(2)}
    for name, contents in old.items():
        (folder / name).write_bytes(contents)
    run_ranks("deepspeed_worker.py", "fail", 3, out, f"{folder}/{{run_name}}-rank{{rank}}.tar.gz")
    first, second = reports(out, "fail")
    assert first["error"] == second["error"]
    assert first["error"][0] == "CheckpointError"
    assert "this state cannot be pickled" in first["error"][1]
    assert first["error"][2] == 1
    assert first["restored"]
    assert second["restored"]
    assert len(first["losses"]) == 3
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == old


def test_a_rank_that_cannot_commit_takes_the_others_back(tmp_path: Path) -> None:
    out, folder = tmp_path / "out", tmp_path / "folder"
    out.mkdir()
    folder.mkdir()
    (folder / "ds-rank0.tar").write_bytes(b"old")
    run_ranks(
        "deepspeed_worker.py", "fail-commit", 1, out, f"{folder}/{{run_name}}-rank{{rank}}.tar"
    )
    first, second = reports(out, "fail-commit")
    assert first["error"] == second["error"]
    assert "committing the checkpoint failed on rank 1" in first["error"][1]
    assert (folder / "ds-rank0.tar").read_bytes() == b"old"
    assert sorted(os.listdir(folder)) == ["ds-rank0.tar", "ds-rank1.tar"]
    assert (folder / "ds-rank1.tar").is_dir()


@pytest.mark.parametrize(
    ("mode", "filename", "kind", "message"),
    [
        ("fail-same", "same", "DuplicateFileError", "put {rank} in the filename"),
        ("fail-weights", "{rank}", "OptionError", "weights_only=True is not possible"),
    ],
)
def test_wrong_arguments_raise_on_all_ranks(
    tmp_path: Path, mode: str, filename: str, kind: str, message: str
) -> None:
    out, folder = tmp_path / "out", tmp_path / "folder"
    out.mkdir()
    folder.mkdir()
    run_ranks("deepspeed_worker.py", mode, 0, out, f"{folder}/{filename}")
    first, second = reports(out, mode)
    assert first["error"] == second["error"]
    assert first["error"][0] == kind
    assert message in first["error"][1]
    assert not any(folder.iterdir())


def test_a_group_of_some_ranks_is_refused(tmp_path: Path) -> None:
    run_ranks("deepspeed_worker.py", "group", 1, tmp_path, f"{tmp_path}/{{rank}}.tar")
    message = "process_group is not possible with DeepSpeed: all ranks {} its states"
    for report in reports(tmp_path, "group"):
        assert report["errors"] == [message.format("save"), message.format("load")]


def test_a_full_disk_on_one_rank_fails_all(tmp_path: Path) -> None:
    """Rank 1 writes to a file system of 8 KiB; both have earlier checkpoints."""
    script = (
        "mkdir -p $OUT/0 $OUT/1; mount -t tmpfs -o size=8k none $OUT/1; "
        "echo old > $OUT/0/x.tar; echo old > $OUT/1/x.tar; "
        "$PYTHON -m torch.distributed.run --standalone --nproc-per-node=2 "
        "tests/workers/deepspeed_worker.py fail-disk 1 $OUT $OUT/{rank}/x.tar; "
        "cat $OUT/0/x.tar $OUT/1/x.tar; ls -A $OUT/0 $OUT/1"
    )
    bin_folder = Path(sys.executable).parent
    done = subprocess.run(
        private_mounts(script),
        env={
            **os.environ,
            "OUT": str(tmp_path),
            "PYTHON": sys.executable,
            "OMP_NUM_THREADS": "1",
            "PATH": f"{bin_folder}:{os.environ['PATH']}",
        },
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    first, second = reports(tmp_path, "fail-disk")
    assert first["error"] == second["error"]
    assert "No space left on device" in first["error"][1]
    assert f"{tmp_path}/1/x.tar" in first["error"][1]
    assert first["error"][2] == 1
    listing = f"old\nold\n{tmp_path}/0:\nx.tar\n\n{tmp_path}/1:\nx.tar\n"
    assert done.stdout.endswith(listing)
