"""Reads a file of torch.save from before torch 1.6: where its pickle and its storages are.

It is a row of pickles: a magic number, the format's version, facts about the machine, the object,
and the keys of the storages. The storages follow in the order of the keys, each as its number of
elements in 8 bytes, and the elements. There are no checksums.
"""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from pyckpt.errors import CorruptArchiveError
from pyckpt.memory import require_memory
from pyckpt.stream import StreamReader
from pyckpt.torch_format.pickle_machine import ShortPickleError
from pyckpt.torch_format.pickle_tree import PickleTree, read_tree
from pyckpt.torch_format.tensor_index import storages_of
from pyckpt.torch_format.torch_file import PICKLE, STORAGES, OpenedRecords

__all__ = ["LegacyFile", "LegacyRecord"]

_COUNT_NBYTES = 8
_FIRST_READ_NBYTES = 1 << 20
_READ_FACTOR = 8


@dataclass(frozen=True)
class LegacyRecord:
    """A storage in the file.

    Attributes:
        name: As in newer files: ``data/<key>``.
        place: Where its elements are in the stream: (offset, nbytes).
    """

    name: str
    place: tuple[int, int]
    stored = True
    has_checksum = False
    crc = 0

    @property
    def nbytes(self) -> int:
        """Its size."""
        return self.place[1]


class LegacyFile:
    """The parts of one file.

    Args:
        stream: The stream that contains the file.
        offset: Where the file begins in the stream.
        nbytes: Size of the file.

    Attributes:
        tree: The pickle of the object.
        records: The storages by name, in the order of the file.

    Raises:
        CorruptArchiveError: It is damaged or cut off.
        CheckpointError: There is not enough memory.
    """

    def __init__(self, stream: StreamReader, offset: int, nbytes: int) -> None:
        self.stream = stream
        self._end = offset + nbytes
        trees, data = self._pickles(offset, nbytes)
        self.tree = trees[_OBJECT]
        self._pickle = data[trees[_OBJECT - 1].end : self.tree.end]
        self.records = self._records(trees, offset)

    def read(self, name: str, *, verify: bool = True) -> bytes:
        """The pickle of the object, which is the only record that is read."""
        assert name == PICKLE
        return self._pickle

    def opened(self, records: Sequence[LegacyRecord]) -> list[OpenedRecords]:
        """The stream that has the storages, and where they are in it."""
        return [OpenedRecords(self.stream, records, [record.place for record in records])]

    def _pickles(self, offset: int, nbytes: int) -> tuple[list[PickleTree], bytes]:
        """The pickles of the file, and the bytes that they were read from."""
        size = min(nbytes, _FIRST_READ_NBYTES)
        while True:
            require_memory(2 * size, self.stream.path)
            data = self.stream.read(offset, size)
            try:
                trees = [read_tree(data)]
                if trees[0].root != torch.serialization.MAGIC_NUMBER:
                    raise self._broken("its magic number is wrong")
                while len(trees) < _PICKLES:
                    trees.append(read_tree(data, trees[-1].end))
                return trees, data
            except ShortPickleError as error:
                if size == nbytes:
                    raise self._broken(str(error)) from error
                size = min(nbytes, size * _READ_FACTOR)
            except pickle.UnpicklingError as error:
                raise self._broken(f"it has a broken pickle: {error}") from error

    def _records(self, trees: list[PickleTree], offset: int) -> dict[str, LegacyRecord]:
        if trees[_VERSION].root != torch.serialization.PROTOCOL_VERSION:
            raise self._broken("its version is unknown")
        keys = trees[_KEYS].root
        try:
            storages = storages_of(self.tree)
        except pickle.UnpicklingError as error:
            raise self._broken(f"it has a broken pickle: {error}") from error
        if not isinstance(keys, list):
            raise self._broken("it does not list its storages")
        records = {}
        at = offset + trees[_KEYS].end
        for key in keys:
            storage = storages.pop(key, None) if isinstance(key, str) else None
            if storage is None:
                raise self._broken("the keys of its storages are not those of its pickle")
            if at + _COUNT_NBYTES + storage.nbytes > self._end:
                raise self._broken(f"it ends before storage {key!r} does")
            if int.from_bytes(self.stream.read(at, _COUNT_NBYTES), "little") != storage.numel:
                raise self._broken(f"the size of storage {key!r} is not that in the pickle")
            name = f"{STORAGES}{key}"
            records[name] = LegacyRecord(name, (at + _COUNT_NBYTES, storage.nbytes))
            at += _COUNT_NBYTES + storage.nbytes
        if storages:
            raise self._broken(f"it has no storage {min(storages)!r}")
        return records

    def _broken(self, what: str) -> CorruptArchiveError:
        path = self.stream.path
        return CorruptArchiveError(f"{path} is damaged: {what}", path=str(path))


# The pickles, in the order of the file.
_VERSION, _OBJECT, _KEYS = 1, 3, 4
_PICKLES = 5
