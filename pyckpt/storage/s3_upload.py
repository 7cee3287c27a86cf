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
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from pyckpt import _core
from pyckpt.interrupts import to_the_end
from pyckpt.staging.latch import Latch
from pyckpt.storage.parts import Parts, part_nbytes
from pyckpt.storage.s3_client import S3Client, field, send
from pyckpt.storage.s3_commit import S3Commit
from pyckpt.storage.urls import Url

__all__ = ["S3Upload"]

_LOGGER = logging.getLogger("pyckpt")

# How long abandon waits for parts that are on their way. Each of them aborts again, if it is later.
_STOP_SECONDS = 5.0
# How long it waits then until the store has forgotten the upload, or the object.
_UNDO_SECONDS = 10.0


class S3Upload:
    """See :class:`pyckpt.storage.store.Upload`.

    Each part has its CRC32 in a header that is signed, and the store compares. If the client is set
    to ``request_checksum_calculation="when_required"``, it has its MD5 instead, which older stores
    know too.

    Memory: that of ``Parts``.
    """

    def __init__(self, client: S3Client, url: Url) -> None:
        self._client = client
        self._url = url
        self._place = {"Bucket": url.bucket, "Key": url.key}
        self._parts: Parts | None = None  # until it is committed or abandoned
        self._stopped = threading.Event()
        self._id: str | None = None  # of the upload, until it is completed
        self._uploaded: dict[int, dict[str, Any]] = {}
        self._begin_lock = threading.Lock()
        self._is_aborted = False
        self._appearance = S3Commit(client, url)
        self._may_undo = False  # whether the object is not final that has appeared

    def open(self, most_nbytes: int) -> None:
        nbytes = part_nbytes(most_nbytes)
        self._parts = Parts(nbytes, self._upload_part)
        self._stopped = self._parts.stopped
        if most_nbytes > nbytes:
            self._begin()  # a bucket that is not there is an error before anything is compressed

    def write(self, piece: memoryview) -> None:
        assert self._parts is not None
        self._parts.write(piece)

    def seal(self, nbytes: int) -> None:
        assert self._parts is not None
        if self._id is not None or self._parts.has_begun:
            self._parts.finish()

    def stop(self) -> None:
        if (parts := self._parts) is not None:
            parts.stop(0)

    def commit(self, keep_previous: bool) -> None:
        if keep_previous:
            self._appearance.look()
        self._may_undo = True
        if self._id is not None:
            self._complete(self._id)
        else:
            self._put()
        self._may_undo = keep_previous
        self._id = None
        self._parts = None  # leads back here

    def keep(self) -> None:
        self._may_undo = False

    def restore(self) -> None:
        if self._may_undo:
            self._undo()

    def abandon(self) -> None:
        to_the_end(self._stop_parts, self._undo_once)

    def _stop_parts(self) -> None:
        parts, self._parts = self._parts, None
        if parts is not None:
            parts.stop(_STOP_SECONDS)

    def _undo_once(self) -> None:
        if self._may_undo or not self._is_aborted:
            self._undo()

    def _begin(self) -> None:
        checksum = {} if self._client.uses_md5 else {"ChecksumAlgorithm": "CRC32"}
        answer = self._send(
            "beginning the upload",
            "create_multipart_upload",
            {**self._appearance.marked, **checksum},
        )
        self._id = field(answer, "UploadId", self._url)

    def _upload_part(self, number: int, part: io.BytesIO) -> None:
        try:
            with self._begin_lock:
                if self._id is None:
                    self._begin()
            if not self._is_aborted:
                self._send_part(number, part)
        finally:
            if self._is_aborted:  # this came too late for the abort
                _warn(self._abort(None))

    def _send_part(self, number: int, part: io.BytesIO) -> None:
        checksum = self._checksum(part)

        def request() -> Any:
            part.seek(0)
            return self._client.ask(
                "upload_part",
                **self._place,
                UploadId=self._id,
                PartNumber=number,
                Body=part,
                **checksum,
            )

        # It is not sent again once the upload has failed.
        answer = send(request, self._url, f"uploading part {number}", self._stopped)
        checksum.pop("ContentMD5", None)
        etag = field(answer, "ETag", self._url)
        self._uploaded[number] = {"PartNumber": number, "ETag": etag, **checksum}

    def _complete(self, upload_id: str) -> None:
        parts = [self._uploaded[number] for number in sorted(self._uploaded)]
        self._appearance.run(
            "completing the upload",
            "complete_multipart_upload",
            {"UploadId": upload_id, "MultipartUpload": {"Parts": parts}},
        )

    def _put(self) -> None:
        """Uploads all in one request."""
        assert self._parts is not None
        part = self._parts.only_part()
        arguments = {**self._appearance.marked, "Body": part, **self._checksum(part)}
        self._appearance.run("uploading", "put_object", arguments)

    def _undo(self) -> None:
        """Aborts the upload, and takes the object back. Waits not too long for the store."""
        may_undo, self._may_undo = self._may_undo, False
        self._is_aborted = True
        if self._id is None and not may_undo:
            return
        late, done = threading.Event(), Latch()

        def work() -> None:
            try:
                # In this order: once it is aborted, the object does not appear any more.
                problems = [self._abort(late)]
                if may_undo:
                    problems.append(self._appearance.take_back(late))
                if not late.is_set():
                    for problem in problems:
                        _warn(problem)
            finally:
                done.set()

        try:
            _do_within(_UNDO_SECONDS, work, done)
        finally:
            if not done.is_set():
                late.set()
                _warn(
                    f"the store does not answer. The upload of {self._url} may stay behind until "
                    "pyckpt sweep removes it"
                    + (", or the object is the new one" if may_undo else "")
                )

    def _abort(self, stopped: threading.Event | None) -> str | None:
        """Removes the upload. Returns what stays behind, if it does."""
        if self._id is None:
            return None
        try:
            self._send(
                "aborting the upload", "abort_multipart_upload", {"UploadId": self._id}, stopped
            )
        except OSError as error:
            if error.errno != errno.ENOENT:
                return f"an upload stays behind until pyckpt sweep removes it: {error}"
        return None

    def _checksum(self, part: io.BytesIO) -> dict[str, Any]:
        with part.getbuffer() as data:
            if self._client.uses_md5:
                digest = hashlib.md5(data, usedforsecurity=False).digest()
                return {"ContentMD5": base64.b64encode(digest).decode()}
            address = np.frombuffer(data, np.uint8).ctypes.data
            crc = _core.crc32(address, len(data)).to_bytes(4, "big")
        return {"ChecksumCRC32": base64.b64encode(crc).decode()}

    def _send(
        self,
        doing: str,
        method: str,
        arguments: Mapping[str, Any],
        stopped: threading.Event | None = None,
    ) -> Any:
        """What the store answers."""
        return send(
            lambda: self._client.ask(method, **self._place, **arguments),
            self._url,
            doing,
            stopped,
        )


def _warn(problem: str | None) -> None:
    if problem is not None:
        _LOGGER.warning("%s", problem)


def _do_within(seconds: float, work: Callable[[], None], done: Latch) -> None:
    """Runs work on another thread, which sets ``done``. If that takes longer, it goes on there.

    The first Ctrl-C does not end the waiting, and a second one does.
    """
    # A request cannot be ended, and its time-out is for all requests of a client.
    thread = threading.Thread(target=work, name="pyckpt-undo", daemon=True)
    try:
        thread.start()
    except RuntimeError:  # the system has no more
        work()
        return
    end = time.monotonic() + seconds
    to_the_end(lambda: done.wait(seconds), lambda: done.wait(max(0.0, end - time.monotonic())))
