"""What users of Composer rely on, with the real Trainer: the same cases for every release.

The folder of each release collects them, in an environment of its own.
"""

from __future__ import annotations

import contextlib
import inspect
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integrations import composer_training as training
from tests.integrations.composer_modules import composer

# isort: split

import torch
from composer import Callback
from composer.callbacks import CheckpointSaver
from composer.loggers import LoggerDestination
from composer.utils import checkpoint

import pyckpt
import pyckpt.integrations.composer as integration
from pyckpt.staging.latch import Latch
from pyckpt.training import background
from tests.documents import ROOT, run_page
from tests.launch import private_mounts, run_ranks
from tests.stops import preloaded

WORKERS = Path(__file__).parent / "composer_workers"
IS_NEW = hasattr(checkpoint, "get_save_filename")  # else 0.14
COMPRESSED = [".pt.gz", ".pt.bz2", ".pt.xz", ".pt.zst", ".pt.lzma"] if IS_NEW else []
SUFFIXES = [".pt", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.lzma", *COMPRESSED]
MODES = {"stock": None, "blocking": False, "asynchronous": True}

# Composer warns of much, also at its import, that is not ours.
pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.timeout(900)]
each_mode = pytest.mark.parametrize("mode", [False, True], ids=["blocking", "asynchronous"])


def written_by(mode: bool | None, **options: Any) -> contextlib.AbstractContextManager[None]:
    """Who writes: Composer itself (None), or pyckpt. Tests need not wait for the disk."""
    if mode is None:
        return contextlib.nullcontext()
    return integration.installed(mode, **{"fsync": False, **options})


@pytest.fixture(scope="module")
def losses() -> dict[int, float]:
    """Those of a training with Composer alone that never stops."""
    return training.train(None)


@pytest.fixture(autouse=True)
def _nothing_stays_installed() -> Iterator[None]:
    yield
    assert integration._installation is None


def contents(path: Path | str) -> Any:
    """What is in a checkpoint, unpacked by Composer's own code."""
    with tempfile.TemporaryDirectory() as folder:
        file, _, _ = checkpoint.download_checkpoint(str(path), folder, None, False)
        return torch.load(file, weights_only=False)


def differences(one: Any, other: Any, at: str = "") -> list[str]:
    """Where two trees differ."""
    if type(one) is not type(other):
        return [at]
    if isinstance(one, dict):
        if list(one) != list(other):
            return [f"{at}: keys"]
        return [x for key in one for x in differences(one[key], other[key], f"{at}/{key}")]
    if isinstance(one, list | tuple):
        if len(one) != len(other):
            return [f"{at}: length"]
        pairs = enumerate(zip(one, other, strict=True))
        return [x for number, pair in pairs for x in differences(*pair, f"{at}/{number}")]
    if isinstance(one, torch.Tensor):
        return [] if torch.equal(one, other) and one.dtype == other.dtype else [at]
    same = (one == other).all() if hasattr(one, "all") else one == other
    return [] if same else [at]


# Training


@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_resumed_training_is_one_that_never_stopped(
    tmp_path: Path, losses: dict[int, float], mode: bool | None, suffix: str
) -> None:
    # zstd refuses to read links, so Composer cannot resume from its own link to such a file.
    last = {"load_path": str(tmp_path / f"ep1-ba6-rank0{suffix}")}
    with written_by(mode):
        before = training.train(tmp_path, suffix, batches=6)
        how = last if suffix.endswith(".zst") else {"autoresume": True}
        after = training.train(tmp_path, suffix, **how)
    assert list(after) == list(range(7, training.BATCHES + 1))
    assert {**before, **after} == losses
    if mode is not None:
        [newest] = [name for name in os.listdir(tmp_path) if name == f"ep2-ba12-rank0{suffix}"]
        pyckpt.verify(tmp_path / newest).raise_if_damaged()


