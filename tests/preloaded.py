"""Imports that the ranks of ``launch.run_ranks`` share: they are done before the fork."""

import gc
import os

# torch and DeepSpeed read these at import.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("DS_ACCELERATOR", "cpu")

import deepspeed
import setuptools  # DeepSpeed imports it to see what it can compile
import torch._dynamo  # the first optimizer imports it
import torch._inductor.compile_fx  # DeepSpeed's first optimizer imports it

import pyckpt

__all__ = ["deepspeed", "pyckpt", "setuptools", "torch"]

gc.freeze()  # garbage collection in the ranks skips all these objects
