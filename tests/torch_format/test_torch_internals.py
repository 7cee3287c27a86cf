"""What pyckpt needs of torch's internals does the same in every version of torch."""

import datetime
import io
import pickle
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import pyckpt
from pyckpt.torch_format import deserialize
from pyckpt.torch_format.torch_internals import (
    WeightsUnpickler,
    add_safe_globals,
    rebuilding_at,
    remove_safe_globals,
)


def twice(number: int) -> int:
    return 2 * number


CALLS_OTHER_NAME = b"\x80\x02cno_such_module\ntwice\nK\x15\x85R."


def unpickled(data: bytes) -> Any:
    return WeightsUnpickler(io.BytesIO(data), encoding="utf-8").load()


@pytest.fixture
def two_admitted() -> Iterator[None]:
    names = [(twice, "no_such_module.twice"), datetime.timedelta]
    add_safe_globals(names)
    yield
    remove_safe_globals(names)


@pytest.mark.usefixtures("two_admitted")
def test_admitted_types_and_functions_under_other_names() -> None:
    assert unpickled(CALLS_OTHER_NAME) == 42
    assert unpickled(pickle.dumps(datetime.timedelta(3), protocol=2)) == datetime.timedelta(3)


def test_what_is_taken_back_is_refused_again() -> None:
    before = set(torch.serialization.get_safe_globals())
    add_safe_globals([(twice, "no_such_module.twice")])
    remove_safe_globals([(twice, "no_such_module.twice")])
    assert set(torch.serialization.get_safe_globals()) == before
    with pytest.raises(pickle.UnpicklingError, match="no_such_module"):
        unpickled(CALLS_OTHER_NAME)


@pytest.mark.parametrize(
    "forbidden",
    [
        b"\x80\x02cos\nsystem\nX\x02\x00\x00\x00ls\x85R.",
        b"\x80\x02cbuiltins\neval\nX\x01\x00\x00\x001\x85R.",
        b"\x80\x02K\x01)R.",  # calls a number
        b"\x80\x02K\x01)\x81.",  # makes an object of a number
        b"\x80\x02K\x01}b.",  # builds a number
        b"\x80\x02}K\x01a.",  # appends to a dict
        b"\x80\x02X\x01\x00\x00\x00aQ.",  # no storage
        b"\x80\x02I1\n.",  # an instruction that torch never writes
    ],
)
def test_what_is_forbidden_is_an_unpickling_error(forbidden: bytes) -> None:
    with pytest.raises(pickle.UnpicklingError):
        unpickled(forbidden)


def test_other_errors_stay_as_they_are() -> None:
    def fail() -> None:
        raise RuntimeError("of the function")

    add_safe_globals([(fail, "no_such_module.fail")])
    try:
        with pytest.raises(RuntimeError, match="of the function"):
            unpickled(b"\x80\x02cno_such_module\nfail\n)R.")
    finally:
        remove_safe_globals([(fail, "no_such_module.fail")])


def test_the_location_is_known_to_this_thread_alone() -> None:
    found = []
    thread = threading.Thread(
        target=lambda: found.append(torch._utils._get_restore_location("cpu"))
    )
    with rebuilding_at({"cpu": "meta"}):
        assert torch._utils._get_restore_location("cpu") == "meta"
        thread.start()
        thread.join()
    assert [*found, torch._utils._get_restore_location("cpu")] == ["cpu", "cpu"]


@pytest.mark.parametrize(
    "broken", [(deserialize, "rebuilding_at"), (torch.storage, "TypedStorage")]
)
def test_an_error_of_our_own_is_not_called_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: tuple[Any, str]
) -> None:
    """For example, if a version of torch lacks something that pyckpt needs."""

    def fail(*_: object, **__: object) -> None:
        raise AttributeError("torch has no such thing")

    pyckpt.save({"w": torch.ones(3)}, tmp_path / "x.tar")
    monkeypatch.setattr(*broken, fail)
    with pytest.raises(AttributeError, match="no such thing"):
        pyckpt.load(tmp_path / "x.tar")


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
def test_sparse_tensors_whose_indices_lead_out_are_refused(tmp_path: Path) -> None:
    wrong = torch.sparse_coo_tensor([[7]], [1.0], (2,), check_invariants=False)
    pyckpt.save({"t": wrong}, tmp_path / "x.tar")
    before = torch.sparse.check_sparse_tensor_invariants.is_enabled()
    with pytest.raises(pyckpt.CorruptArchiveError, match="broken pickle"):
        pyckpt.load(tmp_path / "x.tar")
    assert torch.sparse.check_sparse_tensor_invariants.is_enabled() == before
