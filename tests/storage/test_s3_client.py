"""The client of S3: its options, what it tries again, and what its errors say."""

from __future__ import annotations

import errno
import os
import signal
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import botocore.exceptions
import pytest
import torch

import pyckpt
from pyckpt.errors import CheckpointError, OptionError
from pyckpt.storage import retries
from pyckpt.storage.s3_client import S3Client, send
from tests.stores import Bucket, Proxy, answer, changed, delay

pytestmark = pytest.mark.timeout(120)

SMALL = {"w": torch.arange(100)}
BIG = {"w": torch.arange(20 << 20, dtype=torch.uint8)}


class Preempted(Exception):
    pass


@pytest.fixture(params=[Preempted, TimeoutError, KeyboardInterrupt])
def alarm(request: pytest.FixtureRequest) -> Iterator[type[BaseException]]:
    """What the handler of SIGALRM raises."""

    def handler(number: int, frame: Any) -> None:
        raise request.param("the time is over")

    before = signal.signal(signal.SIGALRM, handler)
    yield request.param
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("step", ["PutObject", "CreateMultipartUpload", "CompleteMultipartUpload"])
def test_an_exception_of_a_signal_handler_ends_a_save(
    bucket: Bucket, alarm: type[BaseException], step: str
) -> None:
    bucket.put("x.tar", b"old")
    bucket.proxy.rule(step, delay(4), times=1)
    signal.setitimer(signal.ITIMER_REAL, 1.5)
    with pytest.raises(alarm, match="the time is over"):
        pyckpt.save(SMALL if step == "PutObject" else BIG, bucket.url("x.tar"))
    assert bucket.proxy.count(step) == 1


def test_an_exception_of_a_signal_handler_ends_a_load(
    bucket: Bucket, alarm: type[BaseException]
) -> None:
    pyckpt.save(SMALL, bucket.url("x.tar"))
    bucket.proxy.rule("HeadObject", delay(4))
    signal.setitimer(signal.ITIMER_REAL, 1)
    with pytest.raises(alarm, match="the time is over"):
        pyckpt.load(bucket.url("x.tar"))
    assert bucket.proxy.count("HeadObject") == 1


def test_an_interrupt_before_the_request_is_not_its_own(no_pauses: None) -> None:
    def fail() -> None:
        raise botocore.exceptions.ReadTimeoutError(endpoint_url="x")

    try:
        raise KeyboardInterrupt
    except KeyboardInterrupt:
        with pytest.raises(TimeoutError):
            send(fail, "s3://b/x", "aborting")


PASSING = [(503, "SlowDown"), (500, "x"), (408, "x"), (429, "RateLimitExceeded"), (599, "x")]
STAYING = [(400, "x"), (403, "AccessDenied"), (501, "NotImplemented"), (505, "x")]


@pytest.mark.parametrize(("status", "code"), [*PASSING, *STAYING])
@pytest.mark.usefixtures("no_pauses")
def test_how_often_a_request_is_sent(bucket: Bucket, status: int, code: str) -> None:
    bucket.proxy.rule("PutObject", answer(status, code))
    with pytest.raises(CheckpointError, match=code):
        pyckpt.save(SMALL, bucket.url("x.tar"))
    attempts = retries.ATTEMPTS if (status, code) in PASSING else 1
    assert bucket.proxy.count("PutObject") == attempts


def test_a_head_without_a_cause_names_the_usual_ones(bucket: Bucket) -> None:
    bucket.put("x.tar", b"old")
    bucket.proxy.rule("HeadObject", answer(400, "ExpiredToken"))
    with pytest.raises(PermissionError, match="credentials may have expired, or the region"):
        pyckpt.load(bucket.url("x.tar"))


@pytest.mark.parametrize(
    "error",
    [
        botocore.exceptions.NoCredentialsError(),
        botocore.exceptions.SSOTokenLoadError(error_msg="expired"),
        botocore.exceptions.UnauthorizedSSOTokenError(),
        botocore.exceptions.TokenRetrievalError(provider="sso", error_msg="expired"),
        botocore.exceptions.CredentialRetrievalError(provider="role", error_msg="refused"),
    ],
)
@pytest.mark.usefixtures("no_pauses")
def test_credentials_that_cannot_be_had(error: Exception) -> None:
    def fail() -> None:
        raise error

    with pytest.raises(PermissionError, match=type(error).__name__):
        send(fail, "s3://b/x", "looking at")


