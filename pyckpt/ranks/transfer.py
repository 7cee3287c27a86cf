"""Bytes from rank to rank, over a channel's own process group."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch

from pyckpt.ranks.exchange import Channel, no_exchange

__all__ = ["from_first", "hand_out", "receive", "send", "to_first"]

_TAG = 0


@contextmanager
def _telling_of_the_dead() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise no_exchange("sending between the ranks", error) from error


def send(data: torch.Tensor, rank: int, channel: Channel) -> None:
    """Sends bytes to a rank, which calls ``receive``. Returns once they may be changed.

    Args:
        data: uint8 on the CPU, contiguous.

    Raises:
        CheckpointError: A rank died.
    """
    with _telling_of_the_dead():
        channel.group.send([data], rank, _TAG).wait()


def receive(parts: Mapping[int, torch.Tensor], channel: Channel) -> None:
    """Receives bytes from several ranks at the same time.

    Args:
        parts: By rank, uint8 on the CPU, contiguous, of the size that the rank sends.

    Raises:
        CheckpointError: A rank died.
    """
    with _telling_of_the_dead():
        arriving = [channel.group.recv([out], rank, _TAG) for rank, out in parts.items()]
        for one in arriving:
            one.wait()


def from_first(number: int, channel: Channel) -> int:
    """The first rank's ``number``, on every rank. Collective."""
    if channel.group is None:
        return number
    told = torch.tensor([number], dtype=torch.int64, device="cpu")
    with _telling_of_the_dead():
        channel.group.broadcast(told, 0).wait()
    return int(told.item())


def to_first(data: bytes, channel: Channel) -> list[bytes] | None:
    """The data of all ranks, by rank, on the first rank; None on the others. Collective.

    Only the first rank pays for it, unlike an exchange. It takes bytes, and not objects, because
    what may fail on one rank belongs into a step that all ranks take together: pickling, say.
    """
    if channel.rank != 0:
        _send_bytes(data, 0, channel)
        return None
    return [data, *(_receive_bytes(rank, channel) for rank in range(1, channel.size))]


def hand_out(data: Sequence[bytes] | None, channel: Channel) -> bytes:
    """The first rank's data for this rank. Collective.

    Args:
        data: On the first rank, one for each rank.
    """
    if channel.rank != 0:
        return _receive_bytes(0, channel)
    assert data is not None
    for rank in range(1, channel.size):
        _send_bytes(data[rank], rank, channel)
    return data[0]


def _send_bytes(data: bytes, rank: int, channel: Channel) -> None:
    send(torch.tensor([len(data)], device="cpu").view(torch.uint8), rank, channel)
    if data:
        send(torch.frombuffer(bytearray(data), dtype=torch.uint8), rank, channel)


def _receive_bytes(rank: int, channel: Channel) -> bytes:
    size = torch.zeros(1, dtype=torch.int64, device="cpu")
    receive({rank: size.view(torch.uint8)}, channel)
    data = torch.empty(int(size), dtype=torch.uint8, device="cpu")
    if len(data):
        receive({rank: data}, channel)
    return data.numpy().tobytes()
