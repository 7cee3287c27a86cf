"""Limits of cgroups, read from trees of files that look like those of real containers."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from pyckpt.cgroups import cpu_limit, memory_left

GIB = 1 << 30
UNLIMITED_V1 = (1 << 63) - 4096  # what version 1 says when there is no limit
Files = Mapping[str, str | int]

ONE_TREE = "25 20 0:22 {top} {folder} rw,nosuid shared:9 - cgroup2 cgroup rw,nsdelegate\n"
TREE_OF = "33 25 0:30 {top} {folder} rw,nosuid - cgroup cgroup rw,{controller}\n"


def machine(folder: Path, group: str, mounts: str, files: Files) -> Path:
    """A root folder with what /proc tells of a process, and with the files of its cgroups."""
    everything = {"proc/self/cgroup": group, "proc/self/mountinfo": mounts, **files}
    for name, contents in everything.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{contents}\n" if isinstance(contents, int) else contents)
    return folder


def group_v2(
    folder: str, limit: int | str, current: int, swap: int | str = 0, **stat: int
) -> Files:
    """The files of a group that uses no swap."""
    return {
        f"{folder}/memory.max": f"{limit}\n",
        f"{folder}/memory.current": current,
        f"{folder}/memory.stat": "".join(f"{name} {nbytes}\n" for name, nbytes in stat.items()),
        f"{folder}/memory.swap.max": f"{swap}\n",
        f"{folder}/memory.swap.current": 0,
    }


def group_v1(folder: str, limit: int, usage: int, cache: int = 0) -> Files:
    return {
        f"{folder}/memory.limit_in_bytes": limit,
        f"{folder}/memory.usage_in_bytes": usage,
        f"{folder}/memory.stat": f"cache 1\ntotal_inactive_file {cache}\ntotal_active_file 0\n",
    }


def container_v2(folder: Path, files: Files) -> Path:
    """A container as Docker and Kubernetes make it: it sees its own group as the top."""
    return machine(folder, "0::/\n", ONE_TREE.format(top="/", folder="/sys/fs/cgroup"), files)


def test_the_page_cache_is_not_used_memory(tmp_path: Path) -> None:
    files = group_v2(
        "sys/fs/cgroup", 32 * GIB, 32 * GIB - 4096, inactive_file=25 * GIB, active_file=3 * GIB,
        slab_reclaimable=GIB, file=31 * GIB, shmem=3 * GIB,
    )  # fmt: skip
    assert memory_left(root=container_v2(tmp_path, files)) == 29 * GIB + 4096


def test_the_smallest_limit_of_all_groups_above_counts(tmp_path: Path) -> None:
    top = "sys/fs/cgroup"
    files = {
        **group_v2(f"{top}/kubepods", 9 * GIB, 8 * GIB, inactive_file=GIB),
        **group_v2(f"{top}/kubepods/pod", 5 * GIB, 2 * GIB),
        **group_v2(f"{top}/kubepods/pod/one", "max", 2 * GIB),
        **group_v2(f"{top}/kubepods/pod/other", GIB, GIB),
        f"{top}/kubepods/cpu.max": "150000 100000\n",
        f"{top}/kubepods/pod/cpu.max": "800000 100000\n",
        f"{top}/kubepods/pod/one/cpu.max": "max 100000\n",
    }
    mounts = ONE_TREE.format(top="/", folder="/sys/fs/cgroup")
    root = machine(tmp_path, "0::/kubepods/pod/one\n", mounts, files)
    assert memory_left(root=root) == 2 * GIB
    assert cpu_limit(root) == 1.5


@pytest.mark.parametrize(
    ("limit", "left"), [("max", 3 * GIB), (0, GIB), (GIB, 2 * GIB), (9 * GIB, 3 * GIB)]
)
def test_swap_space_counts_as_far_as_the_group_may_use_it(
    tmp_path: Path, limit: int | str, left: int
) -> None:
    files = group_v2("sys/fs/cgroup", 2 * GIB, GIB, swap=limit)
    assert memory_left(2 * GIB, container_v2(tmp_path, files)) == left


def test_a_group_that_is_over_its_limit_leaves_nothing(tmp_path: Path) -> None:
    files = group_v2("sys/fs/cgroup", GIB, 2 * GIB)
    assert memory_left(root=container_v2(tmp_path, files)) == 0


def test_version_1(tmp_path: Path) -> None:
    """The trees have names of their own, and the container's group is on top of each mount."""
    group = "4:memory:/docker/abc\n3:cpu,cpuacct:/docker/abc\n1:name=systemd:/docker/abc\n"
    mounts = "".join(
        TREE_OF.format(top="/docker/abc", folder=f"/sys/fs/cgroup/{name}", controller=name)
        for name in ("memory", "cpu,cpuacct", "name=systemd")
    )
    files = {
        **group_v1("sys/fs/cgroup/memory", 8 * GIB, 7 * GIB, cache=4 * GIB),
        "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": 250_000,
        "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": 100_000,
    }
    root = machine(tmp_path, group, mounts, files)
    assert memory_left(root=root) == 5 * GIB
    assert memory_left(GIB, root) == 6 * GIB
    assert cpu_limit(root) == 2.5
    both = tmp_path / "sys/fs/cgroup/memory/memory.memsw.limit_in_bytes"
    both.write_text(f"{8 * GIB}\n")
    (both.parent / "memory.memsw.usage_in_bytes").write_text(f"{7 * GIB}\n")
    assert memory_left(GIB, root) == 5 * GIB


