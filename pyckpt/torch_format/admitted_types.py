"""What torch's weights_only loader may build besides what it knows, while something is loaded."""

from __future__ import annotations

import datetime
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import _weights_only_unpickler as weights_only_unpickler

__all__ = ["admitted", "state_types"]

_lock = threading.Lock()
_users: Counter[Any] = Counter()  # of each type that is admitted by us: how many loads


@contextmanager
def admitted(types: Sequence[Any]) -> Iterator[None]:
    """Admits types as ``torch.serialization.safe_globals`` does, which has one set for all threads.

    So a type goes with the last load that needs it, and never if it was there before.
    """
    if not hasattr(torch.serialization, "safe_globals"):  # torch < 2.5
        yield
        return
    with _lock:
        there = set(torch.serialization.get_safe_globals())
        ours = [one for one in types if one not in there or _users[one]]
        torch.serialization.add_safe_globals(ours)
        _users.update(ours)
    try:
        yield
    finally:
        with _lock:
            _users.subtract(ours)
            weights_only_unpickler._remove_safe_globals([one for one in ours if not _users[one]])


def state_types() -> list[Any]:
    """The plain types that a training state holds."""
    # Composer's metadata holds torch's version, a kind of str.
    types: list[Any] = [datetime.timedelta, torch.torch_version.TorchVersion]
    try:
        import numpy as np
    except ImportError:
        return types
    reconstruct = np.ndarray(0).__reduce__()[0]
    # The pickle names the module of the numpy that wrote it; it moved in numpy 2.
    names = ("numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct")
    return [
        *types,
        np.ndarray,
        np.dtype,
        type(np.dtype(np.uint32)),
        *((reconstruct, name) for name in names),
    ]
