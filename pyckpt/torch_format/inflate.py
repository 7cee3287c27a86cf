"""Inflates records that are compressed inside a zip file. torch.save writes none."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator

__all__ = ["inflated"]

_PIECE_NBYTES = 1 << 20


def inflated(code: Iterable[bytes], nbytes: int) -> Iterator[bytes]:
    """The contents of a record in pieces.

    Args:
        code: The compressed bytes, in pieces.
        nbytes: How many bytes the directory says that it holds.

    Raises:
        ValueError: The code is damaged, or holds more or fewer bytes.
    """
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    left = nbytes
    try:
        for piece in code:
            has_more = bool(piece)
            while has_more and not inflater.eof:
                most = min(_PIECE_NBYTES, left + 1)
                raw = inflater.decompress(piece, most)
                left -= len(raw)
                if left < 0:
                    raise ValueError("its size does not match")
                yield raw
                piece = inflater.unconsumed_tail
                has_more = bool(piece) or len(raw) == most
            if inflater.unused_data or (inflater.eof and piece):
                raise ValueError("its size does not match")
    except zlib.error as error:
        raise ValueError(f"its compressed data is damaged: {error}") from error
    if left or not inflater.eof:
        raise ValueError("its size does not match")
