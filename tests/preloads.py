"""Libraries that stand before libc in a process: what they do is told by tests/native."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

NATIVE = Path(__file__).parent / "native"


def preload(name: str, folder: Path, sources: Path = NATIVE) -> dict[str, str]:
    """What the environment of a process must have, so that it runs with a library.

    Args:
        name: Of the source, without ``.c``.
        folder: The library is compiled into it.
        sources: Where the source is.
    """
    library = folder / f"{name}.so"
    compiler = shutil.which("cc") or shutil.which("gcc") or "g++"
    source = sources / f"{name}.c"
    command = [compiler, "-x", "c", "-shared", "-fPIC", "-O1", source, "-o", library, "-ldl"]
    subprocess.run(command, check=True, timeout=100)
    # A sanitizer, which comes first, may be there already.
    return {"LD_PRELOAD": ":".join(filter(None, [os.environ.get("LD_PRELOAD"), str(library)]))}
