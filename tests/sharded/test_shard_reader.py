"""Parts of shards, read out of archives of every format and out of plain files."""

import io
import tarfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
import torch
from hypothesis import strategies as st

from pyckpt.archive.formats import usual_suffixes
from pyckpt.archive.writer import ArchiveWriter
from pyckpt.errors import CorruptArchiveError, OptionError
from pyckpt.options import WriteOptions
from pyckpt.sharded.shard_reader import ShardReader, Wanted
from tests.tar_members import add

DTYPES = [
    *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64),
    *(torch.complex128, torch.float8_e4m3fn, torch.float8_e5m2, torch.uint16, torch.uint64),
]


def write(path: Path, tensors: dict[str, torch.Tensor]) -> dict[str, tuple[int, int]]:
    """Writes tensors as members. Returns their places."""
    with ArchiveWriter(path, WriteOptions(num_threads=2)) as writer:
        for name, tensor in tensors.items():
            writer.add_object(name, tensor, compact_views=True)
        writer.plan()
        writer.write()
        writer.commit()
        return {name: writer.place(name) for name in tensors}


def part(path: Path, out: torch.Tensor, offsets: Sequence[int] = (), **where: Any) -> Wanted:
    starts = tuple(offsets) or (0,) * out.dim()
    return Wanted(
        "key", path, where.get("member"), where.get("place"), starts, tuple(out.shape), out
    )


def bits(tensor: torch.Tensor) -> bytes:
    dense = torch.empty(tensor.numel(), dtype=tensor.dtype)
    return dense.copy_(tensor.flatten()).view(torch.uint8).numpy().tobytes()


