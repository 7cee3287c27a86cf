"""A client of S3, with options by the names that s3fs has, and errors that are OSErrors."""

from __future__ import annotations

import errno
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any, TypeVar

import botocore.loaders
import botocore.session
import urllib3.exceptions
from botocore import UNSIGNED
from botocore import exceptions as failures
from botocore.config import Config

from pyckpt.errors import OptionError
from pyckpt.interrupts import interrupt_behind
from pyckpt.storage.retries import try_again

__all__ = ["S3Client", "field", "send", "was_refused", "was_rejected"]

T = TypeVar("T")

_OPTIONS = (
    *("key", "secret", "token", "anon", "profile", "endpoint_url"),
    *("client_kwargs", "config_kwargs", "s3_additional_kwargs"),
)
_CONNECT_SECONDS = 10
_READ_SECONDS = 60

# The requests that s3_additional_kwargs are for.
_WRITES = ("put_object", "complete_multipart_upload")
_REQUESTS = (
    *(*_WRITES, "create_multipart_upload", "upload_part", "abort_multipart_upload"),
    *("head_object", "get_object", "delete_object"),
)
# What pyckpt says in them itself, beside the checksums.
_OURS = frozenset(
    (
        *("Bucket", "Key", "VersionId", "Range", "Body", "ContentLength", "ContentMD5"),
        *("UploadId", "PartNumber", "MultipartUpload", "MpuObjectSize", "WriteOffsetBytes"),
    )
)

_REFUSED_CODES = (
    *("ExpiredToken", "ExpiredTokenException", "InvalidToken", "TokenRefreshRequired"),
    *("InvalidAccessKeyId", "InvalidClientTokenId", "UnrecognizedClientException"),
    *("SignatureDoesNotMatch", "AuthorizationHeaderMalformed", "400"),
)
_ERRNO_OF_CODE = {
    **dict.fromkeys(("NoSuchKey", "NoSuchBucket", "NoSuchUpload", "404"), errno.ENOENT),
    **dict.fromkeys(("PreconditionFailed", "412"), errno.ESTALE),
    **dict.fromkeys(_REFUSED_CODES, errno.EACCES),
    "InvalidRange": errno.ERANGE,
}
_ERRNO_OF_STATUS = {
    **{401: errno.EACCES, 403: errno.EACCES, 404: errno.ENOENT},
    **{412: errno.ESTALE, 416: errno.ERANGE},
}
# No credentials, or ones that have expired. Not every version of botocore has all.
_CREDENTIAL_FAILURES: tuple[type[Exception], ...] = tuple(
    getattr(failures, name)
    for name in (
        *("NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError"),
        *("NoAuthTokenError", "TokenRetrievalError", "UnknownTokenProviderError"),
        *("SSOError", "LoginError", "RefreshWithMFAUnsupportedError"),
    )
    if hasattr(failures, name)
)

# What a request raises that did not succeed.
_FAILURES = (failures.BotoCoreError, failures.ClientError, urllib3.exceptions.HTTPError)
# S3 says BadDigest if bytes were changed on the way.
_PASSING_CODES = frozenset(
    (
        *("SlowDown", "SlowDownRead", "SlowDownWrite", "ServiceUnavailable", "InternalError"),
        *("RequestTimeout", "RequestTimeoutException", "Throttling", "ThrottlingException"),
        *("TooManyRequests", "RequestLimitExceeded", "BandwidthLimitExceeded"),
        *("BadDigest", "XAmzContentSHA256Mismatch", "XAmzContentChecksumMismatch"),
        "OperationAborted",
    )
)
_PASSING_STATUSES = frozenset((408, 429))  # besides those of 500 or more
_STAYING_STATUSES = frozenset((501, 505))  # the store does not know the request


