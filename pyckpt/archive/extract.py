"""Extracts members and tensors of an archive as files. All or nothing."""

from __future__ import annotations

import ctypes
import errno
import io
import os
import select
import shutil
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from pyckpt.archive.formats import archive_format
from pyckpt.archive.load import load
from pyckpt.archive.members import Member, MemberIndex, inner_path
from pyckpt.archive.reader import ArchiveReader
from pyckpt.archive.save import save
from pyckpt.archive.verify import verify_and_index
from pyckpt.archive.writer import ArchiveWriter, Segment
from pyckpt.errors import CorruptArchiveError, OptionError
from pyckpt.options import WriteOptions
from pyckpt.paths import local_path
from pyckpt.storage.urls import Location, StorageOptions, location
from pyckpt.tensor_kinds import PLAIN_TENSORS

__all__ = ["extract", "extract_tensor", "write_tensor"]

_PIECE_NBYTES = 16 << 20
# What os.link() fails with where the file system has no hard links.
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


def extract(
    path: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    members: Sequence[str] | None = None,
    check: bool = True,
    num_threads: int | None = None,
    storage_options: StorageOptions = None,
) -> list[Path]:
    """Writes members of a tar to ``folder``, which is created; returns the files.

    All or nothing: after an error or Ctrl-C, no new file is in ``folder``. Existing files are never
    overwritten. Of several members with one name, the last one is written.

    Only regular files and folders are written, and only inside ``folder``. A link in the tar
    becomes a file with the data that it leads to. A link to no file of the tar is an error, and so
    is a device or a pipe. A link in ``folder`` that leads out of it is an error as well.

    Args:
        path: The tar, compressed or not; an object's URL also.
        members: The names of the members to extract; None extracts all. A folder stands for
            everything in it.
        check: Compare every checksum before a file is written.
        num_threads: Decoding threads; None takes the CPUs that this process may use.
        storage_options: What the store of a URL is told besides the environment.

    Raises:
        CorruptArchiveError: The archive is damaged, is no tar, or has a member that is no file, no
            folder and no link to a file, or whose name leads out of ``folder``.
        OptionError: The archive lacks a member of ``members``.
        FileExistsError: A file already exists, or a link leads out of ``folder``.
        OSError: A file cannot be written.
    """
    path, folder = location(path), local_path(folder)
    if check:
        report, index = verify_and_index(
            path, num_threads=num_threads, storage_options=storage_options
        )
        report.raise_if_damaged()
    reader = ArchiveReader(path, storage_options=storage_options, num_threads=num_threads)
    if not reader.is_tar:
        raise CorruptArchiveError(f"{path} is not a tar", path=str(path))
    if not check:
        index = reader.index()
        reader = reader.again()
    folders, files = _chosen(index, path, members)
    targets = {name: folder / name for name in files}
    for name in [*folders, *files]:
        _check_place(folder, folder / name, is_new=name in files)
    with ExitStack() as undo:
        _make_folder(folder, undo)
        with tempfile.TemporaryDirectory(prefix=".pyckpt-", dir=folder) as hidden:
            written = _write_files(reader, files, Path(hidden))
            for name in folders:
                _make_folder(folder / name, undo)
            for name, target in targets.items():
                _make_folder(target.parent, undo)
                _give_name(written[name], target)
                undo.callback(target.unlink)
        undo.pop_all()
    return list(targets.values())


def _chosen(
    index: MemberIndex, archive: Location, members: Sequence[str] | None
) -> tuple[list[str], dict[str, Member]]:
    """The folders and the files to write, by their paths."""
    if members is None:
        return index.folders(archive), index.files(archive)
    chosen = [inner_path(name) for name in members]

    def is_chosen(path: str) -> bool:
        return any(path == name or path.startswith(f"{name}/") or not name for name in chosen)

    folders = [path for path in index.folders(archive) if is_chosen(path)]
    files = index.files(archive, is_chosen)
    for name, path in zip(members, chosen, strict=True):
        if path and not any(
            one == path or one.startswith(f"{path}/") for one in [*folders, *files]
        ):
            index.file(name, archive)  # says what is there instead
    return folders, files


def _check_place(folder: Path, target: Path, *, is_new: bool) -> None:
    if not target.parent.resolve().is_relative_to(folder.resolve()) or (
        not is_new and not target.resolve().is_relative_to(folder.resolve())
    ):
        raise FileExistsError(f"{target} leads out of {folder}")
    if is_new and os.path.lexists(target):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))


def _make_folder(folder: Path, undo: ExitStack) -> None:
    missing = []
    while not folder.exists():
        missing.append(folder)
        folder = folder.parent
    for one in reversed(missing):
        one.mkdir(exist_ok=True)
        undo.callback(_remove_folder, one)
    if not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder))


def _remove_folder(folder: Path) -> None:
    with suppress(OSError):  # somebody else uses it
        folder.rmdir()


def _write_files(reader: ArchiveReader, files: dict[str, Member], hidden: Path) -> dict[str, Path]:
    """Writes the files, in the order of the stream, to the folder ``hidden``."""
    reader.forget_all_but(files.values())
    written: dict[str, Path] = {}
    at: dict[int, Path] = {}  # by where its data begins
    for name, member in sorted(files.items(), key=lambda item: item[1].offset):
        written[name] = hidden / str(len(written))
        if member.offset in at:
            shutil.copyfile(at[member.offset], written[name])
        else:
            at[member.offset] = written[name]
            _write_file(reader, member, written[name])
    return written


