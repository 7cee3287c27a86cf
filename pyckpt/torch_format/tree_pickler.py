"""Pickles a tree of pickle_tree.py as the objects that its stand-ins stand for."""

from __future__ import annotations

import pickle
import struct
from collections.abc import Iterable
from typing import Any

from pyckpt.deep_calls import Deep, run_deep
from pyckpt.torch_format.pickle_tree import Inert, InertDict, InertName, InertSet, StoredStorage
from pyckpt.torch_format.tensor_index import storage_info

__all__ = ["TreePickler"]

_FIRST_WITH_BYTES = 3  # older protocols write bytes as a call
_BITS_8, _BITS_16, _BITS_32 = 1 << 8, 1 << 16, 1 << 32
_TUPLES = {0: pickle.EMPTY_TUPLE, 1: pickle.TUPLE1, 2: pickle.TUPLE2, 3: pickle.TUPLE3}
_ENCODE = InertName("_codecs", "encode")


class TreePickler:
    """Writes one pickle.

    Args:
        protocol: At least 2, and that of the pickle that the tree was read from: its names are
            written as they were read, and they depend on the protocol.

    Attributes:
        storage_keys: The keys of the storages that were written.
    """

    def __init__(self, protocol: int) -> None:
        self.storage_keys: set[str] = set()
        self._protocol = protocol
        self._parts: list[bytes] = []
        self._memo: dict[int, int] = {}  # by id; the tree keeps its nodes alive
        self._kept: list[Any] = []  # what was made here and is in the memo

    def dumps(self, tree: Any) -> bytes:
        """The pickle of ``tree``.

        Raises:
            pickle.UnpicklingError: It holds what no pickler writes.
        """
        self._write(pickle.PROTO, bytes([self._protocol]))
        run_deep(self._save(tree))
        self._write(pickle.STOP)
        return b"".join(self._parts)

    def _write(self, *parts: bytes) -> None:
        self._parts += parts

    def _save(self, node: Any) -> Deep[None]:
        if id(node) in self._memo:
            self._write_get(node)
        elif isinstance(node, tuple):
            yield self._save_tuple(node)
        elif isinstance(node, InertDict):
            self._write_new(node, pickle.EMPTY_DICT)
            yield self._save_run(node.flat, pickle.SETITEMS)
        elif isinstance(node, list):
            self._write_new(node, pickle.EMPTY_LIST)
            yield self._save_run(node, pickle.APPENDS)
        elif isinstance(node, StoredStorage):
            yield self._save_storage(node)
        elif isinstance(node, Inert):
            yield self._save_object(node)
        elif isinstance(node, InertSet):
            yield self._save_set(node)
        elif isinstance(node, bytes) and self._protocol < _FIRST_WITH_BYTES:
            yield self._save_old_bytes(node)
        elif isinstance(node, str | bytes | bytearray | InertName):
            self._write_new(node, self._text(node))
        else:
            self._write(_number(node))

    def _save_each(self, nodes: Iterable[Any]) -> Deep[None]:
        for node in nodes:
            yield self._save(node)

    def _save_run(self, nodes: Iterable[Any], opcode: bytes) -> Deep[None]:
        """Saves what ``opcode`` takes up to a mark."""
        if nodes:
            self._write(pickle.MARK)
            yield self._save_each(nodes)
            self._write(opcode)

    def _save_tuple(self, node: tuple[Any, ...]) -> Deep[None]:
        opcode = _TUPLES.get(len(node))
        if opcode is None:
            self._write(pickle.MARK)
        yield self._save_each(node)
        if id(node) in self._memo:  # a part of it contains it, and has written it
            self._write(pickle.POP * len(node) if opcode is not None else pickle.POP_MARK)
            self._write_get(node)
        elif node:
            self._write_new(node, opcode or pickle.TUPLE)
        else:
            self._write(pickle.EMPTY_TUPLE)

    def _save_set(self, node: InertSet) -> Deep[None]:
        if not node.is_frozen:
            self._write_new(node, pickle.EMPTY_SET)
            yield self._save_run(node.values, pickle.ADDITEMS)
            return
        self._write(pickle.MARK)
        yield self._save_each(node.values)
        self._write_made(node, pickle.FROZENSET, pickle.POP_MARK)

    def _save_storage(self, node: StoredStorage) -> Deep[None]:
        saved_id = node.saved_id
        self.storage_keys.add(storage_info(node).key)
        yield self._save(saved_id)
        self._write(pickle.BINPERSID)

    def _save_object(self, node: Inert) -> Deep[None]:
        if node.opcode == pickle.OBJ:
            self._write(pickle.MARK)
            yield self._save_each((node.maker, *node.args))
        else:
            yield self._save_each((node.maker, node.args))
            if node.opcode == pickle.NEWOBJ_EX:
                yield self._save(node.kwargs)
        self._write_made(node, node.opcode, pickle.POP)
        yield self._save_run(node.members, pickle.APPENDS)
        yield self._save_run(node.flat, pickle.SETITEMS)
        yield self._save_run(node.added, pickle.ADDITEMS)
        if node.state is not None:
            yield self._save(node.state)
            self._write(pickle.BUILD)

    def _save_old_bytes(self, raw: bytes) -> Deep[None]:
        text = raw.decode("latin-1")
        self._kept.append(text)
        yield self._save_each((_ENCODE, (text, "latin1")))
        self._write_new(raw, pickle.REDUCE)

    def _write_new(self, node: Any, code: bytes) -> None:
        """Writes what makes a node, and stores the node."""
        index = self._memo[id(node)] = len(self._memo)
        self._kept.append(node)
        self._write(code)
        if index < _BITS_8:
            self._write(pickle.BINPUT, bytes([index]))
        else:
            self._write(pickle.LONG_BINPUT, struct.pack("<I", index))

    def _write_made(self, node: Any, code: bytes, undo: bytes) -> None:
        """Like _write_new(); if a part of the node contains it and has written it, takes that."""
        if id(node) not in self._memo:
            self._write_new(node, code)
        elif undo == pickle.POP_MARK:
            self._write(undo)
            self._write_get(node)
        else:
            self._write(code, undo)
            self._write_get(node)

    def _write_get(self, node: Any) -> None:
        index = self._memo[id(node)]
        if index < _BITS_8:
            self._write(pickle.BINGET, bytes([index]))
        else:
            self._write(pickle.LONG_BINGET, struct.pack("<I", index))

    def _text(self, node: str | bytes | bytearray | InertName) -> bytes:
        if isinstance(node, InertName):
            if "\n" in node.module + node.name:
                raise pickle.UnpicklingError("a class has a line break in its name")
            return pickle.GLOBAL + f"{node.module}\n{node.name}\n".encode("utf-8", "surrogatepass")
        if isinstance(node, bytearray):
            return pickle.BYTEARRAY8 + struct.pack("<Q", len(node)) + node
        if isinstance(node, bytes):
            if len(node) < _BITS_32:
                return pickle.BINBYTES + struct.pack("<I", len(node)) + node
            return pickle.BINBYTES8 + struct.pack("<Q", len(node)) + node
        raw = node.encode("utf-8", "surrogatepass")
        if len(raw) < _BITS_32:
            return pickle.BINUNICODE + struct.pack("<I", len(raw)) + raw
        return pickle.BINUNICODE8 + struct.pack("<Q", len(raw)) + raw


def _number(node: float | None) -> bytes:
    if node is None:
        return pickle.NONE
    if isinstance(node, bool):
        return pickle.NEWTRUE if node else pickle.NEWFALSE
    if isinstance(node, float):
        return pickle.BINFLOAT + struct.pack(">d", node)
    if 0 <= node < _BITS_8:
        return pickle.BININT1 + struct.pack("<B", node)
    if 0 <= node < _BITS_16:
        return pickle.BININT2 + struct.pack("<H", node)
    if -_BITS_32 // 2 <= node < _BITS_32 // 2:
        return pickle.BININT + struct.pack("<i", node)
    raw = pickle.encode_long(node)
    if len(raw) < _BITS_8:
        return pickle.LONG1 + struct.pack("<B", len(raw)) + raw
    return pickle.LONG4 + struct.pack("<i", len(raw)) + raw
