"""torch.load reads what pyckpt.save writes, and gets the same as from torch.save."""

import collections
import gc
import io
import pickle
import warnings
import weakref
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import pyckpt
from pyckpt.torch_format.serialize import serialize

QUANTIZED = {torch.qint8, torch.quint8, torch.qint32, torch.quint4x2, torch.quint2x4}


def savable_dtypes() -> list[torch.dtype]:
    """Every dtype that torch.save takes; quantized ones have a test of their own."""
    found = []
    dtypes = {v for v in vars(torch).values() if isinstance(v, torch.dtype)}
    for dtype in sorted(dtypes - QUANTIZED, key=str):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                torch.save(torch.zeros(64, dtype=torch.uint8).view(dtype), io.BytesIO())
            except (RuntimeError, KeyError, NotImplementedError):
                continue
        found.append(dtype)
    return found


DTYPES = savable_dtypes()
# torch cannot print the others, and hypothesis prints failing examples.
PRINTABLE_DTYPES = [d for d in DTYPES if not str(d).startswith(("torch.bits", "torch.float4"))]


def noise(numel: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    """Random bits, with NaNs and denormals among the values."""
    generator = torch.Generator().manual_seed(seed)
    if dtype == torch.bool:
        return torch.randint(0, 2, (numel,), generator=generator).bool()
    raw = torch.randint(0, 256, (numel * dtype.itemsize,), generator=generator)
    return raw.to(torch.uint8).view(dtype)


def bits(tensor: torch.Tensor) -> bytes:
    """The elements in logical order, bit for bit."""
    dense = tensor.detach().as_subclass(torch.Tensor).resolve_conj().resolve_neg()
    # Some dtypes cannot be copied, so the elements are viewed as a dtype of the same width.
    as_wide = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64, 16: torch.complex128}
    words = torch.empty(0, dtype=as_wide[dense.dtype.itemsize]).set_(
        dense.untyped_storage(), dense.storage_offset(), dense.size(), dense.stride()
    )
    return words.numpy().tobytes()


def assert_same(ours: Any, theirs: Any) -> None:
    """Equal types, structure, tensors to the bit, and the same sharing of storages."""
    ours_storages: list[Any] = []
    theirs_storages: list[Any] = []
    _assert_same(ours, theirs, ours_storages, theirs_storages)
    assert _sharing(ours_storages) == _sharing(theirs_storages)


def _sharing(storages: list[torch.UntypedStorage]) -> list[int]:
    addresses = [storage._cdata for storage in storages if storage.nbytes()]
    return [addresses.index(address) for address in addresses]


def _assert_same(a: Any, b: Any, a_storages: list[Any], b_storages: list[Any]) -> None:
    assert type(a) is type(b)
    if isinstance(a, torch.Tensor):
        assert (a.dtype, a.shape, a.layout, a.device) == (b.dtype, b.shape, b.layout, b.device)
        assert a.requires_grad == b.requires_grad
        if a.layout == torch.sparse_coo:
            assert a.is_coalesced() == b.is_coalesced()
            parts = [torch.Tensor._indices, torch.Tensor._values]
        elif a.layout in (torch.sparse_csr, torch.sparse_bsr):
            parts = [torch.Tensor.crow_indices, torch.Tensor.col_indices, torch.Tensor.values]
        elif a.layout in (torch.sparse_csc, torch.sparse_bsc):
            parts = [torch.Tensor.ccol_indices, torch.Tensor.row_indices, torch.Tensor.values]
        elif a.is_quantized:
            assert torch.equal(a.int_repr(), b.int_repr())
            assert a.qscheme() == b.qscheme()
            assert torch.equal(a.dequantize(), b.dequantize())
            return
        else:
            assert (a.stride(), a.is_conj(), a.is_neg()) == (b.stride(), b.is_conj(), b.is_neg())
            if a.device.type == "meta":
                return
            assert bits(a) == bits(b)
            a_storages.append(a.untyped_storage())
            b_storages.append(b.untyped_storage())
            return
        for part in parts:
            _assert_same(part(a.detach()), part(b.detach()), a_storages, b_storages)
    elif isinstance(a, dict):
        assert list(a) == list(b)
        for key in a:
            _assert_same(a[key], b[key], a_storages, b_storages)
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            _assert_same(x, y, a_storages, b_storages)
    elif isinstance(a, nn.Module):
        _assert_same(a.state_dict(), b.state_dict(), a_storages, b_storages)
    else:
        assert a == b or (a != a and b != b)


