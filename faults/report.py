"""What the campaigns share: their arguments, a sample of the cases, the table, the exit code.

A campaign reads ``arguments()``, takes ``sample()`` of its cases, adds an outcome for each one to a
``Report``, and ends with ``sys.exit(report.end())``.
"""

from __future__ import annotations

import argparse
import itertools
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from benchmarks.table import format_table

__all__ = ["Case", "Report", "argument_parser", "sample"]

_MOST_LISTED = 100  # cases that did not hold; the table counts all of them

_T = TypeVar("_T")


@dataclass(frozen=True)
class Case:
    """What became of one case.

    Attributes:
        what: The row of the table that it counts in.
        broken: What did not hold, in words; empty if everything held.
        repeat: A command that runs this case alone.
    """

    what: str
    broken: str = ""
    repeat: str = ""

    @property
    def held(self) -> bool:
        return not self.broken


def argument_parser(description: str | None) -> argparse.ArgumentParser:
    """A parser with the arguments of every campaign: ``--sample`` and ``--seed``."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--sample", type=int, metavar="N", help="try about N cases, spread evenly over all of them"
    )
    parser.add_argument("--seed", type=int, default=0, help="which sample; the same one by default")
    return parser


def sample(cases: Sequence[_T], number: int | None, seed: int = 0) -> list[_T]:
    """``number`` of the cases in their order, one from each of as many equal stretches.

    All of them if ``number`` is None. The same seed gives the same cases.
    """
    if number is None or number >= len(cases):
        return list(cases)
    chance = random.Random(seed)
    ends = [len(cases) * i // number for i in range(number + 1)]
    return [cases[chance.randrange(begin, end)] for begin, end in itertools.pairwise(ends)]


class Report:
    """Counts outcomes while a campaign runs."""

    def __init__(self, title: str) -> None:
        self.title = title
        self._cases: list[Case] = []
        self._began = time.monotonic()

    def add(self, case: Case) -> None:
        self._cases.append(case)

    @property
    def broken(self) -> list[Case]:
        """The cases that did not hold."""
        return [case for case in self._cases if not case.held]

    def table(self) -> str:
        """One row for each kind of case, in the order in which they came, and their sum."""
        kinds = dict.fromkeys(case.what for case in self._cases)
        rows = []
        for kind in kinds:
            held = [case.held for case in self._cases if case.what == kind]
            rows.append((kind, str(len(held)), str(sum(held))))
        tried = len(self._cases)
        rows.append(("all", str(tried), str(tried - len(self.broken))))
        return format_table(("what", "tried", "held"), rows)

    def end(self) -> int:
        """Prints the table and what did not hold. Returns the exit code: 1 if anything did not.

        Nothing tried is nothing shown, so that is 1 too.
        """
        print(f"{self.title}: {time.monotonic() - self._began:.0f} s\n")
        print(self.table())
        for case in self.broken[:_MOST_LISTED]:
            print(f"\n{case.what}: {case.broken}")
            if case.repeat:
                print(f"    {case.repeat}")
        if len(self.broken) > _MOST_LISTED:
            print(f"\nand {len(self.broken) - _MOST_LISTED} more")
        return 1 if self.broken or not self._cases else 0
