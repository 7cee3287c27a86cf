"""Which states may be read in place, which of their tensors are, and when they are copied."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import pyckpt
from pyckpt.staging.buffers import BufferPool
from pyckpt.staging.latch import Latch
from pyckpt.staging.lazy import LiveRecords, check_lazy, is_lazy_safe
from pyckpt.torch_format.records import Record
from pyckpt.torch_format.serialize import serialize

pytestmark = pytest.mark.timeout(60)


class Foreign:
    """An optimizer that is not a torch.optim.Optimizer."""

    def __init__(self, parameters: Iterator[nn.Parameter]) -> None:
        self.param_groups = [{"params": list(parameters)}]
        self.state: dict[Any, Any] = {}


class Derived(torch.optim.SGD):
    """Has its own step(); torch hooks that too."""

    def step(self, closure: Any = None) -> None:
        super().step(closure)


def with_step_replaced(parameters: Iterator[nn.Parameter]) -> torch.optim.Optimizer:
    optimizer = torch.optim.SGD(parameters, lr=0.1)
    optimizer.step = lambda closure=None: None  # type: ignore[method-assign]
    return optimizer


def with_scheduler(parameters: Iterator[nn.Parameter]) -> torch.optim.Optimizer:
    optimizer = torch.optim.SGD(parameters, lr=0.1)
    torch.optim.lr_scheduler.StepLR(optimizer, 1)  # wraps the optimizer's step
    return optimizer


def state_with(optimizer: Callable[[Any], Any], **fields: Any) -> pyckpt.State:
    model = nn.Linear(4, 4)
    return pyckpt.State(model, optimizer(model.parameters()), **fields)


def of_half(parameters: Iterator[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD([next(iter(parameters))], lr=0.1)


@pytest.mark.parametrize(
    ("state", "safe"),
    [
        (state_with(torch.optim.AdamW), True),
        (state_with(lambda p: [torch.optim.LBFGS(p)]), True),
        (state_with(Derived), True),
        (state_with(lambda p: ()), False),
        (state_with(Foreign), False),
        (state_with(of_half), False),
        (state_with(with_step_replaced), False),
        (state_with(with_scheduler), True),
    ],
)
def test_lazy_is_the_default_where_all_steps_are_noticed(state: pyckpt.State, safe: bool) -> None:
    assert is_lazy_safe(state) == safe


def test_frozen_parameters_need_no_optimizer() -> None:
    state = state_with(of_half)
    state.model.bias.requires_grad_(False)
    assert is_lazy_safe(state)


def test_embeddings_that_forward_renormalizes_are_copied() -> None:
    model = nn.Sequential(nn.Embedding(4, 4, max_norm=1.0))
    assert not is_lazy_safe(pyckpt.State(model, torch.optim.SGD(model.parameters())))


class Compiled(torch.optim.SGD):
    """Loses the hooks of its step, as torch.compile in some versions does to torch's optimizers."""


def test_hooks_that_torch_compile_takes_away_are_missed() -> None:
    state = state_with(lambda parameters: Compiled(parameters, lr=0.1, fused=True))
    assert is_lazy_safe(state)
    records = [r for r in serialize(state.state_dict()) if r.is_storage]
    live = LiveRecords(records, state, BufferPool(), 1, Latch())
    Compiled.step = torch.optim.SGD.step.__wrapped__  # type: ignore[attr-defined]
    Compiled.step.hooked = True
    assert not is_lazy_safe(state)
    with pytest.raises(pyckpt.OptionError, match="not possible with Compiled"):
        check_lazy(state)
    # Fused kernels change parameters, and torch's version counters do not show it.
    for parameter in state.model.parameters():
        parameter.grad = torch.ones_like(parameter)
    state.optimizers.step()
    with pytest.raises(pyckpt.TornSaveError, match="Compiled stopped calling the hooks"):
        live.settle()
    live.close()


def test_composers_algorithms_may_change_weights() -> None:
    own = state_with(torch.optim.SGD)
    state = SimpleNamespace(model=own.model, optimizers=[own.optimizers], algorithms=["EMA"])
    assert not is_lazy_safe(state)  # type: ignore[arg-type]


def test_an_optimizer_that_cannot_be_noticed_is_refused() -> None:
    check_lazy(state_with(torch.optim.SGD))
    with pytest.raises(pyckpt.OptionError, match="not possible with Foreign"):
        check_lazy(state_with(Foreign))


