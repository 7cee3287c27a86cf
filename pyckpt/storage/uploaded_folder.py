"""A transaction's folder in a store: it is written on this machine, and uploaded at the end.

    seal:    who uploads which file ─▶ upload the large ones
    commit:  let all objects appear ─▶ remove those that were below the URL before
             all ranks, the first last

A store has no folders, so none appears as a whole. For as long as the commits take, readers find
old objects and new ones.
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath

from pyckpt.errors import CheckpointError, DuplicateFileError, FilenameError
from pyckpt.ranks.exchange import Channel, decide, together
from pyckpt.ranks.file_identity import file_identity
from pyckpt.staging.pending_saves import wait_for_file
from pyckpt.storage.claim import Claim, sweep
from pyckpt.storage.destination import Crew, Destination
from pyckpt.storage.file_uploads import FileToUpload, FileUploads, is_large
from pyckpt.storage.files_below import FoundFile, files_below
from pyckpt.storage.urls import StorageOptions, Url, open_store

__all__ = ["UploadedFolder"]

_LOGGER = logging.getLogger("pyckpt")

_WITHOUT_BUCKETS = ("memory",)


class UploadedFolder(Destination):
    """See Destination. The hidden folder is in the system's temporary folder.

    Args:
        url: Without a slash at its end.

    Raises:
        FilenameError: ``url`` is an object, or a whole bucket.
        OptionError: The options are wrong.
        OSError: The store refuses, or cannot be reached, or has no such bucket.
    """

    def __init__(self, url: Url, options: StorageOptions = None) -> None:
        if not url.key and url.scheme not in _WITHOUT_BUCKETS:
            raise FilenameError(
                f"{url!r} is a whole bucket, whose objects would be replaced: name a folder in it",
                path=url,
            )
        self.given = url
        self.target = url
        self.parent = Path(os.path.realpath(tempfile.gettempdir()))
        self.identity = file_identity(self.parent / url.name)
        self._prefix = Url(f"{url}/")
        self._store = open_store(url, options)
        self._claim: Claim | None = None
        self._uploads: FileUploads | None = None
        self._old: list[Url] = []  # on the first rank: the objects that are not in the new set
        wait_for_file(url)
        self._look()

    def make(self) -> str:
        sweep(self.parent)
        self._claim = Claim(self.parent / self.target.name)
        self._claim.new.mkdir(mode=0o700)  # the temporary folder is everybody's
        return self._claim.new.name

    def seal(self, folder: Path, crew: Crew) -> None:
        channel = crew.channel
        found = together(
            f"reading what is to be uploaded to {self.target}",
            lambda: files_below(folder) if crew.is_maker else [],
            channel,
        )
        self._check_distinct(found, channel)
        names = {file.name for files in found for file in files}
        self._uploads = FileUploads(
            self._store,
            [
                FileToUpload(folder / file.inner, file.nbytes, self._url(file.name))
                for file in _share(found[crew.maker], crew)
            ],
        )
        together(f"uploading {self.target}", lambda: self._upload(names, channel), channel)

    def commit(self, crew: Crew) -> None:
        assert self._uploads is not None
        channel = crew.channel
        doing, commit = f"committing {self.target}", self._uploads.commit
        is_first = channel.rank == 0
        # The first rank's objects come last: they make the set complete.
        if channel.size > 1:
            together(doing, _nothing if is_first else commit, channel)
        decide(doing, commit if is_first else _nothing, channel, self._uploads.keep)
        together(f"removing what was below {self.target} before", self._remove_old, channel)

    def close(self) -> None:
        uploads, self._uploads = self._uploads, None
        try:
            if uploads is not None:
                uploads.abandon()
        finally:
            self._remove_hidden()

    def _remove_hidden(self) -> None:
        claim, self._claim = self._claim, None
        if claim is not None:
            try:
                claim.release()
            except OSError as error:
                _LOGGER.warning(
                    "%s could not be removed: %s. The next transaction tries it again.",
                    claim.new,
                    error,
                )

    def _url(self, name: str) -> Url:
        return Url(self._prefix + name)

    def _look(self) -> None:
        """Asks the store for an object, and for one below: so wrong credentials are noticed."""
        next(self._store.list(self._prefix), None)
        with suppress(FileNotFoundError):
            self._store.stat(self.target)
            raise FilenameError(f"{self.target} is an object and not a folder", path=self.target)

    def _check_distinct(self, found: Sequence[Sequence[FoundFile]], channel: Channel) -> None:
        """Checks that files from several folders fit into one."""
        seen: dict[str, int] = {}
        for rank, files in zip(channel.members, found, strict=True):
            for file in files:
                other = seen.setdefault(file.name, rank)
                if other != rank:
                    raise self._duplicate(file.name, other, rank, "")
        for name, rank in seen.items():
            for folder in PurePosixPath(name).parents:
                other = seen.get(str(folder), rank)
                if other != rank:
                    raise self._duplicate(str(folder), other, rank, ", one of them as a folder")

    def _duplicate(self, name: str, rank: int, other: int, how: str) -> DuplicateFileError:
        url = self._url(name)
        return DuplicateFileError(
            f"ranks {rank} and {other} would both write {url}, from folders of their own{how}: put "
            "the rank's or the machine's number into the name",
            rank=other,
            path=url,
        )

    def _upload(self, names: set[str], channel: Channel) -> None:
        """Uploads what can be uploaded before it is seen."""
        assert self._uploads is not None
        if channel.rank == 0:
            kept = {self._prefix, *map(self._url, names)}  # some tools make one for the folder
            below = [one.url for one in self._store.list(self._prefix)]
            self._old = [url for url in below if url not in kept]
        self._uploads.seal()

    def _remove_old(self) -> None:
        try:
            self._store.remove_all(self._old)
        except OSError as error:
            raise CheckpointError(
                f"the new objects are all there, and some of the {len(self._old)} that were below "
                f"{self.target} before are there too: {error}",
                path=self.target,
                errno=error.errno,
            ) from error


def _share(files: Sequence[FoundFile], crew: Crew) -> list[FoundFile]:
    """What this rank uploads of the files in its hidden folder.

    The ranks that share the folder share the large files. The small ones are the maker's.
    """
    shares: dict[int, list[FoundFile]] = {rank: [] for rank in crew.sharing()}
    loads = dict.fromkeys(shares, 0)
    for file in sorted(files, key=lambda file: -file.nbytes):
        least = min(loads, key=loads.__getitem__) if is_large(file.nbytes) else crew.maker
        shares[least].append(file)
        loads[least] += file.nbytes
    return shares[crew.channel.rank]


def _nothing() -> None:
    """The step of a rank that has nothing to do."""
