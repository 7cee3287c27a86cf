"""Extracts members and tensors of an archive as files."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pyckpt.archive.load import load
from pyckpt.archive.reader import ArchiveReader, Member
from pyckpt.archive.save import save
from pyckpt.archive.verify import verify
from pyckpt.errors import CorruptArchiveError, OptionError

__all__ = ["extract", "extract_tensor", "write_tensor"]

_PIECE_NBYTES = 16 << 20


def extract(
    path: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    members: Sequence[str] | None = None,
    check: bool = True,
    num_threads: int | None = None,
) -> list[Path]:
    """Writes members of a tar to ``folder``, which is created; returns the files.

    Only regular files and folders are written, and only inside ``folder``. A link in ``folder``
    that leads out of it is an error. Existing files are never overwritten.

    Args:
        members: The names of the members to extract; None extracts all.
        check: Compare every checksum before a file is written.

    Raises:
        CorruptArchiveError: The archive is damaged, lacks a member of ``members``, or has a member
            that is neither a file nor a folder, or whose name leads out of ``folder``.
        FileExistsError: A file already exists, or a link leads out of ``folder``.
        OSError: A file cannot be written.
    """
    path, folder = Path(path), Path(folder)
    if check:
        verify(path, num_threads=num_threads).raise_if_damaged()
    reader = ArchiveReader(path, num_threads=num_threads)
    missing = set(members or ())
    written = []
    for member in reader.members():
        if members is not None and member.name not in members:
            continue
        missing.discard(member.name)
        name = member.inner_name(path)
        target = folder / name
        if member.type == "5":
            _make_folder(folder, target)
        elif member.type == "0":
            _make_folder(folder, target.parent)
            _write(reader, member, target)
            written.append(target)
        else:
            raise CorruptArchiveError(
                f"{path} has a member {name!r} that is neither a file nor a folder",
                path=str(path),
            )
    if missing:
        raise CorruptArchiveError(f"{path} has no member {min(missing)!r}", path=str(path))
    return written


def _make_folder(folder: Path, target: Path) -> None:
    # Checked first, so that nothing is created outside.
    if not target.resolve().is_relative_to(folder.resolve()):
        raise FileExistsError(f"{target} leads out of {folder}")
    target.mkdir(parents=True, exist_ok=True)


def _write(reader: ArchiveReader, member: Member, target: Path) -> None:
    with target.open("xb") as file:  # "x" fails on an existing link too
        for start in range(0, member.nbytes, _PIECE_NBYTES):
            nbytes = min(_PIECE_NBYTES, member.nbytes - start)
            file.write(reader.take(member.offset + start, nbytes))


def extract_tensor(
    path: str | os.PathLike[str],
    key_path: str,
    *,
    member: str | None = None,
    num_threads: int | None = None,
) -> torch.Tensor:
    """Loads the tensor at a key path such as ``state/model/0.weight``; compares its checksum.

    Raises:
        OptionError: There is no tensor at that path.
        CorruptArchiveError: The archive is damaged.
    """
    options: dict[str, Any] = {} if member is None else {"member": member}
    node = load(path, keys=_literally(key_path), num_threads=num_threads, **options)
    # Only the containers on the path to the tensor are left of the object.
    while isinstance(node, dict | list | tuple) and len(node) == 1:
        [node] = node.values() if isinstance(node, dict) else node
    if not isinstance(node, torch.Tensor):
        raise OptionError(f"{key_path!r} is not a tensor in {path}")
    return node


def write_tensor(tensor: torch.Tensor, path: Path | None) -> None:
    """Writes a tensor as ``.npy`` or ``.pt``, or raw under any other suffix.

    Without a path, the raw bytes go to the standard output.

    Raises:
        OptionError: numpy does not have the tensor's type (bfloat16).
        OSError: The file cannot be written.
    """
    if path is not None and path.suffix == ".pt":
        save(tensor, path)
        return
    contiguous = tensor.detach().contiguous()
    if path is not None and path.suffix == ".npy":
        try:
            array = contiguous.numpy()
        except TypeError as error:
            raise OptionError(f"{path} cannot be written: {error}") from error
        with path.open("wb") as file:
            np.save(file, array)
        return
    raw = _bytes(contiguous)
    if path is None:
        sys.stdout.buffer.write(raw)
    else:
        path.write_bytes(raw)


def _bytes(tensor: torch.Tensor) -> memoryview | bytes:
    if tensor.numel() == 0:
        return b""
    return memoryview((ctypes.c_uint8 * tensor.nbytes).from_address(tensor.data_ptr()))


def _literally(text: str) -> str:
    """A glob that matches only ``text``."""
    return "".join(f"[{c}]" if c in "*?[" else c for c in text)
