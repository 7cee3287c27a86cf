"""Every allocation, mapping and start of a thread in pyckpt's core fails once.

    python -m faults.allocations [--sample N] [--seed S] [--only TEXT] [--case CASE]

And from some of them on, all fail: so errors are handled without memory too.
"""

from __future__ import annotations

import errno
import sys
from typing import Any

from faults.injection import Campaign, Raised, run
from faults.scenarios import scenarios
from faults.seam import Fault

# "python" is what Python's interpreter allocates.
_KINDS = {"core": errno.ENOMEM, "map": errno.ENOMEM, "thread": errno.EAGAIN}


# Scenarios that allocate as others do, or take long, are tried at every few allocations.
_ALIKE = {"named": 5, "into new/folder": 5, "several chunks": 10, "past the page cache": 10}
_STEP_ALL_BEHIND = 4


def faults(scenario: str, kind: str, count: int) -> list[Fault]:
    """Each one alone, and every few with all behind them."""
    if kind not in _KINDS:
        return []
    step = max((step for part, step in _ALIKE.items() if part in scenario), default=1)
    if kind != "core":
        step = 1
    return [
        Fault(kind, number, _KINDS[kind], all_behind)
        for all_behind in (False, True)
        for number in range(1, count + 1, step * (_STEP_ALL_BEHIND if all_behind else 1))
    ]


def judge(scenario: Any, fault: Fault, raised: Raised | None) -> str:
    """What does not hold although the files are right."""
    if raised is None:
        return ""
    if "CorruptArchiveError" in raised.kinds:
        return "the file is said to be damaged"
    # What torch says if Python cannot have a buffer.
    is_of_torch = fault.all_behind and "could not retrieve buffer" in raised.message
    if not is_of_torch and not {"MemoryError", "CheckpointError", "OSError"} & set(raised.kinds):
        return "the error is of no known type"
    return ""


def main() -> int:
    """The command."""
    return run(
        Campaign(
            "every allocation of the core fails once",
            "faults.allocations",
            "allocations",
            scenarios,
            faults,
            judge,
        )
    )


if __name__ == "__main__":
    sys.exit(main())
