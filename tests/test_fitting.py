"""Whether saved states fit. What converts what it loads has the last word."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import pyckpt
from pyckpt.fitting import check_weights


def contents(state: pyckpt.State) -> str:
    return repr(state.state_dict())


class Renaming(nn.Module):
    """A module whose older checkpoints have other names and shapes, as hooks convert them."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(4))
        self.register_load_state_dict_pre_hook(self.convert)

    @staticmethod
    def convert(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
        if f"{prefix}old" in state:
            state[f"{prefix}weight"] = state.pop(f"{prefix}old").reshape(-1)


class Growing(nn.Module):
    """A module that takes its shape from the checkpoint."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(0))

    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, *rest: Any) -> None:
        self.seen = torch.zeros_like(state[f"{prefix}seen"])
        super()._load_from_state_dict(state, prefix, *rest)


def norm() -> nn.Module:
    return nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))


CONVERTED = {
    "renamed": (Renaming, {"old": torch.arange(4.0).reshape(2, 2)}),
    "grown": (Growing, {"seen": torch.ones(5)}),
    "lazy": (lambda: nn.LazyLinear(4), {"weight": torch.ones(4, 7), "bias": torch.ones(4)}),
    "weight_norm": (
        norm,
        {"weight_g": torch.ones(4, 1), "weight_v": torch.ones(4, 4), "bias": torch.ones(4)},
    ),
    "one number": (nn.BatchNorm1d, None),
}


@pytest.mark.parametrize("kind", CONVERTED)
def test_what_the_module_accepts_is_accepted(tmp_path: Path, kind: str) -> None:
    make, weights = CONVERTED[kind]
    if weights is None:  # torch takes a tensor of one number for a number
        make = lambda: nn.BatchNorm1d(2)  # noqa: E731
        weights = {**make().state_dict(), "num_batches_tracked": torch.tensor([3])}
    expected = make()
    expected.load_state_dict(copy.copy(weights))
    pyckpt.save({"state": {"model": weights}}, tmp_path / "x.tar")
    state = pyckpt.State(make())
    pyckpt.load_checkpoint(tmp_path / "x.tar", state, load_weights_only=True)
    for name, tensor in expected.state_dict().items():
        assert torch.equal(state.model.state_dict()[name], tensor)


@pytest.mark.parametrize("kind", ["renamed", "grown", "lazy", "weight_norm"])
def test_what_it_refuses_changes_nothing(tmp_path: Path, kind: str) -> None:
    make, weights = CONVERTED[kind]
    model = nn.Sequential(nn.Linear(2, 2), make())
    state = pyckpt.State(model)
    wrong = {f"1.{name}": value for name, value in weights.items()}
    wrong |= {"0.weight": torch.ones(2, 2), "0.bias": torch.ones(3)}
    pyckpt.save({"state": {"model": wrong}}, tmp_path / "x.tar")
    before = contents(state)
    with pytest.raises(pyckpt.StateMismatchError, match="weights do not fit"):
        pyckpt.load_checkpoint(tmp_path / "x.tar", state, load_weights_only=True)
    assert contents(state) == before


def test_a_module_that_raises_only_when_it_loads() -> None:
    class Refusing(nn.Linear):
        def _load_from_state_dict(self, *_: Any) -> None:
            raise RuntimeError("not this one")

    state = pyckpt.State(nn.Sequential(nn.Linear(2, 2), Refusing(2, 2)))
    before = contents(state)
    with pytest.raises(pyckpt.StateMismatchError, match="do not fit: RuntimeError: not this one"):
        state.load_state_dict({"model": state.model.state_dict()})
    assert contents(state) == before


def test_a_module_that_cannot_be_copied_is_compared_by_names() -> None:
    module = Renaming()
    module.lock = __import__("threading").Lock()
    check_weights(module, {"weight": torch.ones(4)}, strict=True)
    with pytest.raises(pyckpt.StateMismatchError, match="no 'weight'; 'old', which the model"):
        check_weights(module, {"old": torch.ones(4)}, strict=True)


def test_a_weight_that_is_no_tensor() -> None:
    with pytest.raises(pyckpt.StateMismatchError, match="'weight' that is no tensor but str"):
        check_weights(nn.Linear(2, 2), {"weight": "x", "bias": torch.ones(2)}, strict=True)


def test_a_copy_of_the_values_that_backward_has_made() -> None:
    """The old weight_norm keeps a computed tensor, which copy.deepcopy refuses."""
    with pytest.warns(FutureWarning, match="weight_norm"):
        module = nn.utils.weight_norm(nn.Linear(3, 3))
    module.register_load_state_dict_pre_hook(lambda *_: None)
    module(torch.ones(1, 3)).sum().backward()
    check_weights(module, module.state_dict(), strict=True)


class Several:
    """Several optimizers as one; its state has no "param_groups"."""

    def __init__(self, optimizers: dict[str, Any]) -> None:
        self.optimizers = optimizers

    @property
    def param_groups(self) -> Iterator[dict[str, Any]]:
        return (group for one in self.optimizers.values() for group in one.param_groups)

    def state_dict(self) -> dict[str, Any]:
        return {name: one.state_dict() for name, one in self.optimizers.items()}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        for name, one in self.optimizers.items():
            one.load_state_dict(saved[name])


class Lookahead(torch.optim.Optimizer):
    """A wrapper that derives from torch's class and saves another shape."""

    def __init__(self, inner: torch.optim.Optimizer) -> None:
        self.inner = inner
        super().__init__(inner.param_groups, {})

    def state_dict(self) -> dict[str, Any]:
        return {"fast": self.inner.state_dict(), "slow": [1]}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        if saved["slow"] != [1]:
            raise ValueError("these are not the slow weights")
        self.inner.load_state_dict(saved["fast"])


class WithPlateau(torch.optim.AdamW):
    """An optimizer with a scheduler inside, whose state is torch's and more."""

    plateau = None

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "plateau": self.plateau}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        saved = dict(saved)
        self.plateau = saved.pop("plateau")
        super().load_state_dict(saved)


