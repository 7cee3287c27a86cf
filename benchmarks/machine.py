"""The machine on which the numbers were measured."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import torch

from pyckpt import _core
from pyckpt.options import available_cpus

__all__ = ["describe_machine"]


def describe_machine(folder: Path) -> dict[str, str]:
    """CPU, versions, and the file system that holds ``folder``."""
    return {
        "CPU": f"{_cpu_model()}, {available_cpus()} of {os.cpu_count()} usable",
        "kernels": ", ".join(_core.kernels()) or "portable",
        "system": f"{platform.system()} {platform.release()}",
        "Python": platform.python_version(),
        "torch": torch.__version__,
        "folder": f"{folder} ({_file_system(folder)})",
    }


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def _file_system(folder: Path) -> str:
    """Its type, as the mount table gives it: proc(5)."""
    try:
        mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    except OSError:
        return "unknown file system"
    real = folder.resolve()
    holding = [(mount[1], mount[2]) for mount in mounts if real.is_relative_to(mount[1])]
    return max(holding, key=lambda mount: len(mount[0]), default=("", "unknown file system"))[1]
