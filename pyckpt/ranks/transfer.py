"""Bytes from rank to rank, over a channel's own process group."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from pyckpt.ranks.exchange import Channel, together

__all__ = ["hand_out", "hear", "packed_together", "receive", "send", "tell", "to_first"]

_TAG = 0
_DOING = "sending between the ranks"


def send(data: torch.Tensor, rank: int, channel: Channel) -> None:
    """Sends bytes to a rank, which calls ``receive``. Returns once they may be changed.

    Args:
        data: uint8 on the CPU, contiguous.

    Raises:
        CheckpointError: A rank died.
    """
    _wait_for([channel.group.send([data], rank, _TAG)], channel)


def receive(parts: Mapping[int, torch.Tensor], channel: Channel) -> None:
    """Receives bytes from several ranks at the same time.

    Args:
        parts: By rank, uint8 on the CPU, contiguous, of the size that the rank sends.

    Raises:
        CheckpointError: A rank died.
    """
    _wait_for([channel.group.recv([out], rank, _TAG) for rank, out in parts.items()], channel)


def tell(number: int, channel: Channel) -> None:
    """Tells all other ranks a number, which they ``hear``. On the first rank.

    It is no broadcast, which would not reach all living ranks if one is dead.

    Raises:
        CheckpointError: A rank died. All others have been told.
    """
    told = torch.tensor([number], dtype=torch.int64, device="cpu").view(torch.uint8)
    works = [channel.group.send([told], rank, _TAG) for rank in range(1, channel.size)]
    _wait_for(works, channel)


def hear(channel: Channel) -> int:
    """The number that the first rank tells.

    Raises:
        CheckpointError: It died.
    """
    told = torch.zeros(1, dtype=torch.int64, device="cpu")
    receive({0: told.view(torch.uint8)}, channel)
    return int(told.item())


def _wait_for(works: Sequence[Any], channel: Channel) -> None:
    link = channel.link
    if link is None:  # there is nobody
        return
    try:
        with channel.at_work():
            link.wait_for_transfers(_DOING, works)
    except BaseException as error:
        failure = link.judge(_DOING, error)
        assert failure is not None
        raise failure.error() from error


def to_first(data: bytes, channel: Channel) -> list[bytes] | None:
    """The data of all ranks, by rank, on the first rank; None on the others. Collective.

    Only the first rank pays for it, unlike an exchange. It takes bytes, and not objects, because
    what may fail on one rank belongs into a step that all ranks take together: pickling, say.
    """
    if channel.rank != 0:
        _send_bytes(data, 0, channel)
        return None
    return [data, *(_receive_bytes(rank, channel) for rank in range(1, channel.size))]


def packed_together(doing: str, make: Callable[[], Any], channel: Channel) -> bytes:
    """What ``make`` returns, pickled, for ``to_first``. Collective: see there.

    Args:
        doing: As in ``together``.

    Raises:
        CheckpointError: A rank has what cannot be made or pickled.
    """
    packed: list[bytes] = []
    together(doing, lambda: packed.append(pickle.dumps(make())), channel)
    return packed[0]


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
