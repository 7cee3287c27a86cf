"""One rank of a run with DeepSpeed: worker.py SCENARIO OUT [ARGUMENT ...].

What it finds goes to OUT/report-RANK.json. With the argument ``asynchronous``, saves are.
"""

from __future__ import annotations

import errno
import gc
import itertools
import json
import os
import resource
import runpy
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

os.environ.setdefault("DS_ACCELERATOR", "cpu")

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.runtime.checkpoint_engine.checkpoint_engine import CheckpointEngine

import pyckpt
from pyckpt.archive.writer import ArchiveWriter
from pyckpt.integrations.deepspeed import attach, detach
from pyckpt.storage.small_files import Replacement
from tests.integrations.deepspeed.training import Recipe, files_in, start, train

SCENARIO, OUT = sys.argv[1], Path(sys.argv[2])
ARGUMENTS = sys.argv[3:]
ASYNCHRONOUS = "asynchronous" in ARGUMENTS
FOLDER = OUT / "folder"

# All that changes files in a save.
STEPS = [(ArchiveWriter, "write"), (ArchiveWriter, "commit")]
STEPS += [(Replacement, "prepare"), (Replacement, "publish")]


def resume() -> dict[str, Any]:
    """Saves by DeepSpeed and by pyckpt, and goes on from what the one and the other loads."""
    recipe = Recipe(int(ARGUMENTS[0]), moe="moe" in ARGUMENTS)
    stock, ours, later = OUT / "stock", OUT / "ours", OUT / "asynchronous"
    engine = start(recipe)
    train(engine, recipe, 0, 1, 2)
    engine.save_checkpoint(str(stock), client_state={"seen": 3})
    engine.save_16bit_model(str(stock), "half.bin")
    handle = attach(engine)
    engine.save_checkpoint(str(ours), client_state={"seen": 3})
    engine.save_16bit_model(str(ours), "half.bin")
    handle.detach()
    handle = attach(engine, asynchronous=True)
    with during_steps(lambda: time.sleep(0.2)):
        engine.save_checkpoint(str(later), client_state={"seen": 3})
        engine.save_16bit_model(str(later), "half.bin")
        report: dict[str, Any] = {"never stopped": train(engine, recipe, 3, 4, 5)}
        handle.wait()
    for name, folder, attached in (
        ("stock loads stock's", stock, False),
        ("stock loads ours", ours, False),
        ("pyckpt loads stock's", stock, True),
        ("pyckpt loads ours", ours, True),
        ("stock loads the asynchronous one", later, False),
    ):
        engine = start(recipe, seed=1)
        if attached:
            attach(engine)
        path, client = engine.load_checkpoint(str(folder))
        assert path is not None
        assert client["seen"] == 3
        report[name] = train(engine, recipe, 3, 4, 5)
    if recipe.stage and not recipe.moe and dist.get_rank() == 0:
        for folder in (stock, ours):
            convert(folder)
    return report


def convert(folder: Path) -> None:
    """Lets DeepSpeed's own programs convert a checkpoint."""
    script = runpy.run_path(str(folder / "zero_to_fp32.py"), run_name="zero_to_fp32")
    weights = script["get_fp32_state_dict_from_zero_checkpoint"](str(folder))
    merged = folder.with_name(f"{folder.name}-fp32")
    merged.mkdir()
    torch.save(dict(weights), merged / "weights.pt")
    sys.argv = ["ds_to_universal", "--input_folder", str(folder / "global_step3")]
    sys.argv += ["--output_folder", str(folder.with_name(f"{folder.name}-universal") / "step3")]
    # One process each: forks of a rank would share its connections.
    sys.argv += ["--num_extract_workers", "1", "--num_merge_workers", "1", "--inject_missing_state"]
    runpy.run_module("deepspeed.checkpoint.ds_to_universal", run_name="__main__")


