"""Lets one object of S3 appear, and takes it back if its save fails all the same.

    look ─▶ run: the request that lets it appear ─▶ take_back
               └── is its outcome known?

A request may have been carried out although its answer is lost, or although Ctrl-C came before it.
Then the mark in the object's metadata tells whose it is.
"""

from __future__ import annotations

import errno
import io
import threading
import uuid
from collections.abc import Callable, Mapping
from typing import Any

from pyckpt.interrupts import is_interrupt
from pyckpt.storage.retries import ATTEMPTS
from pyckpt.storage.s3_client import S3Client, send, was_refused
from pyckpt.storage.urls import Url

__all__ = ["S3Commit"]

_MARK = "pyckpt-upload"
# Those of one save are next to each other, unless others save the same object.
_MOST_VERSIONS = 2 * ATTEMPTS


class S3Commit:
    """The appearance of one object, and of no other one.

    S3 keeps no previous object but in a bucket with versions.
    """

    def __init__(self, client: S3Client, url: Url) -> None:
        self._client = client
        self._url = url
        self._place = {"Bucket": url.bucket, "Key": url.key}
        self._mark = uuid.uuid4().hex
        self._has_previous: bool | None = None  # None: nobody has looked
        self._has_appeared = False
        self._unknown = 0  # how many requests may have been carried out
        self._version: str | None = None

    @property
    def marked(self) -> dict[str, Any]:
        """The arguments of the request that says what the object's metadata are."""
        return {"Metadata": {**self._client.metadata, _MARK: self._mark}}

    def look(self) -> None:
        """Looks whether there is an object that this one replaces."""
        try:
            self._head()
        except FileNotFoundError:
            self._has_previous = False
            return
        except PermissionError as error:  # said of absent ones too, if the bucket is not to be read
            if is_interrupt(error):
                raise
        self._has_previous = True

    def run(self, doing: str, method: str, arguments: Mapping[str, Any]) -> None:
        """Sends the request.

        Raises:
            OSError: It failed. The object may have appeared all the same.
        """
        body: io.BytesIO | None = arguments.get("Body")

        def request() -> Any:
            if body is not None:
                body.seek(0)
            self._unknown += 1
            try:
                return self._client.ask(method, **self._place, **arguments)
            except Exception as error:
                if was_refused(error):
                    self._unknown -= 1
                raise

        try:
            answer = send(request, self._url, doing)
        except OSError as error:
            # The answer to the first request may be lost, and the second one finds no upload.
            if is_interrupt(error) or not self._unknown:
                raise
            answer = self._own_head()
            if answer is None:
                raise
        self._has_appeared = True
        self._version = _version(answer)

    def take_back(self, stopped: threading.Event) -> str | None:
        """Takes the object back if it has appeared, as far as the store can.

        Args:
            stopped: Once it is set, no further request is sent: a later save may have the name.

        Returns:
            What is there now that should not be; None if all is as it was.
        """
        if not self._unknown:
            return None
        try:
            if not self._has_appeared and not self._finds_itself(stopped):
                return None
            if self._version is not None:
                self._remove_versions(self._version, stopped)
                return None
            if self._has_previous is False:
                self._remove({}, stopped)
                return None
        except OSError as error:
            how = "is" if self._has_appeared else "may be"
            return (
                f"{self._url} {how} the new one of a save that failed, and could not be taken "
                f"back: {error}"
            )
        return (
            f"{self._url} is the new one of a save that failed: the store has no versions to bring "
            "a previous one back from"
        )

    def _finds_itself(self, stopped: threading.Event) -> bool:
        """Whether the object has appeared although nobody said so."""
        try:
            head = self._head(stopped=stopped)
        except FileNotFoundError:
            return False
        self._has_appeared = self._is_own(head)
        self._version = _version(head)
        return self._has_appeared

    def _own_head(self) -> Any:
        """What the store tells of the object, if it is this one. None if it tells nothing."""
        try:
            head = self._head()
        except OSError as error:
            if is_interrupt(error):
                raise
            return None
        return head if self._is_own(head) else None

    def _remove_versions(self, version: str, stopped: threading.Event) -> None:
        """Removes the version that the store has named, and those of requests that it repeated."""
        self._remove({"VersionId": version}, stopped)
        if self._unknown == 1:
            return
        place = {"Bucket": self._url.bucket, "Prefix": self._url.key, "MaxKeys": _MOST_VERSIONS}
        page = self._send(lambda: self._client.ask("list_object_versions", **place), stopped)
        for one in page.get("Versions", ()):  # the newest first
            other = _version(one)
            if other is None or one.get("Key") != self._url.key:
                continue
            if self._is_own(self._head({"VersionId": other}, stopped)):
                self._remove({"VersionId": other}, stopped)

    def _remove(self, version: Mapping[str, str], stopped: threading.Event) -> None:
        self._send(lambda: self._client.ask("delete_object", **self._place, **version), stopped)

    def _is_own(self, head: Mapping[str, Any]) -> bool:
        return bool(head.get("Metadata", {}).get(_MARK) == self._mark)

    def _head(
        self, version: Mapping[str, str] | None = None, stopped: threading.Event | None = None
    ) -> Any:
        place = {**self._place, **(version or {})}
        return self._send(lambda: self._client.ask("head_object", **place), stopped, "looking at")

    def _send(
        self,
        request: Callable[[], Any],
        stopped: threading.Event | None,
        doing: str = "taking the object back",
    ) -> Any:
        if stopped is not None and stopped.is_set():
            raise OSError(errno.ETIMEDOUT, f"{doing}: the store does not answer", self._url)
        return send(request, self._url, doing, stopped)


def _version(answer: Mapping[str, Any]) -> str | None:
    """The version that a store has given an object, if its bucket keeps versions."""
    version = answer.get("VersionId")
    return None if version in (None, "null") else str(version)
