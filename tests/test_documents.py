"""The documents name every suffix, and the files that they name exist."""

import re
from pathlib import Path

import pytest

from pyckpt import _core

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("name", ["README.md", "docs/format.md"])
@pytest.mark.parametrize("row", _core.formats(), ids=lambda row: row.name)
def test_every_suffix_is_named(name: str, row: _core.Format) -> None:
    text = (ROOT / name).read_text()
    missing = [suffix for suffix in row.suffixes if f"`{suffix}`" not in text]
    assert not missing


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


# Future files: CONTRIBUTING says where they will be.
TO_BE_MADE = {
    "csrc/codec/NAME/encoder.h",
    "csrc/codec/NAME/decoder.h",
    "tests/codec/test_NAME.py",
    "pyckpt/integrations/",
}
