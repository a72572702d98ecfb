"""The examples in docstrings do what they say."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest

import featpipe

ROOT = Path(featpipe.__file__).parent
# `__main__` runs the command line when it is imported.
MODULES = sorted(
    ".".join(path.relative_to(ROOT.parent).with_suffix("").parts).removesuffix(".__init__")
    for path in ROOT.rglob("*.py")
    if path.name != "__main__.py"
)
NEEDS_TORCH = "featpipe.backbones.export"


@pytest.mark.parametrize("name", MODULES)
def test_examples_of(name: str) -> None:
    """Every example in the module's docstrings prints what stands below it."""
    if name.startswith(NEEDS_TORCH):
        pytest.importorskip("torch", reason="needs the `export` extra: torch is not installed")
    result = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert result.failed == 0


def test_the_modules_are_found() -> None:
    """The list above is not empty by mistake: it has packages, modules and commands."""
    assert {"featpipe", "featpipe._files", "featpipe.commands.embed"} <= set(MODULES)