class S3Client:
    """Requests to S3. What the options do not say, the environment and the files of AWS do.

    Threads may share it.

    Args:
        connections: How many of them may use it at the same time.

    Raises:
        OptionError: An option is unknown or wrong.
    """

    def __init__(self, options: Mapping[str, Any], connections: int) -> None:
        _check(options)
        self._client = _new_client(options, connections)
        self._extra: dict[str, Any] = dict(options.get("s3_additional_kwargs") or {})
        self._extra_of: dict[str, dict[str, Any]] = {}
        if self._extra:
            self._check_extra()

    @property
    def metadata(self) -> dict[str, str]:
        """What the user wants to have in the metadata of objects."""
        return self._extra.get("Metadata") or {}

    @property
    def uses_md5(self) -> bool:
        """Whether the store may not know other checksums."""
        return bool(self._client.meta.config.request_checksum_calculation == "when_required")

    def ask(self, method: str, **arguments: Any) -> Any:
        """What the store answers to one request, which is sent once.

        It gets what it knows of the user's ``s3_additional_kwargs``.

        Args:
            method: The name of the client's method.
        """
        if method not in self._extra_of:
            self._extra_of[method] = self._known_by(method)
        return getattr(self._client, method)(**{**self._extra_of[method], **arguments})

    def _known_by(self, method: str) -> dict[str, Any]:
        if not self._extra:
            return {}
        names = self._names(method)
        if method not in _WRITES:  # conditions are about what is written
            names = {name for name in names if not name.startswith("If")}
        return {name: value for name, value in self._extra.items() if name in names}

    def _names(self, method: str) -> set[str]:
        """The arguments of a request."""
        meta = self._client.meta
        operation = meta.service_model.operation_model(meta.method_to_api_mapping[method])
        return set(operation.input_shape.members)

    def _check_extra(self) -> None:
        known = {name for method in _REQUESTS for name in self._names(method)}
        for name in sorted(self._extra):
            if name not in known:
                raise OptionError(f"s3_additional_kwargs cannot have {name!r}: no request knows it")
            if name in _OURS or name.startswith("Checksum"):
                raise OptionError(f"s3_additional_kwargs cannot have {name!r}: pyckpt says it")


def _check(options: Mapping[str, Any]) -> None:
    unknown = sorted(set(options) - set(_OPTIONS))
    if unknown:
        raise OptionError(
            f"storage_options of s3:// cannot have {', '.join(map(repr, unknown))}: "
            f"they are {', '.join(_OPTIONS)}"
        )
    for name in ("client_kwargs", "config_kwargs", "s3_additional_kwargs"):
        value = options.get(name) or {}
        if not isinstance(value, Mapping):
            raise OptionError(f"{name} must be a dict, not {type(value).__name__}")


def _new_client(options: Mapping[str, Any], connections: int) -> Any:
    settings: Mapping[str, Any] = options.get("config_kwargs") or {}
    arguments: dict[str, Any] = {
        "aws_access_key_id": options.get("key"),
        "aws_secret_access_key": options.get("secret"),
        "aws_session_token": options.get("token"),
        "endpoint_url": options.get("endpoint_url"),
        **(options.get("client_kwargs") or {}),
    }
    config: dict[str, Any] = {
        "max_pool_connections": connections,
        "connect_timeout": _CONNECT_SECONDS,
        "read_timeout": _READ_SECONDS,
        # Archives have checksums. Those of objects are known too late: at the end.
        "response_checksum_validation": "when_required",
        **settings,
        # Requests are sent again by pyckpt.storage.retries, which can be stopped.
        "retries": {"total_max_attempts": 1, "mode": "standard"},
    }
    if options.get("anon"):
        config["signature_version"] = UNSIGNED
    # The SHA-256 of parts costs more than all the rest. TLS protects them without it, and the
    # header with the checksum of a part is signed in any case.
    without_hashes = {"payload_signing_enabled": False, **(settings.get("s3") or {})}
    try:
        session = botocore.session.Session(profile=options.get("profile"))
        session.register_component("data_loader", _loader(session.get_config_variable("data_path")))
        client = session.create_client(
            "s3", config=Config(**{**config, "s3": without_hashes}), **arguments
        )
        if client.meta.endpoint_url.lower().startswith("http://"):
            # Many places may name the endpoint. Only a client tells which one it is.
            client.close()
            client = session.create_client("s3", config=Config(**config), **arguments)
    except (failures.BotoCoreError, TypeError, ValueError) as error:
        raise OptionError(f"no client of S3 can be made: {error}") from error
    return client


