"""Whether a load unpickles only harmless types: torch.load's argument ``weights_only``."""

from __future__ import annotations

import os

from pyckpt.errors import OptionError
from pyckpt.warn import warn

__all__ = ["is_weights_only"]

_TRUE = ("1", "y", "yes", "true")
_FORCE = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
_FORCE_NOT = "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"


def is_weights_only(weights_only: bool | None) -> bool:
    """What the argument means, together with torch's environment variables, as in torch.load.

    ``TORCH_FORCE_WEIGHTS_ONLY_LOAD`` makes every load safe. ``TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD``
    makes those loads unsafe that do not give the argument.

    Args:
        weights_only: None, if the argument is not given.

    Raises:
        OptionError: It is neither a bool nor None, or both variables are set.
    """
    if weights_only is not None and not isinstance(weights_only, bool):
        raise OptionError(f"weights_only must be a bool or None, not {weights_only!r}")
    force, force_not = (os.environ.get(name, "0").lower() in _TRUE for name in (_FORCE, _FORCE_NOT))
    if force and force_not:
        raise OptionError(f"{_FORCE} and {_FORCE_NOT} are both set")
    if force:
        return True
    if force_not and weights_only is None:
        warn(f"{_FORCE_NOT} is set: any code in the file is run")
        return False
    return weights_only is not False
