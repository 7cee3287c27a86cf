"""Asynchronous saves by a file system of asyncio, which go on when the main thread has ended."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from fsspec.asyn import AsyncFileSystem, sync
from fsspec.spec import AbstractBufferedFile

import pyckpt

pytestmark = pytest.mark.timeout(120)


class WebFile(AbstractBufferedFile):
    """Collects all, and sends it when it is committed. The host is a name that has to be found."""

    def _initiate_upload(self) -> None:
        self.pieces: list[bytes] = []

    def _upload_chunk(self, final: bool = False) -> bool:
        self.pieces.append(self.buffer.getvalue())
        return True

    def commit(self) -> None:
        sync(self.fs.loop, self._send)

    def discard(self) -> None:
        pass

    async def _send(self) -> None:
        body = b"".join(self.pieces)
        reader, writer = await asyncio.open_connection("localhost", self.fs.port)
        head = f"PUT /{self.path} HTTP/1.0\r\nContent-Length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        await writer.drain()
        answer = await reader.readline()
        writer.close()
        if b" 200 " not in answer:
            raise RuntimeError(f"the store says {answer!r}")


class WebSystem(AsyncFileSystem):
    protocol = "web"

    def __init__(self, port: int, **options: Any) -> None:
        super().__init__(**options)
        self.port = port

    def _open(self, path: str, mode: str = "rb", **options: Any) -> WebFile:
        return WebFile(self, path, mode, options["block_size"])


class Server:
    """Takes objects, each after a while.

    Attributes:
        objects: By path.
        status: What it answers.
    """

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.status = 200
        server = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: object) -> None:
                pass

            def do_PUT(self) -> None:
                data = self.rfile.read(int(self.headers["Content-Length"]))
                time.sleep(1)
                server.objects[self.path] = data
                self.send_response(server.status)
                self.end_headers()

        self.http = ThreadingHTTPServer(("localhost", 0), Handler)
        self.port = self.http.server_address[1]
        threading.Thread(target=self.http.serve_forever, args=(0.05,), daemon=True).start()


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.http.shutdown()
    made.http.server_close()


PROGRAM = """
import sys
import fsspec, pyckpt
from tests.storage.test_saves_at_exit import WebSystem

fsspec.register_implementation("web", WebSystem)
for number in range(3):
    options = {"max_pending": 3, "storage_options": {"port": int(sys.argv[1])}}
    pyckpt.async_save({"x": number}, f"web://run/{number}.tar", **options)
"""


def run(server: Server) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", PROGRAM, str(server.port)]
    return subprocess.run(command, capture_output=True, text=True, timeout=100)


def test_they_are_saved(server: Server, tmp_path: Path) -> None:
    done = run(server)
    assert done.returncode == 0, done.stderr
    assert sorted(server.objects) == [f"/run/{number}.tar" for number in range(3)]
    for number in range(3):
        (tmp_path / "x.tar").write_bytes(server.objects[f"/run/{number}.tar"])
        assert pyckpt.load(tmp_path / "x.tar") == {"x": number}


def test_a_failure_is_told(server: Server) -> None:
    server.status = 507
    done = run(server)
    for number in range(3):
        assert f"web://run/{number}.tar" in done.stderr
    assert "the store says b'HTTP/1.0 507" in done.stderr
