"""Saves of the first rank for all, on two ranks."""

import json
from pathlib import Path
from typing import Any

import pytest

import pyckpt
from tests.launch import run_ranks


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    (folder / "busy.tar" / "x").mkdir(parents=True)  # no file can take its place
    run_ranks("first_rank_worker.py", folder, timeout=100)
    return folder


def reports(folder: Path) -> list[dict[str, Any]]:
    return [json.loads((folder / f"report-{rank}.json").read_text()) for rank in (0, 1)]


@pytest.mark.parametrize("way", ["blocking", "asynchronous"])
def test_what_the_first_rank_has_is_saved(folder: Path, way: str) -> None:
    assert pyckpt.load(folder / f"{way}-0.tar") == {"rank": 0}
    assert not (folder / f"{way}-1.tar").exists()


def test_both_ranks_know_that_it_has_ended(folder: Path) -> None:
    assert [report["ended early"] for report in reports(folder)] == [False, False]
    assert [report["ended"] for report in reports(folder)] == [True, True]


@pytest.mark.parametrize("way", ["blocking", "asynchronous"])
@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("no contents", "on rank 1: ValueError: no contents"),
        ("no name", "x.tar.foo"),
        ("no file", "busy.tar"),
    ],
)
def test_both_ranks_raise_the_same(folder: Path, way: str, what: str, message: str) -> None:
    first, second = (report[f"{way}, {what}"] for report in reports(folder))
    assert first == second
    assert message in first
    assert not (folder / "x.tar").exists()
