"""Damages files of all formats at random, loads them, and looks for wrong tensors.

    python -m faults.damage [--seconds S | --sample N] [--help]

Two kinds of damage. A file whose bytes were changed has checksums, so a load must give the same
tensors as before, or raise. A file that was made anew around a changed inside (a tar, a zip, a
pickle) has checksums that are right, as an attacker would make them: a load may give other tensors,
but it must not end the process, hang, or take more memory than it may. If torch.load reads such a
``.pt`` file too, both must find the same.

What is loaded is checked with ``verify`` too: if it finds nothing, the file must load.
"""

from __future__ import annotations

import argparse
import bz2
import gzip
import io
import itertools
import json
import lzma
import os
import pickle
import queue
import random
import resource
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
import warnings
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

import pyckpt
from faults.alterations import alter
from faults.report import Case, Report, argument_parser
from pyckpt.archive.formats import file_suffixes

__all__ = ["main"]

_HANG_SECONDS = 60.0
_SECONDS = 600.0  # of the campaign, if nothing is said
_MOST_NBYTES = 300 << 20  # that a load of these files may need beyond the first ones
_KEPT = Path("build/faults")
_STATES = "composer_states.pt"
_TAR_SUFFIXES = (".tar", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.lzma", ".tar.zst")
_EXPECTED = (pyckpt.CheckpointError, pickle.UnpicklingError)


def contents() -> dict[str, Any]:
    """Several types, a view, a tied storage, and what compresses."""
    noise = torch.Generator().manual_seed(0)
    floats = torch.randn(3000, generator=noise)
    return {
        "floats": floats,
        "view": floats[10:20],
        "bf16": torch.randn(40, 30, generator=noise).bfloat16(),
        "zeros": torch.zeros(9000, dtype=torch.int64),
        "nested": {"steps": [torch.arange(7), 3, "text"], "empty": torch.empty(0)},
    }


@dataclass(frozen=True)
class Original:
    """A file that is damaged.

    Attributes:
        name: The row of the table.
        inside: The bytes that are changed.
        remade: Makes the file of them.
        is_checked: Whether a change cannot pass the checksums.
        is_torch: Whether torch.load reads the file.
    """

    name: str
    suffix: str
    inside: bytes
    remade: Callable[[bytes], bytes] = bytes
    is_checked: bool = True
    is_torch: bool = False


def originals() -> list[Original]:
    """Files by pyckpt in all its formats, by other programs, and with altered insides."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)

        def saved(suffix: str, **options: Any) -> bytes:
            path = folder / f"x{suffix}"
            pyckpt.save(contents(), path, fsync=False, **options)
            return path.read_bytes()

        suffixes = [*_TAR_SUFFIXES, ".pt", *file_suffixes()]
        ours = [Original(f"ours, {suffix}", suffix, saved(suffix)) for suffix in suffixes]
        deflated = saved(".pt", compression_level=6)
        tar = saved(".tar")
    torch_file, legacy = io.BytesIO(), io.BytesIO()
    torch.save(contents(), torch_file)
    torch.save(contents(), legacy, _use_new_zipfile_serialization=False)
    stock = torch_file.getvalue()
    records = _records(stock)
    [pickle_name] = [name for name in records if name.endswith("/data.pkl")]
    [other_name] = [name for name in records if name.endswith("/data/0")]
    with_record = partial(_zip_with, records)
    gnu = _tar_of(stock)
    compressions: dict[str, Callable[[bytes], bytes]] = {
        ".tar.gz": gzip.compress,
        ".tar.bz2": bz2.compress,
        ".tar.xz": lzma.compress,
        ".tar.lzma": partial(lzma.compress, format=lzma.FORMAT_ALONE),
    }
    return [
        *ours,
        Original("ours, .pt, deflated", ".pt", deflated),
        Original("torch.save, .pt", ".pt", stock),
        Original("tar, .tar", ".tar", gnu),
        *(Original(f"stock, {suffix}", suffix, make(gnu)) for suffix, make in compressions.items()),
        Original(
            "torch.save, before 1.6", ".pt", legacy.getvalue(), is_checked=False, is_torch=True
        ),
        *(
            Original(f"an altered tar in {suffix}", suffix, tar, make)
            for suffix, make in compressions.items()
        ),
        Original(
            "an altered pickle in .pt",
            ".pt",
            records[pickle_name],
            partial(with_record, pickle_name),
            is_checked=False,
            is_torch=True,
        ),
        Original(
            "an altered pickle in .tar",
            ".tar",
            records[pickle_name],
            lambda data: _tar_of(with_record(pickle_name, data)),
            is_checked=False,
        ),
        Original(
            "a record of another size in .pt",
            ".pt",
            records[other_name],
            partial(with_record, other_name),
            is_checked=False,
            is_torch=True,
        ),
    ]


def _records(torch_file: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(torch_file)) as file:
        return {name: file.read(name) for name in file.namelist()}


def _zip_with(records: dict[str, bytes], name: str, data: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as made:
        for other, content in {**records, name: data}.items():
            made.writestr(other, content)
    return file.getvalue()


def _tar_of(states: bytes) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as made:
        info = tarfile.TarInfo(_STATES)
        info.size = len(states)
        made.addfile(info, io.BytesIO(states))
    return file.getvalue()


def difference(found: Any, expected: Any) -> str:
    """In what two objects differ; empty if they do not."""
    if type(found) is not type(expected):
        return f"{type(found).__name__} instead of {type(expected).__name__}"
    if isinstance(expected, torch.Tensor):
        same = (found.dtype, found.shape, found.stride()) == (
            *(expected.dtype, expected.shape, expected.stride()),
        )
        return "" if same and _bits(found) == _bits(expected) else "another tensor"
    if isinstance(expected, dict):
        if list(map(repr, found)) != list(map(repr, expected)):
            return "other keys"
        return next(filter(None, map(difference, found.values(), expected.values())), "")
    if isinstance(expected, list | tuple):
        if len(found) != len(expected):
            return "another length"
        return next(filter(None, map(difference, found, expected)), "")
    return "" if repr(found) == repr(expected) else f"{found!r} instead of {expected!r}"


def _bits(tensor: torch.Tensor) -> bytes:
    if tensor.layout is not torch.strided or tensor.is_quantized:
        return repr(tensor).encode()
    flat = tensor.detach().resolve_conj().resolve_neg().contiguous().reshape(-1)
    return bytes(flat.view(torch.uint8).numpy()) if flat.numel() else b""


def problem(original: Original, path: Path, expected: Any) -> str:
    """What does not hold when a damaged file is loaded; empty if everything does."""
    error: BaseException | None = None
    loaded = None
    try:
        loaded = pyckpt.load(path, weights_only=True)
    except _EXPECTED as raised:
        error = raised
    except Exception as raised:
        return f"{type(raised).__name__}: {raised}"
    if original.is_checked:
        if error is None:
            different = difference(loaded, expected)
            return f"a load is wrong in silence: {different}" if different else ""
        if isinstance(error, pyckpt.CorruptArchiveError) and pyckpt.verify(path).ok:
            return f"verify finds nothing, but a load raises {error}"
        return ""
    pyckpt.verify(path)
    if original.is_torch and error is None:
        try:
            by_torch = torch.load(path, weights_only=True)
        except Exception:  # it raises all sorts
            return ""
        different = difference(loaded, by_torch)
        return f"torch.load finds something else: {different}" if different else ""
    return ""


@dataclass(frozen=True)
class Damage:
    """A damaged file, which a number and a seed make again."""

    number: int
    seed: int

    def make(self, all_originals: Sequence[Original]) -> tuple[Original, bytes]:
        original = all_originals[self.number % len(all_originals)]
        chance = random.Random(f"{self.seed} {self.number}")
        return original, original.remade(alter(original.inside, chance))


def work(folder: Path, seed: int) -> None:
    """Tries the cases whose numbers come on stdin, a line each. Says of each how it ended."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    all_originals, expected = originals(), contents()
    most = 0
    for line in sys.stdin:
        damage = Damage(int(line), seed)
        original, data = damage.make(all_originals)
        path = folder / f"damaged{original.suffix}"
        path.write_bytes(data)
        broken = problem(original, path, expected)
        now = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        if most and now > most + _MOST_NBYTES:
            broken = broken or f"{(now - most) >> 20} MiB of memory"
        if not most or broken:
            most = now
        print(json.dumps([original.name, broken]), flush=True)


class Worker:
    """A process that tries cases, one after another."""

    def __init__(self, folder: Path, seed: int) -> None:
        folder.mkdir(exist_ok=True)
        self._folder, self._seed = folder, seed
        self._start()

    def _start(self) -> None:
        self._lines: queue.Queue[str] = queue.Queue()
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-m", "faults.damage", "--seed", str(self._seed)),
                *("--worker", str(self._folder)),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        threading.Thread(target=self._read, args=(self._process, self._lines), daemon=True).start()

    @staticmethod
    def _read(process: subprocess.Popen[str], lines: queue.Queue[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            lines.put(line)
        lines.put("")

    def attempt(self, number: int) -> tuple[str, str]:
        """The row of a case, and what does not hold."""
        assert self._process.stdin is not None
        try:
            print(number, file=self._process.stdin, flush=True)
            line = self._lines.get(timeout=_HANG_SECONDS)
        except BrokenPipeError:
            line = ""
        except queue.Empty:
            self._process.kill()
            self._process.wait()
            self._start()
            return "", "hangs"
        if line:
            what, broken = json.loads(line)
            return what, broken
        code = self._process.wait()
        self._start()
        return "", f"the process ends with {code}"

    def end(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=_HANG_SECONDS)


def numbers(options: argparse.Namespace) -> Iterator[int]:
    """Which cases are tried: one, a sample, or as many as there is time for."""
    if options.case is not None:
        yield options.case
        return
    if options.sample is not None:
        yield from range(options.sample)
        return
    end = time.monotonic() + options.seconds
    yield from itertools.takewhile(lambda _: time.monotonic() < end, itertools.count())


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the campaign; returns its exit code."""
    parser = argument_parser(__doc__)
    parser.add_argument("--seconds", type=float, default=_SECONDS, help="without --sample")
    parser.add_argument("--case", type=int, help="one case, by its number")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.worker is not None:
        work(options.worker, options.seed)
        return 0
    report = Report("Damaged files")
    all_originals = originals()
    turn, lock = numbers(options), threading.Lock()

    def run(worker: Worker) -> None:
        while True:
            with lock:
                number = next(turn, None)
            if number is None:
                worker.end()
                return
            _, broken = worker.attempt(number)
            original, data = Damage(number, options.seed).make(all_originals)
            if broken:
                _KEPT.mkdir(parents=True, exist_ok=True)
                (_KEPT / f"damage-{options.seed}-{number}{original.suffix}").write_bytes(data)
            with lock:
                command = f"python -m faults.damage --seed {options.seed} --case {number}"
                report.add(Case(original.name, broken, command))

    with tempfile.TemporaryDirectory() as name:
        workers = [
            Worker(Path(name) / str(number), options.seed) for number in range(os.cpu_count() or 1)
        ]
        threads = [threading.Thread(target=run, args=(worker,)) for worker in workers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return report.end()


if __name__ == "__main__":
    sys.exit(main())
