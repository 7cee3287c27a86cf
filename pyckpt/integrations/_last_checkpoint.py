"""The checkpoint that is written last, of Hugging Face's Trainer and accelerate."""

from __future__ import annotations

from pathlib import Path

import pyckpt

__all__ = ["LastCheckpoint"]


class LastCheckpoint:
    """Goes in front of a class that saves: it may still be under way."""

    _pending: pyckpt.PendingSave[Path] | None = None

    def wait_for_checkpoint(self) -> None:
        """Waits until the last checkpoint is there, and those are gone that it replaces.

        Raises:
            CheckpointError: It could not be written. What was there is as it was.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()
