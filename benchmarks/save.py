"""How long a save takes: pyckpt, Composer's way, torch.save and a raw write of the same bytes.

    python -m benchmarks.save [--help]

Two states are saved (benchmarks/states.py). All ways write the same state object to the same
folder, in turn, and wait for the disk; medians are compared. Composer's way takes minutes to hours
for the compressed formats. So these are measured on a smaller state, the same for both sides.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

import pyckpt
from benchmarks.contest import Result, measure
from benchmarks.equality import differences
from benchmarks.machine import describe_machine
from benchmarks.rivals import Writer, composers_way, extract, raw_write, torch_save
from benchmarks.states import STATES, tensors_of
from benchmarks.table import format_table
from pyckpt.archive.formats import usual_suffixes

__all__ = ["main"]

FORMATS = tuple(usual_suffixes())
_FAST = ".tar"  # Composer's way is quick enough here for the large state

# Targets on two cores, as multiples of the speed of Composer's way and of torch.save.
AGAINST_COMPOSER = {
    ".tar": 6.0,
    ".tar.gz": 20.0,
    ".tar.bz2": 1.8,
    ".tar.lzma": 8.0,
    ".tar.zst": 1.5,
}
AGAINST_TORCH = {".tar": 2.0}

_TORCH = "torch.save"
_RAW = "raw write"


def _ours(suffix: str) -> str:
    return f"pyckpt {suffix}"


def _theirs(suffix: str) -> str:
    return f"Composer's way {suffix}"


@dataclass
class Contest:
    """Some ways to write one state, and their results."""

    state: str
    nbytes: int
    fsync: bool
    results: dict[str, Result]

    def print_table(self) -> None:
        """Prints every way that took part, in the order of the first round."""
        waits = "waiting for the disk" if self.fsync else "fsync=False: into the page cache"
        runs = len(next(iter(self.results.values())).seconds)
        _say(f"\n{self.state}, {self.nbytes:,} bytes of tensors, {waits}; {runs} runs each\n")
        header = ("", "median s", "fastest", "slowest", "MB/s", "file bytes", "of input")
        _say(format_table(header, [self._row(name) for name in self.results]))

    def _row(self, name: str) -> tuple[str, ...]:
        result = self.results[name]
        return (
            name,
            f"{result.median:.3f}",
            f"{min(result.seconds):.3f}",
            f"{max(result.seconds):.3f}",
            f"{self.nbytes / result.median / 1e6:.1f}",
            f"{result.file_nbytes:,}",
            f"{result.file_nbytes / self.nbytes:.4f}",
        )


class Bench:
    """The contests of one run of this program, all in one folder."""

    def __init__(self, folder: Path, threads: int | None) -> None:
        self._folder = folder
        self._threads = threads
        self.contests: list[Contest] = []
        self.failures: list[str] = []

    def run(
        self, title: str, state: Any, names: Iterable[str], repeat: int, *, fsync: bool
    ) -> None:
        """Measures the ways in ``names``, prints, and checks the files of pyckpt."""
        writers = {name: self._writer(name) for name in names}
        paths = {name: self._path(name) for name in writers}
        nbytes = sum(tensor.nbytes for tensor in tensors_of(state))
        results = measure(state, paths, writers, repeat=repeat, fsync=fsync)
        contest = Contest(title, nbytes, fsync, results)
        self.contests.append(contest)
        contest.print_table()
        if fsync:
            self._check(state, paths)
        for path in paths.values():
            path.unlink()

    def warm_up(self) -> None:
        """Runs each way once, unmeasured, so that none pays for imports and first calls."""
        names = [_TORCH, _RAW, *map(_ours, FORMATS), *map(_theirs, FORMATS)]
        for name in names:
            self._writer(name)({"few": torch.zeros(1000)}, self._path(name), False)
            self._path(name).unlink()

    def _writer(self, name: str) -> Writer:
        if name.startswith("pyckpt"):
            return self._pyckpt_save
        return {_TORCH: torch_save, _RAW: raw_write}.get(name, composers_way)

    def _path(self, name: str) -> Path:
        return self._folder / name.replace(" ", "-")

    def _pyckpt_save(self, state: Any, path: Path, fsync: bool) -> None:
        pyckpt.save(state, path, num_threads=self._threads, fsync=fsync)

    def _check(self, state: Any, paths: Mapping[str, Path]) -> None:
        """Reads pyckpt's files with Python's tarfile and torch.load."""
        for name, path in paths.items():
            if not name.startswith("pyckpt"):
                continue
            with tempfile.TemporaryDirectory(dir=self._folder) as folder:
                extract(path, Path(folder))
                loaded = torch.load(Path(folder) / "composer_states.pt", weights_only=False)
            wrong = list(differences(state, loaded))
            self.failures += [f"{name}: {difference}" for difference in wrong]
            _say(f"{name}: read by tarfile and torch.load: {'DIFFERS' if wrong else 'same bits'}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the benchmark; returns 1 if a file does not hold what was saved."""
    options = _parse(arguments)
    with tempfile.TemporaryDirectory(prefix="pyckpt-benchmark-", dir=options.folder) as folder:
        machine = describe_machine(Path(folder))
        for key, value in machine.items():
            _say(f"{key + ':':8} {value}")
        bench = Bench(Path(folder), options.threads)
        bench.warm_up()
        for kind in STATES:
            if _FAST in options.formats:
                large = kind.build(options.nbytes)
                names = [_ours(s) for s in options.formats if s in (".tar", ".tar.gz", ".tar.zst")]
                names += [_theirs(_FAST), _TORCH, _RAW]
                for fsync in (True, False):
                    bench.run(kind.name, large, names, options.repeat, fsync=fsync)
                del large
            slow = [suffix for suffix in options.formats if suffix != _FAST]
            if slow:
                _run_slow(bench, kind.name, kind.build(options.slow_nbytes), slow, options)
    rows = [row for contest in bench.contests for row in _verdicts(contest)]
    _print_verdicts(rows)
    if options.json:
        result = {
            "machine": machine,
            "options": {key: str(value) for key, value in vars(options).items()},
            "contests": [asdict(contest) for contest in bench.contests],
        }
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    for failure in bench.failures:
        _say(f"FAILED: {failure}")
    return 1 if bench.failures else 0


