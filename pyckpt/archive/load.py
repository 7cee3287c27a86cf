"""load: reads the object from a file that pyckpt, Composer or torch.save wrote."""

from __future__ import annotations

import difflib
import io
import os
import pickle
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import IO, Any

import torch

from pyckpt.archive.formats import STATES_MEMBER
from pyckpt.archive.members import Member
from pyckpt.archive.reader import ArchiveReader, Contents
from pyckpt.errors import CheckpointError, CorruptArchiveError, OptionError
from pyckpt.key_paths import only
from pyckpt.options import WriteOptions
from pyckpt.progress import ProgressHook, reporting
from pyckpt.storage.file_object import input_file, is_file_object
from pyckpt.storage.inputs import InputFile, open_input
from pyckpt.storage.urls import StorageOptions, Stores, location
from pyckpt.torch_format.deserialize import deserialize
from pyckpt.torch_format.legacy_file import LegacyFile
from pyckpt.torch_format.lost_tensors import lost_tensors
from pyckpt.torch_format.tensor_index import tensors_in
from pyckpt.torch_format.torch_arguments import is_safe_load
from pyckpt.torch_format.torch_file import TorchFile

__all__ = ["load"]

_COPY_NBYTES = 1 << 20
_MOST_NAMED = 5
_MOST_COMPARED = 10_000


def load(
    f: str | os.PathLike[str] | IO[bytes],
    map_location: Any = "cpu",
    pickle_module: Any = None,
    *,
    weights_only: bool | None = None,
    mmap: bool | None = None,
    verify: bool = True,
    num_threads: int | None = None,
    keys: str | Sequence[str] | None = None,
    member: str = STATES_MEMBER,
    progress: ProgressHook = False,
    encoding: str = "utf-8",
    storage_options: StorageOptions = None,
) -> Any:
    """Loads the object from a file that pyckpt, Composer or torch.save wrote.

    It takes the arguments of torch.load.

    The contents of the file decide how it is read, not the suffix. Tensors are decoded directly
    into their final memory: no temporary file, no second copy.

    Args:
        f: A path, an object's URL, or a binary file object: anything with ``read(nbytes)``. That is
            read from where it stands to its end, and stands there afterwards; after an error it is
            where it was, if it can seek. Only a regular file that stands at its start is read in
            place, anything else is first copied to memory.
        map_location: As in torch.load, but "cpu" if it is not given.
        pickle_module: As in torch.load: only None, or Python's pickle, which means
            ``weights_only=False``.
        weights_only: As in torch.load; None means True, unless torch's environment variables say
            otherwise. Besides the types that torch allows, the plain types of a training state
            are allowed (numpy's numbers and arrays of numbers, time deltas).
        mmap: Whether the tensors of an uncompressed file stay in the file until they are read.
            Writes to them go to a copy. None means False. If a file object is copied, they stay in
            that copy, which saves the memory of another, and is freed with the last of them.
        verify: Compare the checksums of everything that is loaded. If all of the member is loaded
            and no other one follows, also compare the checksums of the whole file. torch.load
            compares none. With False, damage behind the member does not matter.
        num_threads: Decoding threads; None takes the CPUs that this process may use.
        keys: Globs over key paths such as ``state/model/*``. ``*`` also matches ``/``, and a match
            includes everything below it. The rest is left out and not unpickled. It is not decoded
            either, where the format allows that: see docs/reading.md.
        member: The name of the member inside a tar. If there are several of this name, the last
            one counts, as for every program that extracts the tar. Links are followed.
        progress: True shows a bar. A function is called with the bytes done and the total, about 20
            times a second. Both only on rank 0.
        encoding: As in torch.load; only "utf-8".
        storage_options: What the store of a URL is told besides the environment.

    Raises:
        CorruptArchiveError: The file is neither a tar nor a file of torch.save, or is damaged. For
            damage, the message names the tensors where possible.
        OptionError: An argument is wrong, the tar has no such member, or a glob of ``keys`` matches
            nothing.
        OSError: The file cannot be read.
        pickle.UnpicklingError: ``weights_only`` forbids something in the file.
    """
    WriteOptions(num_threads=num_threads, progress=progress)
    globs = _globs(keys)
    safely = is_safe_load(weights_only, pickle_module, encoding)
    with (
        _opened(f, storage_options) as file,
        reporting(progress, f"loading {file.path.name}") as report,
    ):

        def tell(done: int, total: int | None) -> None:
            # The total is unknown until the member is found. Until then nothing is reported.
            if report is not None and total is not None:
                report(done, total)

        reader = ArchiveReader(file, num_threads=num_threads, mapped=bool(mmap), report=tell)
        obj = _load(reader, member, globs, map_location, safely, verify)
        if report is not None and reader.wanted_nbytes is not None:
            report(reader.wanted_nbytes, reader.wanted_nbytes)
        if globs is None:
            return obj
        try:
            return only(obj, globs)
        except OptionError as error:
            raise OptionError(f"{error}{_near(reader.again(), member, globs)}") from None