@each_mode
def test_composer_resumes_what_pyckpt_wrote(
    tmp_path: Path, losses: dict[int, float], mode: bool
) -> None:
    with written_by(mode):
        training.train(tmp_path, ".tar.gz", batches=6)
    after = training.train(tmp_path, ".tar.gz", autoresume=True)
    assert after == {batch: loss for batch, loss in losses.items() if batch > 6}


@each_mode
def test_pyckpt_goes_on_where_composer_stopped(
    tmp_path: Path, losses: dict[int, float], mode: bool
) -> None:
    training.train(tmp_path, ".tar.gz", batches=6)
    with written_by(mode):
        after = training.train(tmp_path, ".tar.gz", autoresume=True)
    assert after == {batch: loss for batch, loss in losses.items() if batch > 6}


# Files, links, rotation, uploads


@each_mode
def test_rotation_and_link_are_composers(tmp_path: Path, mode: bool) -> None:
    left = []
    for who in (None, mode):
        folder = tmp_path / str(who)
        with written_by(who):
            training.train(folder)
        left.append((sorted(os.listdir(folder)), os.readlink(folder / "latest-rank0.pt")))
    assert left[0] == left[1]
    names = ["ep2-ba10-rank0.pt", "ep2-ba12-rank0.pt", "latest-rank0.pt"]
    assert left[0] == (names, "ep2-ba12-rank0.pt")


class Watch(Callback):
    """Looks at the folder before each batch, when everything about the one before is done.

    Args:
        at: What to do then, by the number of batches that are done.
    """

    def __init__(self, folder: Path, at: dict[int, Callable[[], object]]) -> None:
        self.folder = folder
        self.at = at
        self.seen: dict[int, list[str]] = {}

    def batch_start(self, state: Any, logger: Any) -> None:
        batch = int(state.timestamp.batch)
        for path in self.folder.glob("ep*"):
            pyckpt.verify(path).raise_if_damaged()
        self.seen[batch] = sorted(
            f"{path.name} -> {os.readlink(path)}" if path.is_symlink() else path.name
            for path in self.folder.iterdir()
        )
        self.at.get(batch, lambda: None)()


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Gate:
    return Gate(monkeypatch)


