"""What pyckpt needs of torch's internals does the same in every version of torch."""

import threading
from pathlib import Path
from typing import Any

import pytest
import torch

import pyckpt
from pyckpt.torch_format import deserialize
from pyckpt.torch_format.torch_internals import rebuilding_at


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
