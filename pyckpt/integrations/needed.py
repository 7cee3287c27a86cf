"""What an integration says if its framework is not there, or lacks what it builds on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["check_has", "needed"]


@contextmanager
def needed(framework: str, extra: str) -> Iterator[None]:
    """Imports a framework inside of the block.

    Args:
        framework: Its name, as pip knows it.
        extra: The extra of pyckpt that installs it.

    Raises:
        ImportError: It cannot be imported. The message says what to install.
    """
    try:
        yield
    except ImportError as error:
        raise type(error)(
            f"this module of pyckpt needs {framework}, of a release that it knows: "
            f'pip install "pyckpt[{extra}]" ({error})',
            name=error.name,
            path=error.path,
        ) from error


def check_has(owner: type, *names: str) -> None:
    """Checks that a class of a framework has the methods that pyckpt replaces.

    Raises:
        ImportError: A release has renamed it. What stands in its place would never be called.
    """
    missing = [name for name in names if not hasattr(owner, name)]
    if missing:
        raise ImportError(
            f"{owner.__module__.partition('.')[0]} has no {owner.__name__}.{missing[0]} in this "
            "release, so pyckpt cannot replace it: take another release of one of them"
        )
