"""The licences of the libraries that a wheel carries are in it."""

from __future__ import annotations

from importlib.metadata import distribution
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# The libraries that CMakeLists.txt links into the core, and a phrase of each one's licence.
LIBRARIES = {
    "libdeflate": "Permission is hereby granted, free of charge",
    "pybind11": "Redistribution and use in source and binary forms",
    "xz": "Permission to use, copy, modify, and/or distribute",
    "zlib": "This software is provided 'as-is'",
    "zstd": "Redistribution and use in source and binary forms",
}


@pytest.mark.parametrize("library", LIBRARIES)
def test_the_licence_is_installed(library: str) -> None:
    text = (ROOT / "licenses" / f"{library}.txt").read_text()
    assert LIBRARIES[library] in text
    installed = distribution("pyckpt")
    assert f"licenses/{library}.txt" in installed.metadata.get_all("License-File", [])
    [found] = [
        file
        for file in installed.files or []
        if file.match(f"*.dist-info/licenses/*/{library}.txt")
    ]
    assert Path(str(installed.locate_file(found))).read_text() == text


def test_no_library_is_missing() -> None:
    cmake = (ROOT / "CMakeLists.txt").read_text()
    for name, library in {
        "zlib": "ZLIB",
        "xz": "LibLZMA",
        "libdeflate": "libdeflate",
        "zstd": "zstd.h",
        "pybind11": "pybind11",
    }.items():
        assert library.lower() in cmake.lower(), name
    assert {path.stem for path in (ROOT / "licenses").iterdir()} == set(LIBRARIES)
    expression = distribution("pyckpt").metadata["License-Expression"]
    assert expression == "Apache-2.0 AND BSD-3-Clause AND MIT AND Zlib AND 0BSD"
