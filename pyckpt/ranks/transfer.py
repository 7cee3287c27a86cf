"""Bytes from rank to rank, over a channel's own process group."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from typing import Any, TypeVar

import torch

from pyckpt.ranks.exchange import Channel

__all__ = ["from_first", "hand_out", "receive", "send", "to_first"]

T = TypeVar("T")

_TAG = 0


def send(data: torch.Tensor, rank: int, channel: Channel) -> None:
    """Sends bytes to a rank, which calls ``receive``. Returns once they may be changed.

    Args:
        data: uint8 on the CPU, contiguous.
    """
    channel.group.send([data], rank, _TAG).wait()


def receive(out: torch.Tensor, rank: int, channel: Channel) -> Any:
    """Begins to receive bytes from a rank. ``wait()`` of the result waits for them.

    Args:
        out: uint8 on the CPU, contiguous, of the size that is sent.
    """
    return channel.group.recv([out], rank, _TAG)


def from_first(number: int, channel: Channel) -> int:
    """The first rank's ``number``, on every rank. Collective."""
    if channel.group is None:
        return number
    told = torch.tensor([number], dtype=torch.int64, device="cpu")
    channel.group.broadcast(told, 0).wait()
    return int(told.item())


def to_first(obj: T, channel: Channel) -> list[T] | None:
    """The objects of all ranks, by rank, on the first rank; None on the others. Collective.

    Only the first rank pays for it, unlike an exchange.
    """
    if channel.rank != 0:
        _send_object(obj, 0, channel)
        return None
    return [obj, *(_receive_object(rank, channel) for rank in range(1, channel.size))]


def hand_out(objects: Sequence[T] | None, channel: Channel) -> T:
    """The first rank's object for this rank. Collective.

    Args:
        objects: On the first rank, one for each rank.
    """
    if channel.rank != 0:
        received: T = _receive_object(0, channel)
        return received
    assert objects is not None
    for rank in range(1, channel.size):
        _send_object(objects[rank], rank, channel)
    return objects[0]


def _send_object(obj: Any, rank: int, channel: Channel) -> None:
    data = torch.frombuffer(bytearray(pickle.dumps(obj)), dtype=torch.uint8)
    send(torch.tensor([len(data)], device="cpu").view(torch.uint8), rank, channel)
    send(data, rank, channel)


def _receive_object(rank: int, channel: Channel) -> Any:
    size = torch.zeros(1, dtype=torch.int64, device="cpu")
    receive(size.view(torch.uint8), rank, channel).wait()
    data = torch.empty(int(size), dtype=torch.uint8, device="cpu")
    receive(data, rank, channel).wait()
    return pickle.loads(bytes(data.numpy()))
