"""What runs in the background takes turns, whoever calls, from wherever."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from pyckpt.archive.formats import STATES_MEMBER
from pyckpt.options import BackgroundOptions
from pyckpt.staging.latch import Latch
from pyckpt.storage.local_file import LocalFile
from pyckpt.training.async_save import ObjectSave
from pyckpt.training.background import BackgroundSave, in_turn

pytestmark = pytest.mark.timeout(60)


def test_work_that_begins_while_a_save_is_staged_is_not_forgotten(
    tmp_path: Path, gate: Latch
) -> None:
    """Another thread, or a signal handler, may begin it. Who comes later waits for it too."""
    save = ObjectSave("x", LocalFile(tmp_path / "x.pt"), STATES_MEMBER, BackgroundOptions())
    work = BackgroundSave(save, save.write, 10)
    work.begin(None, chosen=True)
    running, may_end = threading.Event(), threading.Event()

    def in_between() -> bool:
        running.set()
        may_end.wait(50)
        return (tmp_path / "x.pt").exists()

    between = in_turn(in_between)
    pending = work.start()
    last = in_turn(between.done)
    gate.set()
    assert running.wait(50)
    with pytest.raises(TimeoutError):  # it is the later one
        pending.result(0.3)
    may_end.set()
    assert between.result() is False
    assert last.result() is True
    assert pending.result() == tmp_path / "x.pt"


def test_ctrl_c_passes_when_nothing_is_to_be_waited_for() -> None:
    def work() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        in_turn(work)
    assert in_turn(lambda: 1).result(0) == 1


def test_other_errors_are_in_the_future() -> None:
    def work() -> None:
        raise ValueError("why")

    assert str(in_turn(work).exception()) == "why"
