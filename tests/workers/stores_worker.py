"""Every rank saves an archive of its own to a store; prints nothing if the outcome is as expected.

Usage: torchrun ... stores_worker.py URL SERVER NBYTES FAILING_RANK

FAILING_RANK: the rank that the error has to name, or -1 if the save has to succeed.
"""

import sys

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

import pyckpt
from pyckpt.storage import retries

url, server, nbytes, failing = *sys.argv[1:3], *map(int, sys.argv[3:5])
options = {"endpoint_url": server, "key": "key", "secret": "secret"}
failed: pyckpt.CheckpointError | None = None
retries._PAUSES = (0.01,) * 3
dist.init_process_group("gloo")
torch.manual_seed(0)
mesh = init_device_mesh("cpu", (2,))
whole = torch.randn(nbytes // 4)
model = nn.ParameterDict({n: distribute_tensor(whole, mesh, [Shard(0)]) for n in "abcd"})
try:
    urls = pyckpt.save_checkpoint(
        pyckpt.State(model), url, state_dict_type="sharded", storage_options=options
    )
except pyckpt.CheckpointError as error:
    failed = error
if failed is None:
    assert failing == -1
    assert urls == [url.format(rank=rank) for rank in range(2)]
else:
    assert failed.rank == failing, failed
    assert failed.path == url.format(rank=failing), failed
dist.destroy_process_group()
