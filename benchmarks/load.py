"""How long reading takes: pyckpt.load and verify, tarfile with torch.load, torch.load alone.

    python -m benchmarks.load [--help]

All readers read the same files in turn, out of the page cache; medians are compared. The state is
the trained one of benchmarks/states.py. bzip2 and xz are measured on a smaller one. Files that
Composer's way wrote are read too: files of other programs cannot be decoded in parallel, or not as
well.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

import pyckpt
from benchmarks.contest import Result, least_cpu, measure_reads
from benchmarks.equality import differences
from benchmarks.machine import describe_machine
from benchmarks.rivals import composers_way, extract
from benchmarks.states import STATES, tensors_of
from benchmarks.table import format_table
from pyckpt.archive.formats import usual_suffixes

__all__ = ["main"]

FORMATS = tuple(usual_suffixes())
_LARGE = (".tar", ".tar.gz", ".tar.zst")

# Targets on two cores, as multiples of the speed of tarfile and torch.load.
TARGETS = {".tar": 20.0, ".tar.gz": 4.0, ".tar.bz2": 2.0, ".tar.lzma": 2.0, ".tar.zst": 1.5}
VERIFY_GIGABYTES_PER_SECOND = 5.0
ONE_TENSOR_SHARE = 0.05
# The CPU of a load, as multiples of the CPU of the save.
MOST_CPU_OF_SAVE = {".tar.gz": 1.3}

_MEMBER = "composer_states.pt"
_LOAD = "pyckpt.load"
_MAPPED = "pyckpt.load, mmap=True"
_MAPPED_UNCHECKED = "pyckpt.load, mmap=True, verify=False"
_ONE = "pyckpt.load, one tensor"
_ONE_THREAD = "pyckpt.load, one thread"
_VERIFY = "pyckpt.verify"
_TARFILE = "tarfile, torch.load"
_TORCH = "torch.load of a .pt"
_OURS_PT = "pyckpt.load of a .pt"


def tarfile_and_torch(path: Path) -> Any:
    """What Composer's load_checkpoint does: extract to a temporary folder, then torch.load."""
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        extract(path, Path(folder))
        return torch.load(Path(folder) / _MEMBER, map_location="cpu", weights_only=False)


