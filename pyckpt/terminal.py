"""Text from files that is shown to people: what could steer the terminal is escaped."""

from __future__ import annotations

__all__ = ["printable"]


def printable(text: str, encoding: str | None = None) -> str:
    """Escapes control characters, and what ``encoding`` does not have (None: UTF-8)."""
    safe = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
    encoding = encoding or "utf-8"
    return safe.encode(encoding, "backslashreplace").decode(encoding)