def fails() -> dict[str, Any]:
    """One rank fails, in several ways; then training goes on from the old checkpoint."""
    recipe = Recipe(3)
    engine = start(recipe)
    handle = attach(engine, ASYNCHRONOUS)
    rank = dist.get_rank()
    train(engine, recipe, 0, 1, 2)
    engine.save_checkpoint(str(FOLDER), tag="old")
    handle.wait()
    dist.barrier()
    old = files_in(FOLDER)
    dist.barrier()
    report: dict[str, Any] = {}

    def save(folder: Path, tag: str, state: Any = None) -> None:
        engine.save_checkpoint(str(folder), tag=tag, client_state={"state": state})
        handle.wait()

    for tag in ("new", "old"):
        refused = Unpicklable() if rank == 1 else None
        report[f"pickle {tag}"] = tried(lambda: save(FOLDER, tag, refused))  # noqa: B023
        with small_files(rank == 1):
            report[f"size {tag}"] = tried(lambda: save(FOLDER, tag))  # noqa: B023
    dist.barrier()
    report["unchanged"] = files_in(FOLDER) == old
    blocked = OUT / "blocked"
    for name in ("latest", "zero_to_fp32.py"):
        (blocked / name / name).mkdir(parents=True, exist_ok=True)
        report[f"blocked {name}"] = tried(lambda: save(blocked / name, "new"))  # noqa: B023
    weights = blocked / "latest"
    report["half"] = tried(lambda: (engine.save_16bit_model(str(weights), "latest"), handle.wait()))
    dist.barrier()
    report["nothing new"] = sorted(files_in(blocked))
    engine.load_checkpoint(str(FOLDER))
    report["losses"] = train(engine, recipe, 3, 4)
    dist.barrier()
    save(FOLDER, "new")
    report["latest"] = (FOLDER / "latest").read_text()
    return report


def later_errors() -> dict[str, Any]:
    """Rank 1 fails in the background, and nobody asks: the next save raises it, once."""
    recipe = Recipe(1)
    engine = start(recipe)
    handle = attach(engine, asynchronous=True)
    train(engine, recipe, 0, 1)
    with small_files(dist.get_rank() == 1):
        engine.save_checkpoint(str(FOLDER), tag="a")
        pyckpt.remove(OUT / "none").exception()  # behind the save
    report = {"next": tried(lambda: engine.save_checkpoint(str(FOLDER), tag="b"))}
    report["none has names"] = sorted(files_in(FOLDER))
    dist.barrier()
    engine.save_checkpoint(str(FOLDER), tag="c")
    path, _ = engine.load_checkpoint(str(FOLDER))  # waits for the save
    report["loaded"] = path
    handle.wait()
    return report


def every_write() -> dict[str, Any]:
    """Stops before and after each step of a save on each rank, and resumes by ``latest``."""
    recipe = Recipe(1)
    engine = start(recipe)
    handle = attach(engine, ASYNCHRONOUS)
    other = OUT / "other"
    losses = {}
    for step, tag in ((0, "old"), (1, "new")):
        train(engine, recipe, step)
        engine.save_checkpoint(str(other), tag=tag)
        handle.wait()
    for tag in ("old", "new"):
        engine.load_checkpoint(str(other), tag=tag)
        losses[tag] = train(engine, recipe, 2, 3)

    def save(tag: str) -> None:
        engine.load_checkpoint(str(other), tag=tag)
        engine.save_checkpoint(str(FOLDER), tag=tag)
        handle.wait()

    report: dict[str, Any] = {"wrong": [], "stops": 0, "moved": 0}
    for rank in range(2):
        for at in itertools.count():
            save("old")
            with stopping(at if rank == dist.get_rank() else -1):
                error = tried(lambda: save("new"))
            dist.barrier()
            tag = (FOLDER / "latest").read_text()
            engine.load_checkpoint(str(FOLDER))
            found = [at, tag, error, train(engine, recipe, 2, 3)]
            dist.barrier()
            if error is None:
                break
            report["stops"] += 1
            report["moved"] += tag == "new"
            if error[2] != rank or "a stop" not in error[1] or found[3] != losses[tag]:
                report["wrong"].append(found)
    report["at last"] = tag
    return report


