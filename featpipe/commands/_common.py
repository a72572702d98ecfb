"""What every command shares: where its words go, how it shows progress, its common options."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from featpipe._files import printable
from featpipe.types import Progress, ProgressCallback, Shard

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

_F = TypeVar("_F", bound=Callable[..., Any])


class _StorePlace(click.Path):
    """A folder of this machine as a path; an address as the text that it is."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(
        self,
        value: str | os.PathLike[str],
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> Any:
        """Return a path, or an address."""
        from featpipe.storage import is_url

        if isinstance(value, str) and is_url(value):
            return value
        return super().convert(value, param, ctx)


STORE = _StorePlace()
"""Type of an argument that names a store, here or in a bucket."""


def say(message: str) -> None:
    """Tell the person at the keyboard one line, on stderr; control characters are escaped."""
    click.echo(printable(message), err=True)


def print_json(value: Any) -> None:
    """Write one JSON document to stdout, and nothing else ever."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=True, allow_nan=False))


def debug_option(command: _F) -> _F:
    """Document ``--debug``; `featpipe.commands.main` takes it out before click sees it."""
    return click.option(
        "--debug", is_flag=True, expose_value=False, help="Show the traceback of an error."
    )(command)


def _three_numbers(
    _context: click.Context, _option: click.Parameter, value: str | None
) -> tuple[float, float, float] | None:
    if value is None:
        return None
    try:
        numbers = [_number(part) for part in value.split(",")]
    except (ValueError, ZeroDivisionError):
        numbers = []
    if len(numbers) not in {1, 3}:
        raise click.BadParameter(
            f"{value!r} is not three numbers such as 0.485,0.456,0.406 or 127/255,127/255,"
            "127/255, and not one for all three"
        )
    red, green, blue = numbers if len(numbers) == 3 else numbers * 3
    return red, green, blue


def _number(text: str) -> float:
    numerator, _, denominator = text.partition("/")
    return float(numerator) / float(denominator or 1)


def probability(
    _context: click.Context, _option: click.Parameter, value: float | None
) -> float | None:
    """Refuse NaN, which lies in every range."""
    if value is not None and math.isnan(value):
        raise click.BadParameter("nan is no probability.")
    return value


def normalisation_options(default: str) -> Callable[[_F], _F]:
    """``--mean`` and ``--std``: three numbers each, or one; a number may be a fraction."""

    def decorate(command: _F) -> _F:
        for name, what in (("--std", "Deviation"), ("--mean", "Mean")):
            command = click.option(
                name,
                callback=_three_numbers,
                metavar="R,G,B",
                help=f"{what} of the pixels on the scale 0 to 1. {default}",
            )(command)
        return command

    return decorate


def check_page(path: Path | None, option: str) -> None:
    """Refuse a name of a report that is none of a page, before anything is measured."""
    if path is not None and path.suffix.lower() not in {".html", ".htm"}:
        raise click.BadParameter(
            f"cannot write a report to {printable(str(path))}: give a name that ends in .html",
            param_hint=option,
        )


def how_to_use(name: str, models_dir: Path | None) -> str:
    """Return the command that embeds with a backbone that has just been written."""
    where = "" if models_dir is None else f" --models-dir {printable(str(models_dir))}"
    return f"featpipe embed data/ --model {name}{where}"


def newest_head_said() -> Path:
    """Return the newest head, and say which one it is."""
    from featpipe.heads import newest_head

    head = newest_head()
    say(f"Head: {head}, the newest under heads/.")
    return head


def models_dir_option(command: _F) -> _F:
    """``--models-dir``: a folder of backbones that goes before all others."""
    return click.option(
        "--models-dir",
        type=click.Path(path_type=Path, file_okay=False),
        metavar="DIR",
        help="Folder of backbones, before those of FEATPIPE_MODELS and the user's own.",
    )(command)


def _shard(_context: click.Context, _option: click.Parameter, value: str | None) -> Shard | None:
    try:
        return None if value is None else Shard.parse(value)
    except ValueError as exc:
        raise click.BadParameter(printable(str(exc))) from exc


def shard_option(command: _F) -> _F:
    """``--shard``: one piece of a source, for job arrays."""
    return click.option(
        "--shard",
        callback=_shard,
        metavar="I/N",
        help="Take the I-th of N pieces of SOURCE alone, such as 2/4; each needs an output of its "
        "own.",
    )(command)


def device_options(command: _F) -> _F:
    """``--device``, ``--precision``, ``--batch-size``, ``--workers``."""
    for option in reversed(
        [
            click.option(
                "--device",
                default="auto",
                show_default=True,
                metavar="DEVICE",
                help="Where the backbone runs: auto, cpu, cuda, tensorrt (cuda:N, tensorrt:N for "
                "one of several GPUs), openvino or coreml. What is asked for is had, or the "
                "command fails.",
            ),
            click.option(
                "--precision",
                type=click.Choice(["auto", "fp32", "bf16", "fp16"]),
                default="auto",
                show_default=True,
                help="Arithmetic of the backbone; a lower one must give the same vectors.",
            ),
            click.option(
                "--batch-size", type=click.IntRange(1, 4096), help="Images a call of the backbone."
            ),
            click.option(
                "--workers", type=click.IntRange(1, 512), help="Threads. [default: one a core]"
            ),
        ]
    ):
        command = option(command)
    return command


def engine_options(command: _F) -> _F:
    """``--engine``, ``--address``."""
    command = click.option(
        "--address",
        metavar="auto|HOST:PORT",
        help="The Ray cluster to join. [default: one on this machine, for this run]",
    )(command)
    return click.option(
        "--engine",
        type=click.Choice(["local", "ray"]),
        default="local",
        show_default=True,
        help="Who embeds: threads of this process, or workers of a Ray cluster.",
    )(command)


def check_address(engine: str, address: str | None) -> None:
    """Refuse the address of a cluster that nobody would join."""
    if address is not None and engine != "ray":
        raise click.UsageError("--address is that of a Ray cluster: give --engine ray, too")


@contextmanager
def progress_display(
    unit: str = "images", *, quiet: bool = False
) -> Iterator[ProgressCallback | None]:
    """Draw progress, rate and time left on a terminal; draw nothing when stderr is piped."""
    if quiet or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        TextColumn,
        TimeRemainingColumn,
    )
    from rich.progress import Progress as RichProgress

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(compact=True),
    )
    with RichProgress(*columns, console=Console(stderr=True), transient=True) as bar:
        yield _Drawer(bar, unit)


class _Drawer:
    """Turn `Progress` records into a bar; one task a stage."""

    def __init__(self, bar: Bar, unit: str) -> None:
        self._bar, self._unit = bar, unit
        self._tasks: dict[str, Any] = {}
        self._started: dict[str, float] = {}

    def __call__(self, progress: Progress) -> None:
        stage = progress.stage
        if stage not in self._tasks:
            self._tasks[stage] = self._bar.add_task(stage, total=progress.total, rate="")
            self._started[stage] = time.monotonic()
        computed = progress.done - progress.reused
        seconds = time.monotonic() - self._started[stage]
        rate = f"{computed / seconds:,.0f} {self._unit}/s" if computed and seconds > 0.5 else ""
        if progress.note:
            rate = progress.note
        if progress.failed:
            rate += f"  {progress.failed} failed"
        self._bar.update(
            self._tasks[stage], completed=progress.done, total=progress.total, rate=rate
        )
