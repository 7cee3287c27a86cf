"""weights_only: numbers of numpy come out of a file, and nothing else of numpy's is believed."""

from __future__ import annotations

import datetime
import enum
import io
import pickle
import struct
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import pyckpt
from pyckpt.torch_format.plain_types import register_attributes, register_enum
from pyckpt.torch_format.weights_unpickler import WeightsUnpickler


def unpickled(data: bytes) -> Any:
    def no_storage(saved_id: Any) -> Any:
        raise pickle.UnpicklingError(f"no storage {saved_id!r}")

    return WeightsUnpickler(data, no_storage).run()


NUMBERS = "?bBhHiIlLqQefdgFDG"


@pytest.mark.parametrize("code", [*NUMBERS, ">f4", ">i8", ">c16", "<u2"])
@pytest.mark.parametrize("protocol", [2, 4])
def test_arrays_and_scalars_of_numbers(code: str, protocol: int) -> None:
    dtype = np.dtype(code)
    values = [
        np.arange(6).astype(dtype),
        np.asfortranarray(np.arange(6).reshape(2, 3).astype(dtype)),
        np.zeros((0, 4), dtype),
        np.array(1).astype(dtype),
        np.arange(12).astype(dtype)[::2],
    ]
    found = unpickled(pickle.dumps([*values, dtype, *values, values[0][1]], protocol))
    for value, again in zip([*values, dtype, *values], found[:-1], strict=True):
        if isinstance(value, np.ndarray):
            assert (again.dtype, again.shape) == (value.dtype, value.shape)
            assert again.tobytes("A") == value.tobytes("A")
            assert type(again) is np.ndarray
            assert again.flags.writeable
        else:
            assert again == value
    assert np.dtype(type(found[-1])) == np.dtype(type(values[0][1]))
    assert found[-1] == values[0][1]


def test_random_states() -> None:
    state = np.random.get_state()
    found = unpickled(pickle.dumps(state, 2))
    assert found[0] == "MT19937"
    assert np.array_equal(found[1], state[1])


@pytest.mark.parametrize(
    "value",
    [
        np.array(["text"]),
        np.array([b"text"]),
        np.array([object]),
        np.zeros(2, [("a", "f4"), ("b", "i4")]),
        np.array(["2020-01-01"], "M8[D]"),
        np.zeros(2, "V8"),
    ],
    ids=lambda value: str(value.dtype),
)
def test_other_arrays_are_refused_and_not_called_damaged(tmp_path: Path, value: Any) -> None:
    pyckpt.save({"t": torch.ones(2), "array": value}, tmp_path / "x.tar")
    assert pyckpt.verify(tmp_path / "x.tar").ok
    with pytest.raises(pickle.UnpicklingError, match="weights_only"):
        pyckpt.load(tmp_path / "x.tar")
    loaded = pyckpt.load(tmp_path / "x.tar", weights_only=False)["array"]
    assert loaded.dtype == value.dtype


# Pickles that numpy would believe.


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def raw(value: bytes) -> bytes:
    return b"c_codecs\nencode\n(" + text(value.decode("latin-1")) + text("latin1") + b"tR"


def dtype(code: str, state: bytes | None = None) -> bytes:
    usual = b"(K\x03" + text("<") + b"NNN" + struct.pack("<cici", b"J", -1, b"J", -1) + b"K\x00t"
    return (
        b"cnumpy\ndtype\n("
        + text(code)
        + b"\x89\x88tR"
        + (usual if state is None else state)
        + b"b"
    )


def array(shape: bytes, of: bytes, contents: bytes, module: str = "numpy.core.multiarray") -> bytes:
    empty = (
        f"c{module}\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85".encode("latin-1")
        + raw(b"b")
        + b"tR"
    )
    return empty + b"(K\x01" + shape + of + b"\x89" + contents + b"tb"


POINTER_FIELD = (
    b"(K\x03" + text("<") + b"N(" + text("a") + b"t}" + text("a") + b"(" + dtype("f4") + b"K\x00ts"
    b"J\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00t"
)
EIGHT = raw(b"A" * 8)

