"""What one rank has of a tensor, as bytes that can be staged, sent and written."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from pyckpt.torch_format.records import Record
from pyckpt.torch_format.serialize import spanned_records

__all__ = ["Shard", "bytes_at"]


@dataclass(frozen=True)
class Shard:
    """A tensor in the memory that a record describes.

    The record may be replaced by one of a copy, as long as its bytes are the same: see ``staged``.

    Attributes:
        record: The bytes from the tensor's first element to its last, with gaps.
        stride: In elements.
    """

    record: Record
    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @classmethod
    def all_of(cls, tensors: Sequence[torch.Tensor]) -> list[Shard]:
        """The shards that tensors are. Nothing is copied, and the tensors are kept alive."""
        plain = [tensor.detach().resolve_conj().resolve_neg() for tensor in tensors]
        for tensor in plain:
            if tensor.layout is not torch.strided:
                raise TypeError(f"a shard has the layout {tensor.layout}, not strided")
        return [
            cls(record, tensor.dtype, tuple(tensor.shape), tensor.stride())
            for record, tensor in zip(spanned_records(plain), plain, strict=True)
        ]

    @property
    def nbytes(self) -> int:
        """Size of the elements, without gaps."""
        return self.dtype.itemsize * torch.Size(self.shape).numel()

    def staged(self, record: Record) -> Shard:
        """The same shard, read from a copy of its record."""
        return replace(self, record=record)

    def copy_to(self, out: torch.Tensor) -> None:
        """Copies the elements in the order of C.

        Args:
            out: uint8 on the CPU, of ``nbytes``.
        """
        if not self.nbytes:
            return
        if self._is_dense():
            _read(self.record, out)
            return
        span = torch.empty(self.record.nbytes, dtype=torch.uint8, device="cpu")
        _read(self.record, span)
        elements = span.view(self.dtype).as_strided(self.shape, self.stride)
        out.copy_(elements.contiguous().view(-1).view(torch.uint8))

    def _is_dense(self) -> bool:
        expected = 1
        for n, step in zip(reversed(self.shape), reversed(self.stride), strict=True):
            if n != 1 and step != expected:
                return False
            expected *= n
        return True


def _read(record: Record, out: torch.Tensor) -> None:
    if record.reader is not None:
        record.reader.read(0, record.nbytes, out.data_ptr())
        return
    out.copy_(bytes_at(record.address, record.nbytes))


def bytes_at(address: int, nbytes: int) -> torch.Tensor:
    """Host memory as a tensor of uint8, which does not keep it alive."""
    return torch.frombuffer((ctypes.c_uint8 * nbytes).from_address(address), dtype=torch.uint8)
