"""The most memory that this process has had at one time."""

from pathlib import Path

__all__ = ["forget_peak", "peak_nbytes"]

_STATUS = Path("/proc/self/status")


def peak_nbytes() -> int:
    """Since the last ``forget_peak()``, or ever; 0 where /proc is hidden."""
    if not _STATUS.exists():
        return 0
    [line] = [line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) * 1024


def forget_peak() -> None:
    """From here on the peak counts from what is in use."""
    if _STATUS.exists():
        Path("/proc/self/clear_refs").write_text("5")
