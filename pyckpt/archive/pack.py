"""Packs a file of torch.save, or the files of a folder, into an archive."""

from __future__ import annotations

import os

from pyckpt.archive.files import add_stored_file, add_torch_file, tree
from pyckpt.archive.formats import STATES_MEMBER, archive_format
from pyckpt.archive.writer import ArchiveWriter
from pyckpt.errors import CorruptArchiveError, OptionError
from pyckpt.options import WriteOptions
from pyckpt.paths import local_path
from pyckpt.progress import ProgressHook

__all__ = ["pack"]


def pack(
    source: str | os.PathLike[str],
    path: str | os.PathLike[str],
    *,
    compression_level: int | None = None,
    num_threads: int | None = None,
    fsync: bool = True,
    progress: ProgressHook = False,
) -> None:
    """Writes a file of torch.save, or all files of a folder, to the archive ``path``.

    A file becomes the member ``composer_states.pt``. The files of a folder keep their names. Links
    to files are followed.

    Args:
        source: The file or the folder. The other arguments are those of :func:`convert`.

    Raises:
        OptionError: An argument is wrong, ``path`` does not end with a tar suffix, or the folder
            has a link that leads to a folder or nowhere, or something else that is not a file.
        CorruptArchiveError: ``source`` is a file that torch.save did not write.
        OSError: A file cannot be read or written.
    """
    source, path = local_path(source), local_path(path)
    with ArchiveWriter(
        path, WriteOptions(compression_level, num_threads, fsync, progress)
    ) as writer:
        if archive_format(path) is None:
            raise OptionError(f"{path} does not end with a tar suffix")
        if source.is_dir():
            for name, file in tree(source):
                if file is None:
                    writer.add_directory(name)
                else:
                    add_stored_file(writer, name, file)
        elif not add_torch_file(writer, STATES_MEMBER, source):
            raise CorruptArchiveError(f"{source} is not a file of torch.save", path=str(source))
        writer.write()
        writer.commit()
