"""Two builds of pyckpt in turn: what saves and loads cost, and the ratio of the two.

    python -m benchmarks.builds [--other PYTHON] [--help]

``--other`` is the Python of another build, such as that of a git worktree of an earlier commit.
The third one is this build without kernels for special CPUs (PYCKPT_PORTABLE=1). Each build runs
in a process of its own. They take turns on the same states and files, and the fastest run of each
counts. Files of other programs are loaded too.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import pyckpt
from benchmarks.machine import describe_machine
from benchmarks.states import CODEC_STATES, StateKind, tensors_of
from benchmarks.table import format_table
from pyckpt.archive.formats import usual_suffixes

__all__ = ["main"]

FORMATS = tuple(usual_suffixes())
_SLOW = (".tar.bz2", ".tar.lzma")
_THIS = "this build"
_PORTABLE = "portable"
_OTHER = "the other build"

# What other programs write: a command that compresses a tar to its standard output.
FOREIGN = {
    ".tar.gz": "gzip -1",
    ".tar.bz2": "bzip2 -9",
    ".tar.lzma": "xz -0 -T 1",
    ".tar.zst": "zstd -1",
}


class Build:
    """A process that saves and loads with one build."""

    def __init__(self, python: str, *, portable: bool = False) -> None:
        worker = Path(__file__).with_name("build_worker.py")
        self._process = subprocess.Popen(
            [python, str(worker)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYCKPT_PORTABLE": str(int(portable))},
        )

    def run(self, order: dict[str, Any]) -> dict[str, Any]:
        """Runs one order (benchmarks/build_worker.py).

        Returns its seconds, ``{"cpu": ..., "wall": ...}``, or ``{"error": ...}``.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer

    def close(self) -> None:
        """Ends the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


class Bench:
    """The tasks of one run of this program, in one folder."""

    def __init__(self, folder: Path, builds: dict[str, Build], options: argparse.Namespace) -> None:
        self._folder = folder
        self._builds = builds
        self._options = options
        self.rows: list[tuple[str, ...]] = []

    def run(self, kind: StateKind, suffixes: Sequence[str], nbytes: int) -> None:
        """Saves and loads a state in each format, then loads what other programs wrote."""
        state = kind.build(nbytes)
        nbytes = sum(tensor.nbytes for tensor in tensors_of(state))
        saved = self._folder / f"{kind.name}-{nbytes}.pt"  # workers know states by their paths
        tar = self._folder / "foreign.tar"
        torch.save(state, saved)
        pyckpt.save(state, tar, fsync=False)
        options = {"num_threads": self._options.threads}
        for suffix in suffixes:
            path = self._folder / f"x{suffix}"
            order = {"path": str(path), "options": options}
            save = {"state": str(saved), "options": {**options, "fsync": self._options.fsync}}
            self._time(f"{kind.name}, save {suffix}", {**order, **save}, nbytes)
            self._time(f"{kind.name}, load {suffix}", order, nbytes)
            command = FOREIGN.get(suffix, "").split()
            if command and shutil.which(command[0]):
                with path.open("wb") as file:
                    subprocess.run([*command, "-c", str(tar)], stdout=file, check=True)
                self._time(f"{kind.name}, load {' '.join(command)}", order, nbytes)
            path.unlink()
        saved.unlink()

    def _time(self, title: str, order: dict[str, Any], nbytes: int) -> None:
        """Lets all builds do it in turn, and adds a row."""
        best: dict[str, dict[str, float]] = {}
        for _ in range(self._options.repeat):
            for name, build in self._builds.items():
                answer = build.run(order)
                if "error" not in answer:
                    least = best.setdefault(name, answer)
                    best[name] = {key: min(least[key], answer[key]) for key in least}
        row = [title]
        for name in self._builds:
            times = best.get(name)
            row.append(f"{times['cpu'] / nbytes * 1e9:.2f}" if times else "cannot")
            row.append(f"{times['wall'] / nbytes * 1e9:.2f}" if times else "")
            if name != _THIS:
                row.append(f"{times['cpu'] / best[_THIS]['cpu']:.2f}x" if times else "")
        self.rows.append(tuple(row))
        _say("  ".join(row))


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the benchmark and prints its table."""
    options = _parse(arguments)
    builds = {_THIS: Build(sys.executable), _PORTABLE: Build(sys.executable, portable=True)}
    if options.other:
        builds[_OTHER] = Build(options.other)
    header = ["ns a byte of tensors"]
    for name in builds:
        header += [f"{name}: CPU", "wall"] + ([] if name == _THIS else ["of this CPU"])
    with tempfile.TemporaryDirectory(prefix="pyckpt-builds-", dir=options.folder) as name:
        folder = Path(name)
        for key, value in describe_machine(folder).items():
            _say(f"{key + ':':8} {value}")
        bench = Bench(folder, builds, options)
        for kind in CODEC_STATES[: options.states]:
            fast = [suffix for suffix in options.formats if suffix not in _SLOW]
            bench.run(kind, fast, options.nbytes)
            slow = [suffix for suffix in options.formats if suffix in _SLOW]
            bench.run(kind, slow, options.slow_nbytes)
    for build in builds.values():
        build.close()
    _say(f"\nThe fastest of {options.repeat} runs, {options.threads} thread(s)\n")
    _say(format_table(header, bench.rows))
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.builds", description=(__doc__ or "").partition("\n")[0]
    )
    add = parser.add_argument
    add("--other", help="the Python of the other build")
    add("--nbytes", type=int, default=64_000_000, help="of each state, about (%(default)s)")
    add("--slow-nbytes", type=int, default=12_000_000, help="for bzip2 and xz (%(default)s)")
    add("--repeat", type=int, default=5, help="runs of each (%(default)s)")
    add("--threads", type=int, default=1, help="of pyckpt (%(default)s)")
    add("--fsync", action="store_true", help="saves wait for the disk")
    add("--states", type=int, default=4, help="how many of the kinds of states (%(default)s)")
    add("--formats", nargs="+", choices=FORMATS, default=FORMATS, help="default: all")
    add("--folder", type=Path, default=Path(), help="where to write (the current directory)")
    return parser.parse_args(arguments)


def _say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
