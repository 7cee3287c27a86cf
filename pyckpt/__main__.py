"""``python -m pyckpt``: the command of the same name."""

import sys

from pyckpt.cli import main

sys.exit(main())
