"""Compares the pickle of a file with its storages, without unpickling it."""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Mapping

from pyckpt.errors import CorruptArchiveError
from pyckpt.torch_format.deserialize import byte_order
from pyckpt.torch_format.legacy_file import LegacyFile
from pyckpt.torch_format.pickle_tree import PickleTree, read_tree
from pyckpt.torch_format.tensor_index import storages_of, tensors_of
from pyckpt.torch_format.torch_file import PICKLE, STORAGES, TorchFile

__all__ = ["object_problems"]


def object_problems(file: TorchFile | LegacyFile) -> Iterator[tuple[str, str]]:
    """Yields what keeps torch.load from reading the object: the record, and what is wrong.

    Nothing is said about bytes whose checksums do not match. Programs of TorchScript have no
    object. Their pickles are not looked at.
    """
    if isinstance(file, LegacyFile):
        sizes = {record.name: record.place[1] for record in file.records.values()}
        yield from _pickle_problems(file.tree, sizes)
        return
    if file.is_torch_script:
        return
    if PICKLE not in file.records:
        yield PICKLE, "it is missing, so this is not a file of torch.save"
        return
    for name in file.others:
        yield name, "it is outside of the folder of the other records, which torch refuses"
    try:
        data = file.read(PICKLE, verify=False)
    except CorruptArchiveError:
        return  # its checksum does not match
    try:
        byte_order(file)
    except CorruptArchiveError as error:
        yield "byteorder", str(error).removeprefix(f"{file.stream.path} ")
    try:
        tree = read_tree(data)
    except pickle.UnpicklingError as error:
        yield PICKLE, f"it is not a pickle of torch.save: {error}"
        return
    yield from _pickle_problems(tree, {name: r.nbytes for name, r in file.records.items()})


def _pickle_problems(tree: PickleTree, sizes: Mapping[str, int]) -> Iterator[tuple[str, str]]:
    """The problems of a pickle, given the sizes of the records."""
    try:
        storages = storages_of(tree)
        tensors = tensors_of(tree)
    except pickle.UnpicklingError as error:
        yield PICKLE, f"it is not a pickle of torch.save: {error}"
        return
    wrong = set()
    for key, storage in storages.items():
        name = f"{STORAGES}{key}"
        nbytes = sizes.get(name)
        if nbytes == storage.nbytes:
            continue
        wrong.add(key)
        if nbytes is None:
            yield name, f"it is missing; the pickle needs {storage.nbytes} bytes"
        else:
            yield name, f"it has {nbytes} bytes; the pickle needs {storage.nbytes}"
    for tensor in tensors:
        if tensor.storage.key not in wrong and tensor.spanned_nbytes > tensor.storage.nbytes:
            wrong.add(tensor.storage.key)
            yield f"{STORAGES}{tensor.storage.key}", f"{tensor} is larger than it"
