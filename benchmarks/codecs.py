"""Speed and size of the codecs, compared with well-known programs for the same formats.

    python -m benchmarks.codecs [--picture FILE.svg] [--help]

Each input is one tar. The programs compress it as a file in the page cache; pyckpt writes the whole
archive from memory, and so do torch.save (without compression) and Composer's way. All take turns;
medians are compared. Further tables compare repetitive and incompressible bytes with gzip, bzip2,
xz and zstd at their default levels, compare a tar with a raw write, and show pyckpt's speed with
one thread, two and so on.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyckpt
from benchmarks.contest import Result, measure
from benchmarks.machine import describe_machine
from benchmarks.rivals import Writer, composers_way, raw_write, torch_save
from benchmarks.states import CODEC_STATES, INCOMPRESSIBLE, REPETITIVE_STATES, tensors_of
from benchmarks.table import format_table
from pyckpt.options import available_cpus

__all__ = ["main"]

_TORCH = "torch.save, uncompressed"
_COMPOSER = "Composer's way"

# Targets as ratios: the size of repetitive data to that of the classic program's file, the size of
# incompressible data to that of the input, and the speed of writing a tar to that of a raw write.
_MOST_OF_CLASSIC = 1.1
_MOST_GROWTH = 1.001
_LEAST_OF_RAW = 0.9

_STORED_RUNS = 5


@dataclass(frozen=True)
class Format:
    """One format, and pyckpt's targets for it on two cores.

    Attributes:
        suffix: The suffix of pyckpt's file.
        programs: Commands of the rivals that are timed; ``{threads}`` is filled in.
        smallest: The command whose file sets the target for the size. It runs once.
        classic: The program that everybody has, at its default level. On repetitive data pyckpt
            should write about as small a file, and not more slowly.
        times_as_fast: Targets for the speed, as multiples of a rival's.
        size_margin: By how much the file may be larger than ``smallest``'s, as a fraction.
        nbytes: The approximate size of each input: large enough that the start of a program does
            not count, and small enough that the slowest rival takes only seconds.
    """

    suffix: str
    programs: tuple[str, ...]
    smallest: str
    classic: str
    times_as_fast: Mapping[str, float]
    size_margin: float
    nbytes: int


FORMATS = (
    Format(
        ".tar.gz",
        ("pigz -1 -p {threads}", "igzip -1 -T {threads}"),
        "gzip -9",
        "gzip -6",
        {_TORCH: 1.0, _COMPOSER: 80, "pigz -1 -p {threads}": 25},
        0.003,
        200_000_000,
    ),
    Format(
        ".tar.lzma",
        ("xz -0 -T {threads} --block-size=1MiB",),
        "xz -9e",
        "xz -6",
        {_COMPOSER: 30, "xz -0 -T {threads} --block-size=1MiB": 7},
        0.0,
        24_000_000,
    ),
    Format(
        ".tar.bz2",
        ("lbzip2 -n {threads}",),
        "bzip2 -9",
        "bzip2 -9",
        {_COMPOSER: 5, "lbzip2 -n {threads}": 2},
        0.002,
        24_000_000,
    ),
    Format(
        ".tar.zst",
        ("zstd -1 -T{threads}",),
        "zstd -3",
        "zstd -3",
        {_TORCH: 0.8, "zstd -1 -T{threads}": 1.0},
        0.003,
        200_000_000,
    ),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the benchmark and prints its tables."""
    options = _parse(arguments)
    points: list[tuple[str, str, float, float]] = []
    with tempfile.TemporaryDirectory(prefix="pyckpt-codecs-", dir=options.folder) as name:
        folder = Path(name)
        for key, value in describe_machine(folder).items():
            _say(f"{key + ':':8} {value}")
        for kind in CODEC_STATES:
            for format_ in FORMATS:
                if format_.suffix in options.formats:
                    state = kind.build(options.nbytes or format_.nbytes)
                    points += _contest(kind.name, state, format_, folder, options)
        _repetitive(folder, options)
        _stored(folder, options)
        if options.threads > 1:
            _scaling(folder, options)
    if options.picture:
        _draw(points, options.picture)
    return 0


