"""Writes the files that fuzzing starts from: small archives of every kind.

python -m fuzz.make_corpus
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import subprocess
import tarfile
import zlib
from pathlib import Path

import torch

import pyckpt
from pyckpt.archive.formats import usual_suffixes

CORPUS = Path(__file__).parent / "corpus"


def main() -> None:
    """Replaces the corpus."""
    state = {"t": torch.arange(40.0), "u": torch.zeros(3, dtype=torch.bfloat16), "n": 1}
    for suffix in [".pt", ".pt.gz", *usual_suffixes()]:
        pyckpt.save(state, CORPUS / f"pyckpt{suffix}", fsync=False)
    # Long enough for a chunk index.
    state["zeros"] = torch.zeros(270_000)
    pyckpt.save(state, CORPUS / "deflated.pt", compression_level=6, fsync=False)
    del state["zeros"]
    buffer = io.BytesIO()
    torch.save(state, buffer)
    for name, mode in [("pax", tarfile.PAX_FORMAT), ("gnu", tarfile.GNU_FORMAT)]:
        with tarfile.open(CORPUS / f"{name}.tar", "w", format=mode) as tar:
            for member in ["composer_states.pt", f"{'folder/' * 30}a.pt"]:
                info = tarfile.TarInfo(member)
                info.size = len(buffer.getvalue())
                tar.addfile(info, io.BytesIO(buffer.getvalue()))
    raw = (CORPUS / "pax.tar").read_bytes()
    (CORPUS / "foreign.gz").write_bytes(gzip.compress(raw, mtime=0))
    (CORPUS / "two.gz").write_bytes(gzip.compress(raw[:700], mtime=0) * 2)
    (CORPUS / "foreign.bz2").write_bytes(bz2.compress(raw))
    (CORPUS / "foreign.xz").write_bytes(lzma.compress(raw))
    blocks = [lzma.compress(piece) for piece in (raw[:1536], raw[1536:])]
    (CORPUS / "blocks.xz").write_bytes(b"".join(blocks))
    floats = torch.randn(500, generator=torch.Generator().manual_seed(0)).numpy().tobytes()
    settings = {"id": lzma.FILTER_LZMA2, "dict_size": 4096, "lc": 2, "lp": 2, "pb": 0}
    # The stream without its header and its block's header. xz writes some matches too.
    literals = lzma.compress(floats, filters=[settings])[24:]
    (CORPUS / "literals.lzma2").write_bytes(literals)
    zstd = ["zstd", "-q", "-c"]
    frames = [
        subprocess.run([*zstd, *options], input=piece, capture_output=True, check=True).stdout
        for piece, options in [
            (raw, []),
            (raw[:1536], [f"--stream-size={1536}"]),
            (raw[1536:], [f"--stream-size={len(raw) - 1536}"]),
        ]
    ]
    (CORPUS / "foreign.zst").write_bytes(frames[0])
    (CORPUS / "two.zst").write_bytes(b"P*M\x18\x02\0\0\0ab" + frames[1] + frames[2])
    # What fuzz_reader takes as six chunks of 1,500 bytes: blocks of literals, or with few matches.
    for name, strategy in [("literals", zlib.Z_HUFFMAN_ONLY), ("runs", zlib.Z_RLE)]:
        encoder = zlib.compressobj(6, zlib.DEFLATED, -15, 9, strategy)
        code = encoder.compress(floats[:1300] + bytes(200)) + encoder.flush(zlib.Z_FULL_FLUSH)
        (CORPUS / f"{name}.deflate").write_bytes(b"\5" + 6 * code)
    (CORPUS / "foreign.lzma").write_bytes(lzma.compress(raw, format=lzma.FORMAT_ALONE))


if __name__ == "__main__":
    main()
