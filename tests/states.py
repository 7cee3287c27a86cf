"""A state with many kinds of data, and a comparison of two states."""

from typing import Any

import torch


def mixed_state() -> dict[str, Any]:
    """Noise, zeros and text, over several chunks of every format."""
    generator = torch.Generator().manual_seed(0)
    return {
        "floats": torch.randn(400_000, generator=generator),
        "doubles": torch.randn(60_000, dtype=torch.float64, generator=generator),
        "bf16": torch.randn(200_000, generator=generator).bfloat16(),
        "zeros": torch.zeros(200_000),
        "text": "to be or not to be, " * 5_000,
        "step": 7,
    }


def assert_equal(a: Any, b: Any) -> None:
    assert list(a) == list(b)
    for key, value in b.items():
        if isinstance(value, torch.Tensor):
            assert a[key].dtype == value.dtype
            assert torch.equal(a[key], value)
        else:
            assert a[key] == value