def _contest(
    title: str, state: Any, format_: Format, folder: Path, options: argparse.Namespace
) -> list[tuple[str, str, float, float]]:
    nbytes = sum(tensor.nbytes for tensor in tensors_of(state))
    tar = folder / "input.tar"
    pyckpt.save(state, tar, fsync=False)

    ours = f"pyckpt {format_.suffix}"
    writers: dict[str, Writer] = {ours: _pyckpt(options.threads), _TORCH: torch_save}
    if _COMPOSER in format_.times_as_fast and not options.no_composer:
        writers[_COMPOSER] = composers_way
    for program in format_.programs:
        if shutil.which(program.split()[0]):
            writers[program] = _program(program, tar, options.threads)
    paths = {writer: folder / f"{index}{format_.suffix}" for index, writer in enumerate(writers)}
    results = measure(state, paths, writers, repeat=options.repeat, fsync=options.fsync)
    for path in paths.values():
        path.unlink()

    smallest = len(subprocess.run([*format_.smallest.split(), "-c", tar], **_PIPE).stdout)
    size = results[ours].file_nbytes
    rows = [
        _row(name, result, results[ours], nbytes, format_, options.threads)
        for name, result in results.items()
    ]
    allowed = 1 + format_.size_margin
    verdict = _verdict(size <= smallest * allowed)
    rows.append(
        (
            format_.smallest,
            "",
            "",
            f"{smallest / nbytes:.4f}",
            f"size {size / smallest:.4f} (<= {allowed:g}) {verdict}",
        )
    )
    _say(f"\n{title}, {nbytes:,} bytes of tensors; {options.repeat} runs each, medians\n")
    _say(format_table(("", "seconds", "MB/s", "of input", "pyckpt against it"), rows))
    return [
        (
            title,
            name.replace("{threads}", str(options.threads)),
            nbytes / result.median / 1e6,
            result.file_nbytes / nbytes,
        )
        for name, result in results.items()
    ]


_PIPE: dict[str, Any] = {"check": True, "stdout": subprocess.PIPE}


def _row(
    name: str, result: Result, ours: Result, nbytes: int, format_: Format, threads: int
) -> tuple[str, ...]:
    against = ""
    if result is not ours:
        ratio = result.median / ours.median
        target = format_.times_as_fast.get(name)
        against = f"{ratio:.2f}x as fast"
        if target is not None:
            against += f" (>= {target:g}) {_verdict(ratio >= target)}"
    return (
        name.replace("{threads}", str(threads)),
        f"{result.median:.3f}",
        f"{nbytes / result.median / 1e6:.1f}",
        f"{result.file_nbytes / nbytes:.4f}",
        against,
    )


def _pyckpt(threads: int) -> Writer:
    def write(state: Any, path: Path, fsync: bool) -> None:
        pyckpt.save(state, path, num_threads=threads, fsync=fsync)

    return write


def _program(command: str, tar: Path, threads: int) -> Writer:
    arguments = command.format(threads=threads).split()

    def write(_state: Any, path: Path, fsync: bool) -> None:
        with path.open("wb") as out:
            subprocess.run([*arguments, "-c", tar], check=True, stdout=out)
            if fsync:
                os.fsync(out.fileno())

    return write


def _scaling(folder: Path, options: argparse.Namespace) -> None:
    counts = sorted({*(2**i for i in range(options.threads.bit_length())), options.threads})
    rows = []
    for format_ in FORMATS:
        if format_.suffix not in options.formats:
            continue
        state = CODEC_STATES[0].build(options.nbytes or format_.nbytes)
        nbytes = sum(tensor.nbytes for tensor in tensors_of(state))
        writers = {str(count): _pyckpt(count) for count in counts if count <= options.threads}
        paths = {count: folder / f"threads-{count}{format_.suffix}" for count in writers}
        results = measure(state, paths, writers, repeat=options.repeat, fsync=options.fsync)
        for path in paths.values():
            path.unlink()
        one = results["1"].median
        rows += [
            (
                format_.suffix,
                count,
                f"{nbytes / result.median / 1e6:.1f}",
                f"{one / result.median:.2f}x",
            )
            for count, result in results.items()
        ]
    _say(f"\npyckpt on {CODEC_STATES[0].name}\n")
    _say(format_table(("", "threads", "MB/s", "of one"), rows))