@pytest.mark.usefixtures("bucket", "no_pauses")
def test_hosts_that_are_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any, **options: Any) -> Any:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    with pytest.raises(ConnectionRefusedError):
        pyckpt.load("s3://b/x", storage_options={"endpoint_url": "http://127.0.0.1:1"})
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    with pytest.raises(OSError, match="EndpointConnectionError") as caught:
        pyckpt.load("s3://b/x", storage_options={"endpoint_url": "http://nowhere.invalid"})
    assert caught.value.errno == errno.EHOSTUNREACH


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"s3_additional_kwargs": {"ServerSideEncrpytion": "aws:kms"}}, "ServerSideEncrpytion"),
        ({"s3_additional_kwargs": {"SSEKMSKeyID": "k"}}, "no request knows it"),
        ({"s3_additional_kwargs": {"Key": "k"}}, "pyckpt says it"),
        ({"s3_additional_kwargs": {"ChecksumAlgorithm": "SHA256"}}, "pyckpt says it"),
        ({"s3_additional_kwargs": "SSE"}, "must be a dict, not str"),
        ({"config_kwargs": ["x"]}, "must be a dict, not list"),
        ({"client_kwargs": {"verifi": False}}, "verifi"),
        ({"sse": "x"}, "storage_options of s3:// cannot have 'sse'"),
    ],
)
def test_options_that_are_wrong(bucket: Bucket, options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        pyckpt.save(SMALL, bucket.url("x.tar"), storage_options=options)
    with pytest.raises(OptionError, match=message):
        pyckpt.load(bucket.url("x.tar"), storage_options=options)
    assert bucket.proxy.requests == []


def headers_of(bucket: Bucket) -> list[tuple[str, Any]]:
    """All requests from now on, with their headers."""
    seen: list[tuple[str, Any]] = []

    def note(handler: Any) -> bool:
        seen.append((handler.command, handler.headers))
        return False

    bucket.proxy.rule(".", note)
    return seen


def test_every_request_gets_the_arguments_that_it_knows(bucket: Bucket) -> None:
    seen = headers_of(bucket)
    extra = {"RequestPayer": "requester", "SSECustomerKey": b"0" * 32}
    extra |= {"SSECustomerAlgorithm": "AES256", "StorageClass": "STANDARD_IA", "IfNoneMatch": "*"}
    options = {"s3_additional_kwargs": extra}
    for key, state in (("x.tar", SMALL), ("y.tar", BIG)):
        pyckpt.save(state, bucket.url(key), storage_options=options)
        loaded = pyckpt.load(bucket.url(key), storage_options=options)
        assert torch.equal(loaded["w"], state["w"])
    with pyckpt.ArchiveWriter(bucket.url("z.tar"), storage_options=options) as archive:
        archive.add_object("a.pt", BIG)
        archive.write()
        archive.abandon()
    assert pyckpt.remove(bucket.url("x.tar"), storage_options=options).result()
    assert {command for command, _ in seen} == {"PUT", "POST", "HEAD", "GET", "DELETE"}
    for command, headers in seen:
        assert headers["x-amz-request-payer"] == "requester", command
        if command in ("PUT", "HEAD", "GET"):
            assert headers["x-amz-server-side-encryption-customer-algorithm"] == "AES256"
        if command in ("HEAD", "GET", "DELETE"):
            assert headers["If-None-Match"] is None


def test_parts_are_hashed_where_nothing_else_protects_them(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The endpoint may be named in a file."""
    (tmp_path / "config").write_text(f"[default]\nendpoint_url = {bucket.proxy.address}\n")
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    seen = headers_of(bucket)
    pyckpt.save(SMALL, bucket.url("x.tar"))
    [(_, headers)] = seen
    assert len(headers["x-amz-content-sha256"]) == 64


@pytest.fixture
def tls_bucket(
    bucket: Bucket, s3_server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[Bucket]:
    """A bucket that is reached by TLS."""
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost"
    subprocess.run(
        [
            *(*command.split(), "-addext", "subjectAltName=IP:127.0.0.1"),
            *("-keyout", key, "-out", certificate),
        ],
        check=True,
        capture_output=True,
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    proxy = Proxy(s3_server, context)
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.address)
    monkeypatch.setenv("AWS_CA_BUNDLE", str(certificate))
    plain, bucket.proxy = bucket.proxy, proxy
    yield bucket
    bucket.proxy = plain
    proxy.close()


def test_parts_are_not_hashed_over_tls(tls_bucket: Bucket) -> None:
    seen = headers_of(tls_bucket)
    pyckpt.save(SMALL, tls_bucket.url("x.tar"))
    assert seen[0][1]["x-amz-content-sha256"] == "UNSIGNED-PAYLOAD"


def damage_record(handler: Any) -> bool:
    """What comes of the body is no TLS, from some byte on."""
    status, headers, body = handler.forward()
    handler.send_response_only(status)
    for name, value in (*headers, ("Content-Length", str(len(body)))):
        handler.send_header(name, value)
    handler.end_headers()
    handler.wfile.write(body[:1000])
    handler.wfile.flush()
    # A record of application data that was encrypted with no key of theirs.
    os.write(handler.connection.fileno(), b"\x17\x03\x03\x01\x00" + bytes(256))
    handler.close_connection = True
    return True


@pytest.mark.usefixtures("no_pauses")
def test_tls_that_breaks_in_the_middle_of_a_body(tls_bucket: Bucket) -> None:
    url = tls_bucket.url("x.tar")
    pyckpt.save(BIG, url)
    tls_bucket.proxy.rule("^GetObject", damage_record, times=3)
    assert torch.equal(pyckpt.load(url)["w"], BIG["w"])
    tls_bucket.proxy.rule("^GetObject", damage_record)
    with pytest.raises(OSError, match="SSLError") as caught:
        pyckpt.load(url)
    assert caught.value.errno == errno.EIO
    assert caught.value.filename == url


def test_a_certificate_stays_wrong(tls_bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_CA_BUNDLE")
    began = time.monotonic()
    with pytest.raises(CheckpointError, match="CERTIFICATE_VERIFY_FAILED"):
        pyckpt.save(SMALL, tls_bucket.url("x.tar"))
    assert time.monotonic() - began < sum(retries._PAUSES) / 2


def test_checksums_of_stores_are_not_compared_when_the_bytes_are_used(bucket: Bucket) -> None:
    def lie(given: Any) -> Any:
        status, headers, body = given
        return status, [*headers, ("x-amz-checksum-crc32", "AAAAAA==")], body

    pyckpt.save(SMALL, bucket.url("x.tar"))
    bucket.proxy.rule("^GetObject", changed(lie))
    assert torch.equal(pyckpt.load(bucket.url("x.tar"))["w"], SMALL["w"])


def test_a_request_that_pyckpt_adds_needs_no_list(bucket: Bucket) -> None:
    client = S3Client({"s3_additional_kwargs": {"RequestPayer": "requester"}}, 1)
    seen = headers_of(bucket)
    client.ask("list_object_versions", Bucket=bucket.name)
    assert seen[0][1]["x-amz-request-payer"] == "requester"
