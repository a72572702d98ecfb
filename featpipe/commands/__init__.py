"""The command line: parse, call one function of the library, print.

Commands are listed here by name and imported when asked for, so that ``featpipe --help``
costs no more than click itself.
"""

from __future__ import annotations

import io
import logging
import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import NoReturn

import click

from featpipe import __version__
from featpipe._files import DISK_ERRORS, write_error
from featpipe.commands._common import say
from featpipe.errors import EXIT_INTERRUPTED, EXIT_PIPE, FeatpipeError, WriteError

_COMMANDS = {
    "demo": ("featpipe.commands.demo:demo", "See it work on a small set that comes along."),
    "embed": ("featpipe.commands.embed:embed", "Turn images into vectors, once."),
    "fit": ("featpipe.commands.heads:fit", "Learn a classifier on the vectors."),
    "evaluate": ("featpipe.commands.heads:evaluate", "Measure a classifier on labelled vectors."),
    "report": ("featpipe.commands.report:report", "Write a page on a classifier and its images."),
    "probe": ("featpipe.commands.probe:probe", "Measure vectors by a protocol of the literature."),
    "clean": ("featpipe.commands.clean:clean", "Find copies, wrong labels and poor images."),
    "score": ("featpipe.commands.score:score", "Classify new images."),
    "bundle": ("featpipe.commands.bundle:bundle", "Write a classifier as one ONNX file."),
    "drift": ("featpipe.commands.drift:drift", "Say whether new images are still like training."),
    "explain": ("featpipe.commands.explain:explain", "Show where a classifier finds what it says."),
    "models": ("featpipe.commands.models:models", "List backbones, or show one's card."),
    "export": ("featpipe.commands.models:export", "Make a backbone of a torch network."),
    "import": ("featpipe.commands.importing:import_", "Make a backbone of a foreign ONNX file."),
    "quantize": ("featpipe.commands.quantize:quantize", "Make a backbone smaller: int8 or fp16."),
    "doctor": ("featpipe.commands.doctor:doctor", "Say what this machine has, and what is amiss."),
    "info": ("featpipe.commands.stores:info", "Describe a store; --verify checks every byte."),
    "merge": ("featpipe.commands.stores:merge", "Join stores of one backbone into a new one."),
    "gc": ("featpipe.commands.stores:gc", "Drop vectors that no image refers to any more."),
    "to-parquet": ("featpipe.commands.stores:to_parquet", "Write vectors and labels as one table."),
}
# Loggers whose lines a person should see: what takes long, and what is left out.
_SPOKEN = ("featpipe.export", "featpipe.backbones", "featpipe.training")


class _LazyGroup(click.Group):
    """A group that imports a command when it is called, not when it is listed."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in _COMMANDS:
            return None
        module, _, attribute = _COMMANDS[cmd_name][0].partition(":")
        command = getattr(import_module(module), attribute)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl([(name, help_) for name, (_, help_) in _COMMANDS.items()])


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, message="featpipe %(version)s")
def cli() -> None:
    """From a folder of photographs to a classifier you can believe.

    \b
    featpipe embed data/     turn the images into vectors, once
    featpipe fit             learn a classifier on them and measure it
    featpipe score new/      classify new images

    Every command tells its options with --help; --debug shows the traceback of an error.
    """


def main(args: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit with a documented code.

    Any `FeatpipeError` becomes one line on stderr; ``--debug`` lets the traceback through.
    """
    arguments = list(sys.argv[1:] if args is None else args)
    debug = "--debug" in arguments
    _prepare()
    try:
        sys.exit(_run([argument for argument in arguments if argument != "--debug"]))
    except FeatpipeError as exc:
        if debug:
            raise
        say(f"Error: {exc}")
        sys.exit(exc.exit_code)
    except (KeyboardInterrupt, click.Abort):
        if debug:
            raise
        say("Interrupted. What was finished is kept; the same command goes on from there.")
        sys.exit(EXIT_INTERRUPTED)
    except Exception as exc:
        if debug:
            raise
        if isinstance(exc, OSError) and exc.errno in DISK_ERRORS:
            say(f"Error: {write_error(Path(exc.filename or 'standard output'), exc)}")
            sys.exit(WriteError.exit_code)
        say(
            f"Error: this is a bug in featpipe ({type(exc).__name__}: {exc}). "
            "Run the command again with --debug and report what it prints."
        )
        sys.exit(1)


class _Spoken(logging.Handler):
    """Says what a part of the library tells while it works, a line each, on stderr."""

    def emit(self, record: logging.LogRecord) -> None:
        say(f"{record.getMessage()}.")


def _prepare() -> None:
    """Make output and warnings fit for a person."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A pipe may know fewer characters than a table's rules and arrows need.
            stream.reconfigure(errors="backslashreplace")
    for name in _SPOKEN:
        logger = logging.getLogger(name)
        if not any(isinstance(handler, _Spoken) for handler in logger.handlers):
            logger.addHandler(_Spoken())
        logger.setLevel(logging.INFO)
    # Pillow warns of what featpipe decides by itself (sizes) or what concerns nobody (EXIF).
    warnings.filterwarnings("ignore", module=r"PIL(\.|$)")


def _run(arguments: list[str]) -> int:
    try:
        result = cli.main(arguments, prog_name="featpipe", standalone_mode=False)
    except click.ClickException as exc:
        exc.show()
        return exc.exit_code
    except SystemExit:
        # click leaves this way, and this way only, when whoever read our output has gone.
        return EXIT_PIPE
    return result if isinstance(result, int) else 0
