"""zstd's own program. Python has zstd since 3.14 only."""

import io
import subprocess
import tarfile
from pathlib import Path

__all__ = ["compress", "decompress", "open_tar"]


def compress(raw: bytes) -> bytes:
    """One frame with its size and a checksum."""
    command = ["zstd", "-q", f"--stream-size={len(raw)}"]
    return subprocess.run(command, input=raw, capture_output=True, check=True).stdout


def decompress(file: bytes) -> bytes:
    return subprocess.run(["zstd", "-qd"], input=file, capture_output=True, check=True).stdout


def open_tar(path: Path) -> tarfile.TarFile:
    """A tar of any compression."""
    if path.name.endswith((".tar.zst", ".tzst")):
        return tarfile.open(fileobj=io.BytesIO(decompress(path.read_bytes())))
    return tarfile.open(path)
