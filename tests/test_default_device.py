"""torch.set_default_device and ``with torch.device(...)``: our own tensors stay on the host."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils._device import _device_constructors

import pyckpt
from pyckpt.archive.formats import file_suffixes, usual_suffixes
from tests.launch import run_ranks

PACKAGE = Path(pyckpt.__file__).parent


def factories() -> set[str]:
    """The functions of torch that make tensors on the default device."""
    return {function.__name__ for function in _device_constructors()}


def test_every_tensor_that_is_made_names_its_device() -> None:
    names = factories()
    assert "empty" in names
    without = []
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                continue
            of_torch = isinstance(node.func.value, ast.Name) and node.func.value.id == "torch"
            named = any(keyword.arg == "device" for keyword in node.keywords)
            if of_torch and node.func.attr in names and not named:
                without.append(f"{path.name}:{node.lineno} torch.{node.func.attr}")
    assert without == []


@pytest.fixture
def state() -> pyckpt.State:
    model = nn.Linear(64, 64)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 64)).sum().backward()
    optimizer.step()
    return pyckpt.State(model, optimizer)


@pytest.fixture
def on_meta() -> Iterator[None]:
    """A default device on which nothing has values, as nothing on a GPU is in host memory."""
    torch.set_default_device("meta")
    yield
    torch.set_default_device(None)


@pytest.mark.parametrize("suffix", ["", *usual_suffixes(), *file_suffixes()])
@pytest.mark.parametrize("way", ["blocking", "copy", "lazy"])
def test_saves_and_loads(
    state: pyckpt.State, on_meta: None, tmp_path: Path, suffix: str, way: str
) -> None:
    path = tmp_path / f"x{suffix}"
    if way == "blocking":
        pyckpt.save_checkpoint(state, path)
    else:
        pending = pyckpt.async_save_checkpoint(state, path, stage=way)  # type: ignore[arg-type]
        pending.wait_staged()
        pending.result()
    assert pyckpt.verify(path).ok
    weight = pyckpt.load(path)["state"]["model"]["weight"]
    assert weight.device.type == "cpu"
    assert torch.equal(weight, state.model.weight)
    part = pyckpt.load(path, keys="state/model/bias")["state"]["model"]["bias"]
    assert torch.equal(part, state.model.bias)
    with torch.no_grad():
        state.model.weight.zero_()
    pyckpt.load_checkpoint(path, state)
    assert torch.equal(weight, state.model.weight)
    assert state.model.weight.device.type == "cpu"


@pytest.mark.timeout(300)
def test_ranks_exchange_over_the_host(tmp_path: Path) -> None:
    run_ranks("agreement_worker.py", tmp_path, tmp_path, "default-device", "async-default-device")
    for name in ("default-device", "async-default-device"):
        assert pyckpt.verify(tmp_path / f"{name}-run.tar.gz").ok
