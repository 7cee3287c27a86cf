"""Makes a claim while each of its system calls fails: claim_worker.py FOLDER.

Runs with faults/native/system_calls.c loaded before libc.
"""

import errno
import os
import sys
from pathlib import Path

from faults.leaks import Leaks
from faults.seam import SHORT, Fault, Seam
from pyckpt.storage.claim import Claim

ERRORS = {
    "open": errno.EMFILE,
    "write": errno.ENOSPC,
    "stat": errno.EIO,
    "flock": errno.ENOLCK,
    "close": errno.EIO,
}


def tried(seam: Seam, folder: Path, fault: Fault) -> tuple[bool, OSError | None]:
    """Whether the fault took place, and what it let the claim raise."""
    leaks = Leaks()
    raised = claim = None
    seam.begin(fault)
    try:
        claim = Claim(folder / "x")
    except OSError as error:
        raised = error.with_traceback(None)
    took_place = seam.end()
    if claim is not None:
        [lock] = folder.iterdir()
        assert b'"target": "x"' in lock.read_bytes()
        assert lock.read_bytes().endswith(b"}")
        claim.release()
    else:
        assert raised is not None
        assert raised.errno == fault.error
        assert str(folder) in str(raised.filename)
    assert os.listdir(folder) == []
    assert leaks.found() == []
    return took_place, raised


def main(folder: Path) -> None:
    seam = Seam()
    Claim(folder / "x").release()
    for kind, error in ERRORS.items():
        raised = []
        number = 1
        while True:
            took_place, one = tried(seam, folder, Fault(kind, number, error))
            if not took_place:
                break
            raised.append(one)
            number += 1
        assert raised, kind
        # What can be done without: the system's name, a lock, a close.
        assert any(raised) == (kind in ("open", "write", "stat")), kind
    assert tried(seam, folder, Fault("write", 1, SHORT)) == (True, None)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
