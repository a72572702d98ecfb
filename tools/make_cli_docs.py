"""Write the pages of ``--help`` into ``docs/cli.md``; a test fails when they differ.

Run it as ``make docs`` after a change to a command or an option.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click

from featpipe.commands import cli

PAGE = Path(__file__).resolve().parent.parent / "docs" / "cli.md"
_WIDTH = 100


def page() -> str:
    """Return what ``docs/cli.md`` should hold."""
    return "\n".join(_lines())


def _lines() -> Iterator[str]:
    yield "# The command line"
    yield ""
    yield "Made by `make docs` from the commands themselves; change the help there, not here."
    # A width of its own: the page does not depend on the terminal that it is made in.
    top = click.Context(
        cli,
        info_name="featpipe",
        **{**cli.context_settings, "terminal_width": _WIDTH, "max_content_width": _WIDTH},
    )
    yield from _section(top)
    for name in cli.list_commands(top):
        command = cli.get_command(top, name)
        assert command is not None
        yield from _section(click.Context(command, parent=top, info_name=name))


def _section(context: click.Context) -> Iterator[str]:
    text = context.get_help()
    yield from (
        "",
        f"## {context.command_path}",
        "",
        "```",
        *(line.rstrip() for line in text.splitlines()),
        "```",
    )


def main() -> None:
    """Write the page."""
    PAGE.write_text(page() + "\n", encoding="utf-8")
    print(f"→ {PAGE.name}")


if __name__ == "__main__":
    main()