@cache
def _loader(path: str | None) -> Any:
    """Reads the descriptions of AWS's services, once: it takes longer than a request."""
    return botocore.loaders.create_loader(path)


def send(
    request: Callable[[], T], url: str, doing: str, stopped: threading.Event | None = None
) -> T:
    """What a request returns. It is sent again if that may help: see ``try_again``.

    Args:
        url, doing: For messages: what it is about, and what is done to it.

    Raises:
        OSError: It failed. ``url`` is its filename.
        BaseException: The interrupt that ended it.
    """
    before = sys.exc_info()[1]

    def is_passing(error: Exception) -> bool:
        return interrupt_behind(error, before) is None and _is_passing(error)

    try:
        return try_again(request, is_passing, stopped)
    except Exception as error:
        interrupt = interrupt_behind(error, before)
        if interrupt is None:
            if isinstance(error, _FAILURES):
                raise _os_error(error, url, doing) from error
            raise
    raise interrupt


def field(answer: Mapping[str, Any], name: str, url: str) -> Any:
    """What an answer must have.

    Raises:
        OSError: The store has left it out.
    """
    if answer.get(name) is None:
        raise OSError(errno.EIO, f"the store's answer has no {name}", url)
    return answer[name]


def was_refused(error: Exception) -> bool:
    """Whether the store has said that a request had no effect."""
    return isinstance(error, failures.ClientError) and 400 <= _code(error)[1] < 500


def was_rejected(error: BaseException | None) -> bool:
    """Whether the store has said that it does not take a request, now or later.

    A store that does not know a request has many words for it. One that is down says none of them.
    """
    if not isinstance(error, failures.ClientError) or _is_passing(error):
        return False
    status = _code(error)[1]
    return status in _STAYING_STATUSES or 400 <= status < 500


def _os_error(error: Exception, url: str, doing: str) -> OSError:
    """The OSError that tells of an error of the client."""
    if not isinstance(error, failures.ClientError):
        return OSError(_errno(error), f"{doing}: {type(error).__name__}: {error}", url)
    code, status = _code(error)
    text = str(error.response.get("Error", {}).get("Message", ""))
    number = _ERRNO_OF_CODE.get(code, _ERRNO_OF_STATUS.get(status, errno.EIO))
    if code == "400":  # an answer to HEAD has no text of its own
        text += "; the credentials may have expired, or the region or a key may be wrong"
    return OSError(number, f"{doing}: {code}: {text}", url)


def _errno(error: Exception) -> int:
    if isinstance(error, _CREDENTIAL_FAILURES):
        return errno.EACCES
    if isinstance(error, failures.ConnectTimeoutError | failures.ReadTimeoutError):
        return errno.ETIMEDOUT
    if isinstance(error, failures.ConnectionClosedError):
        return errno.ECONNRESET
    if isinstance(error, failures.EndpointConnectionError):
        if any(isinstance(cause, socket.gaierror) for cause in _causes(error)):
            return errno.EHOSTUNREACH  # no such name
        return errno.ECONNREFUSED
    return errno.EIO


def _causes(error: BaseException) -> Iterator[BaseException]:
    cause = error.__cause__ or error.__context__
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__


def _is_passing(error: Exception) -> bool:
    if isinstance(error, failures.ClientError):
        code, status = _code(error)
        if code in _PASSING_CODES or status in _PASSING_STATUSES:
            return True
        return status >= 500 and status not in _STAYING_STATUSES
    if isinstance(error, failures.SSLError | urllib3.exceptions.SSLError):
        return "CERTIFICATE_VERIFY_FAILED" not in str(error)  # a certificate stays wrong
    return isinstance(
        error,
        failures.HTTPClientError
        | failures.ConnectionError
        | failures.ResponseStreamingError
        | failures.IncompleteReadError
        | urllib3.exceptions.HTTPError,
    ) or type(error).__name__ in ("ResponseParserError", "CredentialRetrievalError")


def _code(error: Any) -> tuple[str, int]:
    response = error.response
    status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    return str(response.get("Error", {}).get("Code", status)), int(status)
