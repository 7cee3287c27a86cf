"""Lets each call of a kind fail once, in each of the scenarios, and looks at what that leaves.

    campaign ──requests──▶ worker ──fork──▶ child: prepares, warms up, tries case after case
        ▲                                     │
        └────────────── outcomes ─────────────┘

A worker imports everything once. A child, which is forked for the cases of one scenario, goes on
after each case, and so shows that nothing is left which the next save would suffer from. If a case
ends the process, the next child goes on behind it.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import errno
import json
import logging
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from faults.leaks import Leaks
from faults.report import Case, Report, argument_parser, sample
from faults.seam import SHORT, Fault, Seam
from tests.preloads import preload

__all__ = ["Campaign", "Raised", "Trial", "run"]

_NATIVE = Path(__file__).parent / "native"
_PATIENCE_SECONDS = 120.0  # a case that takes longer hangs
_START_SECONDS = 600.0  # how long importing torch may take
_CASES_OF_SCENARIO = 8  # in a sample: to look into a scenario takes as long as a few cases
_BATCH = 200  # cases that a child tries
_WARM_UPS = 2


@dataclass(frozen=True)
class Raised:
    """An exception that came out of a scenario.

    Attributes:
        kinds: Names of its class and of those that this is derived from.
    """

    kinds: tuple[str, ...]
    message: str
    errno: int | None
    path: str | None

    def __str__(self) -> str:
        return f"{self.kinds[0]}: {self.message}"


@dataclass(frozen=True)
class Trial:
    """A case: one fault in one scenario."""

    scenario: str
    fault: Fault

    def __str__(self) -> str:
        every = " and all behind" if self.fault.all_behind else ""
        return (
            f"{self.scenario}: {self.fault.kind} {self.fault.number} "
            f"{_error_name(self.fault.error)}{every}"
        )


@dataclass(frozen=True)
class Campaign:
    """What is tried.

    Attributes:
        title: What the table is called.
        module: What ``python -m`` runs.
        library: Its library: the name of a file in faults/native, without ``.c``.
        scenarios: Makes all scenarios. Called in the worker.
        faults: What becomes of a call of each kind, one after another.
        judge: What does not hold although the files are right, in words: about a scenario, a fault,
            and what was raised.
    """

    title: str
    module: str
    library: str
    scenarios: Callable[[], Iterator[Any]]
    faults: Callable[[str, str, int], Sequence[Fault]]
    judge: Callable[[Any, Fault, Raised | None], str]


def run(campaign: Campaign, arguments: Sequence[str] | None = None) -> int:
    """The main program of a campaign. Returns its exit code."""
    parser = argument_parser(campaign.title)
    parser.add_argument("--only", default="", help="scenarios with this in their name")
    parser.add_argument("--case", help="one case, as it is listed under the table")
    parser.add_argument("--verbose", action="store_true", help="says what is tried, on stderr")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.worker is not None:
        _work(campaign, options.worker)
        return 0
    report = Report(campaign.title)
    # In memory: then a flush takes no time.
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        workers = [_Worker(campaign, Path(folder), number) for number in range(os.cpu_count() or 1)]
        try:
            trials = sample(_planned(campaign, workers, options), options.sample, options.seed)
            for trial, broken in _tried(workers, trials, verbose=options.verbose):
                command = f'python -m {campaign.module} --case "{trial}"'
                scenario = trial.scenario.partition(", ")[0]
                what = f"{scenario}: {trial.fault.kind}"
                report.add(Case(what, f"{trial}: {broken}" if broken else "", command))
                if broken and options.verbose:
                    print(f"{trial}: {broken}", file=sys.stderr)
        finally:
            for worker in workers:
                worker.close()
    return report.end()


class _Worker:
    """A process that tries cases, as the campaign sees it."""

    def __init__(self, campaign: Campaign, folder: Path, number: int) -> None:
        self._folder = folder / f"worker-{number}"
        self._folder.mkdir()
        self._log = self._folder / "log"
        self._lines_known = 0  # of the log
        self._lines: queue.Queue[str] = queue.Queue()
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", campaign.module, "--worker", self._folder],
                env={
                    **os.environ,
                    **preload(campaign.library, self._folder, _NATIVE),
                    "OMP_NUM_THREADS": "1",
                },
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put(json.dumps({"ended": "the worker itself"}))

    def _ask(self, request: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """Sends a request, and yields answers until its child has ended."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        child = 0
        while True:
            try:
                patience = _PATIENCE_SECONDS if child else _START_SECONDS
                answer = json.loads(self._lines.get(timeout=patience))
            except queue.Empty:
                if not child:
                    raise
                yield {"hangs": True}
                os.kill(child, signal.SIGKILL)
                continue
            child = answer.get("child", child)
            yield answer
            if "ended" in answer:
                return

    def plan(self, only: str, number: int | None, seed: int) -> dict[str, dict[str, int]]:
        """How many calls of each kind scenarios make: all of them, or so many."""
        planned = {}
        for answer in self._ask({"only": only, "number": number, "seed": seed}):
            if "counts" in answer:
                planned[answer["scenario"]] = answer["counts"]
            if answer.get("ended", 0) != 0:
                raise RuntimeError(f"the plan failed: {answer}\n{self._log.read_text()}")
        return planned

    def try_all(self, trials: Sequence[Trial]) -> Iterator[tuple[Trial, str]]:
        """Tries cases of one scenario. Yields those that took place, with what does not hold."""
        left = list(trials)
        while left:
            number = 0
            hangs = False
            request = {"scenario": left[0].scenario, "faults": [asdict(t.fault) for t in left]}
            for answer in self._ask(request):
                if "begins" in answer:
                    number = answer["begins"]
                elif "hangs" in answer:
                    hangs = True
                elif "ended" in answer:
                    if answer["ended"] != 0:
                        yield left[number], "hangs" if hangs else self._death(answer["ended"])
                elif answer.get("took_place"):
                    yield left[number], "; ".join(answer["problems"])
            left = left[number + 1 :]

    def _death(self, status: object) -> str:
        lines = self._log.read_text(errors="replace").splitlines()[self._lines_known :]
        self._lines_known += len(lines)
        return f"it ended the process ({status}): {' / '.join(lines[-3:])}"

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def _planned(
    campaign: Campaign, workers: Sequence[_Worker], options: argparse.Namespace
) -> list[Trial]:
    only, number = options.only, None
    if options.case is not None:
        only = options.case.rpartition(": ")[0]
    elif options.sample is not None:
        number = max(1, options.sample // _CASES_OF_SCENARIO)
    counts = workers[0].plan(only, number, options.seed)
    trials = [
        Trial(scenario, fault)
        for scenario, by_kind in counts.items()
        for kind, count in by_kind.items()
        for fault in campaign.faults(scenario, kind, count)
    ]
    return [one for one in trials if options.case in (None, str(one))]


def _tried(
    workers: Sequence[_Worker], trials: Sequence[Trial], *, verbose: bool
) -> Iterator[tuple[Trial, str]]:
    """The outcomes of all cases, in their order. The workers share them."""
    batches: list[list[Trial]] = []
    for trial in trials:
        last = batches[-1] if batches else []
        if not last or last[0].scenario != trial.scenario or len(last) == _BATCH:
            batches.append([])
        batches[-1].append(trial)
    free: queue.Queue[_Worker] = queue.Queue()
    for worker in workers:
        free.put(worker)

    def work(batch: list[Trial]) -> list[tuple[Trial, str]]:
        worker = free.get()
        begin = time.monotonic()
        try:
            return list(worker.try_all(batch))
        finally:
            free.put(worker)
            if verbose:
                seconds = time.monotonic() - begin
                print(f"{batch[0]} and {len(batch) - 1} more: {seconds:.1f} s", file=sys.stderr)

    with concurrent.futures.ThreadPoolExecutor(len(workers)) as pool:
        for outcomes in pool.map(work, batches):
            yield from outcomes


# In the worker.


def _work(campaign: Campaign, folder: Path) -> None:
    logging.disable()
    seam = Seam()
    by_name: dict[str, Any] = {}
    for scenario in campaign.scenarios():
        assert scenario.name not in by_name, scenario.name
        by_name[scenario.name] = scenario
    for line in sys.stdin:
        request = json.loads(line)
        child = os.fork()
        if child == 0:
            code = 1
            try:
                _answer(child=os.getpid())
                if "only" in request:
                    named = [one for one in by_name if request["only"] in one]
                    chosen = sample(named, request["number"], request["seed"])
                    _count([by_name[name] for name in chosen], folder, seam)
                else:
                    faults = [Fault(**one) for one in request["faults"]]
                    _try_all(campaign, by_name[request["scenario"]], folder, seam, faults)
                code = 0
            finally:
                if code != 0:
                    logging.disable(logging.NOTSET)
                    logging.exception("the child failed")
                os._exit(code)
        _, status = os.waitpid(child, 0)
        _answer(ended=os.waitstatus_to_exitcode(status))


def _answer(**values: Any) -> None:
    """Writes a line at once, also if the process ends in the next moment."""
    os.write(1, json.dumps(values).encode() + b"\n")


def _count(scenarios: Sequence[Any], folder: Path, seam: Seam) -> None:
    for scenario in scenarios:
        with _place(scenario, folder) as place:
            _warm_up(scenario, place, seam)
            scenario.prepare(place)
            seam.begin()
            scenario.run()
            seam.end()
        _answer(scenario=scenario.name, counts=seam.counts())


@contextmanager
def _place(scenario: Any, folder: Path) -> Iterator[Path]:
    """The folder that a scenario works in, which is not there yet. It is the only one beside it."""
    parent = None if scenario.on_disk else folder
    with tempfile.TemporaryDirectory(dir=parent) as empty:
        yield Path(empty, "files")


def _warm_up(scenario: Any, folder: Path, seam: Seam) -> None:
    """What Python and torch do only once, they do here."""
    seam.refuse(scenario.refused)
    for _ in range(_WARM_UPS):
        scenario.prepare(folder)
        seam.begin()
        scenario.run()
        seam.end()
        wrong = list(scenario.problems(None, settled=True))
        assert not wrong, wrong


def _try_all(
    campaign: Campaign, scenario: Any, folder: Path, seam: Seam, faults: Sequence[Fault]
) -> None:
    with _place(scenario, folder) as place:
        _warm_up(scenario, place, seam)
        for number, fault in enumerate(faults):
            _answer(begins=number)
            problems = list(_try(campaign, scenario, place, seam, fault))
            _answer(took_place=problems != [_NOT_REACHED], problems=problems)


_NOT_REACHED = "not reached"  # a run in threads need not make as many calls as the one before


def _try(
    campaign: Campaign, scenario: Any, folder: Path, seam: Seam, fault: Fault
) -> Iterator[str]:
    scenario.prepare(folder)
    leaks = Leaks()
    raised = _run(scenario, seam, fault)
    has_failed = seam.end()
    place = seam.place
    left = leaks.found()
    if not has_failed:
        yield _NOT_REACHED
        return
    about = f" ({place})" if place else ""
    for problem in (
        *left,
        *_looked_at(scenario, raised, settled=False),
        campaign.judge(scenario, fault, raised),
    ):
        if problem:
            yield f"{problem}{about} [{raised or 'nothing raised'}]"
    if seam.retried_flush():
        yield "a flush that failed was tried again"
    yield from _next(scenario, seam)


def _next(scenario: Any, seam: Seam) -> Iterator[str]:
    """What is wrong with the next run, over what is there now."""
    raised = _run(scenario, seam, None)
    seam.end()
    if raised is not None:
        yield f"the next one fails: {raised}"
    for problem in _looked_at(scenario, raised, settled=True):
        yield f"after the next one: {problem}"


def _looked_at(scenario: Any, raised: Raised | None, *, settled: bool) -> list[str]:
    message = None if raised is None else raised.message
    try:
        return list(scenario.problems(message, settled=settled))
    except Exception as error:
        return [f"what is there cannot be read: {type(error).__name__}: {error}"]


def _run(scenario: Any, seam: Seam, fault: Fault | None) -> Raised | None:
    seam.begin(fault)
    try:
        scenario.run()
    except BaseException as error:
        seam.end()
        return _described(error)
    return None


def _described(error: BaseException) -> Raised:
    # torch.distributed.checkpoint raises one of its own, with those of the ranks in it.
    failures = getattr(error, "failures", None)
    if failures:
        error = next(iter(failures.values()))[0]
    number = getattr(error, "errno", None)
    path = getattr(error, "path", None) or getattr(error, "filename", None)
    return Raised(
        tuple(kind.__name__ for kind in type(error).__mro__), str(error), number, path and str(path)
    )


def _error_name(error: int) -> str:
    return "short" if error == SHORT else errno.errorcode[error]
