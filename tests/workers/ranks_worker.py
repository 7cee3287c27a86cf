"""Prints this rank's Ranks, as the environment of its launcher has them, and again in a group."""

from dataclasses import astuple

import torch.distributed as dist

from pyckpt.ranks.exchange import current_ranks

alone = astuple(current_ranks())
dist.init_process_group("gloo")
assert astuple(current_ranks()) == alone
print(",".join(map(str, alone)) + "\n", end="", flush=True)
dist.destroy_process_group()