def test_version_1_inside_of_other_groups(tmp_path: Path) -> None:
    mounts = TREE_OF.format(top="/", folder="/sys/fs/cgroup/memory", controller="memory")
    files = {
        **group_v1("sys/fs/cgroup/memory", UNLIMITED_V1, 9 * GIB),
        **group_v1("sys/fs/cgroup/memory/slurm", 4 * GIB, GIB),
        **group_v1("sys/fs/cgroup/memory/slurm/job", UNLIMITED_V1, GIB),
    }
    root = machine(tmp_path, "4:memory:/slurm/job\n0::/\n", mounts, files)
    assert memory_left(root=root) == 3 * GIB
    assert cpu_limit(root) is None


def test_both_versions_at_once(tmp_path: Path) -> None:
    mounts = ONE_TREE.format(top="/", folder="/sys/fs/cgroup/unified")
    mounts += TREE_OF.format(top="/", folder="/sys/fs/cgroup/memory", controller="memory")
    files = {
        **group_v1("sys/fs/cgroup/memory/a", 4 * GIB, GIB),
        "sys/fs/cgroup/unified/b/cpu.max": "100000 100000\n",
    }
    root = machine(tmp_path, "4:memory:/a\n0::/b\n", mounts, files)
    assert memory_left(root=root) == 3 * GIB
    assert cpu_limit(root) == 1


@pytest.mark.parametrize(
    ("path", "top", "inner"),
    [
        ("/a/b", "/", "a/b"),
        ("/a/b", "/a", "b"),
        ("/a/b", "/a/b", "."),
        ("/../other", "/..", "other"),  # cgroup namespaces name what is outside like this
        ("/", "/../..", "."),
    ],
)
def test_where_the_groups_are_mounted(tmp_path: Path, path: str, top: str, inner: str) -> None:
    mounts = ONE_TREE.format(top=top, folder="/odd\\040place")
    root = machine(tmp_path, f"0::{path}\n", mounts, group_v2(f"odd place/{inner}", GIB, 0))
    assert memory_left(root=root) == GIB


@pytest.mark.parametrize(("path", "top"), [("/a", "/b"), ("/ab", "/a"), ("/../other", "/")])
def test_limits_of_other_groups_do_not_count(tmp_path: Path, path: str, top: str) -> None:
    mounts = ONE_TREE.format(top=top, folder="/sys/fs/cgroup")
    files = {
        **group_v2("sys/fs/cgroup", GIB, 0),
        **group_v2("sys/fs/other", GIB, 0),
        **group_v2("sys/fs/cgroup/a", GIB, 0),
    }
    root = machine(tmp_path, f"0::{path}\n", mounts, files)
    assert memory_left(root=root) is None


@pytest.mark.parametrize("contents", ["", "garbage", "max", "1 2 3", "100000 0"])
@pytest.mark.parametrize("file", ["memory.max", "memory.stat", "cpu.max"])
def test_what_cannot_be_understood_is_no_limit(tmp_path: Path, file: str, contents: str) -> None:
    files = {**group_v2("sys/fs/cgroup", "max", 0), "sys/fs/cgroup/cpu.max": "max 100000\n"}
    root = container_v2(tmp_path, {**files, f"sys/fs/cgroup/{file}": contents})
    assert memory_left(root=root) is None
    assert cpu_limit(root) is None


@pytest.mark.parametrize("missing", ["memory.max", "memory.current", "memory.stat"])
def test_what_cannot_be_read_is_no_limit(tmp_path: Path, missing: str) -> None:
    root = container_v2(tmp_path, group_v2("sys/fs/cgroup", GIB, GIB))
    assert memory_left(root=root) == 0
    (tmp_path / "sys/fs/cgroup" / missing).unlink()
    assert memory_left(root=root) is None


def test_without_cgroups(tmp_path: Path) -> None:
    assert memory_left(root=tmp_path) is None
    assert cpu_limit(tmp_path) is None
    assert memory_left(root=machine(tmp_path, "garbage\n", "garbage - x\n\n", {})) is None


def test_on_this_machine() -> None:
    left, cpus = memory_left(), cpu_limit()
    assert left is None or left > 0
    assert cpus is None or cpus > 0
