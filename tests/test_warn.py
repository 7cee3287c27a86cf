"""Warnings name the line that the user wrote."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from torch import nn

import pyckpt
from pyckpt.warn import warn_if_untried


def line_of(text: str) -> int:
    lines = Path(__file__).read_text().splitlines()
    return 1 + next(n for n, line in enumerate(lines) if line.strip().startswith(text))


def test_the_callers_line_is_named(tmp_path: Path) -> None:
    state = pyckpt.State(nn.Linear(2, 2))
    with pytest.warns(UserWarning, match="nothing matches 'x'") as caught:
        pyckpt.save_checkpoint(state, tmp_path / "x.tar", ignore_keys="x")
    assert (caught[0].filename, caught[0].lineno) == (
        __file__,
        line_of('pyckpt.save_checkpoint(state, tmp_path / "x.tar", ignore'),
    )
    pyckpt.save_checkpoint(state, tmp_path / "y.tar", weights_only=True)
    with pytest.warns(UserWarning, match="only weights") as caught:
        pyckpt.load_checkpoint(tmp_path / "y.tar", state)
    assert (caught[0].filename, caught[0].lineno) == (
        __file__,
        line_of('pyckpt.load_checkpoint(tmp_path / "y.tar", state)'),
    )


def test_every_warning_goes_through_one_function() -> None:
    others = [
        path.name
        for path in Path(pyckpt.__file__).parent.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and node.attr == "warn" and path.name != "warn.py"
    ]
    assert others == []


def test_only_newer_versions_are_warned_of() -> None:
    for version in ("5.24.0", "5.24.1rc1", "5.9.9", "4.99"):
        warn_if_untried("package", version, (5, 24))
    for version in ("5.25.0.dev0", "6.0", "10.1"):
        with pytest.warns(UserWarning, match=rf"package up to 5\.24, and this is {version}"):
            warn_if_untried("package", version, (5, 24))
