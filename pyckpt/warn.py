"""Warnings that point at the line of the caller, who can do something about them."""

from __future__ import annotations

import re
import sys
import warnings
from pathlib import Path
from types import FrameType

__all__ = ["warn", "warn_if_untried"]

_PACKAGE = str(Path(__file__).parent)


def warn(message: str) -> None:
    """Warns of what the code outside of pyckpt does that called it."""
    if sys.version_info >= (3, 12):
        warnings.warn(message, skip_file_prefixes=(_PACKAGE,), stacklevel=1)
    else:
        warnings.warn(message, stacklevel=_level())


def _level() -> int:
    """The stack level of the first frame outside of pyckpt, counted from ``warn``."""
    level, frame = 1, sys._getframe(1)
    caller: FrameType | None = frame
    while caller is not None and caller.f_code.co_filename.startswith(_PACKAGE):
        level, caller = level + 1, caller.f_back
    return level


def warn_if_untried(package: str, version: str, newest: tuple[int, int]) -> None:
    """Warns of a version of a framework that is newer than what pyckpt was tried with."""
    found = tuple(int(part) for part in re.findall(r"\d+", version)[:2])
    if found > newest:
        tried = ".".join(map(str, newest))
        warn(f"pyckpt was tried with {package} up to {tried}, and this is {version}")