def test_a_model_that_is_no_module_is_copied() -> None:
    state = pyckpt.State(SimpleNamespace(state_dict=dict))
    assert not is_lazy_safe(state)
    with pytest.raises(pyckpt.OptionError, match=r"torch\.nn\.Module"):
        check_lazy(state)


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(100))
        self.tied = self.weight
        self.register_buffer("statistics", torch.zeros(50))
        self.seen = nn.Parameter(torch.randn(20))
        self.register_buffer("view", self.seen.detach()[:5])


@pytest.fixture
def live() -> Iterator[tuple[pyckpt.State, LiveRecords]]:
    model = Model()
    optimizer = torch.optim.AdamW(model.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    state = pyckpt.State(model, optimizer)
    records = [r for r in serialize(state.state_dict()) if r.is_storage]
    live = LiveRecords(records, state, BufferPool(), 2, Latch())
    yield state, live
    live.close()


def read_in_place(live: LiveRecords) -> list[Record]:
    return [record for record in live.records if record.reader is not None]


def test_parameters_and_moments_are_read_in_place(live: tuple[pyckpt.State, LiveRecords]) -> None:
    _, records = live
    # The tied weight counts once. Each of the two parameters has a step and two moments. The
    # parameter that shares memory with a buffer is copied, like the buffer.
    assert len(read_in_place(records)) == 1 + 2 * 3
    assert len(records.records) == 1 + 2 * 3 + 2


@pytest.mark.parametrize("other", [False, True])
def test_a_step_of_any_optimizer_stages(
    live: tuple[pyckpt.State, LiveRecords], other: bool
) -> None:
    state, records = live
    optimizer = state.optimizers
    if other:
        optimizer = torch.optim.SGD([state.model.weight], lr=1.0)
    assert not records.staged.is_set()
    optimizer.step()
    assert records.staged.is_set()
    records.settle()


def test_memory_that_cannot_be_had_fails_the_save_not_the_step(
    live: tuple[pyckpt.State, LiveRecords], monkeypatch: pytest.MonkeyPatch
) -> None:
    state, records = live

    def no_memory(*_: Any, **__: Any) -> None:
        raise MemoryError("no more")

    monkeypatch.setattr(BufferPool, "take", no_memory)
    state.optimizers.step()
    with pytest.raises(MemoryError):
        records.settle()


def test_ctrl_c_while_staging_is_the_callers(
    live: tuple[pyckpt.State, LiveRecords], monkeypatch: pytest.MonkeyPatch
) -> None:
    state, records = live

    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(BufferPool, "take", interrupted)
    with pytest.raises(KeyboardInterrupt):
        state.optimizers.step()
    assert records.staged.is_set()
    with pytest.raises(pyckpt.CheckpointError, match="KeyboardInterrupt came while"):
        records.settle()


def test_frozen_parameters_are_copied_where_only_trained_ones_are_known_not_to_change() -> None:
    model = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])
    model[1].requires_grad_(False)
    state = pyckpt.State(model, torch.optim.SGD(model[0].parameters(), lr=0.1))
    records = [r for r in serialize(state.state_dict()) if r.is_storage]
    for frozen, in_place in ((True, 4), (False, 2)):
        live = LiveRecords(records, state, BufferPool(), 1, Latch(), frozen=frozen)
        assert len(read_in_place(live)) == in_place
        live.close()


class WithTotals(torch.optim.SGD):
    """Its state also has entries that belong to no parameter."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, lr=0.1)
        self.state["count"] = 3  # type: ignore[index]
        self.state["total"] = torch.ones(2)  # type: ignore[index]


def test_what_else_optimizers_keep_is_copied() -> None:
    state = state_with(WithTotals)
    records = [r for r in serialize(state.state_dict()) if r.is_storage]
    live = LiveRecords(records, state, BufferPool(), 1, Latch())
    assert len(read_in_place(live)) == 2
    assert len(live.records) == 3
    live.close()


def test_learning_rates_may_change_at_any_time() -> None:
    """An optimizer's options may hold tensors, and schedulers may change them."""
    model = nn.Linear(4, 4)
    optimizer = torch.optim.AdamW(model.parameters(), lr=torch.tensor(0.1), foreach=False)
    state = pyckpt.State(model, optimizer)
    records = [r for r in serialize(state.state_dict()) if r.is_storage]
    live = LiveRecords(records, state, BufferPool(), 1, Latch())
    optimizer.param_groups[0]["lr"].fill_(0.01)
    live.settle()
    assert len(read_in_place(live)) == 2
    live.close()
