"""``docs/cli.md`` is what ``--help`` says, and the command line starts in every way."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

import featpipe
from featpipe.commands import _COMMANDS

REPOSITORY = Path(__file__).parent.parent
TOOL = REPOSITORY / "tools" / "make_cli_docs.py"


def test_page_is_up_to_date() -> None:
    """The page equals the help of the commands; `make docs` writes it anew."""
    page = runpy.run_path(str(TOOL))["page"]()
    assert (REPOSITORY / "docs" / "cli.md").read_text(encoding="utf-8") == page + "\n"


def test_page_has_every_command() -> None:
    """Each command has a section with its usage."""
    text = (REPOSITORY / "docs" / "cli.md").read_text(encoding="utf-8")
    for name in _COMMANDS:
        assert f"\n## featpipe {name}\n\n```\nUsage: featpipe {name} " in text


def test_page_does_not_depend_on_the_terminal(tmp_path: Path) -> None:
    """A narrow terminal gives the same page."""
    code = f"import runpy; print(runpy.run_path({str(TOOL)!r})['page']())"
    root = Path(featpipe.__file__).parent.parent
    narrow = {**os.environ, "COLUMNS": "40", "PYTHONPATH": str(root), "PYTHONUTF8": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, encoding="utf-8", check=True, env=narrow
    )
    assert done.stdout == (REPOSITORY / "docs" / "cli.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("way", [["cli.py"], ["-m", "featpipe"]])
def test_ways_to_start(way: list[str]) -> None:
    """``python cli.py`` and ``python -m featpipe`` are the command line."""
    done = subprocess.run(
        [sys.executable, *way, "--version"],
        capture_output=True,
        text=True,
        check=True,
        cwd=REPOSITORY,
    )
    assert done.stdout == f"featpipe {featpipe.__version__}\n"
