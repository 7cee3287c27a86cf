"""keys= unpickles the named part, equal to that of the whole, and nothing else."""

from __future__ import annotations

import collections
import contextlib
import pickle
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import pyckpt
from pyckpt import _core
from pyckpt.torch_format.pickle_cut import cut_pickle
from pyckpt.torch_format.weights_unpickler import WeightsUnpickler


class Named(NamedTuple):
    a: Any
    b: Any


class Settings(dict[str, Any]):
    """A dict with attributes of its own."""


class Plain:
    """Unpickling creates it without calling __init__() and sets its attributes."""

    def __init__(self, value: Any) -> None:
        self.value = value


class Trap:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


def state() -> dict[str, Any]:
    settings = Settings(t=torch.arange(3), u=torch.arange(4))
    settings.note = "kept"  # type: ignore[attr-defined]
    shared = torch.arange(10.0)
    return {
        "linear": nn.Linear(2, 3).state_dict(),
        "parameters": [nn.Parameter(torch.ones(2)), nn.Parameter(torch.zeros(2))],
        "settings": settings,
        "counts": collections.Counter(x=2, y=3),
        "default": collections.defaultdict(list, {5: [torch.ones(1)]}),
        "ordered": collections.OrderedDict([("z", 1), ("a", torch.ones(2))]),
        "pairs": ((1, torch.ones(1)), ["text", (torch.zeros(1), shared[2:4])]),
        "named": Named(torch.ones(3), "b"),
        "plain": Plain(torch.arange(5)),
        "sparse": torch.eye(3).to_sparse(),
        "storage": torch.arange(6).untyped_storage(),
        "view": shared[::2],
        "odd keys": {(1, "two"): torch.ones(7), torch.float16: 1, None: b"bytes", 2.5: {8, 9}},
        "with/slash": {"in/side": torch.ones(1)},
    }


def comparable(node: Any) -> Any:
    """What two equal objects have in common: types, values, bits."""
    if isinstance(node, torch.Tensor):
        return (type(node), node.dtype, node.is_sparse, node.to_dense().tolist())
    if isinstance(node, torch.storage.TypedStorage):
        return (node.dtype, node._untyped_storage.tolist())
    if isinstance(node, Plain):
        return (Plain, comparable(node.value))
    if isinstance(node, dict):
        return (type(node), [(key, comparable(value)) for key, value in node.items()])
    if isinstance(node, list | tuple):
        return (type(node), [comparable(one) for one in node])
    return node


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cut") / "x.tar"
    torch.manual_seed(0)
    pyckpt.save(state(), path)
    return path


def load(path: Path, keys: str | list[str]) -> Any:
    return pyckpt.load(path, keys=keys, weights_only=False)


def values(node: Any) -> list[Any]:
    return list(node.values() if isinstance(node, dict) else node)


@pytest.mark.parametrize("key", list(state()))
def test_each_part_is_that_of_the_whole(archive: Path, key: str) -> None:
    whole = pyckpt.load(archive, weights_only=False)[key]
    [(name, part)] = load(archive, key).items()
    assert name == key
    assert comparable(part) == comparable(whole)


@pytest.mark.parametrize(
    ("glob", "expected"),
    [
        ("linear/bias", lambda s: {"linear": {"bias": s["linear"]["bias"]}}),
        ("parameters/1", lambda s: {"parameters": [s["parameters"][1]]}),
        ("pairs/1/1/0", lambda s: {"pairs": ([(s["pairs"][1][1][0],)],)}),
        ("pairs/?/0", lambda s: {"pairs": ((1,), ["text"])}),
        ("counts/y", lambda _: {"counts": {"y": 3}}),
        ("default/5/0", lambda s: {"default": {5: s["default"][5]}}),
        ("ordered/a", lambda s: {"ordered": {"a": s["ordered"]["a"]}}),
        ("odd keys/(1, 'two')", lambda s: {"odd keys": {(1, "two"): torch.ones(7)}}),
        ("odd keys/torch.float16", lambda _: {"odd keys": {torch.float16: 1}}),
        ("odd keys/None", lambda _: {"odd keys": {None: b"bytes"}}),
        ("with/slash/in/side", lambda s: {"with/slash": s["with/slash"]}),
    ],
)
def test_parts_of_parts(archive: Path, glob: str, expected: Any) -> None:
    whole = pyckpt.load(archive, weights_only=False)
    [kept] = load(archive, glob).values()
    [wanted] = expected(whole).values()
    if isinstance(kept, dict):  # its class is that in the whole
        assert list(kept) == list(wanted)
    assert [comparable(one) for one in values(kept)] == [comparable(one) for one in values(wanted)]