def killed() -> dict[str, Any]:
    """Rank 1 is killed at a step of its second save."""
    recipe = Recipe(1)
    engine = start(recipe)
    handle = attach(engine, ASYNCHRONOUS)
    rank = dist.get_rank()
    train(engine, recipe, 0, 1, 2)
    engine.save_checkpoint(str(FOLDER))
    handle.wait()
    report: dict[str, Any] = {"losses": train(engine, recipe, 3, 4)}
    begin = time.monotonic()
    with during_steps(lambda: kill(1), ARGUMENTS[0]):
        report["error"] = tried(lambda: (engine.save_checkpoint(str(FOLDER)), handle.wait()))
    report["seconds"] = time.monotonic() - begin
    (OUT / f"report-{rank}.json").write_text(json.dumps(report))
    os._exit(0)  # with a dead rank, the process group cannot end in good order


def goes_on() -> dict[str, Any]:
    """Resumes by ``latest``, with DeepSpeed alone."""
    recipe = Recipe(1)
    engine = start(recipe, seed=1)
    path, _ = engine.load_checkpoint(str(FOLDER))
    return {"path": path, "losses": train(engine, recipe, 3, 4)}


def full_disk() -> list[Any]:
    """The disk is full for one save, and has room again for the next."""
    recipe = Recipe(1)
    engine = start(recipe)
    train(engine, recipe, 0, 1, 2)
    disk = OUT / "disk"
    filler = disk / "filler"
    found = []
    for asynchronous in (False, True):
        handle = attach(engine, asynchronous)
        engine.save_checkpoint(str(disk), tag="old")
        handle.wait()
        dist.barrier()  # the other rank may still remove the files before
        old = files_in(disk)
        dist.barrier()
        if dist.get_rank() == 0:
            with suppress(OSError), filler.open("wb", buffering=0) as file:
                while True:
                    file.write(bytes(4096))
            os.truncate(filler, filler.stat().st_size - 8192)
        dist.barrier()
        error = tried(lambda: (engine.save_checkpoint(str(disk), tag="new"), handle.wait()))  # noqa: B023
        dist.barrier()
        if dist.get_rank() == 0:
            filler.unlink()
        dist.barrier()
        unchanged = files_in(disk) == old
        dist.barrier()
        engine.save_checkpoint(str(disk), tag="new")
        handle.wait()
        found.append([error, unchanged, (disk / "latest").read_text()])
        handle.detach()
        dist.barrier()
    return found


def ends() -> dict[str, Any]:
    """The end of the engine waits for a save, and so does the end of the process."""
    recipe = Recipe(1)
    engine = start(recipe)
    attach(engine, asynchronous=True)
    train(engine, recipe, 0)
    slow = during_steps(lambda: time.sleep(0.3))
    slow.__enter__()  # to the end of the process
    engine.save_checkpoint(str(FOLDER), tag="a")
    report = {"too early": (FOLDER / "latest").exists()}
    engine.destroy()
    report["destroyed"] = (FOLDER / "latest").read_text()
    engine = start(recipe)
    attach(engine, asynchronous=True)
    train(engine, recipe, 0, 1)
    engine.save_checkpoint(str(FOLDER), tag="b")
    report["under way"] = (FOLDER / "latest").read_text()
    return report


