"""What the ranks of ``launch.run_ranks`` have imported before they are forked."""

import gc
import os

# Read when torch and DeepSpeed are imported.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("DS_ACCELERATOR", "cpu")

import deepspeed
import setuptools  # by DeepSpeed, to see what it can compile
import torch._dynamo  # by the first optimizer
import torch._inductor.compile_fx  # by DeepSpeed's first optimizer

import pyckpt

__all__ = ["deepspeed", "pyckpt", "setuptools", "torch"]

gc.freeze()  # the ranks' own collections need not go through all this
