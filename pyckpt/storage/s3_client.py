"""A client of S3, with options by the names that s3fs has, and errors that are OSErrors."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, TypeVar

import botocore.loaders
import botocore.session
from botocore import UNSIGNED
from botocore import exceptions as failures
from botocore.config import Config

from pyckpt.errors import OptionError
from pyckpt.storage.retries import try_again

__all__ = ["new_client", "os_error", "send"]

T = TypeVar("T")

_OPTIONS = (
    *("key", "secret", "token", "anon", "profile", "endpoint_url"),
    *("client_kwargs", "config_kwargs", "s3_additional_kwargs"),
)
_CONNECT_SECONDS = 10
_READ_SECONDS = 60

_ERRNO_OF_CODE = {
    **dict.fromkeys(("NoSuchKey", "NoSuchBucket", "NoSuchUpload", "404"), errno.ENOENT),
    **dict.fromkeys(("PreconditionFailed", "412"), errno.ESTALE),
    "InvalidRange": errno.ERANGE,
}
_ERRNO_OF_STATUS = {
    **{401: errno.EACCES, 403: errno.EACCES, 404: errno.ENOENT},
    **{412: errno.ESTALE, 416: errno.ERANGE},
}
# Besides all with a status of 500 or more. S3 says BadDigest if bytes were changed on the way.
_PASSING_CODES = frozenset(
    (
        *("SlowDown", "SlowDownRead", "SlowDownWrite", "ServiceUnavailable", "InternalError"),
        *("RequestTimeout", "RequestTimeoutException", "Throttling", "ThrottlingException"),
        *("TooManyRequests", "RequestLimitExceeded", "BandwidthLimitExceeded"),
        *("BadDigest", "XAmzContentSHA256Mismatch", "XAmzContentChecksumMismatch"),
        *("OperationAborted", "429", "408"),
    )
)


def new_client(options: Mapping[str, Any], connections: int) -> Any:
    """A client. What the options do not say, the environment and the files of AWS do.

    Threads may share it.

    Args:
        connections: How many of them may use it at the same time.

    Raises:
        OptionError: An option is unknown or wrong.
    """
    unknown = sorted(set(options) - set(_OPTIONS))
    if unknown:
        raise OptionError(
            f"storage_options of s3:// cannot have {', '.join(map(repr, unknown))}: "
            f"they are {', '.join(_OPTIONS)}"
        )
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
        **settings,
        "s3": {**_signing(arguments["endpoint_url"]), **(settings.get("s3") or {})},
        # Requests are sent again by pyckpt.storage.retries, which can be stopped.
        "retries": {"total_max_attempts": 1, "mode": "standard"},
    }
    if options.get("anon"):
        config["signature_version"] = UNSIGNED
    try:
        session = botocore.session.Session(profile=options.get("profile"))
        session.register_component("data_loader", _loader(session.get_config_variable("data_path")))
        return session.create_client("s3", config=Config(**config), **arguments)
    except (failures.BotoCoreError, TypeError, ValueError) as error:
        raise OptionError(f"no client of S3 can be made: {error}") from error


def _signing(endpoint: str | None) -> dict[str, Any]:
    """Leaves the SHA-256 of parts out where TLS protects them: it costs more than all the rest.

    The header with the checksum of a part is signed in any case.
    """
    endpoint = (
        endpoint or os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    )
    is_plain = endpoint is not None and endpoint.lower().startswith("http://")
    return {} if is_plain else {"payload_signing_enabled": False}


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
    """
    try:
        return try_again(request, _is_passing, stopped)
    except (failures.BotoCoreError, failures.ClientError) as error:
        raise os_error(error, url, doing) from error


def os_error(error: Exception, url: str, doing: str) -> OSError:
    """The OSError that tells of an error of the client."""
    if isinstance(error, failures.ClientError):
        code, status = _code(error)
        text = str(error.response.get("Error", {}).get("Message", ""))
        number = _ERRNO_OF_CODE.get(code, _ERRNO_OF_STATUS.get(status, errno.EIO))
        return OSError(number, f"{doing}: {code}: {text}", url)
    number = errno.EIO
    if isinstance(error, failures.NoCredentialsError | failures.PartialCredentialsError):
        number = errno.EACCES
    elif isinstance(error, failures.ConnectTimeoutError | failures.ReadTimeoutError):
        number = errno.ETIMEDOUT
    elif isinstance(error, failures.ConnectionClosedError):
        number = errno.ECONNRESET
    elif isinstance(error, failures.EndpointConnectionError):
        number = errno.ECONNREFUSED
    return OSError(number, f"{doing}: {type(error).__name__}: {error}", url)


def _is_passing(error: Exception) -> bool:
    if isinstance(error, failures.ClientError):
        code, status = _code(error)
        return status >= 500 or code in _PASSING_CODES
    if isinstance(error, failures.SSLError):  # a certificate stays wrong
        return "CERTIFICATE_VERIFY_FAILED" not in str(error)
    return isinstance(
        error,
        failures.HTTPClientError
        | failures.ConnectionError
        | failures.ResponseStreamingError
        | failures.IncompleteReadError,
    ) or type(error).__name__ in ("ResponseParserError", "CredentialRetrievalError")


def _code(error: Any) -> tuple[str, int]:
    response = error.response
    status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    return str(response.get("Error", {}).get("Code", status)), int(status)
