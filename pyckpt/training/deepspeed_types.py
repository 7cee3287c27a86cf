"""The types in DeepSpeed's states, for loads with ``weights_only=True``."""

from __future__ import annotations

from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
from deepspeed.runtime.zero.config import ZeroStageEnum
from deepspeed.utils.tensor_fragment import fragment_address

from pyckpt.torch_format.plain_types import register_attributes, register_enum

__all__ = ["allow_deepspeed_types"]


def allow_deepspeed_types() -> None:
    """From now on, loads with ``weights_only=True`` allow them. It may be called again."""
    for kind in (DynamicLossScaler, LossScaler, fragment_address):
        register_attributes(kind)
    register_enum(ZeroStageEnum)
