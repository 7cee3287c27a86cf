"""Archives of a sharded save that are read part by part, and what is wrong with damaged ones.

training/test_sharded_training.py reads them with real ranks.
"""

import errno
import io
import json
import pickle
import tarfile
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.distributed.checkpoint.metadata import Metadata

import pyckpt
from pyckpt.archive.reader import ArchiveReader
from pyckpt.sharded.outline import Slice, whole_file
from pyckpt.storage.inputs import open_input

pytestmark = pytest.mark.newest_torch


@pytest.fixture
def path(tmp_path: Path) -> Iterator[Path]:
    """An archive of the only rank."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    pyckpt.save_checkpoint(make(1.0), tmp_path / "a-rank{rank}.tar", state_dict_type="sharded")
    yield tmp_path / "a-rank0.tar"
    dist.destroy_process_group()


def make(value: float) -> pyckpt.State:
    """A state with what torch's names alone would change: numbers as keys, empty dicts."""
    model = torch.nn.Linear(3, 2)
    torch.nn.init.constant_(model.weight, value)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [2, 4])
    return pyckpt.State(model, optimizer, schedule, extra={"none": {}, "list": [{}, {"a": 1}]})


def changed(path: Path, name: str, change: Callable[[bytes], bytes | None]) -> None:
    """Writes the archive again, with other bytes in a member, or without it."""
    with tarfile.open(path) as tar:
        members = [(one, tar.extractfile(one)) for one in tar.getmembers()]
        contents = [(one, file.read() if file else None) for one, file in members]
    assert name in [member.name for member, _ in contents]
    with tarfile.open(path, "w") as tar:
        for member, data in contents:
            if member.name == name:
                assert data is not None
                data = change(data)
                if data is None:
                    continue
                member.size = len(data)
            tar.addfile(member, io.BytesIO(data) if data is not None else None)


def with_metadata(path: Path, change: Callable[[Metadata], Metadata]) -> None:
    changed(path, ".metadata", lambda data: pickle.dumps(change(pickle.loads(data))))


def refused(path: Path, kind: type[pyckpt.CheckpointError], text: str) -> None:
    """Loading raises, and the state is as before."""
    state = make(5.0)
    with pytest.raises(kind, match=text) as caught:
        pyckpt.load_checkpoint(path, state)
    assert type(caught.value) is kind
    assert caught.value.rank == 0
    assert (state.model.weight == 5).all()


def test_all_comes_back_as_it_was(path: Path) -> None:
    state, saved = make(5.0), make(1.0)
    milestones = state.schedulers.milestones
    state.schedulers.milestones = Counter({7: 1})
    state.extra = {}
    pyckpt.load_checkpoint(path, state)
    assert torch.equal(state.model.weight, saved.model.weight)
    assert state.schedulers.milestones == milestones
    assert type(state.schedulers.milestones) is Counter
    assert state.extra == saved.extra
    assert state.optimizers.state_dict() == saved.optimizers.state_dict()


def place_of(metadata: Metadata, name: str, member: str) -> Metadata:
    places = {
        index: replace(place, relative_path=member) if index.fqn == name else place
        for index, place in metadata.storage_data.items()
    }
    return replace(metadata, storage_data=places)


