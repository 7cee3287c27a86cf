"""Arguments of torch.save and torch.load that pyckpt takes, so that calls of those need no change.

They are taken where they change nothing. Any other value is refused.
"""

from __future__ import annotations

import pickle
from typing import Any

import torch

from pyckpt.errors import OptionError
from pyckpt.torch_format.weights_only import is_weights_only

__all__ = ["check_save_arguments", "is_safe_load"]


def check_save_arguments(
    pickle_module: Any, pickle_protocol: Any, new_zipfile: Any, disable_byteorder: Any
) -> None:
    """Checks what torch.save takes besides the object and the file.

    Raises:
        OptionError: An argument asks for another file than the one that pyckpt writes.
    """
    protocol = torch.serialization.DEFAULT_PROTOCOL
    if pickle_module is not pickle:
        raise OptionError(f"pickle_module must be Python's pickle, not {pickle_module!r}")
    if pickle_protocol != protocol:
        raise OptionError(
            f"pickle_protocol must be {protocol}, not {pickle_protocol!r}: torch.load reads later "
            "ones with weights_only=False alone"
        )
    if not new_zipfile:
        raise OptionError(
            "_use_new_zipfile_serialization must be True: only torch.save writes the format from "
            "before torch 1.6"
        )
    if disable_byteorder:
        raise OptionError("_disable_byteorder_record must be False: the file says its byte order")


def is_safe_load(weights_only: bool | None, pickle_module: Any, encoding: Any) -> bool:
    """Whether a load unpickles only harmless types, and checks what torch.load takes besides.

    As in torch.load, a pickle_module means ``weights_only=False``, and excludes True.

    Raises:
        OptionError: An argument is wrong, or asks for something that only torch.load does.
    """
    if pickle_module not in (None, pickle):
        raise OptionError(f"pickle_module must be Python's pickle or None, not {pickle_module!r}")
    if encoding != "utf-8":
        raise OptionError(f"encoding must be 'utf-8', not {encoding!r}: take torch.load")
    if pickle_module is None:
        return is_weights_only(weights_only)
    if is_weights_only(False if weights_only is None else weights_only):
        raise OptionError("weights_only=True and pickle_module exclude each other")
    return False
