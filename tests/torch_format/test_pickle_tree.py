"""Reading a pickle takes time and memory in proportion to its size, whatever it says."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pyckpt.torch_format.pickle_tree import InertDict, read_tree
from tests.torch_format import bombs

# Looks at each file. Prints by how many megabytes that raised the most memory that was in use.
LOOK = """
import resource, sys, pyckpt
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
for path in sys.argv[1:]:
    before = peak()
    pyckpt.inspect(path)
    pyckpt.verify(path)
    try: pyckpt.load(path, keys="none*")
    except pyckpt.CheckpointError: pass
    print(peak() - before, flush=True)
"""


@pytest.mark.timeout(280)
def test_bombs(tmp_path: Path) -> None:
    paths = [tmp_path / f"{name}.pt" for name in bombs.BOMBS]
    for path in paths:
        bombs.write(path, path.stem)
    done = subprocess.run(
        [sys.executable, "-c", LOOK, *paths],
        capture_output=True, text=True, timeout=270, check=False,
    )  # fmt: skip
    taken = dict(zip(bombs.BOMBS, map(int, done.stdout.split()), strict=False))
    assert taken.keys() == bombs.BOMBS.keys(), done.stderr
    # The tree, the paths of a walk, and the pickle itself a few times.
    wrong = {
        name: megabytes
        for name, megabytes in taken.items()
        if megabytes << 20 > (128 << 20) + 64 * len(bombs.BOMBS[name])
    }
    assert wrong == {}


@pytest.mark.timeout(120)
def test_it_can_be_stopped(tmp_path: Path) -> None:
    bombs.write(tmp_path / "x.pt", "new objects")
    code = "import sys, pyckpt; print('ready', flush=True)\nwhile True: pyckpt.inspect(sys.argv[1])"
    process = subprocess.Popen(
        [sys.executable, "-c", code, tmp_path / "x.pt"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    time.sleep(1)
    os.kill(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert "KeyboardInterrupt" in errors


def test_large_pickles_of_values_are_read() -> None:
    """What a bomb is refused for is not what real pickles hold."""
    values = {
        "indices": list(range(200_000)),
        "mask": [True] * 2_000_000,
        "names": {f"name {n}": (n, float(n)) for n in range(100_000)},
        "pairs": {(n, "a"): [{}] for n in range(50_000)},
    }
    for protocol in (2, 4):
        root = read_tree(pickle.dumps(values, protocol)).root
        assert isinstance(root, InertDict)
        assert [key for key, _ in root.items()] == list(values)