HOSTILE = {
    "fields of the file's choice": array(b"K\x01\x85", dtype("u4", POINTER_FIELD), EIGHT),
    "too few bytes": array(b"M\x00\x10\x85", dtype("u4"), EIGHT),
    "too many bytes": array(b"K\x01\x85", dtype("u4"), EIGHT),
    "a negative shape": array(b"J\xff\xff\xff\xff\x85", dtype("u4"), EIGHT),
    "a shape that overflows": array(b"\x8a\x08" + b"\xff" * 7 + b"\x7f\x85", dtype("u4"), EIGHT),
    "a shape of floats": array(b"G" + struct.pack(">d", 2.0) + b"\x85", dtype("u4"), EIGHT),
    "no shape": array(b"N", dtype("u4"), EIGHT),
    "text instead of bytes": array(b"K\x02\x85", dtype("u4"), text("A" * 8)),
    "a list instead of bytes": array(b"K\x02\x85", dtype("u4"), b"]"),
    "no dtype": array(b"K\x02\x85", text("u4"), EIGHT),
    "a dtype without its state": array(b"K\x02\x85", dtype("u4")[:-1] + b"0", EIGHT),
    "an itemsize of the file's choice": array(
        b"K\x02\x85",
        dtype("u4", b"(K\x03" + text("<") + b"NNNK\x64J\xff\xff\xff\xffK\x00t"),
        EIGHT,
    ),
    "a wrong byte order": array(
        b"K\x02\x85",
        dtype("u4", b"(K\x03" + text("x") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00t"),
        EIGHT,
    ),
    "two states": array(b"K\x02\x85", dtype("u4"), EIGHT)[:-1] + b"q\x00b" + b"Nb",
    "an array without its state": b"cnumpy.core.multiarray\n_reconstruct\n"
    b"(cnumpy\nndarray\nK\x00\x85" + raw(b"b") + b"tR",
    "a subclass": array(b"K\x02\x85", dtype("u4"), EIGHT).replace(
        b"cnumpy\nndarray\n", b"ctorch\nTensor\n"
    ),
    "a call of ndarray": b"cnumpy\nndarray\nK\x05\x85R",
    "a new ndarray": b"cnumpy\nndarray\nK\x05\x85\x81",
    "a scalar of too few bytes": b"cnumpy.core.multiarray\nscalar\n"
    + dtype("f8")
    + raw(b"abc")
    + b"\x86R",
    "a scalar of objects": b"cnumpy.core.multiarray\nscalar\n" + dtype("O") + EIGHT + b"\x86R",
    "an array of objects": array(b"K\x01\x85", dtype("O"), EIGHT),
    "an array of anything": array(b"K\x01\x85", dtype("V8"), EIGHT),
    "a dtype of fields": b"cnumpy\ndtype\n(]" + text("a") + text("O") + b"\x86a\x89\x88tR",
    "too many days": b"cdatetime\ntimedelta\nJ\xff\xff\xff\x7f\x85R",
    "text for days": b"cdatetime\ntimedelta\n" + text("1") + b"\x85R",
    "a version of a number": b"ctorch.torch_version\nTorchVersion\nK\x01\x85\x81",
}


def write(path: Path, pickled: bytes) -> None:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a/data.pkl", b"\x80\x02" + pickled + b".")
        file.writestr("a/version", "3\n")


def test_the_pieces_are_right(tmp_path: Path) -> None:
    for module in ("numpy.core.multiarray", "numpy._core.multiarray"):
        write(tmp_path / "x.pt", array(b"K\x02\x85", dtype("u4"), EIGHT, module))
        assert pyckpt.load(tmp_path / "x.pt").tolist() == [0x41414141] * 2


def test_hostile_states(tmp_path: Path) -> None:
    """In a process of its own, because numpy would read any memory."""
    for number, hostile in enumerate(HOSTILE.values()):
        write(tmp_path / f"{number}.pt", hostile)
    code = (
        "import sys, pickle, pyckpt\n"
        "for number in range(int(sys.argv[1])):\n"
        "    try: print('loaded', pyckpt.load(f'{number}.pt'), flush=True)\n"
        "    except (pyckpt.CorruptArchiveError, pickle.UnpicklingError): print('refused')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(len(HOSTILE))],
        cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    found = dict(zip(HOSTILE, done.stdout.splitlines(), strict=False))
    assert found == dict.fromkeys(HOSTILE, "refused"), done.stderr
    assert done.returncode == 0


def test_numpy_stays_out_even_if_the_user_admits_it(tmp_path: Path) -> None:
    """torch's documentation advises to admit these types."""
    write(tmp_path / "x.pt", HOSTILE["fields of the file's choice"])
    reconstruct = np.ndarray(0).__reduce__()[0]
    with (
        torch.serialization.safe_globals([np.ndarray, np.dtype, reconstruct]),
        pytest.raises(pyckpt.CorruptArchiveError, match="the state of a dtype"),
    ):
        pyckpt.load(tmp_path / "x.pt")


@given(st.data())
def test_damaged_arrays(data: st.DataObject) -> None:
    """Any flipped byte gives numbers or an error."""
    contents = bytearray(pickle.dumps([np.arange(5, dtype=np.uint32), np.float64(1)], 2))
    for _ in range(data.draw(st.integers(1, 3))):
        contents[data.draw(st.integers(0, len(contents) - 1))] = data.draw(st.integers(0, 255))
    try:
        found = unpickled(bytes(contents))
    except pickle.UnpicklingError:
        return
    for one in found if isinstance(found, list) else []:
        if isinstance(one, np.ndarray):
            assert one.dtype.kind in "biufc"
            assert not one.dtype.hasobject
            one.sum()


def test_plain_values_of_a_state() -> None:
    values = [
        datetime.timedelta(3, 4, 5),
        datetime.timedelta(-1),
        torch.torch_version.TorchVersion("2.4"),
    ]
    for protocol in (2, 4):
        found = unpickled(pickle.dumps(values, protocol))
        assert found == values
        assert [type(one) for one in found] == [type(one) for one in values]


class Scaler:
    factor = 2.0

    def __init__(self) -> None:
        self.scale = 4.0
        self.dtype = torch.float16

    def update(self) -> None:
        raise AssertionError

    @property
    def doubled(self) -> float:
        return 2 * self.scale


class Stage(enum.IntEnum):
    ONE = 1


register_attributes(Scaler)
register_enum(Stage)


def scaler_with(**attributes: Any) -> bytes:
    scaler = Scaler()
    scaler.__dict__.update(attributes)
    return pickle.dumps(scaler, 2)


def test_registered_classes() -> None:
    found = unpickled(scaler_with(factor=3.0, name=None))
    assert type(found) is Scaler
    assert vars(found) == {"scale": 4.0, "dtype": torch.float16, "factor": 3.0, "name": None}
    assert unpickled(pickle.dumps(Stage.ONE, 2)) is Stage.ONE


@pytest.mark.parametrize("attributes", [{"update": 1}, {"doubled": 1}, {"__class__": 1}])
def test_attributes_that_would_replace_the_classes_own(attributes: dict[str, Any]) -> None:
    with pytest.raises(pickle.UnpicklingError, match="not an attribute"):
        unpickled(scaler_with(**attributes))


@pytest.mark.parametrize("value", [[1], {"a": 1}, torch.Size([1]), torch.strided])
def test_attributes_that_are_no_plain_values(value: Any) -> None:
    with pytest.raises(pickle.UnpicklingError, match=r"plain value|weights_only"):
        unpickled(scaler_with(scale=value))


def test_enums_of_unknown_values() -> None:
    data = pickle.dumps(Stage.ONE, 2).replace(b"K\x01", b"K\x07")
    with pytest.raises(pickle.UnpicklingError, match="7"):
        unpickled(data)


def test_a_checkpoint_with_all_of_them(tmp_path: Path) -> None:
    state = {"best": np.float64(0.5), "count": np.int64(3), "rng": np.random.get_state()}
    pyckpt.save(state, tmp_path / "x.tar.gz")
    found = pyckpt.load(tmp_path / "x.tar.gz")
    assert (found["best"], found["count"]) == (0.5, 3)
    assert type(found["count"]) is np.int64
    buffer = io.BytesIO()
    torch.save(state, buffer, _use_new_zipfile_serialization=False)
    (tmp_path / "old.pt").write_bytes(buffer.getvalue())
    assert np.array_equal(pyckpt.load(tmp_path / "old.pt")["rng"][1], state["rng"][1])


def test_bytes_of_protocol_2_need_nothing_of_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before torch 2.5, what makes them is not among what torch allows."""
    allowed = torch._weights_only_unpickler._get_allowed_globals()
    fewer = {name: one for name, one in allowed.items() if name != "_codecs.encode"}
    monkeypatch.setattr(torch._weights_only_unpickler, "_get_allowed_globals", lambda: fewer)
    for value in (b"", b"text", bytes(range(256))):
        data = pickle.dumps(value, protocol=2)
        assert WeightsUnpickler(data, lambda _: None).run() == value
    wrong = pickle.dumps(b"text", protocol=2).replace(b"latin1", b"utf-16")
    with pytest.raises(pickle.UnpicklingError):
        WeightsUnpickler(wrong, lambda _: None).run()
