"""The campaign of changes to pyckpt's own sources: whether it can make them."""

from faults.mutations import CHANGES


def test_every_change_can_be_made() -> None:
    stale = [f"{change.file}: {change.what}" for change in CHANGES if change.is_stale]
    assert not stale, "their texts are not there, or more than once: see faults/mutations.py"


def test_every_change_has_a_name_of_its_own() -> None:
    assert len({change.what for change in CHANGES}) == len(CHANGES)
