"""An S3 server on this machine, and a proxy in front of it that lets requests fail."""

from __future__ import annotations

import base64
import hashlib
import http.client
import re
import socket
import ssl
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import datetime, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import boto3
from botocore.config import Config

KEYS = {
    "AWS_ACCESS_KEY_ID": "key",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_CONFIG_FILE": "/dev/null",
    "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
    "AWS_EC2_METADATA_DISABLED": "true",
}
_STARTED_WITHIN_SECONDS = 120


@contextmanager
def served_by(command: Callable[[str], Sequence[str]]) -> Iterator[str]:
    """The address of a server on this machine, a process of its own.

    Args:
        command: Its arguments for Python, with the port that it gets.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = [sys.executable, *command(str(port))]
    with subprocess.Popen(
        arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as server:
        try:
            _wait_for(server, port)
            yield f"http://127.0.0.1:{port}"
        finally:
            server.kill()


def moto_server() -> AbstractContextManager[str]:
    """The address of moto's S3 server, a process of its own."""
    return served_by(lambda port: ["-m", "moto.server", "-H", "127.0.0.1", "-p", port])


def _wait_for(server: subprocess.Popen[bytes], port: int) -> None:
    end = time.monotonic() + _STARTED_WITHIN_SECONDS
    while True:
        if server.poll() is not None:
            raise OSError(f"{server.args!r} ended with {server.returncode}")
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.1)
        else:
            return


def s3_client(address: str) -> Any:
    """boto3's client of a server."""
    return boto3.client("s3", endpoint_url=address, config=Config(retries={"mode": "standard"}))


# What a rule does to a request.
Fault = Callable[["_Handler"], bool]


def operation(method: str, path: str) -> str:
    """The name that S3 has for a request."""
    if method == "POST" and path.endswith("?delete"):
        return "DeleteObjects"
    if method == "POST":
        return "CreateMultipartUpload" if "?uploads" in path else "CompleteMultipartUpload"
    if method == "PUT":
        return "UploadPart" if "partNumber=" in path else "PutObject"
    if method == "DELETE":
        return "AbortMultipartUpload" if "uploadId=" in path else "DeleteObject"
    if method == "GET" and "uploads" in path:
        return "ListMultipartUploads"
    if method == "GET" and "list-type=2" in path:
        return "ListObjects"
    return "HeadObject" if method == "HEAD" else "GetObject"


def answer(status: int, code: str) -> Fault:
    """The server says that something is wrong. It does not see the request."""

    def fault(handler: _Handler) -> bool:
        text = f"<Error><Code>{code}</Code><Message>the message of {code}</Message></Error>"
        handler.answer(status, [("Content-Type", "application/xml")], text.encode())
        return True

    return fault


def reset(handler: _Handler) -> bool:
    """The connection breaks before the server sees the request."""
    handler.reset()
    return True


def lose_answer(handler: _Handler) -> bool:
    """The server does what it is asked for, and the connection breaks before it says so."""
    handler.forward()
    handler.reset()
    return True


def cut_answer(handler: _Handler) -> bool:
    """As ``lose_answer``, in the middle of the answer's head."""
    handler.forward()
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Le")
    handler.reset()
    return True


def pretend(handler: _Handler) -> bool:
    """The server says that it has done what it has not."""
    handler.answer(204, [], b"")
    return True


def flip(handler: _Handler) -> bool:
    """A bit of the body changes on the way."""
    handler.body = bytes([handler.body[0] ^ 1]) + handler.body[1:]
    return False


def delay(seconds: float) -> Fault:
    """The server takes its time."""

    def fault(handler: _Handler) -> bool:
        time.sleep(seconds)
        return False

    return fault


def silent_until(end: threading.Event) -> Fault:
    """The server does not answer before that."""

    def fault(handler: _Handler) -> bool:
        end.wait()
        return False

    return fault


Answer = tuple[int, list[tuple[str, str]], bytes]


def changed(change: Callable[[Answer], Answer]) -> Fault:
    """The server does what it is asked for, and its answer is changed."""

    def fault(handler: _Handler) -> bool:
        handler.answer(*change(handler.forward()))
        return True

    return fault


def without(element: str) -> Fault:
    """The server's answer lacks an element, or a header."""
    pattern = re.compile(f"<{element}>[^<]*</{element}>".encode())

    def change(answer: Answer) -> Answer:
        status, headers, body = answer
        kept = [(name, value) for name, value in headers if name.lower() != element.lower()]
        return status, kept, pattern.sub(b"", body)

    return changed(change)


def begun(seconds_ago: float) -> Fault:
    """All uploads that are listed were begun at that time."""
    time_then = datetime.fromtimestamp(time.time() - seconds_ago, timezone.utc)
    text = f"<Initiated>{time_then:%Y-%m-%dT%H:%M:%S.000Z}<".encode()

    def change(answer: Answer) -> Answer:
        status, headers, body = answer
        return status, headers, re.sub(b"<Initiated>[^<]*<", text, body)

    return changed(change)


