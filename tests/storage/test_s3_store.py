"""Ranges and listings of S3: what servers leave out, and what they do not do."""

from __future__ import annotations

import errno
import re
import socket
import struct
from typing import Any

import pytest

from pyckpt.storage import s3_store
from pyckpt.storage.s3_store import S3Store
from pyckpt.storage.urls import Url
from tests.stores import Bucket, Fault, changed, without

pytestmark = [pytest.mark.timeout(60), pytest.mark.usefixtures("no_pauses")]

DATA = struct.pack("<1000I", *range(1000))


def store_of(bucket: Bucket) -> tuple[S3Store, Url]:
    bucket.put("x", DATA)
    url = Url(bucket.url("x"))
    return S3Store(url, {}), url


def break_at(count: int) -> Fault:
    """The connection breaks after so many bytes, and before the end that it has announced."""

    def fault(handler: Any) -> bool:
        status, headers, body = handler.forward()
        handler.send_response_only(status)
        for name, value in headers:
            handler.send_header(name, value)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        handler.wfile.write(f"{len(body[:count]):x}\r\n".encode() + body[:count] + b"\r\n")
        handler.wfile.flush()
        handler.close_connection = True
        handler.connection.shutdown(socket.SHUT_RDWR)
        return True

    return fault


@pytest.mark.parametrize("count", [0, 1, 99, 100])
@pytest.mark.parametrize("end", [200, 4000, 5000])
def test_a_connection_that_breaks_near_the_end(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch, count: int, end: int
) -> None:
    monkeypatch.setattr(s3_store, "_PIECE_NBYTES", 50)
    store, url = store_of(bucket)
    start = min(end, len(DATA)) - 100
    ranges = []

    def note(handler: Any) -> bool:
        found = re.fullmatch(r"bytes=(\d+)-(\d+)", handler.headers["Range"])
        assert found is not None
        ranges.append((int(found[1]), int(found[2])))
        return break_at(count)(handler) if len(ranges) == 1 else False

    bucket.proxy.rule("^GetObject", note)
    assert store.read_range(url, start, end) == DATA[start:end]
    assert all(first <= last < end for first, last in ranges)
    if count == 100:
        assert len(ranges) == 1


def test_a_server_that_knows_no_ranges(bucket: Bucket) -> None:
    store, url = store_of(bucket)

    def forget(handler: Any) -> bool:
        del handler.headers["Range"]
        return False

    bucket.proxy.rule("^GetObject", forget)
    assert store.read_range(url, 0, len(DATA)) == DATA
    for start, end in ((0, 100), (100, 200), (100, len(DATA))):
        with pytest.raises(OSError, match="answers with status 200") as caught:
            store.read_range(url, start, end)
        assert caught.value.errno == errno.ENOTSUP
        assert caught.value.filename == url


@pytest.mark.parametrize(
    "given", [None, "bytes 0-99/4000", "bytes 100-300/4000", "bytes 100-150/4000", "100"]
)
def test_ranges_that_were_not_asked_for(bucket: Bucket, given: str | None) -> None:
    store, url = store_of(bucket)

    def change(answer: Any) -> Any:
        status, headers, body = answer
        kept = [(name, value) for name, value in headers if name.lower() != "content-range"]
        return status, kept + [("Content-Range", given)] * (given is not None), body

    bucket.proxy.rule("^GetObject", changed(change))
    with pytest.raises(OSError, match=f"and the range {given}") as caught:
        store.read_range(url, 100, 200)
    assert caught.value.errno == errno.ENOTSUP
    assert bucket.proxy.count("GetObject") == 1


def test_times_that_a_store_does_not_tell(bucket: Bucket) -> None:
    store, url = store_of(bucket)
    bucket.proxy.rule(".", without("LastModified"))
    bucket.proxy.rule("HeadObject", without("Last-Modified"))
    [listed] = store.list(Url(bucket.url("")))
    assert listed.url == url
    assert listed.modified is None
    bucket.proxy.forget_rules()
    bucket.proxy.rule("HeadObject", without("Last-Modified"))
    assert store.stat(url).modified is None


def begin_uploads(bucket: Bucket, count: int) -> None:
    for number in range(count):
        bucket.client.create_multipart_upload(Bucket=bucket.name, Key=f"up{number}")


def pages(marker: bytes) -> Fault:
    """The list of uploads comes in two pages, of which the first has such a marker."""

    def change(answer: Any) -> Any:
        status, headers, body = answer
        text = b"<IsTruncated>true</IsTruncated>" + marker
        return status, headers, re.sub(b"<IsTruncated>.*?</IsTruncated>", text, body)

    return changed(change)


def test_listings_that_are_cut_off_without_a_place(bucket: Bucket) -> None:
    store, _ = store_of(bucket)
    prefix = Url(bucket.url(""))
    begin_uploads(bucket, 1)
    key = b"<NextKeyMarker>up0</NextKeyMarker>"
    bucket.proxy.rule("ListMultipartUploads", pages(key), times=1)
    assert len(list(store.unfinished(prefix))) >= 1
    assert "key-marker=up0" in bucket.proxy.requests[-1][1]
    bucket.proxy.rule("ListMultipartUploads", pages(b""))
    with pytest.raises(OSError, match="no NextKeyMarker") as caught:
        list(store.unfinished(prefix))
    assert caught.value.filename == prefix
    bucket.proxy.rule("ListObjects", pages(b""))
    with pytest.raises(OSError, match="no NextContinuationToken"):
        list(store.list(prefix))


def test_uploads_that_began_at_no_time_are_not_taken_for_old(bucket: Bucket) -> None:
    store, _ = store_of(bucket)
    begin_uploads(bucket, 1)
    bucket.proxy.rule("ListMultipartUploads", without("Initiated"))
    with pytest.raises(OSError, match="no Initiated"):
        list(store.unfinished(Url(bucket.url(""))))
