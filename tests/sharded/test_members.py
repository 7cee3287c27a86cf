"""Names of shards, and how shards get into an archive."""

import io
import tarfile
from pathlib import Path

import hypothesis
import pytest
import torch
from hypothesis import strategies as st
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner

from pyckpt.archive.writer import ArchiveWriter
from pyckpt.errors import CheckpointError
from pyckpt.options import WriteOptions
from pyckpt.sharded.members import add_shards, member_name, rank_of


def test_usual_names_stay_readable() -> None:
    name = member_name("model.layers.0.weight", 3)
    assert name == "model.layers.0.weight/rank3.pt"
    assert member_name("model.layers.0.weight", 3, 2) == "model.layers.0.weight/rank3-2.pt"
    assert member_name("a/b c", 0) == "a%2Fb%20c/rank0.pt"


@pytest.mark.parametrize(
    "key", ["", ".", "..", "/", "../x", ".metadata", "\udcff", "a\0b", "€" * 30]
)
def test_odd_keys_give_one_harmless_part(key: str) -> None:
    folder, _, file = member_name(key, 0).rpartition("/")
    assert folder not in ("", ".", "..", ".metadata")
    assert "/" not in folder
    assert folder.isascii()
    assert folder.isprintable()
    assert len(folder) <= 200
    assert file == "rank0.pt"


shards = st.tuples(st.text(st.characters(), max_size=300), st.integers(0, 2000), st.integers(0, 9))


@hypothesis.given(shards, shards)
def test_different_shards_have_different_names(
    a: tuple[str, int, int], b: tuple[str, int, int]
) -> None:
    assert (member_name(*a) == member_name(*b)) == (a == b)
    assert rank_of(member_name(*a)) == a[1]


def test_long_keys_that_begin_alike_have_different_names() -> None:
    assert member_name("k" * 300 + "a", 0) != member_name("k" * 300 + "b", 0)


@pytest.mark.parametrize("name", ["rank0", "a/b.pt", "rank0.pt/x", "a/rank-1.pt"])
def test_other_names_have_no_rank(name: str) -> None:
    with pytest.raises(ValueError, match="not the name of a shard"):
        rank_of(name)


def planned(state: dict[str, object]) -> DefaultSavePlanner:
    planner = DefaultSavePlanner()
    planner.set_up_planner(state, is_coordinator=True)
    plans, _ = planner.create_global_plan([planner.create_local_plan()])
    planner.finish_plan(plans[0])
    return planner


def test_places_are_those_of_the_members(tmp_path: Path) -> None:
    whole = torch.arange(1000.0)
    planner = planned(
        {"a": whole, "view": whole[10:12], "text": "hello", "n": {"x": torch.ones(2)}}
    )
    path = tmp_path / "x.tar"
    with ArchiveWriter(path, WriteOptions()) as writer:
        added = add_shards(writer, planner.plan.items, planner, 2)
        writer.plan()
        places = {name: writer.place(name) for _, name in added}
        writer.write()
        writer.commit()
    assert [index.fqn for index, _ in added] == ["a", "view", "text", "n.x"]
    data = path.read_bytes()
    with tarfile.open(path) as tar:
        assert {m.name: (m.offset_data, m.size) for m in tar if m.isfile()} == places
    loaded = {
        name.partition("/")[0]: torch.load(io.BytesIO(data[at : at + size]))
        for name, (at, size) in places.items()
    }
    assert loaded["text"] == "hello"
    assert torch.equal(loaded["a"], whole)
    assert torch.equal(loaded["view"], whole[10:12])
    assert loaded["view"].untyped_storage().nbytes() == 8  # not that of the whole tensor


def test_tensors_are_read_in_place(tmp_path: Path) -> None:
    tensor = torch.zeros(10)
    planner = planned({"a": tensor, "half": tensor[5:]})
    with ArchiveWriter(tmp_path / "x.tar", WriteOptions()) as writer:
        add_shards(writer, planner.plan.items, planner, 0)
        addresses = [record.address for record in writer.state_records()]
    assert addresses == [tensor.data_ptr(), tensor[5:].data_ptr()]


def test_sparse_tensors_are_refused_with_their_name(tmp_path: Path) -> None:
    planner = planned({"a": torch.ones(3, 3)})
    planner.state_dict["a"] = torch.eye(3).to_sparse()
    with (
        ArchiveWriter(tmp_path / "x.tar", WriteOptions()) as writer,
        pytest.raises(CheckpointError, match=r"'a'.*sparse"),
    ):
        add_shards(writer, planner.plan.items, planner, 0)
