"""Objects in S3, and in what speaks its protocol."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from typing import Any

from botocore.exceptions import IncompleteReadError

from pyckpt.storage.parts import IN_FLIGHT
from pyckpt.storage.s3_client import S3Client, field, send, was_rejected
from pyckpt.storage.s3_upload import S3Upload
from pyckpt.storage.store import ObjectInfo, Store, UnfinishedUpload, Write
from pyckpt.storage.urls import Url

__all__ = ["S3Store"]

_PIECE_NBYTES = 256 << 10
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")
_MOST_REMOVED = 1000  # in one request
# What XML 1.0, in which that request names its keys, cannot hold, or reads as something else.
_NOT_IN_XML = re.compile("[^\t\n\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


class S3Store(Store):
    """See :class:`pyckpt.storage.store.Store`.

    Raises:
        OptionError: An option is unknown or wrong.
    """

    def __init__(self, url: Url, options: Mapping[str, Any]) -> None:
        self._client = S3Client(options, IN_FLIGHT + 1)

    def stat(self, url: Url) -> ObjectInfo:
        head = self._send("looking at", url, "head_object", **_place(url))
        nbytes = int(field(head, "ContentLength", url))
        return ObjectInfo(url, nbytes, head.get("ETag"), _modified(head))

    def fetch(self, url: Url, start: int, end: int, write: Write, etag: str | None = None) -> None:
        condition = {} if etag is None else {"IfMatch": etag}
        at = start

        def read() -> None:
            nonlocal at, end  # what came before the connection broke does not come again
            if at >= end:
                return
            answer = self._client.ask(
                "get_object", **_place(url), **condition, Range=f"bytes={at}-{end - 1}"
            )
            with closing(answer["Body"]) as body:
                end = _range_end(answer, at, end, url)  # the object's, if that is before
                while piece := body.read(_PIECE_NBYTES):
                    if at + len(piece) > end:
                        raise OSError(errno.EIO, "the store sends more bytes than it says", url)
                    write(piece)
                    at += len(piece)
                    if "ETag" in answer:  # the rest is of the same object
                        condition["IfMatch"] = answer["ETag"]
            if at < end:
                raise IncompleteReadError(actual_bytes=at - start, expected_bytes=end - start)

        try:
            send(read, url, "reading")
        except OSError as error:
            if error.errno != errno.ERANGE:  # the object ends before
                raise

    def list(self, prefix: Url, *, deep: bool = True) -> Iterator[ObjectInfo]:
        depth = {} if deep else {"Delimiter": "/"}
        more: dict[str, Any] = {}
        while True:
            page = self._page("listing", prefix, "list_objects_v2", {**depth, **more})
            for one in page.get("Contents", ()):
                url = _url(prefix, field(one, "Key", prefix))
                nbytes = int(field(one, "Size", url))
                yield ObjectInfo(url, nbytes, one.get("ETag"), _modified(one))
            if not page.get("IsTruncated"):
                return
            more = {"ContinuationToken": field(page, "NextContinuationToken", prefix)}

    def remove(self, url: Url) -> bool:
        try:
            self.stat(url)  # a DELETE does not tell
        except FileNotFoundError:
            return False
        self._delete(url)
        return True

    def remove_all(self, urls: Sequence[Url]) -> None:
        odd = [url for url in urls if _NOT_IN_XML.search(url.key)]
        usual = [url for url in urls if not _NOT_IN_XML.search(url.key)]
        for url in odd:
            self._delete(url)
        for start in range(0, len(usual), _MOST_REMOVED):
            batch = usual[start : start + _MOST_REMOVED]
            if len(batch) == 1 or not self._delete_batch(batch):
                for url in batch:
                    self._delete(url)

    def _delete(self, url: Url) -> None:
        self._send("removing", url, "delete_object", **_place(url))

    def _delete_batch(self, urls: Sequence[Url]) -> bool:
        """Removes objects in one request. Returns whether the store takes such requests."""
        wanted = {"Objects": [{"Key": url.key} for url in urls], "Quiet": True}
        try:
            answer = self._send(
                "removing", urls[0], "delete_objects", Bucket=urls[0].bucket, Delete=wanted
            )
        except OSError as error:
            if was_rejected(error.__cause__):
                return False
            raise
        for failed in answer.get("Errors", ()):
            if failed.get("Code") != "NoSuchKey":
                self._delete(_url(urls[0], failed["Key"]))  # it may pass, and else it says why
        return True

    def open_upload(self, url: Url) -> S3Upload:
        return S3Upload(self._client, url)

    def unfinished(self, prefix: Url) -> Iterator[UnfinishedUpload]:
        more: dict[str, Any] = {}
        while True:
            page = self._page("listing the uploads of", prefix, "list_multipart_uploads", more)
            for one in page.get("Uploads", ()):
                url = _url(prefix, field(one, "Key", prefix))
                started = field(one, "Initiated", url).timestamp()
                yield UnfinishedUpload(url, field(one, "UploadId", url), started)
            if not page.get("IsTruncated"):
                return
            more = {"KeyMarker": field(page, "NextKeyMarker", prefix)}
            if page.get("NextUploadIdMarker"):
                more["UploadIdMarker"] = page["NextUploadIdMarker"]

    def abort(self, upload: UnfinishedUpload) -> None:
        place = {**_place(upload.url), "UploadId": upload.id}
        try:
            self._send("aborting the upload of", upload.url, "abort_multipart_upload", **place)
        except OSError as error:
            if error.errno != errno.ENOENT:  # it has ended meanwhile
                raise

    def _page(self, doing: str, prefix: Url, method: str, more: Mapping[str, Any]) -> Any:
        return self._send(doing, prefix, method, Bucket=prefix.bucket, Prefix=prefix.key, **more)

    def _send(self, doing: str, url: Url, method: str, **arguments: Any) -> Any:
        return send(lambda: self._client.ask(method, **arguments), url, doing)


def _range_end(answer: Mapping[str, Any], start: int, end: int, url: Url) -> int:
    """Where the bytes of an answer end. They begin at ``start``, and ``end`` was asked for.

    Raises:
        OSError: They are others.
    """
    status = answer["ResponseMetadata"]["HTTPStatusCode"]
    if status == 200 and start == 0 and 0 < answer.get("ContentLength", 0) <= end:
        return int(answer["ContentLength"])  # it has the whole object, which is not longer
    given = str(answer.get("ContentRange"))
    found = _CONTENT_RANGE.match(given)
    if status == 206 and found is not None:
        first, behind = int(found[1]), int(found[2]) + 1
        expected = end if found[3] == "*" else min(end, int(found[3]))
        if start == first < behind == expected:
            return behind
    raise OSError(
        errno.ENOTSUP,
        f"the store was asked for bytes {start} to {end - 1}, and answers with status {status} and "
        f"the range {given}",
        url,
    )


def _modified(answer: Mapping[str, Any]) -> float | None:
    """When an object was written, if the store tells."""
    modified = answer.get("LastModified")
    return None if modified is None else float(modified.timestamp())


def _place(url: Url) -> dict[str, str]:
    return {"Bucket": url.bucket, "Key": url.key}


def _url(prefix: Url, key: str) -> Url:
    return Url(f"{prefix.scheme}://{prefix.bucket}/{key}")
