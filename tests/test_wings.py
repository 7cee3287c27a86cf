"""What scripts/check-wings accepts, and what it reports."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# A small source tree in which every include and import is allowed.
HOUSE = {
    "csrc/base/bytes.h": "",
    "csrc/codec/codec.h": '#include "base/bytes.h"',
    "csrc/codec/formats.cc": '#include "codec/gzip/encoder.h"\n#include "codec/xz/encoder.h"',
    "csrc/codec/gzip/encoder.h": '#include "codec/codec.h"\n#include "codec/gzip/plan.h"',
    "csrc/codec/gzip/plan.h": "#include <vector>",
    "csrc/codec/xz/encoder.h": '#include "codec/codec.h"',
    "csrc/write/pipeline.h": '#include "codec/codec.h"',
    "csrc/read/image.h": '#include "base/bytes.h"',
    "pyckpt/__init__.py": "from pyckpt.archive.save import save",
    "pyckpt/errors.py": "",
    "pyckpt/archive/__init__.py": "",
    "pyckpt/archive/save.py": "from pyckpt import _core\nfrom pyckpt.errors import OptionError",
    "pyckpt/training/__init__.py": "",
    "pyckpt/training/state.py": "import pyckpt.archive.save",
    "pyckpt/cli.py": "import pyckpt",
}


def check(house: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, ROOT / "scripts" / "check-wings", house]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


@pytest.fixture
def house(tmp_path: Path) -> Path:
    for name, text in HOUSE.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    return tmp_path


def test_arrows_that_run_down_pass(house: Path) -> None:
    assert check(house).returncode == 0


def test_this_house_passes() -> None:
    result = check(ROOT)
    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("csrc/base/bytes.h", '#include "codec/codec.h"'),
        ("csrc/codec/codec.h", '#include "write/pipeline.h"'),
        ("csrc/read/image.h", '#include "write/pipeline.h"'),
        ("csrc/codec/xz/encoder.h", '#include "codec/gzip/plan.h"'),
        ("csrc/codec/codec.h", '#include "codec/gzip/plan.h"'),
        ("csrc/codec/gzip/encoder.h", '#include "plan.h"'),
        ("csrc/attic/old.h", "#include <vector>"),
        ("pyckpt/errors.py", "import pyckpt"),
        ("pyckpt/archive/save.py", "from pyckpt.training.state import State"),
        ("pyckpt/archive/save.py", "def late():\n    from pyckpt.training import state"),
        ("pyckpt/archive/save.py", "from pyckpt import training"),
        ("pyckpt/archive/save.py", "from pyckpt import save"),
        ("pyckpt/training/state.py", "import os, pyckpt.cli"),
        ("pyckpt/training/state.py", "from pyckpt.integrations import composer"),
        ("pyckpt/utils.py", ""),
    ],
)
def test_every_other_arrow_is_found(house: Path, file: str, line: str) -> None:
    path = house / file
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"{HOUSE.get(file, '')}\n{line}\n")
    result = check(house)
    assert result.returncode == 1
    assert result.stderr.startswith(file)
    assert len(result.stderr.splitlines()) == 1
