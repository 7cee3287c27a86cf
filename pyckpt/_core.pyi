"""The compiled part. Private: use pyckpt.archive instead."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

T = TypeVar("T")

class Levels:
    @property
    def lowest(self) -> int: ...
    @property
    def highest(self) -> int: ...
    @property
    def standard(self) -> int: ...

class Format:
    """A row of the table of formats."""

    @property
    def name(self) -> str: ...
    @property
    def compression(self) -> str: ...
    @property
    def suffixes(self) -> list[str]:
        """Of tars."""
    @property
    def file_endings(self) -> list[str]:
        """Of other files, behind their own suffix: ``.gz``."""
    @property
    def levels(self) -> Levels | None: ...
    @property
    def chunk_nbytes(self) -> int: ...

class _Reader(Protocol):
    def read(self, offset: int, nbytes: int, address: int) -> None: ...

class Source:
    """A reader implemented in C++."""

    def read(self, offset: int, nbytes: int, address: int) -> None: ...

class LiveMemory:
    def __init__(self) -> None: ...
    def add(self, address: int, nbytes: int) -> Source: ...
    @property
    def staging_nbytes(self) -> int: ...
    def stage(self, buffer: int, threads: int) -> None: ...
    @property
    def released(self) -> bool: ...

class Sink:
    """Where the bytes of an archive go: see write/sink.h."""

def file_sink(path: bytes, durable: bool, mark: str) -> Sink:
    """A file that appears as a whole, or not at all."""

def ordered_sink(write: Callable[[memoryview], object]) -> Sink:
    """Calls ``write`` with all bytes, piece by piece, on the thread that writes the archive.

    ``write`` takes all of a piece, or raises. The memory is valid during the call.
    """

def upload_sink(upload: object) -> Sink:
    """Calls the methods of ``upload``, which are those of a sink.

    It gets the bytes as ``write`` of ``ordered_sink`` does. See pyckpt.storage.store.Upload.
    """

class ArchiveWriter:
    def __init__(
        self,
        sink: Sink,
        format: Format | None,
        *,
        tar: bool,
        deflated: bool,
        level: int,
        threads: int,
        mtime: int,
        uid: int,
        gid: int,
    ) -> None: ...
    def add_directory(self, name: str, mode: int) -> None: ...
    # These return where the member's data is in the stream before compression: offset and size.
    def add_bytes(self, name: str, mode: int, data: bytes) -> tuple[int, int]: ...
    def add_file(self, name: str, mode: int, source_path: bytes) -> tuple[int, int]: ...
    def add_segments(
        self, name: str, mode: int, segments: list[tuple[int, int, _Reader]]
    ) -> tuple[int, int]: ...
    def add_torch_file(
        self,
        name: str,
        mode: int,
        records: list[tuple[str, int, int, int, _Reader | None]],
    ) -> tuple[int, int]: ...
    def add_deflated_torch_file(
        self, records: list[tuple[str, int, int, int, _Reader | None]]
    ) -> None: ...
    @property
    def progress(self) -> tuple[int, int]: ...
    def write(self, progress: Callable[[int, int], None] | None) -> int: ...
    def commit(self, keep_previous: bool) -> None: ...
    def keep(self) -> None: ...
    def restore(self) -> None: ...
    def abandon(self) -> None: ...

def compression_of(raw: bytes, /) -> str:
    """``"gzip"`` and so on for the first bytes of a file; ``""`` if it is not compressed."""

def formats() -> list[Format]:
    """The formats of tars."""

def file_formats() -> list[Format]:
    """The formats of compressed files that are no tars."""

def by_type(
    handlers: dict[type, Callable[[Any], T] | None], other: Callable[[Any], T] | None
) -> Callable[[Any], T | None]:
    """A function of one object that calls the handler for its exact type, or else ``other``.

    A handler of None means a function that returns None.
    """

def exchange_names(a: bytes, b: bytes) -> bool: ...
def punch_hole(fd: int, offset: int, nbytes: int) -> None:
    """Gives back the room or the memory of bytes of an open file, if that can be done."""

def kernels() -> list[str]:
    """The instruction sets that kernels use beyond what every CPU of this kind has.

    Empty if PYCKPT_PORTABLE is 1.
    """

def tar_header(name: str, nbytes: int, uid: int, gid: int) -> bytes:
    """The header blocks of a file in a tar: see container/tar_format.h."""

def crc32(address: int, nbytes: int) -> int:
    """The CRC-32 of bytes in memory, as zlib.crc32 computes it."""

def crc32_combine(crc_a: int, crc_b: int, nbytes_b: int) -> int:
    """The CRC-32 of A followed by B, from those of A and B and the length of B."""

def can_guard_copies() -> bool:
    """Whether memory can be read that may be freed at any time: see base/guarded_copy.h."""

def parallel_copy(copies: list[tuple[int, int, int]], threads: int) -> None: ...

class CorruptError(RuntimeError):
    """The file is corrupt. The message ends with the position of the damage."""

class ImageBytes:
    """Writable memory with bytes of an image. It is given back when this object is freed.

    It keeps the image's memory alive, but not the image.
    """

    def __buffer__(self, flags: int, /) -> memoryview: ...

class ZipEntry:
    """A record as the central directory describes it. Offsets are positions in the stream."""

    @property
    def name(self) -> bytes: ...
    @property
    def nbytes(self) -> int: ...
    @property
    def code_nbytes(self) -> int:
        """Compressed; the same as ``nbytes`` if stored."""
    @property
    def crc(self) -> int: ...
    @property
    def stored(self) -> bool: ...
    @property
    def deflated(self) -> bool: ...
    @property
    def index(self) -> int: ...
    @property
    def header_offset(self) -> int: ...

class Supply(Protocol):
    """Brings bytes into a file. A range is (offset, nbytes). Several threads may call it at once.

    csrc/base/supply.h says what each method does.
    """

    def expect(self, ranges: Sequence[tuple[int, int]]) -> None: ...
    def hold(self, ranges: Sequence[tuple[int, int]]) -> None: ...
    def release(self, ranges: Sequence[tuple[int, int]]) -> None: ...
    def stop(self, error: BaseException) -> None:
        """Ends all waiting with this error, now and later."""

class StreamImage:
    """The decompressed bytes of a file. A range is (offset, nbytes).

    With ``fd``, the file is open already, and ``path`` is its name in messages. With ``supply``,
    its bytes are brought when they are wanted.
    """

    def __init__(
        self,
        path: bytes,
        fd: int | None = None,
        *,
        supply: Supply | None = None,
        threads: int,
        mapped: bool,
        progress: Callable[[int], None] | None,
    ) -> None: ...
    @property
    def compression(self) -> str:
        """For example ``"gzip"``; ``""`` for a file that is not compressed."""
    def is_index(self, raw: bytes) -> bool:
        """Whether ``raw``, found after a tar's end, is the index that our encoder adds."""
    @property
    def nbytes(self) -> int | None: ...
    @property
    def placed_nbytes(self) -> int:
        """Bytes that have a place: all, or those decoded so far if the size is unknown."""
    @property
    def trailing_nbytes(self) -> int:
        """Bytes of the file that follow the compressed stream. Known after a finish()."""
    def code_nbytes(self, range: tuple[int, int], /) -> int: ...
    def require(self, range: tuple[int, int], /) -> bool: ...
    def keep(self, range: tuple[int, int], /) -> None:
        """Keeps the bytes when a TarReader passes them. Only one range at a time is kept."""
    def expect(self, ranges: Sequence[tuple[int, int]], /) -> None:
        """Says that all bytes of the ranges will be filled and kept. It saves time."""
    def bring(self, ranges: Sequence[tuple[int, int]], /) -> None:
        """Decodes and keeps all of the ranges, in the order of the file. Ignores damage."""
    def fill(
        self, ranges: Sequence[tuple[int, int]], *, keep: bool, checksums: bool
    ) -> tuple[list[int], list[tuple[int, int, int, str, bool]]]: ...
    def finish(self) -> list[tuple[int, int, int, str, bool]]: ...
    def read(self, range: tuple[int, int], /) -> bytes:
        """A copy of bytes that were required before."""
    def copy(self, range: tuple[int, int], address: int, /) -> None:
        """Copies bytes that were required before to other memory."""
    def address(self, range: tuple[int, int], /) -> int:
        """The address of bytes that were required before; valid until more are required."""
    def forget(self, range: tuple[int, int], /) -> None:
        """Gives back the memory of bytes that will not be read again, or once they are decoded."""
    def release(self, range: tuple[int, int], /) -> None:
        """Gives back the memory of whole blocks in the range. They can be decoded again.

        Does nothing in a stream of unknown size.
        """
    def take(self, range: tuple[int, int], /) -> ImageBytes:
        """The bytes themselves. Their memory is given back when the result is freed.

        Take each range only once, and only after everything wanted is decoded. As long as a result
        lives, a stream of unknown size decodes no more than fits in its memory, because growing
        would move the bytes.
        """

class TarReader:
    def __init__(self, image: StreamImage, /) -> None: ...
    @property
    def offset(self) -> int: ...
    def next(self) -> tuple[bytes, str, int, int, int, bytes] | None:
        """(name, type, header_offset, offset, nbytes, link); gives back the bytes before it."""

def check_pickle(pickle: bytes, /) -> None:
    """Raises CorruptError if the pickle is malformed or asks for the extension registry.

    Malformed means an unknown opcode, no end, an argument beyond the end, or a memo index larger
    than the pickle.
    """

def read_zip_directory(image: StreamImage, range: tuple[int, int], /) -> list[ZipEntry]: ...
def locate_zip_data(
    image: StreamImage, entries: Sequence[ZipEntry], /
) -> list[tuple[int, int]]: ...
def inflate_zip_records(
    image: StreamImage, entries: Sequence[ZipEntry], /
) -> tuple[StreamImage, list[tuple[int, int]]]:
    """An image with the contents of deflated records, and where each of them is in it.

    It decodes them when they are asked for, out of ``image``.
    """
