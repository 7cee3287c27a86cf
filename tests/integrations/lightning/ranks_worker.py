"""Two ranks train: ranks_worker.py FOLDER SCENARIO. Each rank asserts what it sees."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import sys
import warnings
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
import torch.distributed as dist
from lightning.pytorch import strategies
from lightning.pytorch.callbacks import Callback
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard

import pyckpt
from pyckpt.integrations.lightning import FSDPStrategy, ModelParallelStrategy, PyckptCallback
from tests.integrations.lightning.training import (
    EPOCHS,
    Losses,
    Net,
    Run,
    data,
    files,
    is_same,
    make_trainer,
)

warnings.simplefilter("ignore")
torch.set_num_threads(1)
FOLDER, SCENARIO = Path(sys.argv[1]), sys.argv[2]


class StockFSDP(strategies.FSDPStrategy):
    """Lightning refuses its own class on the CPU, and no other."""


class ShardedNet(Net):
    """Shards itself, which works on the CPU too."""

    def configure_model(self) -> None:
        if SCENARIO.startswith("fsdp"):
            cpu = torch.device("cpu")
            self.net = FullyShardedDataParallel(self.net, device_id=cpu, use_orig_params=True)
        elif SCENARIO.startswith("model parallel"):
            mesh = self.device_mesh["data_parallel"]
            for layer in self.net:
                fully_shard(layer, mesh=mesh)
            fully_shard(self.net, mesh=mesh)


def make_strategy(stock: bool = False, **options: Any) -> Any:
    if SCENARIO.startswith("model parallel"):
        kind = strategies.ModelParallelStrategy if stock else ModelParallelStrategy
        sizes = {"data_parallel_size": 2, "tensor_parallel_size": 1}
        return kind(**sizes, process_group_backend="gloo", **options)
    if SCENARIO.startswith("fsdp"):
        kind = StockFSDP if stock else FSDPStrategy
        return kind(process_group_backend="gloo", **{"state_dict_type": "sharded", **options})
    return "ddp"


def fit(
    folder: Path,
    suffix: str = ".ckpt",
    *,
    callbacks: Any = None,
    ckpt_path: str | None = None,
    strategy: Any = "ddp",
    **options: Any,
) -> Run:
    lightning.seed_everything(0, verbose=False)
    losses = Losses()
    callbacks = [PyckptCallback()] if callbacks is None else callbacks
    trainer, model_checkpoint = make_trainer(
        folder, suffix, callbacks=[losses, *callbacks], devices=2, strategy=strategy, **options
    )
    module = Net() if strategy == "ddp" else ShardedNet()
    trainer.fit(module, data(), ckpt_path=ckpt_path)
    weights = {
        name: (tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor).clone()
        for name, tensor in module.state_dict().items()
    }
    return Run(trainer, module, model_checkpoint, losses.losses, weights)


def ddp(asynchronous: bool) -> None:
    stock = fit(FOLDER / "stock", callbacks=[])
    run = FOLDER / "run"
    fit(run, ".tgz", callbacks=[PyckptCallback(asynchronous)], epochs=2)
    # Every rank finds the files there, though rank 0 wrote them in the background.
    assert files(run) == ["epoch=0-step=2.tgz", "epoch=1-step=4.tgz", "last.tgz"]
    resumed = fit(run, ".tgz", callbacks=[PyckptCallback(asynchronous)], ckpt_path="last")
    assert len(resumed.losses) == len(stock.losses) // 2
    assert is_same(resumed, stock)
    resumed.trainer.save_checkpoint(run / "more.tgz")
    [found] = resumed.trainer.test(
        resumed.module, data(), ckpt_path=run / "more.tgz", verbose=False
    )
    assert found["val_loss"] > 0


def rank_0_fails(asynchronous: bool) -> None:
    """Its folder is a file. In the background, it is so from the second epoch on."""

    class Blocks(Callback):
        def on_train_epoch_start(self, trainer: Any, module: Any) -> None:
            if trainer.is_global_zero and trainer.current_epoch == 1:
                trainer.strategy.checkpoint_io.wait()
                shutil.rmtree(FOLDER / "run")
                (FOLDER / "run").write_bytes(b"")

    for epochs in (EPOCHS, 2):  # the error of the last save comes when fit ends
        if os.environ["RANK"] == "0":
            (FOLDER / "run").unlink(missing_ok=True)
        callbacks = [PyckptCallback(asynchronous), Blocks()]
        with pytest.raises(pyckpt.CheckpointError, match=r"rank 0.*run") as caught:
            fit(FOLDER / "run", callbacks=callbacks, saving={"save_last": False}, epochs=epochs)
        assert caught.value.rank == 0
        dist.barrier()


def sharded() -> None:
    stock = fit(FOLDER / "stock", strategy=make_strategy(stock=True), callbacks=[])
    options: dict[str, Any] = {}
    if SCENARIO.endswith("compressed"):
        options = {"compression": "gz", "compression_level": 1}
    if SCENARIO.endswith("full"):
        options = {"save_distributed_checkpoint": False}
    run, suffix = FOLDER / "run", ".tgz"
    fit(run, suffix, strategy=make_strategy(**options), epochs=2)
    assert files(run) == ["epoch=0-step=2.tgz", "epoch=1-step=4.tgz", "last.tgz"]
    if not SCENARIO.endswith("full"):
        ending = ".tar.gz" if options else ".tar"
        names = [name for name in files(run / "last.tgz") if name.endswith(ending)]
        assert len(names) == 2
        assert {".metadata", "meta.pt"} <= {*files(run / "last.tgz")}
    resumed = fit(run, suffix, strategy=make_strategy(**options), ckpt_path="last")
    assert len(resumed.losses) == len(stock.losses) // 2
    assert is_same(resumed, stock)
    if not options:  # Lightning reads our folders, and we read its
        path = str(run / "epoch=2-step=6.tgz")
        by_stock = fit(FOLDER / "a", strategy=make_strategy(stock=True), ckpt_path=path)
        assert is_same(by_stock, stock)
        path = str(FOLDER / "stock" / "epoch=2-step=6.ckpt")
        of_stock = fit(FOLDER / "b", strategy=make_strategy(), ckpt_path=path)
        assert is_same(of_stock, stock)
        # One file of another strategy. What follows is rounded in other ways.
        fit(FOLDER / "ddp", suffix, epochs=2)
        path = str(FOLDER / "ddp" / "last.tgz")
        of_ddp = fit(FOLDER / "c", strategy=make_strategy(), ckpt_path=path)
        assert len(of_ddp.losses) == len(stock.losses) // 2
        for one, other in zip(of_ddp.losses, stock.losses[len(of_ddp.losses) :], strict=True):
            assert abs(one - other) < 1e-5


def sharded_failure() -> None:
    """One rank cannot write: all raise, and the older folder is as it was."""
    run = FOLDER / "run"
    first = fit(run, strategy=make_strategy(), epochs=1, saving={"save_top_k": 0})
    first.trainer.save_checkpoint(run / "x.ckpt")
    before = {name: (run / "x.ckpt" / name).read_bytes() for name in files(run / "x.ckpt")}
    if dist.get_rank() == 1:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    with pytest.raises(pyckpt.CheckpointError, match=r"rank 1.*File too large"):
        first.trainer.save_checkpoint(run / "x.ckpt")
    if dist.get_rank() == 1:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    dist.barrier()
    assert before == {name: (run / "x.ckpt" / name).read_bytes() for name in before}
    assert files(run) == ["last.ckpt", "x.ckpt"]


def main() -> None:
    if SCENARIO.startswith("ddp"):
        ddp("asynchronous" in SCENARIO)
    elif SCENARIO.startswith("rank 0 fails"):
        rank_0_fails("asynchronous" in SCENARIO)
    elif SCENARIO.endswith("failure"):
        sharded_failure()
    else:
        sharded()


if __name__ == "__main__":
    main()
