"""The same training by each framework, for benchmarks.frameworks.

A module of a framework's name has

- ``VERSION``: what is measured, for readers;
- ``WAYS``: how it can save, the framework's own ways first;
- ``train(task, way, folder, clock)``: trains from the same start, saves checkpoints below
  ``folder``, and returns when the last one is complete. It calls ``clock.step()`` at the end of
  each step, before what is saved after that step;
- ``read(folder)``: what the last checkpoint holds, read without pyckpt.

Each runs in the Python of its framework's environment.
"""
