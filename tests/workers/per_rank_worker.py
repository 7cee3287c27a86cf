"""One of four gloo ranks whose states differ in ``per_rank`` alone.

Usage: torchrun ... per_rank_worker.py OUT FOLDER
Every rank reports to OUT/RANK.json, by scenario, what it got or what was raised.
"""

import json
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

import pyckpt

OUT, FOLDER = Path(sys.argv[1]), Path(sys.argv[2])


def state_with(per_rank: dict[str, Any]) -> pyckpt.State:
    torch.manual_seed(0)
    model = torch.nn.Linear(2, 2)
    return pyckpt.State(model, torch.optim.AdamW(model.parameters()), per_rank=per_rank)


def own(rank: int) -> dict[str, Any]:
    part = {"loader": {"next": 10 * rank, "order": torch.arange(3) + rank}}
    return {**part, "stage": "last"} if rank == 3 else part


def loaded(path: Path, **options: Any) -> list[Any]:
    state = state_with({"kept": 1})
    with warnings.catch_warnings(record=True) as caught:
        pyckpt.load_checkpoint(path, state, **options)
    told = [str(one.message) for one in caught]
    loader = state.per_rank.get("loader", {})
    order = loader["order"].tolist() if "order" in loader else None
    return [sorted(state.per_rank), loader.get("next"), order, told]


class Scenarios:
    def __init__(self) -> None:
        self.rank = dist.get_rank()
        self.pairs = [dist.new_group(pair) for pair in ([0, 1], [2, 3])]
        self.pair = self.pairs[self.rank // 2]

    def save(self) -> list[Any]:
        state = state_with(own(self.rank))
        state.state_dict()  # stays without it
        [path] = pyckpt.save_checkpoint(state, FOLDER / "all.tar.gz")
        pending = pyckpt.async_save_checkpoint(state, FOLDER / "all.pt")
        state.per_rank["loader"]["order"].zero_()  # after the call, this does not matter
        return [path.name, *(one.name for one in pending.result())]

    def load(self) -> list[Any]:
        return loaded(FOLDER / "all.tar.gz")

    def load_async(self) -> list[Any]:
        return loaded(FOLDER / "all.pt")

    def load_by_fewer(self) -> list[Any]:
        return loaded(FOLDER / "all.pt", process_group=self.pair)

    def load_by_more(self) -> list[Any]:
        path = FOLDER / f"pair-{self.rank // 2}.tar"
        pyckpt.save_checkpoint(state_with(own(self.rank)), path, process_group=self.pair)
        dist.barrier()
        return loaded(FOLDER / "pair-1.tar")

    def only_one_has_something(self) -> list[Any]:
        state = state_with({"seen": 1} if self.rank == 2 else {})
        [path] = pyckpt.save_checkpoint(state, FOLDER / "one.tar")
        return [repr(pyckpt.load(path)["per_rank"])]

    def none_has_something(self) -> list[Any]:
        [path] = pyckpt.save_checkpoint(state_with({}), FOLDER / "none.tar")
        return [list(pyckpt.load(path)), *loaded(path)]

    def no_pickle(self) -> list[Any]:
        state = state_with({"loader": iter(range(2)), "open": lambda: 0} if self.rank == 2 else {})
        return pyckpt.save_checkpoint(state, FOLDER / "bad.tar")

    def not_on_the_cpu(self) -> list[Any]:
        at = torch.zeros(2, device="meta" if self.rank == 1 else "cpu")
        return pyckpt.save_checkpoint(state_with({"loader": [at]}), FOLDER / "bad.tar")


def tried(scenario: Callable[[], Any]) -> dict[str, Any]:
    try:
        return {"got": scenario()}
    except pyckpt.CheckpointError as error:
        return {"error": [type(error).__name__, str(error), error.rank]}


def main() -> None:
    dist.init_process_group("gloo")
    scenarios = Scenarios()
    names = [name for name in vars(Scenarios) if not name.startswith("_")]
    report = {name: tried(getattr(scenarios, name)) for name in names}
    (OUT / f"{scenarios.rank}.json").write_text(json.dumps(report))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
