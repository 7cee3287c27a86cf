"""Stores for tests: an S3 server behind a proxy, and retries without pauses."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from pyckpt.storage import retries
from tests.stores import KEYS, Bucket, Proxy, moto_server, s3_client

_numbers = itertools.count()


@pytest.fixture(autouse=True)
def empty_memory() -> None:
    """What tests before this one have left in ``memory://``, which is one for the process."""
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    with moto_server() as address:
        yield address


@pytest.fixture
def bucket(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    """A bucket. The environment names the proxy as the server."""
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    proxy = Proxy(s3_server)
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.address)
    made = Bucket(f"bucket-{next(_numbers)}", s3_client(s3_server), proxy)
    yield made
    proxy.close()
    made.client.close()


@pytest.fixture
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "_PAUSES", (0.01,) * len(retries._PAUSES))
