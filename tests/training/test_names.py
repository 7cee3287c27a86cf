"""File names: the sixteen variables, and the folders that a value may lead to."""

from __future__ import annotations

import datetime
import os
from pathlib import Path, PurePosixPath
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import pyckpt
from pyckpt.ranks.exchange import Ranks
from pyckpt.training.names import VARIABLES, check_one_set, render

RANKS = Ranks(rank=5, local_rank=1, world_size=8, local_world_size=4, node_rank=2)
VALUES: dict[str, Any] = {
    "run_name": "my-run",
    "rank": 5,
    "local_rank": 1,
    "world_size": 8,
    "local_world_size": 4,
    "node_rank": 2,
    "epoch": 3,
    "batch": 42,
    "batch_in_epoch": 7,
    "sample": 1000,
    "sample_in_epoch": 100,
    "token": 123456,
    "token_in_epoch": 999,
    "total_wct": 3600.25,
    "epoch_wct": 60.5,
    "batch_wct": 0.125,
}


def state(run_name: Any = "my-run", **changes: Any) -> Any:
    counts = {name: VALUES[name] for name in VARIABLES[6:13]}
    times = {name: datetime.timedelta(seconds=VALUES[name]) for name in VARIABLES[13:]}
    timestamp = pyckpt.Timestamp(**{**counts, **times, **changes})
    return SimpleNamespace(run_name=run_name, timestamp=timestamp)


def rendered(filename: Any, run_name: Any = "my-run", **changes: Any) -> str:
    return str(render(filename, state(run_name, **changes), RANKS))


# Variables


@pytest.mark.parametrize("name", VARIABLES)
def test_every_variable(name: str) -> None:
    assert len(VARIABLES) == len(VALUES) == 16
    assert rendered(f"a{{{name}}}b.tar") == f"a{VALUES[name]}b.tar"


def test_variables_in_folders_and_beside_each_other(tmp_path: Path) -> None:
    name = f"{tmp_path}/{{run_name}}/node{{node_rank}}/ep{{epoch}}{{batch}}-{{rank}}.tar.gz"
    assert rendered(name) == f"{tmp_path}/my-run/node2/ep342-5.tar.gz"
    assert rendered(PurePosixPath("{run_name}") / "x{epoch}") == "my-run/x3"
    assert render(Path("{rank}.tar"), state(), RANKS) == Path("5.tar")


@pytest.mark.parametrize(
    ("filename", "name"),
    [
        ("{batch:06d}", "000042"),
        ("{batch:>5}", "   42"),
        ("{token:,}", "123,456"),
        ("{rank:x}", "5"),
        ("{total_wct:.1f}", "3600.2"),
        ("{batch_wct:g}", "0.125"),
        ("{epoch_wct:08.2f}", "00060.50"),
        ("{run_name:.2}", "my"),
        ("{run_name:_<8}", "my-run__"),
        ("{{{epoch}}}", "{3}"),
        ("{{epoch}}", "{epoch}"),
    ],
)
def test_format_specs(filename: str, name: str) -> None:
    assert rendered(filename) == name


@given(st.integers(0, 10**30), st.integers(0, 40))
def test_padded_counts_are_read_back(count: int, width: int) -> None:
    name = rendered(f"ba{{batch:0{width}d}}", batch=count)
    assert int(name.removeprefix("ba")) == count
    assert len(name) >= 2 + width


def test_what_is_not_named_is_not_asked_for() -> None:
    class Nothing:
        def __getattr__(self, name: str) -> Any:
            raise RuntimeError(f"{name} was asked for")

    assert str(render("rank{rank}", Nothing(), RANKS)) == "rank5"  # type: ignore[arg-type]


def test_a_run_name_of_any_type() -> None:
    assert rendered("{run_name}", 17) == "17"
    assert rendered("{run_name:.1}", 17) == "1"


@pytest.mark.parametrize(
    "filename",
    [
        "{epok}",
        "{}",
        "{0}",
        "{ epoch}",
        "{Epoch}",
        "{rank.__class__}",
        "{rank.real}",
        "{run_name[0]}",
        "{run_name.__class__.__mro__}",
        "{batch:{secret}}",
    ],
)
def test_nothing_but_the_variables(filename: str) -> None:
    with pytest.raises(pyckpt.FilenameError, match=r"available are .*\{run_name\}.*\{batch_wct\}"):
        rendered(filename)


@pytest.mark.parametrize(
    "filename", ["{rank", "rank}", "{rank:d", "{batch:q}", "{run_name:d}", "{epoch!r}", "{batch:c}"]
)
def test_format_errors(filename: str) -> None:
    with pytest.raises(pyckpt.FilenameError):
        rendered(filename, batch=10**9)


