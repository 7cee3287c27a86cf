"""Uploads one object to S3: in parts while it is written, or in one request if it is small.

    open ─▶ create ─▶ parts ─▶ seal: all are there ─▶ commit: complete
                        └──────────── abandon: abort

The old object stays readable until the complete, which is the rename.
"""

from __future__ import annotations

import base64
import errno
import hashlib
import io
import logging
import threading
import uuid
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import numpy as np

from pyckpt import _core
from pyckpt.storage.parts import Parts, part_nbytes
from pyckpt.storage.s3_client import send
from pyckpt.storage.urls import Url

__all__ = ["S3Upload"]

_LOGGER = logging.getLogger("pyckpt")

# In the object's metadata: which upload it comes from.
_MARK = "pyckpt-upload"
# How long abandon waits for parts that are on their way. Each of them aborts again, if it is later.
_STOP_SECONDS = 10.0


class S3Upload:
    """See :class:`pyckpt.storage.store.Upload`.

    Each part has its CRC32 in a header that is signed, and the store compares. If the client is set
    to ``request_checksum_calculation="when_required"``, it has its MD5 instead, which older stores
    know too.

    Memory: that of ``Parts``.
    """

    def __init__(self, client: Any, url: Url, extra: Mapping[str, Any]) -> None:
        """
        Args:
            extra: Arguments of requests, such as ServerSideEncryption. Each request gets what it
                knows of them.
        """
        self._client = client
        self._url = url
        self._place = {"Bucket": url.bucket, "Key": url.key}
        self._extra = extra
        self._uses_md5 = client.meta.config.request_checksum_calculation == "when_required"
        self._mark = uuid.uuid4().hex
        self._parts: Parts | None = None
        self._id: str | None = None  # of the upload, until it is completed or aborted
        self._uploaded: dict[int, dict[str, Any]] = {}
        self._begin_lock = threading.Lock()
        self._is_aborted = False
        self._taking_back: _TakingBack | None = None

    def open(self, most_nbytes: int) -> None:
        nbytes = part_nbytes(most_nbytes)
        self._parts = Parts(nbytes, self._upload_part)
        if most_nbytes > nbytes:
            self._begin()  # a bucket that is not there is an error before anything is compressed

    def write(self, piece: memoryview) -> None:
        assert self._parts is not None
        self._parts.write(piece)

    def seal(self, nbytes: int) -> None:
        assert self._parts is not None
        if self._id is not None or self._parts.has_begun:
            self._parts.finish()

    def commit(self, keep_previous: bool) -> None:
        taking_back = None
        if keep_previous:
            taking_back = _TakingBack(self._client, self._url, self._place, self._exists())
        version = self._complete() if self._id is not None else self._put()
        self._id = None
        if taking_back is not None:
            taking_back.version = version
            self._taking_back = taking_back

    def keep(self) -> None:
        self._taking_back = None

    def restore(self) -> None:
        taking_back, self._taking_back = self._taking_back, None
        if taking_back is not None:
            taking_back.run()

    def abandon(self) -> None:
        self.restore()
        if self._is_aborted:
            return
        if self._parts is not None:
            self._parts.stop(_STOP_SECONDS)
        self._is_aborted = True
        self._abort()

    def _begin(self) -> None:
        checksum = {} if self._uses_md5 else {"ChecksumAlgorithm": "CRC32"}
        answer = self._send(
            "beginning the upload", "create_multipart_upload", {**self._marked(), **checksum}
        )
        self._id = answer["UploadId"]

    def _upload_part(self, number: int, part: io.BytesIO) -> None:
        with self._begin_lock:
            if self._id is None:
                self._begin()
        checksum = self._checksum(part)
        answer = self._send(
            f"uploading part {number}",
            "upload_part",
            {"UploadId": self._id, "PartNumber": number, "Body": part, **checksum},
        )
        checksum.pop("ContentMD5", None)
        self._uploaded[number] = {"PartNumber": number, "ETag": answer["ETag"], **checksum}
        if self._is_aborted:
            self._abort()  # this part came too late for the abort

    def _complete(self) -> str | None:
        """Completes the upload. Returns the version of the object, if it has one."""
        parts = [self._uploaded[number] for number in sorted(self._uploaded)]
        place = {"UploadId": self._id, "MultipartUpload": {"Parts": parts}}
        try:
            answer = self._send("completing the upload", "complete_multipart_upload", place)
        except OSError:
            # The answer to the first request may be lost, and the second one finds no upload.
            answer = self._own_object()
            if answer is None:
                raise
        return _version(answer)

    def _put(self) -> str | None:
        """Uploads all in one request. Returns the version of the object, if it has one."""
        assert self._parts is not None
        part = self._parts.only_part()
        arguments = {**self._marked(), "Body": part, **self._checksum(part)}
        return _version(self._send("uploading", "put_object", arguments))

    def _abort(self) -> None:
        if self._id is None:
            return
        try:
            self._send("aborting the upload", "abort_multipart_upload", {"UploadId": self._id})
        except OSError as error:
            if error.errno != errno.ENOENT:
                _LOGGER.warning("an upload stays behind until pyckpt sweep removes it: %s", error)

    def _exists(self) -> bool:
        try:
            self._send("looking at", "head_object", {})
        except FileNotFoundError:
            return False
        return True

    def _own_object(self) -> Any:
        """What the store tells of the object, if it is the one of this upload."""
        with suppress(OSError):
            head = self._send("looking at", "head_object", {})
            if head.get("Metadata", {}).get(_MARK) == self._mark:
                return head
        return None

    def _marked(self) -> dict[str, Any]:
        return {"Metadata": {**self._extra.get("Metadata", {}), _MARK: self._mark}}

    def _checksum(self, part: io.BytesIO) -> dict[str, Any]:
        with part.getbuffer() as data:
            if self._uses_md5:
                digest = hashlib.md5(data, usedforsecurity=False).digest()
                return {"ContentMD5": base64.b64encode(digest).decode()}
            address = np.frombuffer(data, np.uint8).ctypes.data
            crc = _core.crc32(address, len(data)).to_bytes(4, "big")
        return {"ChecksumCRC32": base64.b64encode(crc).decode()}

    def _send(self, doing: str, method: str, arguments: Mapping[str, Any]) -> Any:
        """What the store answers. A part is not sent again once the upload has failed."""
        meta = self._client.meta
        operation = meta.service_model.operation_model(meta.method_to_api_mapping[method])
        known = operation.input_shape.members
        extra = {name: value for name, value in self._extra.items() if name in known}
        body = arguments.get("Body")

        def request() -> Any:
            if body is not None:
                body.seek(0)
            return getattr(self._client, method)(**self._place, **{**extra, **arguments})

        stopped = self._parts.stopped if method == "upload_part" and self._parts else None
        return send(request, self._url, doing, stopped)


class _TakingBack:
    """How an object is taken back that has appeared.

    S3 keeps no previous object but in a bucket with versions.
    """

    def __init__(self, client: Any, url: Url, place: Mapping[str, str], replaces: bool) -> None:
        self._client = client
        self._url = url
        self._place = place
        self._replaces = replaces
        self.version: str | None = None

    def run(self) -> None:
        if self._replaces and self.version is None:
            _LOGGER.warning(
                "%s is the new one of a save that failed on another rank: the store has no versions"
                " to bring the previous one back from",
                self._url,
            )
            return
        version = {} if self.version is None else {"VersionId": self.version}
        try:
            send(
                lambda: self._client.delete_object(**self._place, **version),
                self._url,
                "taking the object back",
            )
        except OSError as error:
            _LOGGER.warning("%s could not be taken back: %s", self._url, error)


def _version(answer: Mapping[str, Any]) -> str | None:
    """The version that a store has given an object, if its bucket keeps versions."""
    version = answer.get("VersionId")
    return None if version in (None, "null") else str(version)
