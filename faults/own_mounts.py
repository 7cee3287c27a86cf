"""Runs a campaign again in a mount namespace of its own.

A namespace that somebody else makes meanwhile has no copies of its mounts then. Such a copy would
keep a file system from being unmounted.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping

__all__ = ["has_own_mounts", "run_with_own_mounts"]

_MARK = "PYCKPT_OWN_MOUNTS"


def has_own_mounts() -> bool:
    """Whether this process is the one that ``run_with_own_mounts`` has started."""
    return _MARK in os.environ


def run_with_own_mounts(campaign: str, environment: Mapping[str, str] | None = None) -> int:
    """Runs ``python -m campaign`` with the arguments of this process. Returns its exit code.

    Args:
        environment: What it gets besides the environment of this process.
    """
    if os.geteuid() != 0:
        print("file systems are mounted, which needs root", file=sys.stderr)
        return 1
    command = ["unshare", "--mount", sys.executable, "-m", campaign, *sys.argv[1:]]
    return subprocess.run(
        command, env={**os.environ, **(environment or {}), _MARK: "1"}, check=False
    ).returncode
