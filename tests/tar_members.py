"""Adds members of any kind to a tar, as other programs write them."""

from __future__ import annotations

import io
import tarfile


def add(tar: tarfile.TarFile, name: str, data: bytes = b"", **fields: object) -> None:
    """Adds a member with these bytes. ``fields`` are those of its TarInfo, such as its type."""
    header = tarfile.TarInfo(name)
    header.size = len(data)
    for field, value in fields.items():
        setattr(header, field, value)
    tar.addfile(header, io.BytesIO(data))