class Bench:
    """The contests of one run of this program."""

    def __init__(self, folder: Path, threads: int | None, repeat: int) -> None:
        self._folder = folder
        self._threads = threads
        self._repeat = repeat
        self.verdicts: list[tuple[str, str, str]] = []
        self.failures: list[str] = []

    def run(self, state: Any, suffix: str) -> None:
        """Measures all readers on one file that pyckpt wrote."""
        path = self._folder / f"x{suffix}"
        save_cpu = least_cpu(
            lambda: pyckpt.save(state, path, num_threads=self._threads, fsync=False),
            repeat=self._repeat,
        )
        key = _largest(state)
        readers: dict[str, Callable[[], Any]] = {
            _LOAD: lambda: self._load(path),
            _ONE: lambda: self._load(path, keys=key),
            _VERIFY: lambda: pyckpt.verify(path, num_threads=self._threads),
            _TARFILE: lambda: tarfile_and_torch(path),
        }
        plain = self._folder / "x.pt"
        if suffix == ".tar":
            pyckpt.save(state, plain, num_threads=self._threads, fsync=False)
            readers |= {
                _MAPPED: lambda: self._load(path, mmap=True),
                _MAPPED_UNCHECKED: lambda: self._load(path, mmap=True, verify=False),
                _OURS_PT: lambda: self._load(plain),
                _TORCH: lambda: torch.load(plain, weights_only=False),
            }
        results = measure_reads(readers, repeat=self._repeat)
        nbytes = sum(tensor.nbytes for tensor in tensors_of(state))
        self._print(f"{suffix} by pyckpt", nbytes, results)
        self._judge(suffix, nbytes, results)
        self._compare_cpu(suffix, nbytes, save_cpu, min(results[_LOAD].cpu_seconds))
        for wrong in differences(state, self._load(path)):
            self.failures.append(f"{suffix}: {wrong}")
        path.unlink()
        plain.unlink(missing_ok=True)

    def run_foreign(self, state: Any, suffix: str) -> None:
        """Measures the readers on a file that Composer's way wrote."""
        path = self._folder / f"x{suffix}"
        composers_way(state, path, False)
        readers: dict[str, Callable[[], Any]] = {
            _LOAD: lambda: self._load(path),
            _TARFILE: lambda: tarfile_and_torch(path),
        }
        results = measure_reads(readers, repeat=self._repeat)
        nbytes = sum(tensor.nbytes for tensor in tensors_of(state))
        self._print(f"{suffix} by Composer's way", nbytes, results)
        path.unlink()

    def run_deflated(self, state: Any) -> None:
        """Measures the readers of a .pt with deflated records, of pyckpt and of another program."""
        ours, foreign = self._folder / "ours.pt", self._folder / "foreign.pt"
        pyckpt.save(state, ours, compression_level=6, num_threads=self._threads, fsync=False)
        with zipfile.ZipFile(ours) as old, zipfile.ZipFile(foreign, "w") as new:
            for name in old.namelist():
                new.writestr(name, old.read(name), zipfile.ZIP_DEFLATED, 1)
        nbytes = sum(tensor.nbytes for tensor in tensors_of(state))
        for path, who in ((ours, "pyckpt"), (foreign, "zipfile")):
            readers: dict[str, Callable[[], Any]] = {
                _LOAD: partial(self._load, path),
                _ONE_THREAD: partial(pyckpt.load, path, weights_only=False, num_threads=1),
                _VERIFY: partial(pyckpt.verify, path, num_threads=self._threads),
                _TORCH: partial(torch.load, path, weights_only=False),
            }
            results = measure_reads(readers, repeat=self._repeat)
            self._print(f"deflated .pt by {who}", nbytes, results, base=_TORCH)
            for way in (_ONE_THREAD, _LOAD):
                ratio = results[_TORCH].median / results[way].median
                self._verdict(f"deflated .pt by {who}: {way} against torch.load", ratio, 1.0, "x")
            path.unlink()

    def _load(self, path: Path, **options: Any) -> Any:
        return pyckpt.load(path, weights_only=False, num_threads=self._threads, **options)

    def _print(
        self, title: str, nbytes: int, results: Mapping[str, Result], base: str = _TARFILE
    ) -> None:
        _say(f"\n{title}, {nbytes:,} bytes of tensors; {self._repeat} runs each\n")
        unit = results[base].median
        rows = [
            (
                name,
                f"{result.median:.4f}",
                f"{min(result.seconds):.4f}",
                f"{nbytes / result.median / 1e6:.0f}",
                f"{unit / result.median:.1f}x",
            )
            for name, result in results.items()
        ]
        _say(format_table(("", "median s", "fastest", "MB/s", f"of {base}"), rows))

    def _judge(self, suffix: str, nbytes: int, results: Mapping[str, Result]) -> None:
        way = _MAPPED_UNCHECKED if suffix == ".tar" else _LOAD
        ratio = results[_TARFILE].median / results[way].median
        self._verdict(f"{suffix}: {way} against {_TARFILE}", ratio, TARGETS[suffix], "x")
        if suffix == ".tar":
            speed = nbytes / results[_VERIFY].median / 1e9
            self._verdict(f"{suffix}: {_VERIFY}", speed, VERIFY_GIGABYTES_PER_SECOND, " GB/s")
            ratio = results[_TORCH].median / results[_LOAD].median
            self._verdict(f"{suffix}: {_LOAD}, checked, against {_TORCH}", ratio, 1.0, "x")
        if suffix == ".tar.gz":
            share = results[_ONE].median / results[_LOAD].median
            met = "met" if share <= ONE_TENSOR_SHARE else "missed"
            self.verdicts.append((f"{suffix}: {_ONE} of {_LOAD}", f"{share:.1%}", f"<= 5% {met}"))

    def _compare_cpu(self, suffix: str, nbytes: int, save: float, load: float) -> None:
        what = f"{suffix}: CPU of {_LOAD} against pyckpt.save"
        per_byte = 1e9 / nbytes
        _say(f"CPU, ns a byte: save {save * per_byte:.2f}, load {load * per_byte:.2f}")
        target = MOST_CPU_OF_SAVE.get(suffix)
        verdict = ""
        if target is not None:
            verdict = f"<= {target:g}x {'met' if load <= target * save else 'missed'}"
        self.verdicts.append((what, f"{load / save:.2f}x", verdict))

    def _verdict(self, what: str, value: float, target: float, unit: str) -> None:
        met = "met" if value >= target else "missed"
        self.verdicts.append((what, f"{value:.2f}{unit}", f">= {target:g}{unit} {met}"))


def _largest(state: Any) -> str:
    """The key path of the first linear1.weight, one of the model's largest tensors."""
    names = [name for name in state["model"] if name.endswith("linear1.weight")]
    return f"model/{names[0]}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the benchmark; returns 1 if what is loaded differs from what was saved."""
    options = _parse(arguments)
    with tempfile.TemporaryDirectory(prefix="pyckpt-benchmark-", dir=options.folder) as name:
        folder = Path(name)
        for key, value in describe_machine(folder).items():
            _say(f"{key + ':':8} {value}")
        bench = Bench(folder, options.threads, options.repeat)
        kind = STATES[0]
        large = kind.build(options.nbytes)
        for suffix in options.formats:
            if suffix in _LARGE:
                bench.run(large, suffix)
        del large
        small = kind.build(options.slow_nbytes)
        for suffix in options.formats:
            if suffix not in _LARGE:
                bench.run(small, suffix)
        for suffix in options.formats:
            bench.run_foreign(small, suffix)
        bench.run_deflated(small)
    _say("\nRatios of medians, and what pyckpt means to reach on two cores\n")
    _say(format_table(("", "measured", "target"), bench.verdicts))
    for failure in bench.failures:
        _say(f"FAILED: {failure}")
    return 1 if bench.failures else 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.load", description=(__doc__ or "").partition("\n")[0]
    )
    add = parser.add_argument
    add("--nbytes", type=int, default=800_000_000, help="of the large state, about (%(default)s)")
    add(
        "--slow-nbytes",
        type=int,
        default=48_000_000,
        help="of the state for bzip2 and xz, about (%(default)s)",
    )
    add("--repeat", type=int, default=5, help="runs of each reader (%(default)s)")
    add("--folder", type=Path, default=Path(), help="where to write (the current directory)")
    add("--formats", nargs="+", choices=FORMATS, default=FORMATS, help="default: all")
    add("--threads", type=int, help="of pyckpt (as many as there are usable CPUs)")
    return parser.parse_args(arguments)


def _say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
