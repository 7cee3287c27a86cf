"""The members of a tar, and which of them count.

``tar -r`` and ``tar -u`` append newer files under names that are there already. What counts is what
a program that extracts the tar leaves in the folder: the last member of a name, and what links lead
to.
"""

from __future__ import annotations

import difflib
import posixpath
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from pyckpt.errors import CorruptArchiveError, OptionError

__all__ = ["FILE", "FOLDER", "Member", "MemberIndex", "inner_path"]

FILE = "0"
HARD_LINK = "1"
SYMBOLIC_LINK = "2"
FOLDER = "5"
_KINDS = {
    HARD_LINK: "a link",
    SYMBOLIC_LINK: "a link",
    "3": "a device",
    "4": "a device",
    FOLDER: "a folder",
    "6": "a pipe",
    "M": "a part of a file, which continues one of another volume",
    "S": "a sparse file, which pyckpt does not read",
}
_MOST_LINKS = 40  # that are followed for one name, as in Linux
_MOST_COMPARED = 10_000
_MOST_NAMED = 3


def inner_path(name: str) -> str:
    """A member's name as a path in the folder: ``./a//b`` is ``a/b``. The folder itself is ``""``.

    ``..`` and a leading ``/`` stay.
    """
    path = "/".join(part for part in name.split("/") if part not in ("", "."))
    return f"/{path}" if name.startswith("/") else path


@dataclass(frozen=True)
class Member:
    """One member of a tar. Offsets are positions in the decompressed stream.

    Attributes:
        name: As written; bytes that are not UTF-8 become surrogates. Do not use it as a file name,
            use ``inner_name()``.
        type: The type code of POSIX: ``"0"`` is a file, ``"5"`` a folder. ``"S"`` is a sparse file.
        header_offset: Where the first of its headers begins.
        offset: Where its data begins.
        nbytes: Size of its data.
        link: The name that a link leads to, as written; empty for anything else.
    """

    name: str
    type: str
    header_offset: int
    offset: int
    nbytes: int
    link: str = ""

    @property
    def path(self) -> str:
        """See ``inner_path``."""
        return inner_path(self.name)

    @property
    def end(self) -> int:
        """Where its data ends."""
        return self.offset + self.nbytes

    @property
    def kind(self) -> str:
        """What it is, if it is no file: ``a folder``, ``a link to 'a/b'``."""
        kind = _KINDS[self.type]
        return f"{kind} to {self.link!r}" if self.link else kind

    def inner_name(self, path: Path | str) -> str:
        """The name as a relative path that cannot leave the folder it is extracted to.

        Args:
            path: The archive's path, for the error message.

        Raises:
            CorruptArchiveError: The name is absolute, or contains ``..`` or NUL.
        """
        name = self.path
        if name.startswith("/") or "\0" in name or ".." in name.split("/"):
            raise CorruptArchiveError(
                f"{path} has a member {self.name!r} whose name leads out of the archive",
                path=str(path),
            )
        return name


class MemberIndex:
    """Which members of a tar count. Add all members in the order of the tar, then ask.

    Attributes:
        replaced: Members that do not count, because a later one has their name.
        last_offset: Where the data of the tar's last member begins.
    """

    def __init__(self) -> None:
        self.replaced: list[Member] = []
        self.last_offset = 0
        self._last: dict[str, Member] = {}

    def add(self, member: Member) -> None:
        """Adds the next member."""
        path = member.path
        self.last_offset = member.offset
        if member.type == HARD_LINK:
            # It leads to the file that has the name now, not to a later one.
            target = self._last.get(inner_path(member.link))
            if target is not None:
                member = replace(target, name=member.name, header_offset=member.header_offset)
        before = self._last.pop(path, None)
        if before is not None and before.type != FOLDER and before.offset != member.offset:
            self.replaced.append(before)
        self._last[path] = member

    def __iter__(self) -> Iterator[Member]:
        """The members that count, in the order of the tar. A hard link has its file's data."""
        return iter(self._last.values())

    def folders(self, archive: Path | str) -> list[str]:
        """The paths of the folders.

        Raises:
            CorruptArchiveError: A name leads out of the archive.
        """
        paths = [one.inner_name(archive) for one in self if one.type == FOLDER]
        return [path for path in paths if path]

    def files(
        self, archive: Path | str, is_wanted: Callable[[str], bool] = lambda path: True
    ) -> dict[str, Member]:
        """All wanted files by their paths. A link has its file's data.

        Raises:
            CorruptArchiveError: A name leads out of the archive, or a member is no file, no folder
                and no link to a file.
        """
        files = {}
        for member in self:
            if member.type == FOLDER or not is_wanted(member.path):
                continue
            name = member.inner_name(archive)
            try:
                files[name] = self.file(name, archive)
            except OptionError as error:
                raise CorruptArchiveError(
                    f"{archive} has a member {name!r} that is neither a file nor a folder: it is "
                    f"{member.kind}",
                    path=str(archive),
                ) from error
        return files

    def file(self, name: str, archive: Path | str) -> Member:
        """The file of a name, wherever links lead to.

        Raises:
            OptionError: There is no such file.
            CorruptArchiveError: It is a file that pyckpt does not read.
        """
        path = inner_path(name)
        member = self._last.get(path)
        if member is None:
            raise OptionError(f"{archive} has no member {name!r}{self._near(path)}")
        found = self._behind_links(member)
        if found is None or found.type in _KINDS.keys() - "MS":
            raise OptionError(
                f"{archive} has no file {name!r}: it is {member.kind}, which is no file in it"
                if member.link
                else f"{archive} has no file {name!r}: it is {member.kind}"
            )
        if found.type != FILE:
            raise CorruptArchiveError(
                f"{archive} cannot be read: its member {name!r} is {found.kind}", path=str(archive)
            )
        return found

    def _behind_links(self, member: Member) -> Member | None:
        found: Member | None = member
        for _ in range(_MOST_LINKS):
            if found is None or found.type not in (HARD_LINK, SYMBOLIC_LINK):
                return found
            if found.type == HARD_LINK:  # whose file was not there
                return None
            folder = posixpath.dirname(found.path)
            path = posixpath.normpath(posixpath.join(folder, found.link))
            found = self._last.get(path)
        return None

    def _near(self, path: str) -> str:
        paths = [m.path for m in islice(self, _MOST_COMPARED) if m.type != FOLDER]
        same_file = [p for p in paths if posixpath.basename(p) == posixpath.basename(path)]
        near = same_file + difflib.get_close_matches(path, paths, _MOST_NAMED)
        named = list(dict.fromkeys(near or paths))[:_MOST_NAMED]
        return f"; it has {', '.join(map(repr, named))}" if named else "; it has no files"
