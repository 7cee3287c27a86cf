"""Archives of one sharded save: which are missing, or of another save. Also by the command."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

import pyckpt
from pyckpt.archive.formats import usual_suffixes
from pyckpt.archive.verify import Report, verify
from pyckpt.archive.writer import ArchiveWriter
from pyckpt.cli import main
from pyckpt.options import WriteOptions
from pyckpt.sharded.archive_sets import add_set_problems
from pyckpt.sharded.part import Part

RANKS = 3


def make_set(folder: Path, save_id: str, suffix: str = ".tar", name: str = "x") -> list[Path]:
    """Archives of three ranks, each with a shard."""
    paths = [folder / f"{name}-rank{rank}{suffix}" for rank in range(RANKS)]
    for rank, path in enumerate(paths):
        with ArchiveWriter(path, WriteOptions(num_threads=1)) as writer:
            part = Part.of(save_id, rank, paths)
            writer.add_bytes(part.member, part.to_bytes())
            writer.add_object(f"state.model.weight/rank{rank}.pt", torch.full((2, 3), float(rank)))
            writer.write()
            writer.commit()
    return paths


def problems(paths: list[Path]) -> list[str]:
    reports = [verify(path) for path in paths]
    assert all(report.ok for report in reports)
    added = add_set_problems(reports)
    assert [(report, problem) for report in reports for problem in report.problems] == added
    return [f"{report.path.name}: {problem}" for report, problem in added]


@pytest.mark.parametrize("suffix", [*usual_suffixes()])
def test_a_complete_set(tmp_path: Path, suffix: str) -> None:
    paths = make_set(tmp_path, "a", suffix)
    assert problems(paths) == []
    assert problems(paths[1:]) == []  # the other one lies beside them
    others = make_set(tmp_path, "b", suffix, name="y")
    assert problems([*paths, *others]) == []


def test_archives_that_were_moved(tmp_path: Path) -> None:
    paths = make_set(tmp_path, "a")
    for rank in (0, 2):
        (tmp_path / f"{rank}").mkdir()
        paths[rank] = paths[rank].rename(tmp_path / f"{rank}" / "moved.tar")
    assert problems(paths) == []
    assert problems(paths[1:]) == [
        f"x-rank1.tar: the archive of rank 0 is not there: {tmp_path / 'x-rank0.tar'}"
    ]


def test_archives_of_two_saves(tmp_path: Path) -> None:
    paths = make_set(tmp_path, "a")
    [_, other, _] = make_set(tmp_path / "other", "b")
    shutil.copy(other, paths[1])
    assert problems(paths) == [
        f"x-rank0.tar: the archive of rank 1 is missing: {paths[1]} is another one",
        f"x-rank1.tar: the archive of rank 0 is missing: {paths[0]} is another one",
        f"x-rank1.tar: the archive of rank 2 is missing: {paths[2]} is another one",
    ]


def test_two_names_of_one_rank(tmp_path: Path) -> None:
    paths = make_set(tmp_path, "a")
    shutil.copy(paths[0], paths[1])
    assert problems(paths) == [
        f"x-rank0.tar: the archive of rank 1 is missing: {paths[1]} is another one"
    ]


def test_a_damaged_archive_beside_them(tmp_path: Path) -> None:
    paths = make_set(tmp_path, "a")
    paths[2].write_bytes(b"no archive" * 100)
    [problem] = problems(paths[:2])
    assert problem.startswith("x-rank0.tar: the archive of rank 2 cannot be read: ")
    assert str(paths[2]) in problem


def test_other_files_belong_to_no_set(tmp_path: Path) -> None:
    pyckpt.save({"a": torch.ones(2)}, tmp_path / "a.tar")
    torch.save({"a": torch.ones(2)}, tmp_path / "a.pt")
    assert problems([tmp_path / "a.tar", tmp_path / "a.pt"]) == []
    assert add_set_problems([Report(tmp_path / "missing.tar")]) == []


def test_the_command_tells_of_several(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = make_set(tmp_path, "a")
    paths[1].unlink()
    missing = f"the archive of rank 1 is not there: {paths[1]}"
    assert main(["verify", str(paths[0])]) == 0  # one archive is checked by itself
    assert missing not in capsys.readouterr().out
    assert main(["verify", str(paths[0]), str(paths[2])]) == 1
    assert f"{paths[0]}: {missing}\n" in capsys.readouterr().out
    assert main(["verify", "--json", str(paths[0]), str(paths[2])]) == 1
    first, second = json.loads(capsys.readouterr().out)
    assert [problem["message"] for problem in first["problems"]] == [missing]
    assert (first["ok"], second["ok"]) == (False, True)


@pytest.fixture
def saved(tmp_path: Path) -> Iterator[Path]:
    """The archive of the only rank of a sharded save."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    state = pyckpt.State(torch.nn.Linear(2, 3))
    pyckpt.save_checkpoint(state, tmp_path / "c-rank{rank}.tar", state_dict_type="sharded")
    yield tmp_path / "c-rank0.tar"
    dist.destroy_process_group()


def test_a_saved_archive_is_whole_by_itself(saved: Path) -> None:
    assert verify(saved).ok
    assert problems([saved, saved]) == []


def test_shards_are_listed_by_their_names(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    entries = {
        entry.name: entry.info
        for member in pyckpt.inspect(saved).members
        for entry in member.tensors
    }
    assert tuple(entries["state.model.weight/rank0.pt"].shape) == (3, 2)
    assert tuple(entries["state.model.bias/rank0.pt"].shape) == (3,)
    assert main(["ls", "-t", str(saved)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.endswith("  state.model.weight/rank0.pt") and "3x2" in line for line in lines)
