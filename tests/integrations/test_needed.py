"""A framework that is not installed, or whose release lacks what is replaced."""

from __future__ import annotations

import importlib
import sys

import pytest

from pyckpt.integrations.needed import check_has


@pytest.mark.parametrize(
    ("module", "imported", "command"),
    [
        ("accelerate", "accelerate", "pyckpt[huggingface]"),
        ("composer", "composer", "pyckpt[composer]"),
        ("deepspeed", "deepspeed", "pyckpt[deepspeed]"),
        ("huggingface", "transformers", "pyckpt[huggingface]"),
        ("lightning", "lightning", "pyckpt[lightning]"),
        ("pytorch_lightning", "pytorch_lightning", "pyckpt[pytorch-lightning]"),
    ],
)
def test_what_to_install(
    monkeypatch: pytest.MonkeyPatch, module: str, imported: str, command: str
) -> None:
    monkeypatch.setitem(sys.modules, imported, None)
    monkeypatch.delitem(sys.modules, f"pyckpt.integrations.{module}", raising=False)
    with pytest.raises(ModuleNotFoundError) as caught:
        importlib.import_module(f"pyckpt.integrations.{module}")
    assert f'pip install "{command}"' in str(caught.value)
    assert caught.value.name == imported


def test_a_method_that_a_release_lacks() -> None:
    class Trainer:
        def save(self) -> None: ...

    check_has(Trainer, "save")
    with pytest.raises(ImportError, match=r"has no Trainer\._save_all in this release"):
        check_has(Trainer, "save", "_save_all")
