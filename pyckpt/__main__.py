"""``python -m pyckpt`` runs the command ``pyckpt``."""

import sys

from pyckpt.cli import main

sys.exit(main())