def test_attributes_go_along(archive: Path) -> None:
    settings = load(archive, "settings/u")["settings"]
    assert (type(settings), list(settings), settings.note) == (Settings, ["u"], "kept")
    linear = load(archive, "linear/bias")["linear"]
    assert type(linear) is collections.OrderedDict
    assert linear._metadata == {"": {"version": 1}}


def test_tensors_that_share_a_storage_still_do(archive: Path) -> None:
    part = load(archive, ["view", "pairs/1/1/1"])
    part["view"][1] = 77
    [[[shared]]] = part["pairs"]
    assert shared.tolist() == [77, 3]


@pytest.mark.parametrize("glob", ["plain/value", "named/a", "linear/none", "pairs/2", "*none*"])
def test_nothing_but_dicts_lists_and_tuples_is_looked_into(archive: Path, glob: str) -> None:
    with pytest.raises(pyckpt.OptionError, match="nothing matches"):
        load(archive, glob)


def test_what_is_not_named_is_not_run(tmp_path: Path) -> None:
    trap = {"inside": Trap(tmp_path / "sprung"), "t": torch.zeros(2)}
    pyckpt.save({"a": trap, "t": [trap, torch.ones(2)]}, tmp_path / "x.tar")
    part = pyckpt.load(tmp_path / "x.tar", keys=["t/1", "a/t"], weights_only=False)
    assert comparable(part) == comparable({"a": {"t": torch.zeros(2)}, "t": [torch.ones(2)]})
    guarded = pyckpt.load(tmp_path / "x.tar", keys=["t/1", "a/t"])
    assert comparable(guarded) == comparable(part)
    assert not (tmp_path / "sprung").exists()
    with pytest.raises(pickle.UnpicklingError, match="weights_only=False allows it"):
        pyckpt.load(tmp_path / "x.tar", keys="a")
    assert not (tmp_path / "sprung").exists()
    pyckpt.load(tmp_path / "x.tar", keys="a", weights_only=False)
    assert (tmp_path / "sprung").exists()


@pytest.mark.timeout(60)
def test_what_contains_itself(tmp_path: Path) -> None:
    loop: list[Any] = [torch.zeros(1)]
    loop.append(loop)
    pyckpt.save({"loop": loop, "t": torch.ones(1)}, tmp_path / "x.tar")
    assert load(tmp_path / "x.tar", "t")["t"].tolist() == [1]
    assert load(tmp_path / "x.tar", "loop/0")["loop"][0].tolist() == [0]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_every_protocol(protocol: int) -> None:
    tree: dict[str, Any] = {
        "a": {"b": [1, (2.5, "x" * 300)], "c": {3, 4}, "d": 1 << 100},
        "e": [b"bytes" * 100, bytearray(b"b"), frozenset([1]), Plain(1), Named(1, 2), range(3)],
    }
    data = pickle.dumps(tree, protocol)
    part, storages = cut_pickle(data, ["*"])
    again = pickle.loads(part)
    assert again["e"].pop(3).value == tree["e"].pop(3).value
    assert again == tree
    assert storages == set()
    part, _ = cut_pickle(data, ["a/b/1/0", "e/5"])
    assert pickle.loads(part) == {"a": {"b": [None, (2.5, None)]}, "e": [None] * 5 + [range(3)]}


VALUES = st.recursive(
    st.none() | st.integers() | st.text() | st.binary() | st.floats(allow_nan=False),
    lambda inner: (
        st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner, inner).map(Plain)
    ),
)


