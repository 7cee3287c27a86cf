"""How much memory a process can still get, and that no load asks for more."""

import os
from pathlib import Path

import pytest
import torch

import pyckpt
from pyckpt import memory

GIB = 1 << 30


def machine(folder: Path, meminfo: str, limit: int, current: int, cache: int) -> Path:
    """A root folder as a container with a memory limit sees it."""
    files = {
        "proc/meminfo": meminfo,
        "proc/self/cgroup": "0::/\n",
        "proc/self/mountinfo": "25 20 0:22 / /sys/fs/cgroup rw - cgroup2 cgroup rw\n",
        "sys/fs/cgroup/memory.max": f"{limit}\n",
        "sys/fs/cgroup/memory.current": f"{current}\n",
        "sys/fs/cgroup/memory.stat": f"anon 1\ninactive_file {cache}\nactive_file 0\n",
    }
    for name, contents in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(contents)
    return folder


def test_machine_and_container_both_count(tmp_path: Path) -> None:
    meminfo = "MemTotal: 9 kB\nMemAvailable:  4194304 kB\nSwapFree: 1048576 kB\nHugePages_Free: 7\n"
    root = machine(tmp_path, meminfo, 8 * GIB, 8 * GIB, cache=3 * GIB)
    assert memory._available(root) == 4 * GIB
    root = machine(tmp_path, meminfo, 8 * GIB, 2 * GIB, cache=0)
    assert memory._available(root) == 5 * GIB
    (tmp_path / "proc/meminfo").unlink()
    assert memory._available(root) == 6 * GIB
    assert memory._available(tmp_path / "nowhere") is None


def test_a_container_full_of_page_cache_loads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.tar.gz"
    pyckpt.save({"w": torch.zeros(1 << 20)}, path)
    real = memory._available
    root = machine(tmp_path, "", 32 * GIB, 32 * GIB - 4096, cache=29 * GIB)
    monkeypatch.setattr(memory, "_available", lambda: real(root))
    assert pyckpt.load(path)["w"].numel() == 1 << 20
    root = machine(tmp_path, "", 32 * GIB, 32 * GIB - 4096, cache=0)
    with pytest.raises(pyckpt.CheckpointError, match="and 4096 are available") as caught:
        pyckpt.load(path)
    assert caught.value.path == str(path)


def test_on_this_machine() -> None:
    available = memory._available()
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert available is not None
    assert available > 0
    swap = memory._machine(Path("/proc/meminfo"))["SwapTotal"]
    assert available <= physical + swap
