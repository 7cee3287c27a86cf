"""The documents name every suffix, the files that they name exist, and their code runs."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from pyckpt import _core
from pyckpt.archive.formats import file_suffixes
from tests.documents import WORKER, frameworks, run_page
from tests.workers.document_worker import Block, blocks_of

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("name", ["README.md", "docs/format.md"])
@pytest.mark.parametrize("row", _core.formats(), ids=lambda row: row.name)
def test_every_suffix_is_named(name: str, row: _core.Format) -> None:
    text = (ROOT / name).read_text()
    missing = [suffix for suffix in row.suffixes if f"`{suffix}`" not in text]
    assert not missing


@pytest.mark.parametrize("name", ["README.md", "docs/format.md"])
@pytest.mark.parametrize("suffix", file_suffixes())
def test_every_ending_of_other_files_is_named(name: str, suffix: str) -> None:
    assert f"| `{suffix}` |" in (ROOT / name).read_text()


@pytest.mark.parametrize(
    ("compression", "levels"),
    {row.compression: row.levels for row in (*_core.formats(), *_core.file_formats())}.items(),
)
def test_levels_are_named(compression: str, levels: _core.Levels | None) -> None:
    if levels is not None:
        row = f"| {compression} | {levels.lowest} to {levels.highest} | {levels.standard} |"
        assert row in (ROOT / "docs" / "format.md").read_text()


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_to_files(document: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", document.read_text())
    gone = [x for x in links if "://" not in x and not (document.parent / x).exists()]
    assert not gone


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_files_of_the_project_are_there(document: Path) -> None:
    text = document.read_text()
    paths = re.findall(r"`((?:csrc|pyckpt|tests|docs|benchmarks|scripts|fuzz)/[\w./*-]*)`", text)
    gone = [path for path in paths if not list(ROOT.glob(path.rstrip("/")))]
    assert not [path for path in gone if path not in TO_BE_MADE]


@pytest.mark.parametrize(
    "document",
    [
        path
        for path in DOCUMENTS
        if path.stem not in frameworks() and any(not block.not_run for block in blocks_of(path))
    ],
    ids=lambda path: path.name,
)
@pytest.mark.timeout(120)
def test_code_runs(document: Path, tmp_path: Path) -> None:
    run_page(document, tmp_path)


def test_the_blocks_that_are_not_run() -> None:
    """They are few, because each can be wrong unseen."""
    left_out = {
        (path.name, block.code.split()[0])
        for path in DOCUMENTS
        for block in blocks_of(path)
        if block.not_run
    }
    assert left_out == {
        ("README.md", "apt-get"),
        ("README.md", "make"),
        ("CONTRIBUTING.md", "make"),
        ("stores.md", "pyckpt"),  # they need a store
        ("stores.md", "pyckpt.save(state,"),
    }


def test_targets_of_make_exist() -> None:
    """They are not run, so at least their names are checked."""
    makefile = (ROOT / "Makefile").read_text()
    for document in DOCUMENTS:
        for target in re.findall(r"(?:`|^)make ([a-z-]+)", document.read_text(), re.MULTILINE):
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def written(tmp_path: Path, page: str) -> list[Block]:
    (tmp_path / "page.md").write_text(page)
    return list(blocks_of(tmp_path / "page.md"))


def test_comments_before_blocks(tmp_path: Path) -> None:
    page = "a\n<!-- first:\nx = 1\n-->\n```python\nx\n```\n- b\n\n  ```sh\n  ls\n    -l\n  ```\n"
    page += "<!-- not run: why -->\n```sh\nmake\n```\n<!-- c -->\n\n```cpp\nint x;\n```\n"
    assert written(tmp_path, page) == [
        Block("python", "x\n", 6, "", "x = 1"),
        Block("sh", "ls\n  -l\n", 11, "", ""),
        Block("sh", "make\n", 16, "why", ""),
    ]


@pytest.mark.parametrize(
    ("page", "message"),
    [
        ("```python\n1 / 0\n```\n", "ZeroDivisionError"),
        ("```python\nimport warnings; warnings.warn('w')\n```\n", "UserWarning: w"),
        ("```sh\nfalse\ntrue\n```\n", "returned non-zero"),
        ("```python\n1 / 0\n# KeyError: 1\n```\n", "ZeroDivisionError"),
        ("```python\n1\n# KeyError: 1 ...\n```\n", "has not ended with KeyError"),
    ],
)
def test_blocks_that_fail_are_found(tmp_path: Path, page: str, message: str) -> None:
    (tmp_path / "page.md").write_text(page)
    command = [sys.executable, str(WORKER), str(tmp_path / "page.md")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert message in done.stderr
    assert "page.md:" in done.stderr


# Future files: CONTRIBUTING says where they will be.
TO_BE_MADE = {
    "csrc/codec/NAME/encoder.h",
    "csrc/codec/NAME/decoder.h",
    "tests/codec/test_NAME.py",
    "pyckpt/integrations/",
}
