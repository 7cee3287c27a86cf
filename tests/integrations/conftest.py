"""Collects the tests of the framework whose environment this is; see `make test-frameworks`."""

import os
from pathlib import Path

FRAMEWORK = os.environ.get("PYCKPT_FRAMEWORK")

collect_ignore = [
    folder.name
    for folder in Path(__file__).parent.iterdir()
    if folder.is_dir() and folder.name != FRAMEWORK
]
