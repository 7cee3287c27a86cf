"""Random changes of bytes, as broken disks, cables and people make them."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

__all__ = ["ALTERATIONS", "alter"]

_LONGEST = 4096  # of the ranges that are moved, removed, or put in
# Numbers at which sums and comparisons go wrong.
_EDGES = (0, 1, 2, 0x7F, 0x80, 0xFF, 0xFFFF, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**64 - 1)

Alteration = Callable[[bytearray, random.Random], object]


def _range(data: bytearray, chance: random.Random) -> slice:
    """Often short, now and then long."""
    start = chance.randrange(len(data))
    longest = min(_LONGEST, len(data) - start)
    return slice(start, start + chance.randint(1, chance.choice((min(8, longest), longest))))


def _flip(data: bytearray, chance: random.Random) -> None:
    data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)


def _set_byte(data: bytearray, chance: random.Random) -> None:
    data[chance.randrange(len(data))] = chance.choice((0, 0xFF, chance.randrange(256)))


def _set_number(data: bytearray, chance: random.Random) -> None:
    nbytes = chance.choice((2, 4, 8))
    start = chance.randrange(max(1, len(data) - nbytes))
    number = int.from_bytes(data[start : start + nbytes], "little")
    number = chance.choice((number + 1, number - 1, number * 2, chance.choice(_EDGES)))
    data[start : start + nbytes] = (number % (1 << 8 * nbytes)).to_bytes(nbytes, "little")


def _zeros(data: bytearray, chance: random.Random) -> None:
    place = _range(data, chance)
    data[place] = bytes(len(data[place]))


def _noise(data: bytearray, chance: random.Random) -> None:
    place = _range(data, chance)
    data[place] = chance.randbytes(len(data[place]))


def _remove(data: bytearray, chance: random.Random) -> None:
    del data[_range(data, chance)]


def _repeat(data: bytearray, chance: random.Random) -> None:
    place = _range(data, chance)
    data[place.start : place.start] = data[place]


def _move(data: bytearray, chance: random.Random) -> None:
    place = _range(data, chance)
    moved = data[place]
    del data[place]
    at = chance.randint(0, len(data))
    data[at:at] = moved


def _overwrite(data: bytearray, chance: random.Random) -> None:
    """Puts one range over another one, as a block that went to the wrong place."""
    place = _range(data, chance)
    moved = data[place]
    at = chance.randrange(len(data) - len(moved) + 1)
    data[at : at + len(moved)] = moved


def _cut(data: bytearray, chance: random.Random) -> None:
    del data[chance.randrange(len(data)) :]


def _append(data: bytearray, chance: random.Random) -> None:
    data += chance.choice((bytes(chance.randint(1, 600)), chance.randbytes(40), bytes(data)))


ALTERATIONS: Sequence[Alteration] = (
    *(_flip, _set_byte, _set_number, _zeros, _noise),
    *(_remove, _repeat, _move, _overwrite, _cut, _append),
)


def alter(data: bytes, chance: random.Random) -> bytes:
    """The bytes with one change, or several."""
    altered = bytearray(data)
    for _ in range(chance.choice((1, 1, 1, 2, 5))):
        if altered:
            chance.choice(ALTERATIONS)(altered, chance)
    return bytes(altered)
