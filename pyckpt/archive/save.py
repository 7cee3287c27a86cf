"""save: writes any object to one file, or to a file object."""

from __future__ import annotations

import os
import pickle
from typing import IO, Any

from pyckpt.archive.assembly import ArchiveWriter
from pyckpt.archive.formats import STATES_MEMBER
from pyckpt.progress import ProgressHook
from pyckpt.storage.urls import StorageOptions
from pyckpt.torch_format.torch_arguments import check_save_arguments

__all__ = ["save"]


def save(
    obj: Any,
    f: str | os.PathLike[str] | IO[bytes],
    pickle_module: Any = pickle,
    pickle_protocol: int = 2,
    _use_new_zipfile_serialization: bool = True,
    _disable_byteorder_record: bool = False,
    *,
    format: str | None = None,
    compression_level: int | None = None,
    num_threads: int | None = None,
    fsync: bool = True,
    member: str = STATES_MEMBER,
    progress: ProgressHook = False,
    storage_options: StorageOptions = None,
) -> None:
    """Saves any object that torch.save can save, and takes the arguments of torch.save.

    The suffix of a path decides the format. The file under the path is replaced as a whole or not
    at all. Folders are created.

    A URL, such as ``"s3://bucket/run/x.tar.gz"``, names an object in a store. It is uploaded while
    it is compressed, with no copy on a disk, and appears as a whole or not at all: see
    docs/stores.md.

    A file object gets the format of ``format``, piece by piece from where it stands, on the thread
    that calls. It need not seek, so it may be a pipe or a socket. After an error, what was written
    stays in it.

    As with torch.save, the file has what this process has: of a DTensor, this rank's part alone. To
    save a state that is spread over ranks, use ``save_checkpoint``.

    Args:
        obj: Its tensors are read in place and must not change during the call.
        f: A path, a URL, or a binary file object: anything with ``write(bytes)``.
        pickle_module: As in torch.save; only Python's pickle.
        pickle_protocol: As in torch.save; only 2.
        format: The suffix that says what a file object gets, such as ``".tar.gz"``. None means
            torch's own file, as from torch.save. Not for paths.
        compression_level: The format's level; None takes its standard one. Torch's own file
            (``model.pt``) is compressed only if it is given; torch.load reads it all the same, but
            not with ``mmap=True``.
        num_threads: Worker threads; None takes the CPUs that this process may use.
        fsync: Whether to wait until the file is on the disk. A file object is flushed in any case,
            and if a regular file is behind it, its bytes are then on the disk too. Its name in its
            folder is the caller's business.
        member: The name of the member inside a tar.
        progress: True shows a bar. A function is called with the bytes done and the total, about 20
            times a second. Both only on rank 0.
        storage_options: For URLs: what the store's client is told besides the environment.

    Raises:
        CheckpointError: The file could not be written, or an argument is wrong
            (FilenameError, OptionError). A previous file is unchanged.
    """
    check_save_arguments(
        pickle_module, pickle_protocol, _use_new_zipfile_serialization, _disable_byteorder_record
    )
    with ArchiveWriter(
        f,
        format=format,
        compression_level=compression_level,
        num_threads=num_threads,
        fsync=fsync,
        progress=progress,
        storage_options=storage_options,
    ) as writer:
        writer.add_object(member, obj)
        writer.write()
        writer.commit()