class Gate:
    """Holds all asynchronous saves up that begin once it is closed, as if one before took long."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._monkeypatch = monkeypatch
        self._latch = Latch()

    def close(self) -> None:
        self._monkeypatch.setattr(background, "_last_work", self._latch)

    def open(self) -> None:
        self._latch.set()

    def open_soon(self) -> None:
        threading.Timer(0.3, self.open).start()


def test_training_goes_on_while_a_file_is_written(tmp_path: Path, gate: Gate) -> None:
    watch = Watch(tmp_path, {3: gate.close, 7: gate.open})
    with written_by(True, stage="copy"):
        training.train(
            tmp_path, callbacks=[watch], save_interval="4ba", save_num_checkpoints_to_keep=1
        )
    assert watch.seen[3] == []
    for batch in (4, 5, 6, 7):
        assert watch.seen[batch] == [".latest-rank0.pt.next -> ep0-ba4-rank0.pt"]
    assert sorted(os.listdir(tmp_path)) == ["ep2-ba12-rank0.pt", "latest-rank0.pt"]
    assert os.readlink(tmp_path / "latest-rank0.pt") == "ep2-ba12-rank0.pt"


def test_rotation_waits_for_the_new_file(tmp_path: Path, gate: Gate) -> None:
    watch = Watch(tmp_path, {3: gate.close, 5: gate.open})
    with written_by(True):
        training.train(tmp_path, callbacks=[watch], batches=6, save_num_checkpoints_to_keep=1)
    assert watch.seen[5] == [
        ".latest-rank0.pt.next -> ep0-ba4-rank0.pt",
        "ep0-ba2-rank0.pt",
        "latest-rank0.pt -> ep0-ba2-rank0.pt",
    ]
    assert sorted(os.listdir(tmp_path)) == ["ep1-ba6-rank0.pt", "latest-rank0.pt"]


class Uploads(LoggerDestination):
    """What is uploaded, and what it holds at that time."""

    def __init__(self) -> None:
        self.uploaded: list[tuple[str, Any]] = []

    def can_upload_files(self) -> bool:
        return True

    def upload_file(
        self, state: Any, remote_file_name: str, file_path: Path, *, overwrite: bool
    ) -> None:
        path = Path(file_path)
        is_link = remote_file_name.endswith(".symlink")
        batch = "" if is_link else pyckpt.load(path)["state"]["timestamp"]["Timestamp"]["batch"]
        self.uploaded.append((remote_file_name, path.read_text() if is_link else str(batch)))


def test_uploads_are_composers(tmp_path: Path) -> None:
    uploaded = []
    for name, mode in MODES.items():
        uploads = Uploads()
        saver = CheckpointSaver(
            str(tmp_path / name),
            filename="ba{batch}.pt",
            remote_file_name="far/ba{batch}.pt",
            latest_filename="latest.pt",
            latest_remote_file_name="far/latest.pt",
            save_interval="4ba",
            num_checkpoints_to_keep=0,
        )
        with written_by(mode):
            training.train(None, callbacks=[saver], loggers=[uploads])
        assert not list((tmp_path / name).glob("ba*"))
        uploaded.append(uploads.uploaded)
    assert uploaded[0] == uploaded[1] == uploaded[2]
    assert [name for name, _ in uploaded[0]] == [
        f"far/{name}" for batch in (4, 8, 12) for name in (f"ba{batch}.pt", "latest.pt.symlink")
    ]


# Contents


@pytest.fixture
def trained() -> Iterator[Any]:
    trainer = training.make_trainer(None, batches=2)
    trainer.fit()
    yield trainer
    trainer.close()


def without_embeddings(tree: dict[str, Any]) -> None:
    tree["state"]["model"].popitem()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"weights_only": True},
        *([{"ignore_keys": ["state/optimizers/*", "rng"]}] if IS_NEW else []),
        *([{"ignore_keys": without_embeddings, "weights_only": True}] if IS_NEW else []),
        *([{"ignore_keys": ["state*"]}] if IS_NEW else []),
    ],
    ids=" ".join,  # of the names: a function has another address in each process
)
@pytest.mark.parametrize("suffix", [".pt", ".tar.gz", *COMPRESSED[:1]])
def test_contents_and_return_value_are_composers(
    tmp_path: Path, trained: Any, options: dict[str, Any], suffix: str
) -> None:
    name = f"{{run_name}}/ep{{epoch}}-ba{{batch}}-rank{{rank}}{suffix}"
    with written_by(False):
        ours = checkpoint.save_checkpoint(trained.state, str(tmp_path / "ours" / name), **options)
    theirs = checkpoint.save_checkpoint(trained.state, str(tmp_path / "theirs" / name), **options)
    assert ours == theirs.replace("/theirs/", "/ours/")
    assert differences(contents(ours), contents(theirs)) == []


def test_the_trainers_own_call_saves_before_it_returns(tmp_path: Path, trained: Any) -> None:
    with written_by(True):
        path = trained.save_checkpoint(str(tmp_path / "ba{batch}.tar"))
        assert path == str(tmp_path / "ba2.tar")
        pyckpt.verify(path).raise_if_damaged()
        other = composer.utils.save_checkpoint(trained.state, str(tmp_path / "b.tar"))
    assert differences(contents(path), contents(other)) == []


# Names


@pytest.mark.parametrize(
    "suffix",
    [".tar.zst", ".pth.gz", ".TAR.GZ", *([] if IS_NEW else [".pt.gz", ".tar.xz", ".tar.bzip2"])],
)
def test_names_that_composer_would_not_read_are_refused(
    tmp_path: Path, trained: Any, suffix: str
) -> None:
    with written_by(False), pytest.raises(pyckpt.FilenameError, match=re.escape(suffix)):
        checkpoint.save_checkpoint(trained.state, str(tmp_path / f"a{suffix}"))
    assert os.listdir(tmp_path) == []


def test_braces_in_values_are_no_variables(tmp_path: Path, trained: Any) -> None:
    with written_by(False):
        path = checkpoint.save_checkpoint(trained.state, str(tmp_path / "{{x}}-{batch}.pt"))
    assert path == str(tmp_path / "{x}-2.pt")
    assert os.path.exists(path)


# Failures


@each_mode
def test_a_failed_save_ends_the_training(tmp_path: Path, mode: bool) -> None:
    in_the_way = tmp_path / "ep0-ba4-rank0.pt" / "x"
    watch = Watch(tmp_path, {3: lambda: in_the_way.mkdir(parents=True)})
    watch.folder = tmp_path / "none"  # looks at nothing
    watch.folder.mkdir()
    with written_by(mode), pytest.raises(pyckpt.CheckpointError, match="ep0-ba4-rank0"):
        training.train(tmp_path, callbacks=[watch])
    watch.folder.rmdir()
    assert os.readlink(tmp_path / "latest-rank0.pt") == "ep0-ba2-rank0.pt"
    assert sorted(os.listdir(tmp_path)) == [
        "ep0-ba2-rank0.pt",
        "ep0-ba4-rank0.pt",
        "latest-rank0.pt",
    ]


def test_a_failed_training_ends_its_save(
    tmp_path: Path, losses: dict[int, float], gate: Gate
) -> None:
    def fail() -> None:
        gate.open_soon()
        raise RuntimeError("the training fails")

    watch = Watch(tmp_path, {3: gate.close, 5: fail})
    with written_by(True):
        with pytest.raises(RuntimeError, match="the training fails"):
            training.train(tmp_path, callbacks=[watch])
        # 0.14 saves once more when it is closed.
        last = "ep0-ba4-rank0.pt" if IS_NEW else "ep1-ba5-rank0.pt"
        assert os.readlink(tmp_path / "latest-rank0.pt") == last
        after = training.train(tmp_path, autoresume=True)
    assert after == {batch: loss for batch, loss in losses.items() if batch in after}


def test_uninstalling_ends_the_save(tmp_path: Path, gate: Gate) -> None:
    def leave() -> None:
        gate.open_soon()
        integration.uninstall()
        assert os.readlink(tmp_path / "latest-rank0.pt") == "ep0-ba4-rank0.pt"

    integration.install(asynchronous=True)
    watch = Watch(tmp_path, {3: gate.close, 5: leave})
    training.train(tmp_path, callbacks=[watch])
    assert os.readlink(tmp_path / "latest-rank0.pt") == "ep2-ba12-rank0.pt"


def run_worker(name: str, *arguments: object, mounts: str = "", **environment: str) -> Any:
    """What a worker prints as its last line, as JSON."""
    command = [sys.executable, str(WORKERS / name), *map(str, arguments)]
    if mounts:
        command = [*private_mounts(f'{mounts}; exec "$@"'), "sh", *command]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=850,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_a_full_disk(tmp_path: Path, losses: dict[int, float]) -> None:
    mounts = f"mount -t tmpfs -o size=200k none {tmp_path}"  # three checkpoints
    for found in run_worker("full_disk_worker.py", tmp_path, mounts=mounts):
        assert "No space left" in found["error"]
        assert found["left"] == [*found["complete"], "latest-rank0.pt"]
        assert found["latest"] == found["complete"][-1]
        assert found["resumed"] == found["expected"]


@each_mode
def test_killed_at_every_write_it_resumes(
    tmp_path: Path, losses: dict[int, float], mode: bool
) -> None:
    (tmp_path / "fast").mkdir()
    mounts = f"mount -t tmpfs none {tmp_path}/fast"
    folder = tmp_path / "fast" / "run"
    found = run_worker("kills_worker.py", folder, mode, mounts=mounts, **preloaded(tmp_path))
    assert [one["killed"] for one in found] == [True] * (len(found) - 1) + [False]
    for number, one in enumerate(found):
        assert one["damaged"] == [], number
        resumed = {int(batch): loss for batch, loss in one["losses"].items()}
        assert resumed == {batch: losses[batch] for batch in range(min(resumed), 8)}, number
        one["from"] = min(resumed) - 1
    # The checkpoint of batch 4 was there, and that of batch 6 comes: all at once.
    assert {one["from"] for one in found} == {4, 6}
    assert [one["from"] for one in found] == sorted(one["from"] for one in found)


# Ranks


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What two ranks report."""
    folder = tmp_path_factory.mktemp("ranks")
    run_ranks(str(WORKERS / "ranks_worker.py"), folder, timeout=150)
    return [json.loads((folder / f"report-{rank}.json").read_text()) for rank in (0, 1)]