def _run_slow(
    bench: Bench, title: str, state: Any, suffixes: Sequence[str], options: argparse.Namespace
) -> None:
    title = f"{title} (the smaller state)"
    for suffix in suffixes:
        names = [_ours(suffix), _theirs(suffix), _TORCH]
        bench.run(title, state, names, options.slow_repeat, fsync=True)
        if suffix == ".tar.gz":
            bench.run(title, state, names, options.slow_repeat, fsync=False)


def _verdicts(contest: Contest) -> Iterable[tuple[str, ...]]:
    """One row for each format in which pyckpt and Composer's way both took part."""
    results = contest.results
    for suffix in FORMATS:
        if _ours(suffix) not in results or _theirs(suffix) not in results:
            continue
        ours, theirs = results[_ours(suffix)], results[_theirs(suffix)]
        # The targets are for saves that reach the disk.
        of_composer = AGAINST_COMPOSER[suffix] if contest.fsync else None
        of_torch = AGAINST_TORCH.get(suffix) if contest.fsync else None
        yield (
            f"{suffix}, {contest.state}{'' if contest.fsync else ', fsync=False'}",
            _against(theirs.median / ours.median, of_composer),
            _against(results[_TORCH].median / ours.median, of_torch),
            f"{ours.file_nbytes / theirs.file_nbytes:.4f}",
            "met" if ours.file_nbytes <= theirs.file_nbytes else "missed",
        )


def _against(ratio: float, target: float | None) -> str:
    if target is None:
        return f"{ratio:.2f}x"
    return f"{ratio:.2f}x (>= {target:g}) {'met' if ratio >= target else 'missed'}"


def _print_verdicts(rows: Sequence[tuple[str, ...]]) -> None:
    header = ("pyckpt's speed", "of Composer's way", "of torch.save", "file / Composer's", "<= 1")
    _say("\nRatios of medians; in brackets what pyckpt means to reach on two cores with fsync\n")
    _say(format_table(header, rows))


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.save", description=(__doc__ or "").partition("\n")[0]
    )
    add = parser.add_argument
    add("--nbytes", type=int, default=800_000_000, help="of the large states, about (%(default)s)")
    add(
        "--slow-nbytes",
        type=int,
        default=48_000_000,
        help="of the states for compressed formats, about (%(default)s)",
    )
    add("--repeat", type=int, default=5, help="runs on the large states (%(default)s)")
    add("--slow-repeat", type=int, default=3, help="runs on the smaller ones (%(default)s)")
    add("--folder", type=Path, default=Path(), help="where to write (the current directory)")
    add("--formats", nargs="+", choices=FORMATS, default=FORMATS, help="default: all")
    add("--threads", type=int, help="of pyckpt (as many as there are usable CPUs)")
    add("--json", type=Path, metavar="FILE", help="write every single time there too")
    return parser.parse_args(arguments)


def _say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
