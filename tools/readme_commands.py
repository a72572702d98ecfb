"""Print commands of the README, word for word: what CI runs is what a newcomer types.

``--setup`` prints the first command of the section "Set up", ``--test`` the second.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

README = Path(__file__).resolve().parent.parent / "README.md"


def shell_blocks(text: str) -> list[str]:
    """Return the contents of the fenced blocks marked ``sh``."""
    return re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def setup_commands() -> list[str]:
    """Return the commands of the section "Set up": install and demo, install and test."""
    _, _, section = README.read_text(encoding="utf-8").partition("\n## Set up\n")
    return shell_blocks(section)[0].splitlines()


if __name__ == "__main__":
    print(setup_commands()[("--setup", "--test").index(sys.argv[1])])
