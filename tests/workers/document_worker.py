"""Runs the code blocks of a Markdown page in order, as a reader would: document_worker.py PAGE.

Blocks of Python share one interpreter, in which warnings are errors. Blocks of sh follow in the
same folder, which is the current one. The first block that fails ends the run. A block of Python
whose last line is ``# NAMEError: TEXT ...`` must end with that error. A comment of HTML directly
before a block changes what happens:

    <!-- not run: REASON -->      the block is left out
    <!-- first: STATEMENTS -->    these run before it, since the page does not show them

Only the standard library is used, so that it runs where nothing but pyckpt is installed.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import traceback
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LANGUAGES = ("python", "sh", "console")

_BLOCK = re.compile(
    r"(?:^[ ]*<!--(?P<comment>(?:(?!-->).)*)-->\n)?"
    r"^(?P<indent>[ ]*)```(?P<language>\w*)\n(?P<code>.*?)^[ ]*```$",
    re.MULTILINE | re.DOTALL,
)
_ERROR = re.compile(r"^# (?P<error>\w+Error: .*?)(?: \.\.\.)?\n\Z", re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A block of code, and what the comment before it says.

    Attributes:
        line: The number of its first line in the page.
    """

    language: str
    code: str
    line: int
    not_run: str
    first: str

    @property
    def error(self) -> str:
        """How the error begins with which it must end, or ""."""
        match = _ERROR.search(self.code)
        return match["error"] if match else ""


def blocks_of(page: Path) -> Iterator[Block]:
    """Yields the blocks of a page that are in a language that can be run."""
    text = page.read_text()
    for match in _BLOCK.finditer(text):
        if match["language"] in LANGUAGES:
            comment = (match["comment"] or "").strip()
            wishes = dict.fromkeys(("not run:", "first:"), "")
            for wish in wishes:
                if comment.startswith(wish):
                    wishes[wish] = comment.removeprefix(wish).strip()
            code = re.sub(f"^{match['indent']}", "", match["code"], flags=re.MULTILINE)
            line = text.count("\n", 0, match.start("code")) + 1
            yield Block(match["language"], code, line, *wishes.values())


def run(page: Path) -> int:
    """Runs the page's blocks and returns how many. The first error is printed and ends it."""
    warnings.simplefilter("error")
    names: dict[str, Any] = {}
    ran = 0
    for block in blocks_of(page):
        if block.not_run:
            continue
        try:
            exec(block.first, names)
            _run_python(block, names, page) if block.language == "python" else _run_sh(block)
        except BaseException:
            traceback.print_exc()
            sys.exit(f"{page}:{block.line}: this block failed")
        ran += 1
    return ran


def _run_python(block: Block, names: dict[str, Any], page: Path) -> None:
    try:
        # The line numbers of tracebacks are those of the page.
        exec(compile("\n" * (block.line - 1) + block.code, page, "exec"), names)
    except Exception as error:
        shown = f"{type(error).__name__}: {error}"
        if not block.error or not shown.startswith(block.error):
            raise
    else:
        if block.error:
            raise AssertionError(f"it has not ended with {block.error}")


def _run_sh(block: Block) -> None:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    subprocess.run(["sh", "-ec", block.code], env={**os.environ, "PATH": path}, check=True)


if __name__ == "__main__":
    print(run(Path(sys.argv[1])), "blocks ran")