def test_a_state_that_lacks_what_is_named() -> None:
    bare: Any = SimpleNamespace(run_name="x", timestamp=SimpleNamespace(batch="many"))
    for name in ("batch", "epoch", "total_wct"):
        with pytest.raises(pyckpt.FilenameError, match="cannot render"):
            render(f"{{{name}}}", bare, RANKS)


# Where a name leads


@pytest.mark.parametrize("filename", ["", ".", "..", "/", "a/", "a/.", "a/..", "{run_name}/"])
def test_names_of_no_file(filename: str) -> None:
    with pytest.raises(pyckpt.FilenameError):
        rendered(filename)


@pytest.mark.parametrize("run_name", ["", ".", "..", "../x", "a/../../x", "a\0b"])
@pytest.mark.parametrize("filename", ["{run_name}", "sub/{run_name}", "/top/sub/{run_name}"])
def test_values_that_lead_out(filename: str, run_name: str) -> None:
    with pytest.raises(pyckpt.FilenameError):
        rendered(filename, run_name)


@pytest.mark.parametrize(
    ("filename", "name"),
    [
        ("../{rank}.tar", "../5.tar"),
        ("../../x/{rank}", "../../x/5"),
        ("/{rank}", "/5"),
        ("//{rank}", "//5"),
        ("//top/{rank}", "//top/5"),
        ("a/../{run_name}", "a/../my-run"),
        ("a//{run_name}", "a/my-run"),
    ],
)
def test_the_caller_may_lead_anywhere(filename: str, name: str) -> None:
    assert rendered(filename) == name


def test_a_value_may_name_folders_below() -> None:
    assert rendered("runs/{run_name}/x.tar", "team/run") == "runs/team/run/x.tar"
    assert rendered("runs/{run_name}", "/etc/passwd") == "runs/etc/passwd"
    with pytest.raises(pyckpt.FilenameError, match="leads out of"):
        rendered("{run_name}", "/etc/passwd")


def test_names_that_the_system_cannot_spell() -> None:
    with pytest.raises(pyckpt.FilenameError, match="cannot be encoded"):
        rendered("{run_name}.tar", "\ud800")


@given(run_name=st.text(st.sampled_from("ab./\0~ é"), max_size=12))
@pytest.mark.parametrize("folder", ["/base/", "/", "", "../", "sub/"])
def test_no_run_name_leads_out_of_the_folder(folder: str, run_name: str) -> None:
    try:
        path = rendered(f"{folder}{{run_name}}", run_name)
    except pyckpt.FilenameError:
        return
    base = os.path.abspath(folder)
    assert os.path.abspath(path) != base
    assert os.path.commonpath([base, os.path.abspath(path)]) == base


PLAIN = st.text(st.characters(exclude_characters="/\0{}", exclude_categories=["Cs"]), min_size=1)


@given(PLAIN)
def test_any_other_text_stays(name: str) -> None:
    if name in (".", ".."):
        return
    assert rendered("x{run_name}", name) == f"x{name}"
    if not name.startswith("~"):  # the folder of a user
        assert rendered(name) == name


def test_bytes_are_no_name() -> None:
    with pytest.raises(pyckpt.FilenameError, match="bytes"):
        rendered(b"x.tar")


def test_files_of_one_set() -> None:
    check_one_set([("x-{rank}", {})] * 3, range(3))
    check_one_set([("x-0.tar", {}), ("x-1.tar", {}), ("x-2.tar", {})], range(3))
    check_one_set([("node00/x-0", {}), ("node00/x-1", {}), ("node01/x-0", {})], range(3))
    check_one_set([("{run_name}-{rank}", {"run_name": "a"})] * 2, range(2))
    check_one_set([("ba7-x-2.tar", {}), ("ba7-x-5.tar", {})], [2, 5])  # of a group
    check_one_set([("local1", {}), ("local0", {})], [1, 2])  # of a group on two nodes


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            [("{run_name}", {"run_name": "a"}), ("{run_name}", {"run_name": "b"})],
            r"\{run_name\} is 'a' on rank 0 and 'b' on rank 1",
        ),
        ([("x-0", {}), ("y-1", {})], "rank 0 would write 'x-0', and rank 1 'y-1'"),
        ([("x-0", {}), ("x-2", {})], "rank 1 'x-2'"),
        ([("12:30:01-0", {}), ("12:30:02-1", {})], "rank 0 would write"),
        ([("x", {}), ("x-1", {})], "rank 0 would write 'x', and rank 1 'x-1'"),
    ],
)
def test_files_that_do_not_belong_together(
    names: list[tuple[str, dict[str, str]]], message: str
) -> None:
    with pytest.raises(pyckpt.MixedFilesError, match=message) as caught:
        check_one_set(names, range(len(names)))
    assert caught.value.rank == 1
