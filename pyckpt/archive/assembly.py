"""ArchiveWriter: an archive that is put together member by member, and appears as a whole."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

from pyckpt.archive import writer
from pyckpt.archive.files import add_stored_file, tree
from pyckpt.archive.formats import TORCH_FILE, file_format, suffix_format
from pyckpt.archive.member_names import MemberNames, check_member
from pyckpt.errors import CheckpointError, OptionError
from pyckpt.interrupts import is_interrupt
from pyckpt.options import WriteOptions
from pyckpt.paths import local_path
from pyckpt.progress import ProgressHook
from pyckpt.staging.pending_saves import wait_for_file
from pyckpt.storage.file_object import OutputFile, is_file_object
from pyckpt.storage.remote_object import target_at
from pyckpt.storage.target import Target
from pyckpt.storage.urls import Location, StorageOptions, location

__all__ = ["ArchiveWriter", "saving"]


class ArchiveWriter:
    """Writes one archive of any members. It appears as a whole, or not at all.

    Add members, call ``write()``, then ``commit()``::

        with pyckpt.ArchiveWriter("step-500.tar.gz") as archive:
            archive.add_object("model.pt", model.state_dict())
            archive.add_bytes("step", b"500")
            archive.add_tree("tokenizer", "runs/tokenizer")
            archive.write()
            archive.commit()

    The bytes of objects and files are read by ``write()``, and must not change before it returns.
    What is not committed when the ``with`` block ends is abandoned: a previous file is unchanged.
    Folders of members are added automatically. A tar may have any number of members; any other
    file has exactly one.

    Only one thread at a time may use it.

    Args:
        f: The file or the URL; its suffix decides the format, as in ``save``. ``write()`` makes its
            folder. Or a file object, which ``write()`` writes to, and in which all stays that was
            written.
        format: As in ``save``.
        compression_level, num_threads, fsync, progress, storage_options: As in ``save``.

    Raises:
        FilenameError: The suffix is unknown, or the path exists and is not a regular file.
        OptionError: An argument is wrong, in this call or in others. So is a name that leads out of
            the archive, that is not UTF-8, that another member has, or that stands for a file and a
            folder. Nothing has been written then.
        CheckpointError: Any other failure, in this call or in others. It has the path and, if a
            system call failed, its errno.
    """

    def __init__(
        self,
        f: str | os.PathLike[str] | IO[bytes],
        *,
        format: str | None = None,
        compression_level: int | None = None,
        num_threads: int | None = None,
        fsync: bool = True,
        progress: ProgressHook = False,
        storage_options: StorageOptions = None,
    ) -> None:
        options = WriteOptions(compression_level, num_threads, fsync, progress)
        target: Target
        self._path: Location
        self._has_name = not is_file_object(f, "write")
        if not self._has_name:
            kind = TORCH_FILE if format is None else suffix_format(format)
            target = OutputFile(f)
            self._path = target.path
            if storage_options:
                raise OptionError("storage_options are for URLs, and not for file objects")
        else:
            if format is not None:
                raise OptionError(
                    "format is for file objects: the suffix of a path says its format"
                )
            self._path = location(f)  # type: ignore[arg-type]
            kind = file_format(self._path)
            target = target_at(self._path, storage_options)
        self._is_tar = kind.is_tar
        self._names = MemberNames()
        self._has_one = False
        self._state = "new"
        with saving(self._path):
            self._writer = writer.ArchiveWriter(target, options, kind=kind)

    def __enter__(self) -> ArchiveWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.abandon()

    @property
    def path(self) -> Location:
        """The file, or the URL."""
        return self._path

    @property
    def progress(self) -> tuple[int, int]:
        """Bytes written so far, and the total, before compression. Any thread may ask.

        The total is 0 before ``plan()``, and final after it.
        """
        return self._writer.progress

    def add_object(self, name: str, obj: Any, *, compact_views: bool = False) -> None:
        """Adds a file of torch.save, which ``pyckpt.load(path, member=name)`` reads.

        Args:
            obj: Anything that torch.save can save.
            compact_views: Of a tensor that is a part of a larger one, save only that part. Tensors
                that share memory do not share it in the file then.
        """
        with self._adding(name):
            self._writer.add_object(name, obj, compact_views=compact_views)

    def add_bytes(self, name: str, data: bytes | bytearray | memoryview) -> None:
        """Adds a file with these bytes."""
        with self._adding(name):
            self._require_plain("bytes")
            # Not bytes(data), which takes a number too.
            self._writer.add_bytes(name, bytes(memoryview(data)))

    def add_file(self, name: str, path: str | os.PathLike[str]) -> None:
        """Adds a copy of the file at ``path``, with its mode."""
        source = local_path(path)
        with self._adding(name):
            self._require_plain("a file")
            add_stored_file(self._writer, name, source)

    def add_directory(self, name: str) -> None:
        """Adds a folder. It may be there already."""
        with self._changing():
            if not self._is_tar:
                raise OptionError(f"{self._path} is not a tar, and can have no folder")
            self._names.add_folder(name)
            self._writer.add_directory(name)

    def add_tree(self, name: str, folder: str | os.PathLike[str]) -> None:
        """Adds a folder with everything below it. Links to files are followed.

        Args:
            name: The folder's name in the archive. An empty one stands for the archive itself.

        Raises:
            OptionError: As for all names; or the folder has a link that leads to a folder or
                nowhere, or something else that is not a file. Some of it has been added then.
        """
        if name:
            self.add_directory(name)
        with saving(self._path):
            for inner, path in tree(local_path(folder)):
                member = f"{name}/{inner}" if name else inner
                if path is None:
                    self.add_directory(member)
                else:
                    self.add_file(member, path)

    def plan(self) -> None:
        """Sorts the members and fixes the place of each. None may be added afterwards.

        ``write()`` does it, if it has not been done.
        """
        with self._changing():
            if not self._is_tar and not self._has_one:
                raise OptionError(f"{self._path} has no member: a file that is no tar has one")
            self._writer.plan()
            self._state = "planned"

    def place(self, name: str) -> tuple[int, int]:
        """Where the data of a file is in the archive before compression: (offset, nbytes).

        It is known after ``plan()``. Records that ``compression_level`` deflates in torch's own
        file have no place.

        Raises:
            OptionError: There is no such file, or it has no place yet, or none at all.
        """
        try:
            return self._writer.place(name)
        except KeyError:
            raise OptionError(f"there is no place of {name!r} in {self._path}") from None

    def write(self) -> int:
        """Writes all members to a hidden file, an upload or the file object. Returns the size.

        An asynchronous save of the same file, which is under way, is finished first.
        """
        if self._state == "new":
            self.plan()
        with saving(self._path):
            self._require("planned")
            self._state = "failed"
            if self._has_name:
                wait_for_file(self._path)  # else it would replace this newer file
            nbytes = self._writer.write()
            self._state = "written"
        return nbytes

    def commit(self) -> None:
        """Gives the hidden file its name, or lets the object appear. What was there is replaced."""
        with saving(self._path):
            self._require("written")
            self._writer.commit()
            self._state = "committed"

    def abandon(self) -> None:
        """Removes what was written, unless it is committed, and releases the objects."""
        self._writer.abandon()
        if self._state != "committed":
            self._state = "abandoned"

    @contextmanager
    def _changing(self) -> Iterator[None]:
        with saving(self._path):
            self._require("new")
            yield

    @contextmanager
    def _adding(self, name: str) -> Iterator[None]:
        with self._changing():
            check_member(name)
            if self._has_one and not self._is_tar:
                raise OptionError(f"{self._path} is not a tar, and can have only one member")
            self._names.add_file(name)
            try:
                yield
            except BaseException:
                self._names.forget_file(name)
                raise
            self._has_one = True

    def _require(self, state: str) -> None:
        if self._state != state:
            raise CheckpointError(
                f"the archive {self._path} must be {state} for that, and is {self._state}",
                path=str(self._path),
            )

    def _require_plain(self, what: str) -> None:
        if self._writer.is_deflated:
            raise OptionError(
                f"{self._path} is torch's own file with records that are compressed: it is made of "
                f"an object, and not of {what}"
            )


@contextmanager
def saving(path: Location) -> Iterator[None]:
    """Makes errors of a save CheckpointErrors that name the file, except Ctrl-C and the like."""
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:
        if is_interrupt(error):
            raise
        raise CheckpointError(
            f"saving {path} failed: {type(error).__name__}: {error}",
            path=str(path),
            errno=error.errno if isinstance(error, OSError) else None,
        ) from error
