"""Names formats that pyckpt does not read, so that an error can say what a file is."""

from __future__ import annotations

__all__ = ["START_NBYTES", "foreign_format"]

START_NBYTES = 64
"""How many bytes of a file ``foreign_format`` needs."""

_MAGICS = {
    b"\x04\x22\x4d\x18": "an lz4 file",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive",
    b"LZIP": "an lzip file",
    b"\x89LZO": "an lzop file",
    b"\x1f\x9d": "a file of compress",
    b"Rar!\x1a\x07": "a RAR archive",
    b"\x89HDF\r\n\x1a\n": "an HDF5 file",
    b"\x93NUMPY": "a NumPy array",
    b"GGUF": "a GGUF file",
    b"version https://git-lfs": "a pointer of Git LFS, not the file that it stands for",
}


def foreign_format(start: bytes) -> str | None:
    """What a file is that begins with ``start``; None if that is not known."""
    if not start:
        return "empty"
    for magic, name in _MAGICS.items():
        if start.startswith(magic):
            return name
    # The size of the header, and the header in JSON.
    if start[8:9] == b"{" and 0 < int.from_bytes(start[:8], "little") < 1 << 32:
        return "a safetensors file"
    return None
