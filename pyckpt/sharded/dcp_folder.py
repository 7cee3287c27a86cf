"""What torch.distributed.checkpoint asks of a storage that is a folder, of files or of objects."""

from __future__ import annotations

import os

from pyckpt.errors import FilenameError, OptionError
from pyckpt.storage.folder import Folder, open_folder
from pyckpt.storage.urls import Location, StorageOptions

__all__ = ["DcpFolder"]


class DcpFolder:
    """A storage's folder, as both of torch's protocols ask for it.

    Raises:
        FilenameError: ``path`` is a URL that no store serves.
        OptionError: The options are wrong, or there are some for a folder of this machine.
    """

    def __init__(self, path: str | os.PathLike[str], storage_options: StorageOptions) -> None:
        super().__init__()
        self._storage_options = storage_options
        self._folder: Folder
        self._move_to(path)

    @property
    def path(self) -> Location:
        """The folder. A URL has no slash at its end."""
        return self._folder.path

    @property
    def checkpoint_id(self) -> str | os.PathLike[str]:
        """The folder."""
        return self.path

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """Whether it is a path on this machine, or a URL that a store serves."""
        try:
            open_folder(checkpoint_id)
        except FilenameError:
            return False
        except OptionError:  # what is missing may come with storage_options
            return True
        return True

    def _move_to(self, path: str | os.PathLike[str]) -> None:
        self._folder = open_folder(path, self._storage_options)
