"""Overwrites memory as soon as it is staged, while another thread is in the middle of reading it.

Prints what that thread has read. It runs with tests/native/slow_reads.c, so that it takes long.
"""

import ctypes
import threading
import time

import torch

from pyckpt import _core

tensor = torch.ones(4096, dtype=torch.uint8)
live = _core.LiveMemory()
source = live.add(tensor.data_ptr(), tensor.nbytes)
memory = (ctypes.c_uint8 * tensor.nbytes)()
reader = threading.Thread(target=source.read, args=(0, tensor.nbytes, ctypes.addressof(memory)))
reader.start()
time.sleep(0.1)  # if it has not begun by then, it reads what was staged, which is right as well
buffer = torch.empty(live.staging_nbytes, dtype=torch.uint8)
live.stage(buffer.data_ptr(), 1)
tensor.zero_()
reader.join()
print(set(memory))
