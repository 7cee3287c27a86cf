"""Allows torch's weights_only loader to build more types while a load runs."""

from __future__ import annotations

import codecs
import datetime
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from pyckpt.torch_format.torch_internals import add_safe_globals, remove_safe_globals

__all__ = ["admitted", "state_types"]

_lock = threading.Lock()
_users: Counter[Any] = Counter()  # for each type that we admitted: how many loads use it


@contextmanager
def admitted(types: Sequence[Any]) -> Iterator[None]:
    """Admits types like ``torch.serialization.safe_globals``, but safely with several threads.

    torch has one set of admitted types for all threads. So a type is removed only when the last
    load that needs it ends. A type that others had admitted before is never removed.
    """
    with _lock:
        there = set(torch.serialization.get_safe_globals())
        ours = [one for one in types if one not in there or _users[one]]
        add_safe_globals(ours)
        _users.update(ours)
    try:
        yield
    finally:
        with _lock:
            _users.subtract(ours)
            remove_safe_globals([one for one in ours if not _users[one]])


def state_types() -> list[Any]:
    """The plain types that a training state holds."""
    # Composer's metadata holds torch's version, a subclass of str. Arrays hold bytes, which are
    # pickled as text to encode. torch 2.4 does not admit that by itself.
    types: list[Any] = [datetime.timedelta, torch.torch_version.TorchVersion, codecs.encode]
    try:
        import numpy as np
    except ImportError:
        return types
    reconstruct = np.ndarray(0).__reduce__()[0]
    # A pickle has the module name of the numpy that wrote it. numpy 2 renamed the module.
    names = ("numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct")
    return [
        *types,
        np.ndarray,
        np.dtype,
        type(np.dtype(np.uint32)),
        *((reconstruct, name) for name in names),
    ]
