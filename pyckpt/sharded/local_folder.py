"""What torch.distributed.checkpoint asks of a storage that is a folder on this machine."""

from __future__ import annotations

import os
from pathlib import Path

from pyckpt.errors import CheckpointError
from pyckpt.paths import check_is_local

__all__ = ["LocalFolder"]


class LocalFolder:
    """A storage's folder, as both of torch's protocols ask for it.

    Attributes:
        path: The folder.
    """

    path: Path

    @property
    def checkpoint_id(self) -> str | os.PathLike[str]:
        """The folder."""
        return self.path

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """Whether it is a path on this machine."""
        try:
            check_is_local(os.fspath(checkpoint_id))
        except (CheckpointError, TypeError):
            return False
        return True