@pytest.mark.parametrize("way", ["blocking", "asynchronous"])
def test_ranks_resume(ranks: list[dict[str, Any]], way: str) -> None:
    for rank, report in enumerate(ranks):
        assert report[way] == report["stock"], rank
    assert ranks[0][way]["losses"] != ranks[1][way]["losses"]


@pytest.mark.parametrize("way", ["blocking", "asynchronous"])
def test_all_ranks_raise_what_the_first_one_raises(ranks: list[dict[str, Any]], way: str) -> None:
    errors = [report[f"{way}, failed"] for report in ranks]
    assert errors[0] == errors[1]
    assert "on rank 0" in errors[0]["error"]
    assert "ep0-ba4-rank0.pt" in errors[0]["error"]
    assert errors[0]["latest"] == "ep0-ba2-rank0.pt"


# Switching on and off


def replaced() -> list[Any]:
    names = ("_save_checkpoint", "run_event", "close")
    found = [checkpoint.save_checkpoint, composer.utils.save_checkpoint]
    found += [vars(CheckpointSaver).get(name) for name in names]
    if IS_NEW:
        from composer.checkpoint import save

        found.append(save._write_checkpoint_file)
    return found


def test_uninstall_restores_everything() -> None:
    before = replaced()
    integration.install()
    assert all(now is not own for now, own in zip(replaced(), before, strict=True))
    assert inspect.signature(checkpoint.save_checkpoint) == inspect.signature(before[0])
    integration.install(asynchronous=True)
    with integration.installed(compression_level=1):
        assert not integration._installation.options.asynchronous
    assert integration._installation.options.asynchronous
    integration.uninstall()
    assert replaced() == before
    integration.uninstall()
    assert replaced() == before


def test_the_level_is_passed_on(tmp_path: Path, trained: Any) -> None:
    sizes = []
    for level in (0, 9):
        with integration.installed(compression_level=level):
            path = checkpoint.save_checkpoint(trained.state, str(tmp_path / "a.tar.gz"))
        sizes.append(os.path.getsize(path))
    assert sizes[0] > sizes[1]


@pytest.mark.parametrize(
    "options", [{"asynchronous": 1}, {"stage": "x"}, {"nice": 20}, {"num_threads": 0}, {"fsync": 2}]
)
def test_wrong_options(options: dict[str, Any]) -> None:
    before = replaced()
    with pytest.raises(pyckpt.OptionError):
        integration.install(**options)
    assert replaced() == before


def test_an_unknown_release_is_used_with_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(composer, "__version__", "99.0")
    with pytest.warns(UserWarning, match=r"tried with Composer 0.14.1 and 0.32.1, .* 99.0"):
        integration.install()
    integration.uninstall()


def test_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    run_page(ROOT / "docs" / "composer.md", tmp_path)