@contextmanager
def _opened(f: Any, storage_options: StorageOptions) -> Iterator[InputFile]:
    if is_file_object(f, "read"):
        with input_file(f) as file:
            yield file
    elif isinstance(f, InputFile):  # by pyckpt itself
        yield f
    else:
        yield open_input(location(f), Stores(storage_options))


def _globs(keys: Any) -> Sequence[str] | None:
    if keys is None:
        return None
    globs = [keys] if isinstance(keys, str) else keys
    if not isinstance(globs, Sequence) or not all(isinstance(glob, str) for glob in globs):
        raise OptionError(f"keys takes globs, not {keys!r}")
    if not globs:
        raise OptionError("keys is empty, so nothing would be loaded")
    return globs


def _near(reader: ArchiveReader, member: str, globs: Sequence[str]) -> str:
    """Names paths of tensors, and of what holds them, that are similar to the globs."""
    try:
        found = reader.find(member, strict=False) if reader.is_tar else reader.whole()
        data = TorchFile(reader, found.offset, found.nbytes).read("data.pkl")
        tensors = [tensor.key_path.split("/") for tensor in tensors_in(data)]
    except (CheckpointError, pickle.UnpicklingError):
        return ""
    paths = {"/".join(parts[:n]): None for parts in tensors for n in range(1, len(parts) + 1)}
    compared = list(paths)[:_MOST_COMPARED]
    near = {one: None for glob in globs for one in difflib.get_close_matches(glob, compared)}
    names = ", ".join(map(repr, [one for one in near if one not in globs][:_MOST_NAMED]))
    return f"; there is {names}" if names else ""


def _load(
    reader: ArchiveReader,
    member: str,
    keys: Sequence[str] | None,
    map_location: Any,
    weights_only: bool,
    verify: bool,
) -> Any:
    path = reader.path
    found = reader.find(member, strict=verify) if reader.is_tar else reader.whole()
    contents = reader.contents(found.offset)
    if contents is Contents.OTHER:
        raise CorruptArchiveError(
            f"{member!r} in {path} is not a file of torch.save", path=str(path)
        )
    file: TorchFile | LegacyFile
    if contents is Contents.TORCH_ZIP:
        file = _torch_file(reader, found)
        if file.is_torch_script:
            return _load_script(file, found, map_location, weights_only, verify)
    else:
        file = LegacyFile(reader, found.offset, found.nbytes)
    return deserialize(
        file, map_location=map_location, weights_only=weights_only, verify=verify, keys=keys
    )


def _torch_file(reader: ArchiveReader, member: Member) -> TorchFile:
    try:
        return TorchFile(reader, member.offset, member.nbytes)
    except CorruptArchiveError as error:
        if reader.image.nbytes is not None:
            raise
        lost = lost_tensors(reader, member.offset, member.nbytes)
        if not lost:
            raise
        names = ", ".join(map(str, lost[:_MOST_NAMED]))
        raise CorruptArchiveError(
            f"{error}; data is lost from {names} on", path=error.path
        ) from error


def _load_script(
    file: TorchFile, member: Member, map_location: Any, weights_only: bool, verify: bool
) -> Any:
    """Loads a program of TorchScript, which is code, with torch."""
    stream, path = file.stream, file.stream.path
    if weights_only:
        raise pickle.UnpicklingError(
            f"{path} is a program of TorchScript, which is code (weights_only=False allows it)"
        )
    if verify:
        for name in file.records:
            file.read(name)
    taken = stream.take(member.offset, member.nbytes)
    raw = io.BufferedReader(_BytesFile(taken), _COPY_NBYTES)
    try:
        return torch.load(raw, map_location=map_location, weights_only=False)
    except RuntimeError as error:
        if "PytorchStreamReader" not in str(error):  # torch's zip reader
            raise
        raise CorruptArchiveError(f"{path} is damaged: {error}", path=str(path)) from error


class _BytesFile(io.RawIOBase):
    """Bytes in memory as a readable file."""

    def __init__(self, data: Any) -> None:
        self._bytes = memoryview(data)
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: len(self._bytes)}
        self._position = max(0, start[whence] + offset)
        return self._position

    def readinto(self, buffer: Any) -> int:
        piece = self._bytes[self._position : self._position + len(buffer)]
        buffer[: len(piece)] = piece
        self._position += len(piece)
        return len(piece)
