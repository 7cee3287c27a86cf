"""Which states may be read in place, which of their tensors are, and when they are copied."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import pyckpt
from pyckpt import _core
from pyckpt.staging.buffers import BufferPool, HostBuffer
from pyckpt.staging.latch import Latch
from pyckpt.staging.lazy import LiveRecords, check_lazy, distrust, is_lazy_safe
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


def bytes_of(record: Record) -> bytes:
    memory = (ctypes.c_uint8 * record.nbytes)()
    if record.reader is None:
        return ctypes.string_at(record.address, record.nbytes)
    record.reader.read(0, record.nbytes, ctypes.addressof(memory))
    return bytes(memory)


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


def records_of(state: pyckpt.State) -> list[Record]:
    return [record for record in serialize(state.state_dict()) if record.is_storage]


def test_what_is_not_known_to_be_trained_is_copied() -> None:
    """Such parameters may be averages that forward changes, though an optimizer has them."""
    model = nn.ModuleDict({name: nn.Linear(4, 4, bias=False) for name in NAMES})
    model["frozen"].requires_grad_(False)
    optimizer = torch.optim.AdamW(model.parameters())
    for name in ("trained", "stepped", "frozen later"):
        model[name].weight.grad = torch.ones(4, 4)
    optimizer.step()
    model["frozen later"].requires_grad_(False)
    model["stepped"].weight.grad = None
    state = pyckpt.State(model, optimizer)
    records = records_of(state)
    for frozen, in_place in ((True, 5 + 9), (False, 2 + 6)):  # weights, and what AdamW keeps
        live = LiveRecords(records, state, BufferPool(), 1, Latch(), frozen=frozen)
        assert len(read_in_place(live)) == in_place
        live.close()


NAMES = ["trained", "stepped", "frozen", "frozen later", "no gradient"]


class TwoSets(torch.optim.SGD):
    """Keeps two sets of weights, and swaps them outside of its step."""

    def eval(self) -> None:
        """Swaps."""


class Sharpening(torch.optim.SGD):
    @torch.no_grad()
    def first_step(self) -> None:
        """Moves weights."""


class Ordinary(torch.optim.AdamW):
    """Has a step and parts of its own, as most optimizers do that derive from torch's."""

    constant = 3

    @property
    def rate(self) -> float:
        return 0.1

    def step(self, closure: Any = None) -> Any:
        return super().step(closure)

    def _update(self) -> None:
        pass


@pytest.mark.parametrize(("kind", "safe"), [(TwoSets, 0), (Sharpening, 0), (Ordinary, 1)])
def test_optimizers_with_other_ways_to_move_weights_are_copied(kind: Any, safe: bool) -> None:
    assert is_lazy_safe(state_with(lambda parameters: kind(parameters, lr=0.1))) == safe


def test_after_a_torn_save_the_model_is_copied() -> None:
    state, other = state_with(torch.optim.SGD), state_with(torch.optim.SGD)
    distrust(state)
    assert not is_lazy_safe(state)
    assert is_lazy_safe(other)
    distrust(pyckpt.State(SimpleNamespace()))  # no module: it is copied anyway


def test_where_the_system_call_is_forbidden_the_state_is_copied(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_core, "can_guard_copies", lambda: False)
    assert not is_lazy_safe(state_with(torch.optim.SGD))
    with pytest.raises(pyckpt.OptionError, match="process_vm_readv"):
        check_lazy(state_with(torch.optim.SGD))


def test_staging_within_staging() -> None:
    """A signal handler may step while the step's hook copies. Both leave all memory in the pool."""
    state = state_with(lambda parameters: torch.optim.SGD(parameters, lr=0.1))
    for parameter in state.model.parameters():
        parameter.grad = torch.ones_like(parameter)
    expected = {name: value.clone() for name, value in state.model.state_dict().items()}

    class Interrupting(BufferPool):
        def take(self, nbytes: int, *, pinned: bool) -> HostBuffer:
            buffer = super().take(nbytes, pinned=pinned)
            if not nested:
                nested.append(True)
                state.optimizers.step()
            return buffer

    nested: list[bool] = []
    pool = Interrupting()
    live = LiveRecords(records_of(state), state, pool, 1, Latch())
    state.optimizers.step()
    for record, value in zip(live.records, expected.values(), strict=True):
        assert bytes_of(record) == value.numpy().tobytes()
    live.settle()
    live.close()
    assert nested
    assert len(pool._free) == 2


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
