"""What saving costs training with each framework: its own way, and pyckpt's.

    python -m benchmarks.frameworks [--help]

A plain loop, DeepSpeed (ZeRO 1, one rank), Lightning, Hugging Face's Trainer and Composer train the
same small model on the CPU, and save weights, AdamW moments and what else is theirs every few
steps: by themselves, by pyckpt, by pyckpt while training goes on, and not at all. All ways of a
framework run in turn, and several times. Each save is followed by as many steps, so what goes on in
the background is counted.

All write torch's own format without compression. The frameworks do not flush their files; pyckpt
does with fsync, which is its default. The last checkpoint of each way is read by the framework's
own means (torch.load, safetensors), and must have the same tensors.

One thread trains, by default: the CPUs that are left stand for a machine whose GPU trains.

Each framework has an environment of its own: `make bench-frameworks` sets them up.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.loops.task import NO_SAVES, STOCK
from benchmarks.machine import describe_machine
from benchmarks.table import format_table

__all__ = ["main"]

_PLAIN = "plain"
FRAMEWORKS = (_PLAIN, "deepspeed", "lightning", "huggingface", "composer")

_SHOWN = 10  # of the tensors of a way that are wrong

_ROOT = Path(__file__).parents[1]
_HEADER = ("", "steps/s", "lost", "a save costs", "lowest", "highest", "of stock's")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the benchmark. Returns 1 if a framework failed or a checkpoint was wrong."""
    options = _parse(arguments)
    reports: dict[str, dict[str, Any] | None] = {}
    with tempfile.TemporaryDirectory(prefix="pyckpt-benchmark-", dir=options.folder) as name:
        folder = Path(name)
        for key, value in describe_machine(folder).items():
            _say(f"{key + ':':8} {value}")
        for framework in filter(_is_set_up, options.frameworks):
            _say(f"{framework} ...")
            reports[framework] = _measure(framework, folder, options)
    _print_table([report for report in reports.values() if report], options)
    for framework in options.frameworks:
        if framework not in reports:
            _say(f"{framework} is left out: make .venv-{framework}/installed")
    wrong = [f"{name}: {one}" for name, report in reports.items() for one in _wrong(report)]
    if wrong:
        _say("\n".join(wrong))
        return 1
    if reports:
        _say("The last checkpoints of all ways of a framework hold the same tensors.")
    return 0


def _is_set_up(framework: str) -> bool:
    return framework == _PLAIN or (_environment(framework) / "installed").exists()


def _environment(framework: str) -> Path:
    return _ROOT / f".venv-{framework}"


def _measure(framework: str, folder: Path, options: argparse.Namespace) -> dict[str, Any] | None:
    """Runs the worker and returns its report, or prints why there is none."""
    order, report, log = (folder / f"{framework}.{kind}" for kind in ("order", "report", "log"))
    task = {name: getattr(options, name) for name in ("nbytes", "every", "saves", "characters")}
    order.write_text(
        json.dumps(
            {
                "framework": framework,
                "task": task,
                "threads": options.threads,
                "repeat": options.repeat,
                "folder": str(folder.resolve() / framework),
            }
        )
    )
    own = Path(sys.executable)
    python = own if framework == _PLAIN else _environment(framework) / "bin" / "python"
    tools = [str(python.parent), str(own.parent), os.environ["PATH"]]
    with log.open("wb") as output:
        code = subprocess.run(
            [python, "-m", "benchmarks.loops.worker", order.resolve(), report.resolve()],
            cwd=_ROOT,
            env={**os.environ, "PATH": os.pathsep.join(tools)},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        ).returncode
    if code != 0:
        _say(log.read_text(errors="replace")[-4000:])
        return None
    loaded: dict[str, Any] = json.loads(report.read_text())
    return loaded


def _wrong(report: dict[str, Any] | None) -> list[str]:
    if report is None:
        return ["failed, see above"]
    return [f"{way}: {one}" for way, several in report["wrong"].items() for one in several[:_SHOWN]]


def _print_table(reports: Sequence[dict[str, Any]], options: argparse.Namespace) -> None:
    rows: list[tuple[str, ...]] = []
    for report in reports:
        title = f"{report['version']}, checkpoints of {report['checkpoint_nbytes'] / 1e6:.0f} MB"
        rows.append((title, *[""] * (len(_HEADER) - 1)))
        rows += _rows(report["seconds"], options)
    _say(
        f"\nA save every {options.every} steps, {options.threads} thread(s) for training; medians "
        f"of {options.repeat * options.saves} saves with the steps that follow, in "
        f"{options.repeat} runs\n"
    )
    _say(format_table(_HEADER, rows))
    _say("\nOnly what says fsync waits for the disk; pyckpt does so unless it is told otherwise.")


def _rows(
    seconds: dict[str, list[float]], options: argparse.Namespace
) -> Iterator[tuple[str, ...]]:
    """A row for each way. The seconds are those of a save and the steps that follow it."""
    medians = {name: statistics.median(several) for name, several in seconds.items()}
    without = medians[NO_SAVES.name]
    of_stock = medians[STOCK.name] - without
    for name, several in seconds.items():
        speed = f"{options.every / medians[name]:.2f}"
        if name == NO_SAVES.name:
            yield (f"  {name}", speed, *[""] * (len(_HEADER) - 2))
            continue
        costs = [one - without for one in (medians[name], min(several), max(several))]
        yield (
            f"  {name}",
            speed,
            f"{1 - without / medians[name]:.1%}",
            *(f"{1e3 * cost:.0f} ms" for cost in costs),
            f"{costs[0] / of_stock:.0%}" if of_stock > 0 else "",
        )


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.frameworks", description=(__doc__ or "").partition("\n")[0]
    )
    add = parser.add_argument
    add("--frameworks", nargs="+", choices=FRAMEWORKS, default=FRAMEWORKS, help="(all)")
    add("--nbytes", type=int, default=100_000_000, help="of weights and moments (%(default)s)")
    add("--characters", type=int, default=32, help="in a step, up to 64 (%(default)s)")
    add("--every", type=int, default=10, help="steps between saves (%(default)s)")
    add("--saves", type=int, default=2, help="that are measured in a run (%(default)s)")
    add("--repeat", type=int, default=3, help="runs of each way (%(default)s)")
    add("--threads", type=int, default=1, help="that torch trains with (%(default)s)")
    add("--folder", type=Path, default=Path(), help="where to write (the current directory)")
    return parser.parse_args(arguments)


def _say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