CHANGES: dict[str, Callable[[Metadata], Metadata]] = {
    "no paths": lambda data: replace(data, planner_data=None),
    "paths of nothing": lambda data: replace(data, planner_data={"a": ("a",)}),
    "a path inside a leaf": lambda data: replace(
        data,
        planner_data={
            "state.model.weight": ("state", "model"),
            "state.model.bias": ("state", "model", "bias"),
        },
    ),
    "no places": lambda data: replace(data, storage_data={}),
    "no place": lambda data: place_of(data, "state.run_name", "a.pt"),
    "no rank": lambda data: place_of(data, "state.run_name", "state.run_name/rank1.pt"),
    "a huge rank": lambda data: place_of(data, "state.run_name", f"state.run_name/rank{9**99}.pt"),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_metadata_that_contradicts_itself(
    path: Path, change: Callable[[Metadata], Metadata]
) -> None:
    with_metadata(path, change)
    refused(path, pyckpt.CorruptArchiveError, r"a-rank0\.tar is damaged in '\.metadata'")


@pytest.mark.parametrize("data", [b"", b"nothing", pickle.dumps({"a": 1})])
def test_metadata_that_is_none(path: Path, data: bytes) -> None:
    changed(path, ".metadata", lambda _: data)
    refused(path, pyckpt.CorruptArchiveError, r"a-rank0\.tar is (damaged|not the metadata)")


def test_a_part_that_is_none(path: Path) -> None:
    changed(path, ".pyckpt/rank0.json", lambda _: b"{}")
    refused(path, pyckpt.CorruptArchiveError, r"a-rank0\.tar is damaged in '\.pyckpt/rank0\.json'")


def test_members_that_are_missing(path: Path) -> None:
    changed(path, "state.model.weight/rank0.pt", lambda _: None)
    with pytest.raises(pyckpt.CheckpointError, match=r"state\.model\.weight"):
        pyckpt.load_checkpoint(path, make(5.0))


def test_archives_that_are_missing(path: Path) -> None:
    def of_two(data: bytes) -> bytes:
        part: dict[str, Any] = json.loads(data)
        part["files"].append("a-rank1.tar")
        return json.dumps(part).encode()

    changed(path, ".pyckpt/rank0.json", of_two)
    with_metadata(
        path, lambda data: place_of(data, "state.model.weight", "state.model.weight/rank1.pt")
    )
    refused(path, pyckpt.CheckpointError, r"the archive of rank 1 is not there: .*a-rank1\.tar")


def test_an_archive_of_another_save(path: Path) -> None:
    def of_two(data: bytes) -> bytes:
        part: dict[str, Any] = json.loads(data)
        part["files"] = ["a-rank0.tar", "other.tar"]
        return json.dumps(part).encode()

    pyckpt.save_checkpoint(make(2.0), path.with_name("other.tar"), state_dict_type="sharded")
    changed(path, ".pyckpt/rank0.json", of_two)
    with_metadata(
        path, lambda data: place_of(data, "state.model.weight", "state.model.weight/rank1.pt")
    )
    refused(path, pyckpt.MixedFilesError, r"other\.tar is not of the same save as .*a-rank0\.tar")


def test_a_whole_file_of_the_other_byte_order(tmp_path: Path) -> None:
    saved = {name: torch.arange(6.0) + at for at, name in enumerate("ab")}
    raw, path = io.BytesIO(), tmp_path / "x.pt"
    torch.save(saved, raw)
    with zipfile.ZipFile(raw) as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            data = old.read(name)
            if name.endswith("byteorder"):
                data = b"big"
            elif "/data/" in name:
                data = np.frombuffer(data, "<f4").astype(">f4").tobytes()
            new.writestr(name, data)
    outline = whole_file(open_input(path), num_threads=1, weights_only=True)
    out = torch.zeros(3)
    outline.read([Slice("a", outline.tree["a"], (2,), out)], [("b", outline.tree["b"])])
    assert torch.equal(out, saved["a"][2:5])
    assert torch.equal(outline.tree["b"], saved["b"])


def all_of(value: float) -> pyckpt.State:
    """A state in which everything says which one it is."""
    state = make(value)
    torch.nn.init.constant_(state.model.bias, value)
    state.extra = {"value": value}
    return state


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz", ".tar.bz2"])
def test_an_archive_that_is_replaced_meanwhile(
    path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody gets a mixture of two checkpoints, whenever it is."""
    template = path.with_name(f"b-rank{{rank}}{suffix}")
    target, other = (template.with_name(f"{name}-rank0{suffix}") for name in ("b", "other"))
    original = ArchiveReader.__init__
    opened = 0

    def opening(*args: Any, **options: Any) -> None:
        nonlocal opened
        opened += 1
        if opened == at:
            other.rename(target)
        original(*args, **options)

    monkeypatch.setattr(ArchiveReader, "__init__", opening)
    outcomes = []
    for at in range(1, 100):
        pyckpt.save_checkpoint(all_of(2.0), template, state_dict_type="sharded")
        target.rename(other)
        pyckpt.save_checkpoint(all_of(1.0), template, state_dict_type="sharded")
        state, opened, value = all_of(5.0), 0, 5.0
        error: pyckpt.CheckpointError | None = None
        try:
            pyckpt.load_checkpoint(target, state)
            value = state.extra["value"]
        except pyckpt.CheckpointError as caught:
            error = caught
        assert error is None or "was replaced by another file while it was read" in str(error)
        assert error is None or error.errno == errno.ESTALE
        assert (state.model.weight == value).all()
        assert (state.model.bias == value).all()
        assert state.extra == {"value": value}
        outcomes.append(value)
        if opened < at:
            break
    assert outcomes[-1] == 1.0
    assert 5.0 in outcomes