class Proxy:
    """Passes requests on to a server, but for those that a rule takes.

    It compares checksums, and completes an upload once, as stores do and moto does not.

    Args:
        tls: Its certificate. Without, it speaks plain HTTP.

    Attributes:
        requests: The operations that came in, in their order, with the paths.
        most_at_once: How many parts were under way at the same time, at most.
    """

    def __init__(self, server: str, tls: ssl.SSLContext | None = None) -> None:
        self.server = server.removeprefix("http://")
        self.requests: list[tuple[str, str]] = []
        self.most_at_once = 0
        self.at_once = 0
        self.lock = threading.Lock()
        self.completed: set[str] = set()  # paths of uploads
        self._rules: list[tuple[re.Pattern[str], Iterator[int], Fault]] = []
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self._http.daemon_threads = True
        self._http.proxy = self  # type: ignore[attr-defined]
        scheme = "http"
        if tls is not None:
            scheme = "https"
            self._http.socket = tls.wrap_socket(self._http.socket, server_side=True)
        self.address = f"{scheme}://127.0.0.1:{self._http.server_address[1]}"
        threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()

    def rule(self, pattern: str, fault: Fault, *, times: int = 10**9, after: int = 0) -> None:
        """Lets requests fail.

        Args:
            pattern: Of "OPERATION PATH".
            times: How many requests, after the first ``after`` ones.
        """
        numbers = iter([*[0] * after, *[1] * min(times, 1000)])
        self._rules.append((re.compile(pattern), numbers, fault))

    def forget_rules(self) -> None:
        self._rules.clear()

    def fault(self, request: str) -> Fault | None:
        """What happens to this request."""
        with self.lock:
            for pattern, numbers, fault in self._rules:
                if pattern.search(request) and next(numbers, 0):
                    return fault
        return None

    def count(self, name: str) -> int:
        """How many requests of an operation came in."""
        return sum(operation == name for operation, _ in self.requests)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    body: bytes

    def log_message(self, *_: object) -> None:
        pass

    def handle(self) -> None:
        try:
            super().handle()
        except (OSError, ValueError):  # the connection is closed
            self.close_connection = True

    def _any(self) -> None:
        proxy: Proxy = self.server.proxy  # type: ignore[attr-defined]
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        name = operation(self.command, self.path)
        with proxy.lock:
            proxy.requests.append((name, self.path))
            proxy.at_once += name == "UploadPart"
            proxy.most_at_once = max(proxy.most_at_once, proxy.at_once)
        try:
            fault = proxy.fault(f"{name} {self.path}")
            if fault is None or not fault(self):
                self._pass_on(name)
        finally:
            with proxy.lock:
                proxy.at_once -= name == "UploadPart"

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _any

    def _pass_on(self, name: str) -> None:
        if name in ("UploadPart", "PutObject") and not self._is_checksum_right():
            answer(400, "BadDigest")(self)
        elif name == "CompleteMultipartUpload" and self.path in self.server.proxy.completed:  # type: ignore[attr-defined]
            answer(404, "NoSuchUpload")(self)
        else:
            self.answer(*self.forward())

    def _is_checksum_right(self) -> bool:
        sent = self.headers.get("x-amz-checksum-crc32"), self.headers.get("Content-MD5")
        crc = base64.b64encode(struct.pack(">I", zlib.crc32(self.body))).decode()
        return sent in (
            (crc, None),
            (None, base64.b64encode(hashlib.md5(self.body).digest()).decode()),
        )

    def forward(self) -> tuple[int, list[tuple[str, str]], bytes]:
        """What the server answers."""
        connection = http.client.HTTPConnection(
            self.server.proxy.server,  # type: ignore[attr-defined]
            timeout=60,
        )
        headers = {k: v for k, v in self.headers.items() if k.lower() != "expect"}
        connection.request(self.command, self.path, self.body, headers)
        got = connection.getresponse()
        body = got.read()
        if operation(self.command, self.path) == "CompleteMultipartUpload" and got.status == 200:
            self.server.proxy.completed.add(self.path)  # type: ignore[attr-defined]
        kept = [
            (k, v)
            for k, v in got.getheaders()
            if k.lower() not in ("connection", "transfer-encoding")
            and (self.command == "HEAD" or k.lower() != "content-length")
        ]
        connection.close()
        return got.status, kept, body

    def answer(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        self.send_response_only(status)
        for name, value in headers:
            self.send_header(name, value)
        if self.command != "HEAD":
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def reset(self) -> None:
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.connection.close()


class Bucket:
    """A bucket of its own for a test, as its owner sees it.

    Attributes:
        proxy: What pyckpt's client is told to be the server.
    """

    def __init__(self, name: str, client: Any, proxy: Proxy) -> None:
        self.name = name
        self.client = client
        self.proxy = proxy
        client.create_bucket(Bucket=name)

    def url(self, key: str) -> str:
        return f"s3://{self.name}/{key}"

    def get(self, key: str) -> bytes:
        data: bytes = self.client.get_object(Bucket=self.name, Key=key)["Body"].read()
        return data

    def put(self, key: str, data: bytes) -> None:
        self.client.put_object(Bucket=self.name, Key=key, Body=data)

    def keys(self) -> list[str]:
        listed = self.client.list_objects_v2(Bucket=self.name).get("Contents", [])
        return [one["Key"] for one in listed]

    def uploads(self) -> list[str]:
        listed = self.client.list_multipart_uploads(Bucket=self.name).get("Uploads", [])
        return [one["Key"] for one in listed]