def _repetitive(folder: Path, options: argparse.Namespace) -> None:
    """One row for each input and format: size and speed against the format's classic program."""
    rows = []
    for kind in (*REPETITIVE_STATES, INCOMPRESSIBLE):
        state = kind.build(options.repetitive_nbytes)
        nbytes = sum(tensor.nbytes for tensor in tensors_of(state))
        tar = folder / "input.tar"
        pyckpt.save(state, tar, fsync=False)
        for format_ in FORMATS:
            if format_.suffix not in options.formats:
                continue
            classic = format_.classic
            writers = {
                "one": _pyckpt(1),
                "all": _pyckpt(options.threads),
                classic: _program(classic, tar, 1),
            }
            paths = {writer: folder / f"{i}{format_.suffix}" for i, writer in enumerate(writers)}
            results = measure(state, paths, writers, repeat=options.repeat, fsync=options.fsync)
            for path in paths.values():
                path.unlink()
            ours, theirs = results["one"].file_nbytes, results[classic].file_nbytes
            limit, measured = (
                (_MOST_GROWTH, ours / nbytes)
                if kind is INCOMPRESSIBLE
                else (_MOST_OF_CLASSIC, ours / theirs)
            )
            rows.append(
                (
                    f"{kind.name} {format_.suffix}",
                    f"{ours / nbytes:.5f}",
                    f"{theirs / nbytes:.5f}",
                    f"{measured:.4f} (<= {limit:g}) {_verdict(measured <= limit)}",
                    *(
                        f"{ratio:.2f}x (>= 1) {_verdict(ratio >= 1)}"
                        for ratio in (
                            results[classic].median / results[writer].median
                            for writer in ("one", "all")
                        )
                    ),
                )
            )
    names = ", ".join(f.classic for f in FORMATS if f.suffix in options.formats)
    _say(
        f"\nWhat repeats, {options.repetitive_nbytes:,} bytes (text less), against {names}; sizes "
        f"against theirs, of {INCOMPRESSIBLE.name} against the input\n"
    )
    header = ("", "of input", "theirs", "size", "speed, one thread", f"{options.threads} threads")
    _say(format_table(header, rows))


def _stored(folder: Path, options: argparse.Namespace) -> None:
    """Compares a plain tar of incompressible bytes with a raw write of the same bytes.

    Each write takes only milliseconds, and depends on how fast the system finds memory for its page
    cache. So there are more runs than for the rest.
    """
    state = INCOMPRESSIBLE.build(options.stored_nbytes)
    writers: dict[str, Writer] = {"ours": _pyckpt(options.threads), "raw": raw_write}
    paths = {"ours": folder / "stored.tar", "raw": folder / "raw"}
    repeat = _STORED_RUNS * options.repeat
    results = measure(state, paths, writers, repeat=repeat, fsync=options.fsync)
    for path in paths.values():
        path.unlink()
    ratio = results["raw"].median / results["ours"].median
    _say(
        f"\nstored (.tar), {options.stored_nbytes:,} bytes: {ratio:.2f}x the speed of a raw write "
        f"(>= {_LEAST_OF_RAW:g}) {_verdict(ratio >= _LEAST_OF_RAW)}"
    )


def _verdict(met: bool) -> str:
    return "met" if met else "missed"


def _draw(points: Sequence[tuple[str, str, float, float]], path: Path) -> None:
    """Speed against size, one picture for each input."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    titles = list(dict.fromkeys(title for title, *_ in points))
    figure, axes = pyplot.subplots(1, len(titles), figsize=(5 * len(titles), 5), squeeze=False)
    for axis, title in zip(axes[0], titles, strict=True):
        for _, name, speed, share in (point for point in points if point[0] == title):
            ours = name.startswith("pyckpt")
            axis.plot(speed, share, "o", color="tab:red" if ours else "tab:gray")
            axis.annotate(name, (speed, share), textcoords="offset points", xytext=(4, 4), size=7)
        axis.set_xscale("log")
        axis.set_title(title)
        axis.set_xlabel("MB/s of input")
    axes[0][0].set_ylabel("file / input")
    figure.tight_layout()
    figure.savefig(path)
    _say(f"\n{path}")


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.codecs", description=(__doc__ or "").partition("\n")[0]
    )
    add = parser.add_argument
    suffixes = [format_.suffix for format_ in FORMATS]
    sizes = ", ".join(f"{f.nbytes // 1_000_000} MB for {f.suffix}" for f in FORMATS)
    add("--nbytes", type=int, help=f"of each input, about (default: {sizes})")
    add(
        "--repetitive-nbytes",
        type=int,
        default=8_000_000,
        help="of the inputs that repeat, about (%(default)s)",
    )
    add("--stored-nbytes", type=int, default=400_000_000, help="of the tar (%(default)s)")
    add("--repeat", type=int, default=3, help="runs of each (%(default)s)")
    add("--threads", type=int, default=available_cpus(), help="of all (%(default)s)")
    add("--formats", nargs="+", choices=suffixes, default=suffixes, help="default: all")
    add("--fsync", action="store_true", help="wait for the disk")
    add("--no-composer", action="store_true", help="leave Composer's way out: it is slow")
    add("--folder", type=Path, default=Path(), help="where to write (the current directory)")
    add("--picture", type=Path, help="draw speed against size there; needs matplotlib")
    return parser.parse_args(arguments)


def _say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