def _write_file(reader: ArchiveReader, member: Member, target: Path) -> None:
    with target.open("xb") as file:
        for start in range(0, member.nbytes, _PIECE_NBYTES):
            place = (member.offset + start, min(_PIECE_NBYTES, member.nbytes - start))
            file.write(reader.take(*place))
            reader.image.forget(place)


def _give_name(file: Path, target: Path) -> None:
    """Moves a file. Never replaces another one."""
    try:
        target.hardlink_to(file)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        target.touch(exist_ok=False)
        file.replace(target)


def extract_tensor(
    path: str | os.PathLike[str],
    key_path: str,
    *,
    member: str | None = None,
    num_threads: int | None = None,
    storage_options: StorageOptions = None,
) -> torch.Tensor:
    """Loads the tensor at a key path such as ``state/model/0.weight``; compares its checksum.

    Raises:
        OptionError: There is no tensor at that path.
        CorruptArchiveError: The archive is damaged.
    """
    options: dict[str, Any] = {} if member is None else {"member": member}
    node = load(
        path,
        keys=_literally(key_path),
        num_threads=num_threads,
        storage_options=storage_options,
        **options,
    )
    # Only the containers on the path to the tensor are left of the object.
    while isinstance(node, dict | list | tuple) and len(node) == 1:
        [node] = node.values() if isinstance(node, dict) else node
    if not isinstance(node, torch.Tensor):
        raise OptionError(f"{key_path!r} is not a tensor in {path}")
    return node


def write_tensor(tensor: torch.Tensor, path: Path | None) -> None:
    """Writes a tensor as ``.npy`` or ``.pt``, or its values one after another under other suffixes.

    The file is replaced as a whole or not at all. Without a path, the values go to the standard
    output.

    Raises:
        OptionError: The tensor is not one run of values in memory (sparse, quantized, nested,
            without data, of a subclass); numpy does not have its type (bfloat16); the standard
            output is a terminal; ``path`` is the name of a tar.
        FilenameError: ``path`` cannot be written to.
        CheckpointError: The file cannot be written.
        OSError: The same.
    """
    if path is not None and path.suffix == ".pt":
        save(tensor, path)
        return
    values = _values(tensor)
    if path is None:
        if sys.stdout.isatty():
            raise OptionError("the values of a tensor are no text: write them to a file")
        _write_all(sys.stdout.buffer, values)
        return
    if archive_format(path) is not None:
        raise OptionError(f"{path} would be a tar, but a tensor is written as .npy, .pt or raw")
    parts = [_npy_header(tensor, path), values] if path.suffix == ".npy" else [values]
    with ArchiveWriter(path, WriteOptions()) as writer:
        writer.add_segments(
            "", [Segment(_MemoryReader(part), part.nbytes) for part in parts if part.nbytes]
        )
        writer.write()
        writer.commit()


def _values(tensor: torch.Tensor) -> memoryview:
    """The values, as bytes. They are those that the tensor shows, and not those before a lazy
    conjugation or negation."""
    kinds = {
        "is sparse": tensor.layout != torch.strided,
        "is quantized": tensor.is_quantized,
        "is nested": tensor.is_nested,
        "has no data: it is on the device 'meta'": tensor.is_meta,
        f"is a {type(tensor).__qualname__}": type(tensor) not in PLAIN_TENSORS,
    }
    for kind, is_so in kinds.items():
        if is_so:
            raise OptionError(f"the tensor {kind}, which can be written only as .pt")
    plain = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
    if plain.numel() == 0:
        return memoryview(b"")
    raw = (ctypes.c_uint8 * plain.nbytes).from_address(plain.data_ptr())
    raw.owner = plain  # type: ignore[attr-defined]
    return memoryview(raw).cast("B")


def _npy_header(tensor: torch.Tensor, path: Path) -> memoryview:
    try:
        array = tensor.detach().new_empty(0).numpy()
    except TypeError as error:
        raise OptionError(f"{path} cannot be written: {error}") from error
    header = {
        "descr": np.lib.format.dtype_to_descr(array.dtype),
        "fortran_order": False,
        "shape": tuple(tensor.shape),
    }
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, header)
    return memoryview(file.getvalue())


class _MemoryReader:
    """Reads memory for a writer."""

    def __init__(self, data: memoryview) -> None:
        self._data = data

    def read(self, offset: int, nbytes: int, address: int) -> None:
        ctypes.memmove(address, bytes(self._data[offset : offset + nbytes]), nbytes)


def _write_all(file: BinaryIO, data: memoryview) -> None:
    """An unbuffered file takes a part of the bytes at a time, or none if it is not ready."""
    while data:
        taken = file.write(data)
        if taken is None:
            select.select([], [file], [])
        else:
            data = data[taken:]


def _literally(text: str) -> str:
    """A glob that matches only ``text``."""
    return "".join(f"[{c}]" if c in "*?[" else c for c in text)
