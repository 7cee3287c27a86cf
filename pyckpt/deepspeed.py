"""DeepSpeed: its checkpoint, with every state streamed into this rank's archive.

DeepSpeed hands each state dict to ``engine.checkpoint_engine.save(state_dict, path)``. For the
length of one save that engine is ours, which adds the state as a member ``deepspeed/<file>``. What
DeepSpeed writes on its own (the script that merges ZeRO states, tensors offloaded to NVMe) goes to
a temporary folder and is added as files.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from deepspeed.runtime.checkpoint_engine.checkpoint_engine import CheckpointEngine

from pyckpt.archive import ArchiveWriter

__all__ = ["TAG", "collect_engine_states"]

TAG = "deepspeed"
"""The tag that the checkpoint is saved under, as Composer names it."""


@contextmanager
def collect_engine_states(engine: Any, writer: ArchiveWriter) -> Iterator[None]:
    """Adds all that this rank saves of ``engine`` to ``writer``; call it on every rank.

    The files that were added exist until the context is left, so write the archive inside it.

    Raises:
        Exception: What went wrong with a state, once DeepSpeed has come through its barriers: a
            rank that left early would leave the others waiting.
    """
    with tempfile.TemporaryDirectory(prefix="pyckpt-") as name:
        folder = Path(name)
        (folder / TAG).mkdir()
        replaced = engine.checkpoint_engine
        collector = _CollectingEngine(replaced, folder, writer)
        engine.checkpoint_engine = collector
        try:
            engine.save_checkpoint(str(folder), tag=TAG)
        finally:
            engine.checkpoint_engine = replaced
        collector.raise_error()
        for path in sorted(folder.rglob("*")):
            member = path.relative_to(folder).as_posix()
            if path.is_dir():  # even when empty: loading from NVMe looks for one
                writer.add_directory(member)
            else:
                writer.add_file(member, path)
        yield


class _CollectingEngine(CheckpointEngine):  # type: ignore[misc]
    """A CheckpointEngine whose files are members of an archive."""

    def __init__(self, replaced: Any, folder: Path, writer: ArchiveWriter) -> None:
        super().__init__(None)
        self.name = "pyckpt"
        self._replaced = replaced
        self._folder = folder
        self._writer = writer
        self._error: BaseException | None = None

    def create(self, info: Any) -> None:
        """Nothing is to be prepared. A tag up to DeepSpeed 0.18.3, then a CheckpointCommitInfo."""

    def save(self, state_dict: Any, path: str) -> None:
        """Adds a member; keeps the first error, since raising here would hang the other ranks."""
        if self._error is not None:
            return
        try:
            name = Path(path).relative_to(self._folder).as_posix()
            # ZeRO's states are views of flat buffers that hold much else.
            self._writer.add_object(name, state_dict, compact_views=True)
        except BaseException as error:
            self._error = error

    def load(self, path: str, map_location: Any = None) -> Any:
        """As the engine that was there before."""
        return self._replaced.load(path, map_location=map_location)

    def commit(self, info: Any) -> bool:
        """The archive is committed later, when all ranks have written theirs."""
        return True

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        """Makes a folder for what DeepSpeed writes on its own."""
        Path(path).mkdir(parents=True, exist_ok=exist_ok)

    def preserves_storage_sharing(self) -> bool:
        """No: so DeepSpeed need not clone the views that it saves."""
        return False

    def raise_error(self) -> None:
        """Raises what ``save`` kept."""
        if self._error is not None:
            raise self._error
