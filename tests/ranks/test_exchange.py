"""Ranks, from a process group or the environment, and steps that all ranks take together.

training/test_save_checkpoint.py runs steps on several real ranks.
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch.distributed as dist

import pyckpt
from pyckpt.ranks.exchange import (
    Channel,
    Ranks,
    begin_together,
    current_ranks,
    require_group,
    together,
)
from pyckpt.ranks.link import Link
from tests.launch import TIMEOUT_SECONDS, torchrun

NAMES = ["RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "NODE_RANK", "GROUP_RANK"]


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


@pytest.fixture
def group() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


TORCHRUN = {"RANK": 5, "WORLD_SIZE": 8, "LOCAL_RANK": 1, "LOCAL_WORLD_SIZE": 4, "GROUP_RANK": 1}
COMPOSER = {"RANK": 5, "WORLD_SIZE": 8, "LOCAL_RANK": 1, "LOCAL_WORLD_SIZE": 4, "NODE_RANK": 1}


@pytest.mark.parametrize(
    ("variables", "ranks"),
    [
        ({}, Ranks()),
        (TORCHRUN, Ranks(5, 1, 8, 4, 1)),
        (COMPOSER, Ranks(5, 1, 8, 4, 1)),
        ({**TORCHRUN, "NODE_RANK": 7}, Ranks(5, 1, 8, 4, 7)),
        ({"RANK": 3, "WORLD_SIZE": 4}, Ranks(3, 3, 4, 4, 0)),  # one node
        ({"RANK": "", "WORLD_SIZE": "", "NODE_RANK": "", "GROUP_RANK": 2}, Ranks(node_rank=2)),
        ({"RANK": " 2 ", "WORLD_SIZE": "04"}, Ranks(2, 2, 4, 4, 0)),
    ],
)
def test_ranks_from_the_environment(
    environment: pytest.MonkeyPatch, variables: dict[str, object], ranks: Ranks
) -> None:
    for name, value in variables.items():
        environment.setenv(name, str(value))
    assert current_ranks() == ranks


@pytest.mark.parametrize("name", NAMES)
def test_a_variable_that_is_no_number(environment: pytest.MonkeyPatch, name: str) -> None:
    environment.setenv(name, "first")
    with pytest.raises(pyckpt.OptionError, match=f"{name} is not a number: 'first'"):
        current_ranks()


@pytest.mark.usefixtures("group")
def test_a_process_group_knows_better(environment: pytest.MonkeyPatch) -> None:
    for name, value in TORCHRUN.items():
        environment.setenv(name, str(value))
    assert current_ranks() == Ranks(0, 1, 1, 4, 1)


@pytest.mark.timeout(TIMEOUT_SECONDS)
def test_ranks_under_torchrun() -> None:
    done = torchrun("ranks_worker.py")
    assert sorted(done.stdout.split()) == ["0,0,2,2,0", "1,1,2,2,0"]


# Steps


def raising(error: BaseException) -> None:
    raise error


@pytest.fixture(params=["alone", "in a group"])
def one_rank(request: pytest.FixtureRequest) -> None:
    if request.param == "in a group":
        request.getfixturevalue("group")


@pytest.mark.usefixtures("one_rank")
def test_what_a_step_returns() -> None:
    assert together("doing it", lambda: {"a": 1}, Channel()) == [{"a": 1}]
    assert together("doing it", lambda: None, Channel()) == [None]


@pytest.mark.usefixtures("one_rank")
def test_what_a_step_raises() -> None:
    cause = OSError(28, "No space left on device", "/disk/x.tar")
    with pytest.raises(pyckpt.CheckpointError) as caught:
        together("doing it", lambda: raising(cause), Channel())
    assert type(caught.value) is pyckpt.CheckpointError
    assert str(caught.value).startswith("doing it failed on rank 0: OSError: [Errno 28]")
    assert (caught.value.rank, caught.value.errno, caught.value.path) == (0, 28, "/disk/x.tar")
    assert caught.value.__cause__ is cause


ARGUMENTS = [
    pyckpt.FilenameError,
    pyckpt.DuplicateFileError,
    pyckpt.MixedFilesError,
    pyckpt.OptionError,
    pyckpt.SaveInProgressError,
]
STATES_AND_FILES = [
    pyckpt.CheckpointError,
    pyckpt.CorruptArchiveError,
    pyckpt.ShardedStateError,
    pyckpt.StateMismatchError,
    pyckpt.TornSaveError,
]
KINDS = [*ARGUMENTS, *STATES_AND_FILES]


@pytest.mark.usefixtures("one_rank")
@pytest.mark.parametrize("kind", KINDS)
def test_typed_errors_keep_type_and_message(kind: type[pyckpt.CheckpointError]) -> None:
    cause = kind("all is said", path="x", errno=5)
    with pytest.raises(kind) as caught:
        together("doing it", lambda: raising(cause), Channel())
    assert type(caught.value) is kind
    named = "" if kind in ARGUMENTS else "doing it failed on rank 0: "
    assert str(caught.value) == f"{named}all is said"
    assert (caught.value.rank, caught.value.path, caught.value.errno) == (0, "x", 5)


@pytest.mark.usefixtures("one_rank")
def test_one_rank_has_nobody_to_tell() -> None:
    assert begin_together("saving") == [Channel()]
    assert begin_together("saving", channels=2) == [Channel(), Channel()]


@pytest.mark.usefixtures("group")
def test_a_group_of_a_torch_distributed_that_is_gone() -> None:
    world = dist.group.WORLD
    assert begin_together("saving", process_group=world) == [Channel()]
    dist.destroy_process_group()
    with pytest.raises(pyckpt.OptionError, match="which is not initialised"):
        begin_together("saving", process_group=world)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    with pytest.raises(pyckpt.OptionError, match="does not know the process_group"):
        begin_together("saving", process_group=world)


@pytest.mark.usefixtures("one_rank")
@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3)])
def test_alone_an_interrupt_passes(error: BaseException) -> None:
    with pytest.raises(type(error)) as caught:
        together("doing it", lambda: raising(error), Channel())
    assert caught.value is error


class SecondRank:
    """A link to a second rank that has done the same step."""

    circle = SimpleNamespace(at_work=nullcontext)

    def gather(self, doing: str, outcome: Any, *, decides: bool = False) -> list[Any]:
        return [outcome, None]


TWO_RANKS = Channel(0, (0, 1), cast(Link, SecondRank()))


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3)])
def test_among_several_an_interrupt_is_told_to_all(error: BaseException) -> None:
    with pytest.raises(pyckpt.CheckpointError, match=type(error).__name__) as caught:
        together("doing it", lambda: raising(error), TWO_RANKS)
    assert caught.value.__cause__ is error


@pytest.mark.parametrize("kind", ARGUMENTS)
def test_an_argument_that_only_one_rank_got(kind: type[pyckpt.CheckpointError]) -> None:
    with pytest.raises(kind, match=r"all is said \(on rank 0, not on every rank\)"):
        together("doing it", lambda: raising(kind("all is said")), TWO_RANKS)


def test_ranks_without_a_process_group(environment: pytest.MonkeyPatch) -> None:
    require_group()
    environment.setenv("RANK", "1")
    environment.setenv("WORLD_SIZE", "2")
    with pytest.raises(pyckpt.OptionError, match=r"WORLD_SIZE is 2.*init_process_group"):
        require_group()


def test_an_outcome_that_cannot_be_sent() -> None:
    with pytest.raises(pyckpt.CheckpointError, match=r"pickle|local object"):
        together("doing it", lambda: lambda: None, TWO_RANKS)


@pytest.mark.parametrize("kind", KINDS)
def test_errors_can_be_sent_and_copied(kind: type[pyckpt.CheckpointError]) -> None:
    error = kind("message", rank=3, path="x", errno=28)
    for again in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(again) is kind
        assert str(again) == "message"
        assert (again.rank, again.path, again.errno) == (3, "x", 28)


def test_an_error_that_all_ranks_have_heard_passes_unchanged() -> None:
    def fail() -> None:
        raise OSError(5, "no", "file")

    def inner() -> None:
        together("the inner step", fail, Channel())

    with pytest.raises(pyckpt.CheckpointError, match=r"^the inner step failed on rank 0: OSError"):
        together("the outer step", inner, Channel())