@given(VALUES, st.integers(0, pickle.HIGHEST_PROTOCOL), st.data())
def test_whole_pickles_pass_and_cut_ones_do_not(
    value: Any, protocol: int, data: st.DataObject
) -> None:
    whole = pickle.dumps(value, protocol)
    _core.check_pickle(whole)
    with pytest.raises(_core.CorruptError, match="ends before"):
        _core.check_pickle(whole[: data.draw(st.integers(0, len(whole) - 1))])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\x80\x02]r\xff\xff\xff\xff.", "memo index"),
        (b"]p4294967295\n.", "memo index"),
        (b"]p-1\n.", "memo index"),
        (b"\x80\x02\x82\x01.", "opcode"),  # the process's registry of extensions
        (b"\x80\x02\xff.", "opcode"),
        (b"\x80\x04\x8e" + b"\xff" * 8, "ends before"),
    ],
)
def test_claims_are_refused(data: bytes, message: str) -> None:
    with pytest.raises(pickle.UnpicklingError, match=message):
        cut_pickle(data, ["*"])
    if b"\x82" in data:  # for those who unpickle anything, that is no damage
        _core.check_pickle(data)
        return
    with pytest.raises(_core.CorruptError, match=message):
        _core.check_pickle(data)


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("depth", [420, 5000])
def test_deep_structures(protocol: int, depth: int) -> None:
    """Deeper than Python's own stack."""
    tree: Any = [1]
    for level in range(depth):
        tree = {"a": tree} if level % 2 else [tree]
    data = bytes([0x80, protocol]) + b"".join(
        b"}X\1\0\0\0a" if level % 2 else b"]" for level in reversed(range(depth))
    )
    data += b"K\x01" + b"".join(b"s" if level % 2 else b"a" for level in range(depth)) + b"."
    part, _ = cut_pickle(data, ["*"])
    found = WeightsUnpickler(part, lambda saved_id: saved_id).run()
    for level in reversed(range(depth)):
        found = found["a"] if level % 2 else found[0]
    assert found == 1


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_structures_that_contain_themselves(protocol: int) -> None:
    inner: list[Any] = []
    pair = (inner, "x")
    inner.append(pair)
    member = Plain(1)
    member.value = {"me": member}
    frozen_in: list[Any] = []
    tree = {"pair": pair, "member": member, "four": (inner, 1, 2, 3), "list": frozen_in}
    frozen_in.append(tree)
    part, _ = cut_pickle(pickle.dumps(tree, protocol), ["pair", "member", "four", "list"])
    found = pickle.loads(part)
    assert found["pair"][0][0] is found["pair"]
    assert found["four"][0] is found["pair"][0]
    assert found["member"].value["me"] is found["member"]
    assert found["list"][0]["pair"] is found["pair"]


def test_keys_of_bytes(tmp_path: Path) -> None:
    pyckpt.save({b"w": torch.ones(2), "x": torch.zeros(1), b"\xff": 3}, tmp_path / "x.tar")
    members = pyckpt.inspect(tmp_path / "x.tar").members
    assert [t.info.key_path for member in members for t in member.tensors] == ["w", "x"]
    assert pyckpt.load(tmp_path / "x.tar", keys="w")[b"w"].tolist() == [1, 1]
    assert pyckpt.load(tmp_path / "x.tar", keys=r"\xff") == {b"\xff": 3}


@given(st.data())
@pytest.mark.timeout(300)
def test_any_bytes(data: st.DataObject) -> None:
    """Damage gives an UnpicklingError or a valid pickle, and no other error."""
    contents = bytearray(pickle.dumps({"a": [Plain(1), Named(1, 2)], "b": {"c": 1.5}}, 2))
    for _ in range(data.draw(st.integers(1, 4))):
        contents[data.draw(st.integers(0, len(contents) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(pickle.UnpicklingError):
        part, _ = cut_pickle(bytes(contents), ["a*", "b/c"])
        _core.check_pickle(part)