def by_torch(obj: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(obj, buffer)
    return buffer.getvalue()


def by_pyckpt(obj: Any, folder: Path) -> bytes:
    path = folder / "bare.pt"
    pyckpt.save(obj, path, fsync=False, num_threads=2)
    return path.read_bytes()


def loads(data: bytes, **options: Any) -> Any:
    return torch.load(io.BytesIO(data), **options)


def records(data: bytes) -> dict[str, bytes]:
    """The records of the zip file in order, without the id that differs in every file."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert archive.testzip() is None
        return {
            info.filename: archive.read(info)
            for info in archive.infolist()
            if not info.filename.endswith("serialization_id")
        }


def writes_all_records() -> bool:
    """Whether this torch is not too old to write all the records that pyckpt writes."""
    return any(name.endswith("/.storage_alignment") for name in records(by_torch([])))


def check(obj: Any, folder: Path) -> None:
    """Compares a saved object with that of torch.save: its records, and what torch.load returns."""
    theirs = by_torch(obj)
    ours = by_pyckpt(obj, folder)
    if writes_all_records():
        assert list(records(ours)) == list(records(theirs))
        assert records(ours) == records(theirs)
    else:
        assert records(ours).items() >= records(theirs).items()

    assert_same(loads(ours, weights_only=False), loads(theirs, weights_only=False))
    assert_same(
        torch.load(folder / "bare.pt", mmap=True, weights_only=False),
        loads(theirs, weights_only=False),
    )
    try:
        expected = loads(theirs, weights_only=True)
    except pickle.UnpicklingError:
        return
    assert_same(loads(ours, weights_only=True), expected)
    assert_same(torch.load(folder / "bare.pt", mmap=True, weights_only=True), expected)


LONG_NAME = "k" * 70_000


class Pool(list[torch.Tensor]):
    """Buffers for views; repr() leaves their values out to keep reports short."""

    def __repr__(self) -> str:
        return f"Pool({[(t.dtype, t.numel()) for t in self]})"


@st.composite
def views(draw: st.DrawFn, pool: Pool) -> torch.Tensor:
    """A tensor over one of a few buffers, so that many share one."""
    base = draw(st.sampled_from(pool))
    if base.numel() == 0:
        return base.reshape(draw(st.sampled_from([(0,), (0, 3), (2, 0, 4)])))
    kind = draw(st.sampled_from(["all", "item", "slice", "strided", "transposed", "expanded"]))
    start = draw(st.integers(0, base.numel() - 1))
    if kind == "item":
        return base[start]
    if kind == "slice":
        return base[start : draw(st.integers(start, base.numel()))]
    if kind == "strided":
        return base[start :: draw(st.integers(1, 5))]
    if kind == "transposed":
        rows = draw(st.integers(1, base.numel()))
        return base[: base.numel() // rows * rows].view(rows, -1).t()
    if kind == "expanded":
        return base[start].expand(draw(st.integers(0, 4)), 3)
    return base


@st.composite
def states(draw: st.DrawFn) -> Any:
    sizes = st.one_of(st.integers(0, 40), st.sampled_from([0, 1, 1000, 70_000]))
    buffers = st.tuples(sizes, st.sampled_from(PRINTABLE_DTYPES))
    pool = Pool(
        noise(numel, dtype, seed)
        for seed, (numel, dtype) in enumerate(draw(st.lists(buffers, min_size=1, max_size=4)))
    )
    leaves = st.one_of(
        views(pool),
        views(pool).map(lambda t: nn.Parameter(t, requires_grad=False)),
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(),
        st.text(max_size=20),
        st.binary(max_size=20),
    )
    names = st.one_of(
        st.text(max_size=30),
        st.integers(0, 9),
        st.sampled_from(["", "a/b", "../x", "data/0", "ключ", "名前", "\0", LONG_NAME]),
    )
    return draw(
        st.recursive(
            leaves,
            lambda inner: st.one_of(
                st.dictionaries(names, inner, max_size=5),
                st.dictionaries(names, inner, max_size=5).map(collections.OrderedDict),
                st.lists(inner, max_size=4),
                st.tuples(inner, inner),
            ),
            max_leaves=12,
        )
    )


@pytest.mark.filterwarnings("ignore:B?Complex(Half|32) support")
@given(states())
def test_any_state_comes_back_as_from_torch_save(tmp_path: Path, state: Any) -> None:
    check(state, tmp_path)
    assert_same(loads(by_pyckpt(state, tmp_path), weights_only=False), state)


@pytest.mark.filterwarnings("ignore:B?Complex(Half|32) support")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (0,), (1,), (3, 5), (2, 0, 3), (33, 31, 3)], ids=str)
def test_every_dtype_and_shape(tmp_path: Path, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    numel = torch.Size(shape).numel()
    state = {"t": noise(numel, dtype).view(shape)}
    check(state, tmp_path)
    assert_same(loads(by_pyckpt(state, tmp_path), weights_only=False), state)


@pytest.mark.newest_torch
def test_the_dtypes_that_matter_are_among_those_tested() -> None:
    assert {
        torch.float64, torch.float32, torch.float16, torch.bfloat16,
        torch.float8_e4m3fn, torch.float8_e5m2, torch.complex64, torch.complex128, torch.bool,
        torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64,
        torch.uint16, torch.uint32, torch.uint64,
    } <= set(DTYPES)  # fmt: skip


def test_the_pickle_of_tensors_is_torchs_byte_by_byte() -> None:
    base = torch.arange(24.0)
    state = {
        "plain": base,
        "view": base[3:19].view(4, 4).t(),
        "scalar": torch.tensor(3),
        "leaf": torch.ones(2).requires_grad_(),
        "noted": torch.zeros(2, dtype=torch.bool),
        "again": base,
        "parameter": nn.Parameter(base),
    }
    state["noted"].note = "a tensor's own attribute"
    theirs = io.BytesIO()
    torch.save(state, theirs)
    with zipfile.ZipFile(theirs) as file:
        [name] = [name for name in file.namelist() if name.endswith("/data.pkl")]
        expected = file.read(name)
    assert bytes(serialize(state)[0].owner.numpy()) == expected


def test_a_tensor_with_hooks_is_warned_of_as_by_torch(tmp_path: Path) -> None:
    tensor = torch.ones(2, requires_grad=True)
    tensor.register_hook(lambda gradient: gradient)
    with pytest.warns(UserWarning, match="backward hook .* will not be serialized"):
        pyckpt.save(tensor, tmp_path / "x.tar")


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")  # in torch's own reader
@pytest.mark.parametrize("dtype", [torch.qint8, torch.quint8, torch.qint32], ids=str)
def test_quantized(tmp_path: Path, dtype: torch.dtype) -> None:
    values = torch.randn(6, 5)
    scales, zeros = torch.rand(6, dtype=torch.float64) + 0.1, torch.zeros(6, dtype=torch.int64)
    check(
        {
            "tensor": torch.quantize_per_tensor(values, 0.25, 3, dtype),
            "channel": torch.quantize_per_channel(values, scales, zeros, 0, dtype),
        },
        tmp_path,
    )


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support")
@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
@pytest.mark.filterwarnings("ignore:Validating sparse tensor invariants")
def test_sparse(tmp_path: Path) -> None:
    dense = torch.eye(6) * torch.arange(1.0, 7.0)
    check(
        {
            "coo": dense.to_sparse(),
            "uncoalesced": torch.sparse_coo_tensor([[0, 0], [1, 1]], [1.0, 2.0], (2, 3)),
            "empty": torch.sparse_coo_tensor(size=(3, 4)),
            "csr": dense.to_sparse_csr(),
            "csc": dense.to_sparse_csc(),
            "bsr": dense.to_sparse_bsr((2, 3)),
            "bsc": dense.to_sparse_bsc((3, 2)),
        },
        tmp_path,
    )


class NamedTensor(torch.Tensor):
    """A subclass with an attribute; torch pickles both."""


def test_tensor_subclass(tmp_path: Path) -> None:
    named = torch.randn(3, 4).as_subclass(NamedTensor)
    named.label = "weights"
    check([named, named.t()], tmp_path)
    back = loads(by_pyckpt(named, tmp_path), weights_only=False)
    assert type(back) is NamedTensor
    assert back.label == "weights"


def test_modules_parameters_and_tied_weights(tmp_path: Path) -> None:
    model = nn.Sequential(collections.OrderedDict(a=nn.Linear(8, 8), b=nn.Linear(8, 8)))
    model.b.weight = model.a.weight
    model.a.bias.requires_grad_(False)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(2, 8)).sum().backward()
    optimizer.step()
    check({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path)
    check(dict(model.named_parameters(remove_duplicate=False)), tmp_path)
    check(model, tmp_path)
    weights = loads(by_pyckpt(model.state_dict(), tmp_path))
    assert weights["a.weight"].data_ptr() == weights["b.weight"].data_ptr()


def test_meta_conjugated_and_negated_tensors(tmp_path: Path) -> None:
    z = torch.randn(4, dtype=torch.complex64)
    check(
        {
            "meta": torch.empty(3, 4, device="meta"),
            "conj": z.conj(),
            "neg": torch.randn(4, dtype=torch.complex64).conj().imag,
            "z": z,
        },
        tmp_path,
    )


@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")
def test_bare_storages(tmp_path: Path) -> None:
    tensor = torch.arange(10, dtype=torch.float32)
    data = by_pyckpt([tensor.untyped_storage(), torch.zeros(0).untyped_storage()], tmp_path)
    first, second = loads(data, weights_only=False)
    assert bytes(first) == bits(tensor)
    assert second.nbytes() == 0
    typed = loads(by_pyckpt(tensor.storage(), tmp_path), weights_only=False)
    assert typed.dtype == torch.float32
    assert typed.tolist() == tensor.tolist()


def test_a_storage_is_saved_once(tmp_path: Path) -> None:
    big = torch.zeros(1000)
    names = records(by_pyckpt([big, big[1:], big[:0], big.view(10, 100).t()], tmp_path))
    assert [name for name in names if "/data/" in name] == ["archive/data/0"]


def test_unrelated_tensors_that_die_while_pickling_do_not_share(tmp_path: Path) -> None:
    """The addresses of freed storages are reused."""

    class Fresh:
        def __init__(self, value: int) -> None:
            self.value = value

        def __reduce__(self) -> Any:
            return (collections.OrderedDict, ([(0, torch.full((1000,), self.value))],))

    back = loads(by_pyckpt([Fresh(i) for i in range(50)], tmp_path))
    assert [int(d[0][0]) for d in back] == list(range(50))


class Thing:
    """Something that is pickled by the name of its class."""


def test_what_was_pickled_is_let_go_at_once() -> None:
    """Not only at the next garbage collection: it may be a copy of the whole model."""
    things = [Thing(), {"tensor": torch.ones(3)}]
    thing = weakref.ref(things[0])
    gc.disable()
    try:
        serialize(things)
        del things
        assert thing() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("view", [torch.int32, torch.uint8, torch.int64], ids=str)
def test_memory_of_two_types_is_refused_as_by_torch(tmp_path: Path, view: torch.dtype) -> None:
    floats = torch.zeros(8)
    state = {"floats": floats, "view": floats.view(view)}
    with pytest.raises(RuntimeError, match="view the same data as different types"):
        torch.save(state, io.BytesIO())
    with pytest.raises(pyckpt.CheckpointError, match="different types"):
        pyckpt.save(state, tmp_path / "x.tar")
    assert list(tmp_path.iterdir()) == []


class Unpicklable:
    def __reduce__(self) -> str:
        raise RuntimeError("not this one")


@pytest.mark.parametrize("name", ["new/x.tar.gz", "old.tar.gz", "bare"])
@pytest.mark.parametrize(
    "bad", [Unpicklable(), lambda: 0, (i for i in ())], ids=["raises", "lambda", "iterator"]
)
def test_what_cannot_be_pickled_leaves_nothing(tmp_path: Path, name: str, bad: Any) -> None:
    old = tmp_path / "old.tar.gz"
    pyckpt.save(1, old)
    before = old.read_bytes()
    with pytest.raises(pyckpt.CheckpointError, match=name) as caught:
        pyckpt.save({"fine": torch.zeros(10), "bad": bad}, tmp_path / name)
    assert caught.value.path == str(tmp_path / name)
    assert caught.value.__cause__ is not None
    assert list(tmp_path.iterdir()) == [old]
    assert old.read_bytes() == before


def test_equal_states_give_equal_files(tmp_path: Path) -> None:
    def state() -> Any:
        return {"a": noise(5000, torch.float32), "b": [noise(7, torch.int64)]}

    assert by_pyckpt(state(), tmp_path) == by_pyckpt(state(), tmp_path)


def compacted(obj: Any) -> tuple[Any, int]:
    """The object through serialize(compact_views=True), and the bytes of its tensor records."""
    out = io.BytesIO()
    total = 0
    with zipfile.ZipFile(out, "w") as archive:
        for record in serialize(obj, compact_views=True):
            memory = torch.empty(record.nbytes, dtype=torch.uint8)
            if record.nbytes:
                source = (torch.ctypes.c_char * record.nbytes).from_address(record.address)
                memory = torch.frombuffer(bytearray(source), dtype=torch.uint8)
            archive.writestr(record.name, bytes(memory.untyped_storage()))
            total += record.nbytes if "/data/" in record.name else 0
    return loads(out.getvalue(), weights_only=False), total


def test_compact_views_store_only_their_span() -> None:
    flat = torch.arange(1_000_000, dtype=torch.float32)
    state = {
        "head": flat[10:30].view(4, 5),
        "transposed": flat[100:112].view(3, 4).t(),
        "strided": flat[1000:1100:10],
        "one": flat[5],
        "none": flat[7:7],
        "expanded": flat[50].expand(3, 4),
        "parameter": nn.Parameter(flat[200:210]),
    }
    back, nbytes = compacted(state)
    for name, tensor in state.items():
        assert type(back[name]) is type(tensor)
        assert torch.equal(back[name], tensor)
        assert back[name].stride() == tensor.stride()
        assert back[name].storage_offset() == 0
    assert nbytes == 4 * (20 + 12 + 91 + 1 + 0 + 1 + 10)


@pytest.mark.filterwarnings("ignore:B?Complex(Half|32) support")
@given(states())
def test_compact_views_keep_all_values(state: Any) -> None:
    back, _ = compacted(state)
    _assert_same(back, state, [], [])


def test_compact_views_keep_tied_tensors_tied() -> None:
    flat = torch.randn(1000)
    tied, other = flat[10:20], flat[20:30]
    back, nbytes = compacted([tied, flat[10:20].view(2, 5), nn.Parameter(tied), other])
    assert back[0].data_ptr() == back[1].data_ptr() == back[2].data_ptr()
    assert back[3].data_ptr() != back[0].data_ptr()
    assert nbytes == 4 * 20


def test_compact_views_of_one_buffer_may_differ_in_type() -> None:
    """ZeRO and fused optimizers place tensors of several types, some empty, in one buffer."""
    flat = torch.zeros(64, dtype=torch.uint8)
    state = [
        flat[:32].view(torch.float32),
        flat[32:].view(torch.bfloat16),
        flat[:0].view(torch.bfloat16),
        flat[32:32].view(torch.float32),
        flat[32:32].view(torch.int64),
    ]
    back, _ = compacted(state)
    assert [t.dtype for t in back] == [t.dtype for t in state]
    _assert_same(back, state, [], [])


def odd_view(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """A tensor over a buffer that is not a whole number of its elements."""
    view = torch.zeros(1003, dtype=torch.uint8)[:1000].view(dtype)
    view[3:] = 7
    return view


def test_views_of_buffers_of_any_length(tmp_path: Path) -> None:
    odd = odd_view()
    state = {"whole": odd, "part": odd[2:5], "parameter": nn.Parameter(odd)}
    pyckpt.save(state, tmp_path / "x.pt")
    assert pyckpt.verify(tmp_path / "x.pt").ok
    for options in ({"weights_only": True}, {"weights_only": False}):
        for load in (pyckpt.load, torch.load):
            found = load(tmp_path / "x.pt", **options)
            for name, tensor in state.items():
                assert type(found[name]) is type(tensor)
                assert found[name].dtype == tensor.dtype
                assert torch.equal(found[name], tensor)
            found["whole"][2] = -1
            assert found["part"][0] == found["parameter"][2] == -1
    [entry, *_] = pyckpt.inspect(tmp_path / "x.pt").members[0].tensors
    assert (entry.info.key_path, entry.info.dtype) == ("whole", torch.float32)


def freed() -> torch.Tensor:
    tensor = torch.ones(10)
    tensor.untyped_storage().resize_(0)
    return tensor


def shrunken_view() -> torch.Tensor:
    tensor = torch.ones(20)[::2]
    tensor.untyped_storage().resize_(4 * 18)
    return tensor


@pytest.mark.parametrize("make", [freed, shrunken_view, lambda: odd_view(torch.complex64)])
@pytest.mark.parametrize("compact", [True, False])
def test_storages_that_nobody_could_read(
    tmp_path: Path, make: Callable[[], torch.Tensor], compact: bool
) -> None:
    """torch.save writes them."""
    state = {"good": torch.ones(3), "list": [0, {"bad": nn.Parameter(make())}]}
    if compact and make not in (freed, shrunken_view):
        return  # only the part of the storage that the tensor spans is saved
    with pytest.raises(ValueError, match="tensor 'list/1/bad' cannot be saved: "):
        serialize(state, compact_views=compact)
    path = tmp_path / "x.tar"
    pyckpt.save({"old": 1}, path)
    with pytest.raises(pyckpt.CheckpointError, match="'list/1/bad'"):
        pyckpt.save(state, path)
    assert pyckpt.load(path) == {"old": 1}


def test_an_empty_view_that_begins_behind_its_storage(tmp_path: Path) -> None:
    """What a rank without rows holds."""
    empty = torch.empty(4, 3)[:, :0].clone()[2:]
    behind = torch.empty(0).as_strided((0, 3), (3, 1), 5)
    pyckpt.save([empty, behind], tmp_path / "x.pt")
    for read in (torch.load, pyckpt.load):
        loaded = read(tmp_path / "x.pt")
        assert [tensor.shape for tensor in loaded] == [empty.shape, behind.shape]


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.uint16, torch.float32])
def test_compact_views_of_any_dtype_cost_what_they_span(dtype: torch.dtype) -> None:
    whole = torch.arange(1000).to(dtype)
    records = serialize(whole[10:20], compact_views=True)
    [storage] = [record for record in records if record.is_storage]
    assert storage.nbytes == 10 * dtype.itemsize
    assert storage.address == whole[10:].data_ptr()