def odd_state(kind: str, seed: int) -> pyckpt.State:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    adam = torch.optim.AdamW(model[0].parameters())
    optimizers: Any = {
        "several": lambda: Several({"a": adam, "b": torch.optim.SGD(model[1].parameters(), 0.1)}),
        "lookahead": lambda: Lookahead(adam),
        "plateau": lambda: WithPlateau(model.parameters()),
        "dict": lambda: {"g": adam, "d": torch.optim.AdamW(model[1].parameters())},
        "generator": lambda: (one for one in [adam]),
    }[kind]()
    model(torch.ones(2, 4)).sum().backward()
    adam.step()
    return pyckpt.State(model, optimizers)


KINDS = ["several", "lookahead", "plateau", "dict", "generator"]


@pytest.mark.parametrize("kind", KINDS)
def test_optimizers_of_any_shape_come_back(tmp_path: Path, kind: str) -> None:
    state, other = odd_state(kind, 1), odd_state(kind, 2)
    [path] = pyckpt.save_checkpoint(state, tmp_path / "x.tar")
    pyckpt.load_checkpoint(path, other)
    assert contents(other) == contents(state)


def test_optimizers_of_a_dict_are_saved_by_its_keys() -> None:
    assert list(odd_state("dict", 1).state_dict()["optimizers"]) == ["g", "d"]


@pytest.mark.parametrize("kind", ["several", "lookahead"])
def test_an_optimizer_that_refuses_changes_nothing(tmp_path: Path, kind: str) -> None:
    state = odd_state(kind, 1)
    saved = copy.deepcopy(state.state_dict())
    name = next(iter(saved["optimizers"]))
    if kind == "several":  # the first part loads, the second is not there
        del saved["optimizers"][name]["b"]
    else:
        saved["optimizers"][name]["slow"] = None
    pyckpt.save({"state": saved}, tmp_path / "x.tar")
    other = odd_state(kind, 2)
    other.schedulers = torch.optim.lr_scheduler.StepLR(torch.optim.SGD([torch.ones(1)], 0.1), 1)
    before = contents(other)
    with pytest.raises(pyckpt.StateMismatchError, match=f"{name} refuses its saved state"):
        pyckpt.load_checkpoint(tmp_path / "x.tar", other)
    assert contents(other) == before
