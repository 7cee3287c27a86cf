"""Objects in S3, and in what speaks its protocol."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from typing import Any, TypeVar

from pyckpt.storage.parts import IN_FLIGHT
from pyckpt.storage.s3_client import new_client, send
from pyckpt.storage.s3_upload import S3Upload
from pyckpt.storage.store import ObjectInfo, Store, UnfinishedUpload, Write
from pyckpt.storage.urls import Url

__all__ = ["S3Store"]

T = TypeVar("T")

_PIECE_NBYTES = 256 << 10
_MOST_REMOVED = 1000  # in one request
# What a store that does not know a request may say: a code of its own, or no permission.
_REFUSED = (errno.EIO, errno.EACCES, errno.ENOENT)


class S3Store(Store):
    """See :class:`pyckpt.storage.store.Store`.

    Raises:
        OptionError: An option is unknown or wrong.
    """

    def __init__(self, url: Url, options: Mapping[str, Any]) -> None:
        extra = options.get("s3_additional_kwargs") or {}
        self._extra: dict[str, Any] = dict(extra)
        self._client = new_client(options, IN_FLIGHT + 1)

    def stat(self, url: Url) -> ObjectInfo:
        head = self._send("looking at", url, lambda: self._client.head_object(**_place(url)))
        return ObjectInfo(
            url, int(head["ContentLength"]), head.get("ETag"), head["LastModified"].timestamp()
        )

    def fetch(self, url: Url, start: int, end: int, write: Write, etag: str | None = None) -> None:
        condition = {} if etag is None else {"IfMatch": etag}
        at = start

        def read() -> None:
            nonlocal at  # what came before the connection broke does not come again
            span = f"bytes={at}-{end - 1}"
            answer = self._client.get_object(**_place(url), **condition, Range=span)
            with closing(answer["Body"]) as body:  # or its connection stays open if write() raises
                while piece := body.read(_PIECE_NBYTES):
                    write(piece)
                    at += len(piece)
                    if "ETag" in answer:  # the rest is of the same object
                        condition["IfMatch"] = answer["ETag"]

        try:
            if start < end:
                self._send("reading", url, read)
        except OSError as error:
            if error.errno != errno.ERANGE:  # the object ends before
                raise

    def list(self, prefix: Url, *, deep: bool = True) -> Iterator[ObjectInfo]:
        depth = {} if deep else {"Delimiter": "/"}
        more: dict[str, Any] = {}
        while True:
            page = self._page("listing", prefix, self._client.list_objects_v2, {**depth, **more})
            for one in page.get("Contents", ()):
                url = _url(prefix, one["Key"])
                modified = one["LastModified"].timestamp()
                yield ObjectInfo(url, int(one["Size"]), one.get("ETag"), modified)
            if not page.get("IsTruncated"):
                return
            more = {"ContinuationToken": page["NextContinuationToken"]}

    def remove(self, url: Url) -> bool:
        try:
            self.stat(url)  # a DELETE does not tell
        except FileNotFoundError:
            return False
        self._delete(url)
        return True

    def remove_all(self, urls: Sequence[Url]) -> None:
        for start in range(0, len(urls), _MOST_REMOVED):
            batch = urls[start : start + _MOST_REMOVED]
            if len(batch) == 1 or not self._delete_batch(batch):
                for url in batch:
                    self._delete(url)

    def _delete(self, url: Url) -> None:
        self._send("removing", url, lambda: self._client.delete_object(**_place(url)))

    def _delete_batch(self, urls: Sequence[Url]) -> bool:
        """Removes objects in one request. Returns whether the store knows such requests."""
        wanted = {"Objects": [{"Key": url.key} for url in urls], "Quiet": True}
        try:
            answer = self._send(
                "removing",
                urls[0],
                lambda: self._client.delete_objects(Bucket=urls[0].bucket, Delete=wanted),
            )
        except OSError as error:
            if error.errno in _REFUSED:
                return False
            raise
        for failed in answer.get("Errors", ()):
            if failed.get("Code") != "NoSuchKey":
                self._delete(_url(urls[0], failed["Key"]))  # it may pass, and else it says why
        return True

    def open_upload(self, url: Url) -> S3Upload:
        return S3Upload(self._client, url, self._extra)

    def unfinished(self, prefix: Url) -> Iterator[UnfinishedUpload]:
        more: dict[str, Any] = {}
        while True:
            page = self._page(
                "listing the uploads of", prefix, self._client.list_multipart_uploads, more
            )
            for one in page.get("Uploads", ()):
                started = one["Initiated"].timestamp()
                yield UnfinishedUpload(_url(prefix, one["Key"]), one["UploadId"], started)
            if not page.get("IsTruncated"):
                return
            more = {
                "KeyMarker": page["NextKeyMarker"],
                "UploadIdMarker": page["NextUploadIdMarker"],
            }

    def abort(self, upload: UnfinishedUpload) -> None:
        place = {**_place(upload.url), "UploadId": upload.id}
        try:
            self._send(
                "aborting the upload of",
                upload.url,
                lambda: self._client.abort_multipart_upload(**place),
            )
        except OSError as error:
            if error.errno != errno.ENOENT:  # it has ended meanwhile
                raise

    def _page(self, doing: str, prefix: Url, listing: Any, more: Mapping[str, Any]) -> Any:
        return self._send(
            doing, prefix, lambda: listing(Bucket=prefix.bucket, Prefix=prefix.key, **more)
        )

    def _send(self, doing: str, url: Url, request: Callable[[], T]) -> T:
        return send(request, url, doing)


def _place(url: Url) -> dict[str, str]:
    return {"Bucket": url.bucket, "Key": url.key}


def _url(prefix: Url, key: str) -> Url:
    return Url(f"{prefix.scheme}://{prefix.bucket}/{key}")
