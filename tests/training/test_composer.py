"""Saves Composer's real State and reads it with Composer, in another process: its import warns."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pyckpt.archive.formats import file_suffixes, usual_suffixes
from tests.launch import WORKERS

WORKER = WORKERS / "composer_worker.py"
# Composer knows no tar of zstd.
SUFFIXES = [".pt", ".tgz", *usual_suffixes(), *file_suffixes()]
SUFFIXES.remove(".tar.zst")

pytestmark = pytest.mark.frameworks


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, str(WORKER), str(tmp_path_factory.mktemp("composer")), *SUFFIXES],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    results: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return results


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_composer_reads_what_pyckpt_wrote_of_its_state(
    results: dict[str, Any], suffix: str
) -> None:
    result = results["ours" + suffix]
    assert result["path"].endswith(f"/composer-run/ep0-ba3{suffix}")
    assert result["weights_equal"]
    assert result["optimizer_equal"]
    assert result["batch"] == 3
    assert result["rng"] == ["python", "numpy", "torch"]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_both_save_the_same(results: dict[str, Any], suffix: str) -> None:
    assert results["ours" + suffix]["keys"] == results["theirs" + suffix]["keys"]
    assert results["theirs" + suffix]["pyckpt_reads_it"]
    assert results["ours" + suffix]["pyckpt_reads_it"]


@pytest.mark.parametrize("who", ["ours", "theirs"])
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_pyckpt_resumes_either_kind_of_state(
    results: dict[str, Any], who: str, suffix: str
) -> None:
    resumed = results[who + suffix]["pyckpt_resumes"]
    assert resumed == {"composer": [True, True, True, 3], "pyckpt": [True, True, True, 3]}


def test_weights_only_loads_as_weights(results: dict[str, Any]) -> None:
    assert results["weights"]["weights_equal"]
    assert results["weights"]["keys"] == ["rng", "state", "state/model"]


def test_the_same_keys_are_ignored(results: dict[str, Any]) -> None:
    assert results["ignored"]["ours"] == results["ignored"]["theirs"]
    for globs, ours, theirs in results["globs"]:
        assert ours == theirs, globs