def attachment() -> dict[str, Any]:
    """What attach and detach refuse, change and leave."""
    recipe = Recipe(2)
    engine = start(recipe)
    rank = dist.get_rank()
    train(engine, recipe, 0)
    stock = engine.checkpoint_engine
    report: dict[str, Any] = {
        "no engine": tried(lambda: attach(engine.module)),
        "level": tried(lambda: attach(engine, compression_level="high")),
        "nice": tried(lambda: attach(engine, True, nice=99)),
    }
    engine.checkpoint_engine = OtherEngine()
    report["other"] = tried(lambda: attach(engine))
    engine.checkpoint_engine = stock
    attach(engine, weights_only=False, compression_level=1)
    report["twice"] = tried(lambda: attach(engine))
    state = pyckpt.State(model=engine)
    paths = pyckpt.save_checkpoint(state, f"{OUT}/whole-{{rank}}.tar")
    pyckpt.load_checkpoint(f"{OUT}/whole-{{rank}}.tar", state)
    report["whole"] = [path.name for path in paths]
    engine.save_checkpoint(str(FOLDER), "a", {"own": Own(1)})
    _, client = engine.load_checkpoint(str(FOLDER))
    report["own"] = client["own"].value
    engine.save_checkpoint(str(FOLDER), tag="b", save_latest=False)
    report["latest"] = (FOLDER / "latest").read_text()
    os.chdir(OUT)  # where a folder "s3:" would be
    for url in ("s3://bucket/run", "memory://run"):
        report[f"save to {url}"] = tried(lambda: engine.save_checkpoint(url))  # noqa: B023
        report[f"half to {url}"] = tried(lambda: engine.save_16bit_model(url))  # noqa: B023
        report[f"load from {url}"] = tried(lambda: engine.load_checkpoint(url))  # noqa: B023
    dist.barrier()
    report["no folders"] = not any(path.name.endswith(":") for path in OUT.iterdir())
    detach(engine)
    changed = {"save_checkpoint", "load_checkpoint", "destroy"} & set(vars(engine))
    report["detached"] = not changed and engine.checkpoint_engine is stock
    detach(engine)
    attach(engine)
    report["unsafe"] = tried(lambda: engine.load_checkpoint(str(FOLDER), "a"))
    file = FOLDER / "b" / "mp_rank_00_model_states.pt"
    loaded = engine.checkpoint_engine.load(str(file), map_location="meta")
    report["device"] = loaded["module"]["last.weight"].device.type
    dist.barrier()
    if rank == 0:
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 1
        file.write_bytes(data)
    dist.barrier()
    report["damaged"] = tried(lambda: engine.checkpoint_engine.load(str(file)))
    detach(engine)
    deepspeed.__version__ = "1.2rc1"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        attach(engine)
    report["warned"] = [str(one.message) for one in caught if "pyckpt" in str(one.message)]
    return report


class OtherEngine(CheckpointEngine):
    """Neither DeepSpeed's nor ours."""

    def create(self, info: Any) -> None: ...
    def save(self, state_dict: Any, path: str) -> None: ...
    def load(self, path: str, map_location: Any = None) -> None: ...
    def commit(self, info: Any) -> None: ...


class Own:
    """A type that loads with ``weights_only=True`` refuse."""

    def __init__(self, value: int) -> None:
        self.value = value


class Unpicklable:
    def __reduce__(self) -> str:
        raise RuntimeError("this state cannot be pickled")


def tried(call: Callable[[], Any]) -> list[Any] | None:
    """The error of a call: its type, text and rank."""
    try:
        call()
    except Exception as error:
        return [type(error).__name__, str(error), getattr(error, "rank", None)]
    return None


@contextmanager
def during_steps(
    before: Callable[[], Any], step: str = "", after: Callable[[], Any] = lambda: None
) -> Iterator[None]:
    """Does something before and after each step of all saves, or one step."""
    originals = [(kind, name, getattr(kind, name)) for kind, name in STEPS if step in ("", name)]

    def with_both(original: Callable[..., Any]) -> Callable[..., Any]:
        def replacement(*args: Any, **kwargs: Any) -> Any:
            before()
            result = original(*args, **kwargs)
            after()
            return result

        return replacement

    for kind, name, original in originals:
        setattr(kind, name, with_both(original))
    yield
    for kind, name, original in originals:
        setattr(kind, name, original)


@contextmanager
def stopping(at: int) -> Iterator[None]:
    """Raises at the place number ``at``, of all before and after steps."""
    places = itertools.count()

    def stop() -> None:
        if next(places) == at:
            raise OSError(errno.EIO, "a stop for the test")

    with during_steps(stop, after=stop):
        yield


@contextmanager
def small_files(really: bool) -> Iterator[None]:
    """Lets this process write no more than some bytes to a file."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    if really:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def kill(rank: int) -> None:
    if dist.get_rank() == rank:
        time.sleep(0.5)  # an asynchronous save has returned on the other rank
        os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    torch.set_num_threads(1)
    deepspeed.init_distributed("gloo")
    rank = dist.get_rank()
    report: Any = globals()[SCENARIO.replace("-", "_")]()
    (OUT / f"report-{rank}.json").write_text(json.dumps(report))
    dist.barrier()
    # The engine is part of a reference cycle. If it still holds the group at exit, the process may
    # abort.
    gc.collect()
    dist.destroy_process_group()


main()
