"""Where the folder of a transaction will be: the half that is not about the block."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pyckpt.ranks.exchange import Channel
from pyckpt.storage.urls import Location

__all__ = ["Crew", "Destination"]


@dataclass(frozen=True)
class Crew:
    """The ranks at the end of a transaction. Those that share a file system share a hidden folder.

    All but ``channel`` goes by place in the group.

    Attributes:
        makers: For each rank, who made the hidden folder that it writes into.
        machines: For each rank, a text that is equal for ranks of one machine.
    """

    channel: Channel
    makers: tuple[int, ...]
    machines: tuple[str, ...]

    @property
    def maker(self) -> int:
        """Who made the folder of this rank."""
        return self.makers[self.channel.rank]

    @property
    def is_maker(self) -> bool:
        return self.maker == self.channel.rank

    @property
    def is_first_on_machine(self) -> bool:
        rank = self.channel.rank
        return self.machines.index(self.machines[rank]) == rank

    def all_makers(self) -> list[int]:
        """Who made a folder. The first rank is one of them."""
        return sorted(set(self.makers))

    def sharing(self) -> list[int]:
        """Who writes into the folder of this rank."""
        return [rank for rank, maker in enumerate(self.makers) if maker == self.maker]


class Destination(Protocol):
    """A place where a folder appears, as a whole or as nearly so as the place can do it.

    To make one finds every error that can be found before something is made. Then come ``make`` on
    some ranks, the block, ``seal``, ``commit``, and ``close`` in any case.

    Attributes:
        given: What the caller has named, the same on every rank.
        target: What messages name.
        parent: The folder of this machine in which the hidden folder is.
        identity: Equal on ranks that can have one hidden folder; see file_identity.
    """

    given: str
    target: Location
    parent: Path
    identity: str

    def make(self) -> str:
        """Makes the hidden folder. Returns its name in ``parent``.

        What dead processes have left there goes first.
        """

    def seal(self, folder: Path, crew: Crew) -> None:
        """Makes safe what is in the hidden folder. Nobody sees it yet. Collective."""

    def commit(self, crew: Crew) -> None:
        """Lets it appear, the first rank's at last. After that it stays. Collective.

        If it fails on a rank, all raise, and ``close()`` takes back what has appeared.
        """

    def close(self) -> None:
        """Goes back if the folder does not stay, and removes what is hidden. Logs failures."""