def random(shape: Sequence[int], dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    raw = np.random.default_rng(seed).bytes(int(np.prod(shape)) * dtype.itemsize)
    if dtype == torch.bool:
        return (
            torch.frombuffer(bytearray(raw or b"\0"), dtype=torch.uint8)[: len(raw)].view(
                tuple(shape)
            )
            > 127
        )
    return torch.frombuffer(bytearray(raw or bytes(16)), dtype=dtype)[: int(np.prod(shape))].view(
        tuple(shape)
    )


@pytest.mark.parametrize("by", ["name", "place"])
@pytest.mark.parametrize("suffix", usual_suffixes())
def test_slices_in_every_format(tmp_path: Path, suffix: str, by: str) -> None:
    path = tmp_path / f"x{suffix}"
    big = random((3000, 700), torch.float32)
    tensors = {"big": big, "column": big[:, 5], "step": torch.tensor(7.5), "none": torch.ones(0, 3)}
    places = write(path, {f"{key}/rank0.pt": tensor for key, tensor in tensors.items()})

    def at(key: str) -> dict[str, Any]:
        name = f"{key}/rank0.pt"
        return {"member": name} if by == "name" else {"place": places[name]}

    rows, columns, step, none = (
        *(torch.zeros(1200, 700), torch.zeros(3000, 3)),
        *(torch.zeros(()), torch.ones(0, 3)),
    )
    inner, column, again = torch.zeros(7, 500).t(), torch.zeros(40), torch.zeros(1200, 700)
    ShardReader(num_threads=2).read(
        [
            part(path, rows, (1000, 0), **at("big")),
            part(path, columns, (0, 697), **at("big")),
            part(path, inner, (2500, 100), **at("big")),
            part(path, again, (1000, 0), **at("big")),
            part(path, column, (33,), **at("column")),
            part(path, step, **at("step")),
            part(path, none, **at("none")),
        ]
    )
    assert bits(rows) == bits(big[1000:2200])
    assert bits(again) == bits(rows)
    assert bits(columns) == bits(big[:, 697:])
    assert bits(inner) == bits(big[2500:3000, 100:107])
    assert bits(column) == bits(big[33:73, 5])
    assert step.item() == 7.5


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz", ".tar.bz2"])
def test_interleaved_parts_in_many_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    """Memory is given back as the batches go, but not what later pieces share with them."""
    monkeypatch.setattr("pyckpt.torch_format.tensor_slices._PIECE_NBYTES", 100_000)
    path = tmp_path / f"x{suffix}"
    tensor = random((2000, 700), torch.int16)
    write(path, {"t": tensor})
    outs = {
        at: torch.zeros(2000 - at, width, dtype=torch.int16)
        for at, width in {0: 1, 3: 699, 40: 300, 41: 2, 1000: 690}.items()
    }
    ShardReader().read(
        [part(path, out, (at, 700 - out.shape[1]), member="t") for at, out in outs.items()]
    )
    for at, out in outs.items():
        assert bits(out) == bits(tensor[at:, 700 - out.shape[1] :])


@st.composite
def slices(draw: st.DrawFn) -> tuple[torch.Tensor, list[tuple[list[int], list[int]]]]:
    """A tensor, which may be a view, and boxes in it."""
    shape = draw(st.lists(st.integers(0, 9), max_size=4))
    tensor = random(shape, draw(st.sampled_from(DTYPES)), draw(st.integers(0, 99)))
    tensor = tensor.permute(draw(st.permutations(range(len(shape)))))
    for dim, size in enumerate(tensor.shape):
        begin = draw(st.integers(0, size))
        tensor = tensor.narrow(dim, begin, draw(st.integers(0, size - begin)))
    if tensor.dim() and tensor.shape[0] and draw(st.booleans()):
        tensor = tensor[:: draw(st.integers(1, 3))]
    if draw(st.booleans()):
        tensor = tensor.unsqueeze(0).expand(3, *tensor.shape)
    boxes = []
    for _ in range(draw(st.integers(1, 3))):
        begins = [draw(st.integers(0, size)) for size in tensor.shape]
        lengths = [
            draw(st.integers(0, size - begin))
            for size, begin in zip(tensor.shape, begins, strict=True)
        ]
        boxes.append((begins, lengths))
    return tensor, boxes


@hypothesis.given(case=slices(), suffix=st.sampled_from([".tar", ".tar.gz", ".tar.bz2"]))
def test_any_part_of_any_tensor(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    case: tuple[torch.Tensor, list[tuple[list[int], list[int]]]],
    suffix: str,
) -> None:
    # Pieces of a few elements, so that they are cut in all dimensions.
    monkeypatch.setattr("pyckpt.torch_format.tensor_slices._PIECE_NBYTES", 48)
    tensor, boxes = case
    path = tmp_path / f"x{suffix}"
    write(path, {"before": torch.ones(5), "t": tensor})
    outs = [torch.empty(lengths, dtype=tensor.dtype) for _, lengths in boxes]
    wanted = [
        part(path, out, begins, member="t") for (begins, _), out in zip(boxes, outs, strict=True)
    ]
    ShardReader().read(wanted)
    for (begins, lengths), out in zip(boxes, outs, strict=True):
        expected = tensor
        for dim, (begin, length) in enumerate(zip(begins, lengths, strict=True)):
            expected = expected.narrow(dim, begin, length)
        assert bits(out) == bits(expected)


def test_numbers_are_converted_to_another_dtype(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    write(path, {"t": torch.arange(10, dtype=torch.bfloat16)})
    out = torch.zeros(3, dtype=torch.float64)
    ShardReader().read([part(path, out, (4,), member="t")])
    assert out.tolist() == [4, 5, 6]


def test_a_plain_file_of_torch_save(tmp_path: Path) -> None:
    tensor = torch.randn(50, 4)
    path = tmp_path / "rank0.pt"
    torch.save(tensor, path)
    outs = [torch.zeros(10, 4) for _ in range(2)]
    places: list[dict[str, Any]] = [{}, {"place": (0, path.stat().st_size)}]
    for out, place in zip(outs, places, strict=True):
        ShardReader().read([part(path, out, (20, 0), **place)])
        assert torch.equal(out, tensor[20:30])


@pytest.mark.parametrize("mode", ["w:gz", "w:bz2", "w:xz", "w"])
def test_archives_of_other_programs(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "x"
    tensors = {name: torch.randn(300, 300) for name in ("a", "b", "c")}
    with tarfile.open(path, mode) as tar:
        for name, tensor in [("a", torch.zeros(300, 300)), *tensors.items()]:  # "a" is replaced
            raw = io.BytesIO()
            torch.save(tensor, raw)
            add(tar, f"./{name}", raw.getvalue())
        add(tar, "link", type=tarfile.SYMTYPE, linkname="b")
    outs = {name: torch.zeros(100, 300) for name in ("a", "link", "c")}
    ShardReader().read([part(path, out, (50, 0), member=name) for name, out in outs.items()])
    assert torch.equal(outs["a"], tensors["a"][50:150])
    assert torch.equal(outs["link"], tensors["b"][50:150])
    assert torch.equal(outs["c"], tensors["c"][50:150])


def test_parameters_and_conjugates_of_torch_save(tmp_path: Path) -> None:
    conjugate = torch.randn(4, dtype=torch.complex64).conj()
    for number, tensor in enumerate([torch.nn.Parameter(torch.randn(4)), conjugate]):
        path = tmp_path / f"{number}.pt"
        torch.save(tensor, path)
        out = torch.zeros(2, dtype=tensor.dtype)
        ShardReader().read([part(path, out, (1,))])
        assert torch.equal(out, tensor.detach()[1:3].resolve_conj())


def test_the_other_byte_order(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    for tensor in (torch.arange(6.0), torch.complex(torch.arange(6.0), -torch.arange(6.0))):
        raw = io.BytesIO()
        torch.save(tensor, raw)
        with zipfile.ZipFile(raw) as old, zipfile.ZipFile(path, "w") as new:
            for name in old.namelist():
                data = old.read(name)
                if name.endswith("byteorder"):
                    data = b"big"
                elif "/data/" in name:
                    data = np.frombuffer(data, "<f4").astype(">f4").tobytes()
                new.writestr(name, data)
        out = torch.zeros(3, dtype=tensor.dtype)
        ShardReader().read([part(path, out, (2,))])
        assert torch.equal(out, tensor[2:5])


def test_bytes_are_returned_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "x.tar.gz"
    with ArchiveWriter(path, WriteOptions()) as writer:
        writer.add_bytes("empty", b"")
        writer.add_bytes("text", b"hello")
        writer.write()
        writer.commit()
    assert ShardReader().read_bytes(path, member="text") == b"hello"
    assert ShardReader().read_bytes(path, member="empty") == b""
    assert ShardReader().read_bytes(path, place=writer.place("text")) == b"hello"


def flip(path: Path, at: int) -> None:
    raw = bytearray(path.read_bytes())
    raw[at] ^= 0x40
    path.write_bytes(raw)


def test_a_damaged_shard_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    tensors = {name: random((100, 100), torch.float32) for name in "ab"}
    places = write(path, tensors)
    flip(path, places["b"][0] + 20_000)
    a, b = torch.zeros(100, 100), torch.zeros(100, 100)
    ShardReader().read([part(path, a, member="a")])
    assert bits(a) == bits(tensors["a"])
    with pytest.raises(CorruptArchiveError, match=r"x\.tar is damaged.*'key'.*checksum") as caught:
        ShardReader().read([part(path, b, member="b")])
    assert caught.value.path == str(path)
    ShardReader(verify=False).read([part(path, b, member="b")])


def test_parts_that_make_up_a_whole_record_are_checked(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    places = write(path, {"a": random((100, 100), torch.float32)})
    flip(path, places["a"][0] + 20_000)
    halves = [part(path, torch.zeros(50, 100), (row, 0), member="a") for row in (50, 0)]
    ShardReader().read(halves[:1])  # no checksum of the half is known
    with pytest.raises(CorruptArchiveError, match="checksum"):
        ShardReader().read(halves)


@pytest.mark.parametrize("suffix", [".tar.gz", ".tar.bz2", ".tar.xz"])
def test_damage_in_compressed_files_is_named(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x{suffix}"
    places = write(path, {"a": random((500, 1000), torch.float32)})
    flip(path, path.stat().st_size // 2)
    for where in ({"member": "a"}, {"place": places["a"]}):
        with pytest.raises(CorruptArchiveError, match="'key'"):
            ShardReader().read([part(path, torch.zeros(500, 1000), **where)])


def test_damaged_bytes_are_found(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    raw = io.BytesIO()
    torch.save({"lr": 0.25}, raw)
    with ArchiveWriter(path, WriteOptions()) as writer:
        writer.add_bytes("b", raw.getvalue())
        writer.write()
        writer.commit()
    assert ShardReader().read_bytes(path, member="b") == raw.getvalue()
    flip(path, path.read_bytes().index(b"lr"))
    with pytest.raises(CorruptArchiveError, match="'b'"):
        ShardReader().read_bytes(path, member="b")


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    places = write(path, {"a": torch.zeros(10, 4), "b": torch.zeros(3)})
    offset, nbytes = places["a"]
    out = torch.zeros(3, 4)
    wrong = {
        "no member 'c'.*'key'": part(path, out, member="c"),
        r"'key' has the shape \[10, 4\]": part(path, out, (8, 0), member="a"),
        r"'key' has the shape \[3\]": part(path, out, (0, 0), member="b"),
        "'key'": part(path, out, place=(offset + 512, nbytes)),
        "'key' should end at": part(path, out, place=(offset, 1 << 40)),
        "'key' overlaps": part(path, out, place=(-5, nbytes)),
    }
    for message, wanted in wrong.items():
        with pytest.raises(CorruptArchiveError, match=message):
            ShardReader().read([wanted])
    with pytest.raises(CorruptArchiveError, match="'key' overlaps"):
        ShardReader().read([part(path, out, place=(offset, nbytes - k)) for k in (0, 512)])
    with pytest.raises(FileNotFoundError):
        ShardReader().read([part(tmp_path / "no.tar", out, member="a")])
    with pytest.raises(OptionError):
        ShardReader(num_threads=0)


def test_a_tensor_that_is_larger_than_its_storage(tmp_path: Path) -> None:
    raw, path = io.BytesIO(), tmp_path / "x.pt"
    torch.save(torch.ones(9), raw)
    with zipfile.ZipFile(raw) as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            data = old.read(name)
            if name.endswith("data.pkl"):
                assert data.count(b"K\t\x85") == 1  # the shape
                data = data.replace(b"K\t\x85", b"K\x0a\x85")
            new.writestr(name, data)
    with pytest.raises(CorruptArchiveError, match="larger than its storage"):
        ShardReader().read([part(path, torch.zeros(2), (8,))])


def test_no_code_of_a_shard_is_run(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"

    class Bomb:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "ran",)

    torch.save(Bomb(), path)
    with pytest.raises(Exception, match=r"weights_only|x\.pt"):
        ShardReader().read([part(path, torch.zeros(3))])
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz"])
def test_thousands_of_small_shards(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x{suffix}"
    tensors = {f"k{n}/rank0.pt": torch.full((n % 7,), float(n)) for n in range(5000)}
    places = write(path, tensors)
    outs = {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}
    ShardReader().read([part(path, out, place=places[name]) for name, out in outs.items()])
    for name, tensor in tensors.items():
        assert torch.equal(outs[name], tensor)
