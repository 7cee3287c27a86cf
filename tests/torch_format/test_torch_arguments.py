"""The arguments of torch.save and torch.load that pyckpt takes."""

import inspect
import io
import pickle
import types
from pathlib import Path
from typing import Any

import pytest
import torch

import pyckpt

OTHER = types.ModuleType("other_pickle")


def parameters(function: Any) -> list[inspect.Parameter]:
    return list(inspect.signature(function).parameters.values())


def test_the_parameters_are_torchs() -> None:
    """The same names, in the same order, and where they change nothing the same defaults."""
    ours, theirs = parameters(pyckpt.save), parameters(torch.save)
    assert [one.name for one in ours[: len(theirs)]] == [one.name for one in theirs]
    assert [one.default for one in ours[: len(theirs)]] == [one.default for one in theirs]
    ours, theirs = parameters(pyckpt.load), parameters(torch.load)
    positional = [p.name for p in theirs if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert [p.name for p in ours if p.kind is p.POSITIONAL_OR_KEYWORD] == positional
    keywords = {p.name for p in theirs if p.kind is p.KEYWORD_ONLY}
    assert keywords <= {p.name for p in ours if p.kind is p.KEYWORD_ONLY}


def test_what_changes_nothing_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    pyckpt.save([1], path, pickle, 2, True, False)
    pyckpt.save([1], path, pickle_module=pickle, pickle_protocol=2)
    pyckpt.save(obj=[1], f=path, _use_new_zipfile_serialization=True)
    assert pyckpt.load(path, "cpu", None, weights_only=True, mmap=False) == [1]
    assert pyckpt.load(path, None, pickle, weights_only=False, encoding="utf-8") == [1]
    assert pyckpt.load(f=path, map_location=torch.device("cpu"), pickle_module=pickle) == [1]


@pytest.mark.parametrize(
    "options",
    [
        {"pickle_module": OTHER},
        {"pickle_module": None},
        {"pickle_protocol": 4},
        {"pickle_protocol": None},
        {"_use_new_zipfile_serialization": False},
        {"_disable_byteorder_record": True},
    ],
)
def test_other_files_are_not_written(tmp_path: Path, options: dict[str, Any]) -> None:
    file = io.BytesIO()
    for target in (file, tmp_path / "x.pt"):
        with pytest.raises(pyckpt.OptionError, match=f"^{next(iter(options))} must be"):
            pyckpt.save([1], target, **options)
    assert file.getvalue() == b""
    assert not (tmp_path / "x.pt").exists()


@pytest.mark.parametrize(
    "options", [{"pickle_module": OTHER}, {"encoding": "latin1"}, {"encoding": None}]
)
def test_other_ways_to_load(tmp_path: Path, options: dict[str, Any]) -> None:
    pyckpt.save([1], tmp_path / "x.pt")
    with pytest.raises(pyckpt.OptionError, match=f"^{next(iter(options))} must be"):
        pyckpt.load(tmp_path / "x.pt", **options)


class Unsafe:
    def __eq__(self, other: object) -> bool:
        return isinstance(other, Unsafe)

    __hash__ = None  # type: ignore[assignment]


def test_a_pickle_module_means_what_it_means_to_torch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.pt"
    torch.save(Unsafe(), path)
    assert torch.load(path, pickle_module=pickle) == Unsafe()
    assert pyckpt.load(path, pickle_module=pickle) == Unsafe()
    with pytest.raises(pyckpt.OptionError, match="exclude each other"):
        pyckpt.load(path, pickle_module=pickle, weights_only=True)
    monkeypatch.setenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "1")
    with pytest.raises(pyckpt.OptionError, match="exclude each other"):
        pyckpt.load(path, pickle_module=pickle)
