"""Unpickles as torch's ``weights_only`` loader does: only types that are known to be harmless.

It builds what torch's loader builds, also what the user has admitted by
``torch.serialization.add_safe_globals``, and the plain types of a training state
(plain_types.py). It does not hash keys that take longer to hash than the pickle is large.
"""

from __future__ import annotations

import _compat_pickle
import pickle
from collections import Counter, OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import _weights_only_unpickler as torchs
from torch._utils import _sparse_tensors_to_validate

from pyckpt.torch_format.pickle_machine import BrokenPickleError, HashBudget, PickleMachine
from pyckpt.torch_format.plain_types import PlainType, Unfinished, plain_type

__all__ = ["WeightsUnpickler", "is_allowed"]


def is_allowed(named: Any) -> bool:
    """Whether pickles may name a class or function; see WeightsUnpickler."""
    module, name = named.__module__ or "builtins", named.__qualname__
    if plain_type(module, name) is not None:
        return True
    full_name = f"{module}.{name}"
    allowed = torchs._get_allowed_globals(), torchs._get_user_allowed_globals()
    return module not in _BLOCKED_MODULES and any(full_name in names for names in allowed)


# Whatever the user admits.
_BLOCKED_MODULES = ("sys", "os", "posix", "nt")
_DICTS = (dict, OrderedDict, Counter)


