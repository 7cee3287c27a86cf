"""How long saves to an object store and loads from it take, and the memory that they need.

    python -m benchmarks.stores [--help]

The store is an S3 server on this machine, so the network costs nothing, and what is left is the
client. ``localbucket`` reads the range that it is asked for. ``moto`` reads the whole object for
each request, so it says little about ranges. Ways are measured in turn; medians are compared.
Memory is what a run adds to the process at most, its tensors too; files on the disk do not count.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any

import boto3
import fsspec
import torch

import pyckpt
from benchmarks.equality import differences
from benchmarks.machine import describe_machine
from benchmarks.states import STATES
from benchmarks.table import format_table
from tests.stores import moto_server, served_by

__all__ = ["main"]

_BUCKET = "bench"
_KEYS = {
    "AWS_ACCESS_KEY_ID": "key",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "AWS_DEFAULT_REGION": "us-east-1",
}
_SAMPLE_SECONDS = 0.005

Ways = Mapping[str, Callable[[], Any]]


def serving(server: str, folder: Path) -> AbstractContextManager[str]:
    """The address of an S3 server, a process of its own."""
    if server == "moto":
        return moto_server()
    return served_by(lambda port: ["-m", "localbucket", "--port", port, str(folder)])


class Memory:
    """Watches the most memory of this process: its own, and files without a name."""

    def __init__(self) -> None:
        self._before = self._now()
        self.most = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    def end(self) -> int:
        """How many bytes were added at most."""
        self._ended.set()
        self._thread.join()
        return self.most

    def _watch(self) -> None:
        while not self._ended.wait(_SAMPLE_SECONDS):
            self.most = max(self.most, self._now() - self._before)

    def _now(self) -> int:
        status = Path("/proc/self/status").read_text()
        [own] = [line.split()[1] for line in status.splitlines() if line.startswith("RssAnon")]
        return int(own) * 1024 + _memory_files_nbytes()


def _memory_files_nbytes() -> int:
    """The memory of files without a name, each of which may have several descriptors."""
    files = {}
    for fd in Path("/proc/self/fd").iterdir():
        with suppress(OSError):  # it has been closed
            if fd.readlink().name.startswith("memfd:pyckpt"):
                files[fd.stat().st_ino] = fd.stat().st_blocks * 512
    return sum(files.values())


def measure(ways: Ways, repeat: int) -> dict[str, tuple[float, int]]:
    """The median seconds, and the most bytes of memory, of each way."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    memory = dict.fromkeys(ways, 0)
    for round_ in range(-1, repeat):  # the first round does not count
        for name in list(ways) if round_ % 2 == 0 else reversed(list(ways)):
            watched = Memory()
            start = time.perf_counter()
            made = ways[name]()
            elapsed = time.perf_counter() - start
            memory[name] = max(memory[name], watched.end())
            del made
            if round_ >= 0:
                seconds[name].append(elapsed)
    return {name: (statistics.median(seconds[name]), memory[name]) for name in ways}


def report(title: str, results: Mapping[str, tuple[float, int]]) -> None:
    """Prints a table. The first way is the one that others are compared with."""
    [first, *_] = [seconds for seconds, _ in results.values()]
    rows = [
        [name, f"{seconds:.2f}", f"{seconds / first:.2f}", f"{nbytes / 1e6:.0f}"]
        for name, (seconds, nbytes) in results.items()
    ]
    print(f"\n{title}")
    print(format_table(["", "seconds", "ratio", "memory, MB"], rows), flush=True)


def saves(state: Any, client: Any, fs: Any, suffix: str, folder: Path) -> Ways:
    """Ways to bring a state into the store."""

    local = folder / f"local{suffix}"
    pyckpt.save(state, local)

    def torch_and_upload() -> None:
        path = folder / "x.pt"
        torch.save(state, path)
        client.upload_file(str(path), _BUCKET, "torch.pt")

    def stream() -> None:
        with fs.open(f"{_BUCKET}/stream.pt", "wb") as file:
            torch.save(state, file)

    return {
        "torch.save, boto3's upload_file": torch_and_upload,
        "torch.save to a file of s3fs": stream,
        f"upload_file alone, {suffix}": lambda: client.upload_file(str(local), _BUCKET, "alone"),
        f"pyckpt.save, {suffix}": lambda: pyckpt.save(state, f"s3://{_BUCKET}/x{suffix}"),
    }


def loads(client: Any, suffix: str, folder: Path, tensor: str) -> Ways:
    """Ways to read what is in the store."""
    url, path = f"s3://{_BUCKET}/x{suffix}", folder / f"down{suffix}"

    def download() -> None:
        client.download_file(_BUCKET, f"x{suffix}", str(path))

    def download_and_load() -> Any:
        download()
        return pyckpt.load(path)

    def download_and_torch() -> Any:
        client.download_file(_BUCKET, "torch.pt", str(path))
        return torch.load(path, weights_only=False)

    return {
        f"download_file, {suffix}": download,
        "download_file, torch.load, .pt": download_and_torch,
        f"download_file, pyckpt.load, {suffix}": download_and_load,
        f"pyckpt.load, {suffix}": lambda: pyckpt.load(url),
        f"pyckpt.verify, {suffix}": lambda: pyckpt.verify(url),
        f"pyckpt.load, one tensor, {suffix}": lambda: pyckpt.load(url, keys=tensor),
    }


def main() -> int:
    """Runs the benchmark; returns 1 if a load gave something else than was saved."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--nbytes", type=int, default=200_000_000, help="of the state")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--server", choices=["localbucket", "moto"], default="localbucket")
    parser.add_argument("--formats", nargs="+", default=[".tar.gz", ".tar"])
    options = parser.parse_args()
    state = STATES[0].build(options.nbytes)
    with tempfile.TemporaryDirectory() as name, serving(options.server, Path(name)) as address:
        folder = Path(name)
        for what, value in describe_machine(folder).items():
            print(f"{what}: {value}")
        os.environ.update(_KEYS, AWS_ENDPOINT_URL=address)
        client = boto3.client("s3")
        client.create_bucket(Bucket=_BUCKET)
        fs = fsspec.filesystem("s3", client_kwargs={"endpoint_url": address})
        for suffix in options.formats:
            report(
                f"Saves, {options.nbytes:,} bytes, {options.server}",
                measure(saves(state, client, fs, suffix, folder), options.repeat),
            )
            found = pyckpt.load(f"s3://{_BUCKET}/x{suffix}")
            if wrong := list(differences(state, found)):
                print(f"{suffix}: {wrong[0]}", file=sys.stderr)
                return 1
            del found
            key = pyckpt.inspect(f"s3://{_BUCKET}/x{suffix}").members[-1].tensors[-1].name
            report("Loads", measure(loads(client, suffix, folder, key), options.repeat))
    return 0


if __name__ == "__main__":
    sys.exit(main())
