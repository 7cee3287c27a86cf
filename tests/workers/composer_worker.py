"""Saves a real Composer State with pyckpt and with Composer, and reads both with both.

Usage: composer_worker.py FOLDER SUFFIX...; prints the results as one line of JSON.
"""

import copy
import datetime
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import tests.composer_modules  # noqa: F401

# isort: split

import torch
from composer.core import State
from composer.devices import DeviceCPU
from composer.loggers import Logger
from composer.utils import checkpoint as composer_checkpoint

import pyckpt
from pyckpt.key_paths import without_ignored

FOLDER = Path(sys.argv[1])
SUFFIXES = sys.argv[2:]
NAME = "{run_name}/ep{epoch}-ba{batch}"
TREE = {
    "model": {"0.weight": 1, "0.bias": 2, "1.weight": 3},
    "AdamW": {"state": {0: {"step": 4}, 1: {"step": 5}}, "param_groups": [{"lr": 6}, {"lr": 7}]},
    "several": [("a", {"b": 8}), ["c", "d", "e", "f"], {}],
}
GLOBS = [
    ["model"],
    ["*weight"],
    ["model/[!0].*", "model/?.bias"],
    ["*/step"],
    ["AdamW/state/0"],
    ["*/0"],
    ["*/1", "*/0"],
    ["several/1/0", "several/1/2", "several/1/1"],
    ["several/0", "several/1", "several/2/*"],
    ["several", "several/1/*"],
    ["*b*", "none"],
    ["*"],
]


def build(seed: int, steps: int) -> State:
    torch.manual_seed(seed)
    model = torch.nn.Sequential(
        torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8), torch.nn.Linear(8, 2)
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)
    state = State(
        model=model,
        rank_zero_seed=seed,
        run_name="composer-run",
        device=DeviceCPU(),
        max_duration="2ep",
        optimizers=optimizer,
        device_train_microbatch_size=2,
    )
    state.schedulers = scheduler
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(6, 4)).square().mean().backward()
        optimizer.step()
        scheduler.step()
        state.timestamp = state.timestamp.to_next_batch(
            samples=6, tokens=12, duration=datetime.timedelta(seconds=0.25)
        )
    return state


def as_pyckpt_state(state: State) -> pyckpt.State:
    """The same model, optimizers and schedulers in pyckpt's State instead of Composer's."""
    return pyckpt.State(state.model, list(state.optimizers), list(state.schedulers))


def keys(tree: Any, prefix: str = "", depth: int = 3) -> list[str]:
    if not isinstance(tree, dict) or depth == 0:
        return []
    out = []
    for key, value in sorted(tree.items(), key=lambda item: str(item[0])):
        out += [f"{prefix}{key}", *keys(value, f"{prefix}{key}/", depth - 1)]
    return out


def weights_equal(a: State, b: State) -> bool:
    pairs = zip(a.model.state_dict().values(), b.model.state_dict().values(), strict=True)
    return all(torch.equal(x, y) for x, y in pairs)


def optimizer_equal(a: State, b: State) -> bool:
    states = [s.optimizers[0].state_dict()["state"] for s in (a, b)]
    return all(
        torch.equal(states[0][i][key], states[1][i][key]) for i in states[0] for key in states[0][i]
    )


def left_by_both(globs: list[str]) -> tuple[Any, Any]:
    theirs = copy.deepcopy(TREE)
    composer_checkpoint.glob_filter(globs)(theirs)
    return without_ignored(TREE, globs), theirs


def main() -> None:
    state = build(seed=7, steps=3)
    results: dict[str, Any] = {}
    for suffix in SUFFIXES:
        [ours] = pyckpt.save_checkpoint(state, f"{FOLDER}/ours/{NAME}{suffix}")
        theirs = composer_checkpoint.save_checkpoint(state, f"{FOLDER}/theirs/{NAME}{suffix}")
        for who, path in (("ours", str(ours)), ("theirs", theirs)):
            other = build(seed=99, steps=1)
            rng = composer_checkpoint.load_checkpoint(path, other, Logger(state=other))
            loaded = pyckpt.load(path)
            by_pyckpt = {}
            for kind, state_of in (("composer", lambda built: built), ("pyckpt", as_pyckpt_state)):
                resumed = build(seed=99, steps=1)
                resumed_state = state_of(resumed)
                pyckpt.load_checkpoint(path, resumed_state)
                by_pyckpt[kind] = [
                    weights_equal(state, resumed),
                    optimizer_equal(state, resumed),
                    resumed.schedulers[0].state_dict() == state.schedulers[0].state_dict(),
                    int(resumed_state.timestamp.batch),
                ]
            results[who + suffix] = {
                "path": path,
                "weights_equal": weights_equal(state, other),
                "optimizer_equal": optimizer_equal(state, other),
                "batch": int(other.timestamp.batch),
                "rng": list(rng[0]),
                "keys": keys(loaded),
                "pyckpt_resumes": by_pyckpt,
                "pyckpt_reads_it": torch.equal(
                    loaded["state"]["model"]["0.weight"], state.model[0].weight
                ),
            }
    [path] = pyckpt.save_checkpoint(state, FOLDER / "weights.tar", weights_only=True)
    other = build(seed=99, steps=1)
    composer_checkpoint.load_checkpoint(
        str(path), other, Logger(state=other), load_weights_only=True
    )
    results["weights"] = {
        "weights_equal": weights_equal(state, other),
        "keys": keys(pyckpt.load(path), depth=2),
    }
    globs = ["state/optimizers/*", "state/model/0.*", "rng/0/torch", "state/run_name"]
    [ours] = pyckpt.save_checkpoint(state, FOLDER / "ignored.tar", ignore_keys=globs)
    theirs = composer_checkpoint.save_checkpoint(
        state, f"{FOLDER}/ignored-theirs.tar", ignore_keys=globs
    )
    results["ignored"] = {
        "ours": keys(pyckpt.load(ours)),
        "theirs": keys(pyckpt.load(theirs)),
    }
    results["globs"] = [[globs, *map(repr, left_by_both(globs))] for globs in GLOBS]
    print(json.dumps(results))


if __name__ == "__main__":
    main()