class WeightsUnpickler(PickleMachine):
    """Runs one pickle.

    Args:
        storage_of: The storage for a persistent id.
    """

    def __init__(self, data: bytes, storage_of: Callable[[Any], Any], begin: int = 0) -> None:
        super().__init__(data, begin)
        self._storage_of = storage_of
        self._unfinished = 0
        self._hashing = HashBudget(len(data) - begin)
        self._allowed = {
            **torchs._get_allowed_globals(),
            **torchs._get_user_allowed_globals(),
        }
        # By identity, because comparing could run code.
        self._callable = {id(one) for one in self._allowed.values()}

    def run(self) -> Any:
        obj = super().run()
        if self._unfinished:
            raise BrokenPickleError("an object has no state")
        return obj

    def find_global(self, module: str, name: str) -> Any:
        # Names of Python 2. torch.save writes them, since it uses protocol 2.
        module, name = _compat_pickle.NAME_MAPPING.get(
            (module, name), (_compat_pickle.IMPORT_MAPPING.get(module, module), name)
        )
        plain = plain_type(module, name)
        if plain is not None:
            return plain
        full_name = f"{module}.{name}"
        if module in _BLOCKED_MODULES:
            raise pickle.UnpicklingError(f"{full_name} is in a module that is never allowed")
        try:
            return self._allowed[full_name]
        except KeyError:
            raise pickle.UnpicklingError(
                f"weights_only does not allow {full_name}, unless "
                f"torch.serialization.add_safe_globals([{full_name}]) admits it"
            ) from None

    def persistent(self, saved_id: Any) -> Any:
        return self._storage_of(saved_id)

    def call(self, function: Any, args: Any) -> Any:
        if isinstance(function, PlainType):
            return self._made_plain(function, args)
        self._require_allowed(function, "call")
        self._hashing.charge(args)
        if function is bytearray and not (args and isinstance(args[0], bytes | bytearray | str)):
            self._require_none(args)  # not room for any number of bytes
        made = _run(function, *_arguments(args))
        _note_sparse(function, made)
        return made

    def new(self, cls: Any, args: Any, kwargs: Any) -> Any:
        if isinstance(cls, PlainType):
            return self._made_plain(cls, args)
        self._require_allowed(cls, "create")
        if kwargs:
            raise pickle.UnpicklingError("weights_only does not allow keyword arguments")
        self._hashing.charge(args)
        if cls is torch.nn.Parameter:
            return _run(torch.nn.Parameter, *_arguments(args))
        made = _run(lambda: cls.__new__(cls, *_arguments(args)))
        _note_sparse(cls, made)
        return made

    def instance(self, cls: Any, args: list[Any]) -> Any:
        raise pickle.UnpicklingError("weights_only does not allow instances of protocol 0")

    def build(self, obj: Any, state: Any) -> Any:
        if isinstance(obj, Unfinished):
            self._unfinished -= 1
            return _run(obj.build, state)
        if type(obj) is torch.Tensor:  # before torch 0.2
            _run(lambda: obj.set_(*state))
        elif type(obj) is OrderedDict:
            _run(obj.__dict__.update, state)
        elif type(obj) is torch.nn.Parameter:
            _run(obj.__setstate__, state)
        else:
            self._require_allowed(type(obj), "set the state of")
            if hasattr(obj, "__setstate__"):
                _run(obj.__setstate__, state)
            else:
                _run(_set_attributes, obj, state)
        return obj

    def append(self, target: Any, values: list[Any]) -> None:
        if type(target) is not list:
            raise pickle.UnpicklingError(f"weights_only does not append to a {_type(target)}")
        target.extend(values)

    def set_items(self, target: Any, flat: list[Any]) -> None:
        if type(target) not in _DICTS:
            raise pickle.UnpicklingError(f"weights_only does not set items of a {_type(target)}")
        self._hashing.charge_keys(flat)
        for key, value in zip(flat[::2], flat[1::2], strict=True):
            try:
                target[key] = value
            except TypeError as error:
                raise BrokenPickleError(f"a key of a dict is not valid: {error}") from error

    def add(self, target: Any, values: list[Any]) -> None:
        if type(target) is not set:
            raise pickle.UnpicklingError(f"weights_only does not add to a {_type(target)}")
        self._hashing.charge(values)
        _run(target.update, values)

    def made(self, nbytes: int) -> None:
        """Sets no limit: the user wants the whole object."""

    def new_dict(self) -> Any:
        return {}

    def new_set(self) -> Any:
        return set()

    def frozen_set(self, values: list[Any]) -> Any:
        self._hashing.charge(values)
        return _run(frozenset, values)

    def remembered(self, obj: Any) -> Any:
        is_finished = isinstance(obj, Unfinished) and obj.result is not None
        return obj.result if is_finished else obj

    def _made_plain(self, plain: PlainType, args: Any) -> Any:
        made = _run(plain.make, *_arguments(args))
        if isinstance(made, Unfinished):
            self._unfinished += 1
        return made

    def _require_allowed(self, one: Any, what: str) -> None:
        if id(one) not in self._callable:
            name = getattr(one, "__qualname__", None) or _type(one)
            raise pickle.UnpicklingError(f"weights_only does not {what} {name}")

    def _require_none(self, args: Any) -> None:
        if args:
            raise pickle.UnpicklingError("weights_only does not allow a bytearray of any size")


def _type(obj: Any) -> str:
    return type(obj).__name__


def _arguments(args: Any) -> tuple[Any, ...]:
    if not isinstance(args, tuple):
        raise BrokenPickleError("the arguments of a call are not a tuple")
    return args


def _run(function: Callable[..., Any], *args: Any) -> Any:
    """Calls what is not pyckpt's own with values of the pickle.

    Raises:
        BrokenPickleError: It failed, so no pickler wrote these values.
    """
    try:
        return function(*args)
    except (MemoryError, pickle.UnpicklingError):
        raise
    except Exception as error:
        raise BrokenPickleError(f"{type(error).__name__}: {error}") from error


def _set_attributes(obj: Any, state: Any) -> None:
    """Sets attributes as pickle does for a class without ``__setstate__``."""
    slots = None
    if isinstance(state, tuple) and len(state) == len(("attributes", "slots")):
        state, slots = state
    if state:
        obj.__dict__.update(state)
    for name, value in (slots or {}).items():
        setattr(obj, name, value)


def _note_sparse(maker: Any, made: Any) -> None:
    """Lets torch validate the indices of old sparse tensors after the load."""
    if "sparse" in getattr(maker, "__module__", "") and maker in torch._tensor_classes:
        _sparse_tensors_to_validate.append(made)
