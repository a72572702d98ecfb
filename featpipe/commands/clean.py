"""``featpipe clean``: what may be amiss with a set of images."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from featpipe._files import atomic_file, guard_cell, printable
from featpipe.commands._common import STORE, debug_option, print_json, progress_display, say

if TYPE_CHECKING:
    from featpipe.quality import Cleaning
    from featpipe.quality.cleaning import Kind
    from featpipe.store import EmbeddingStore

_HELP = {"help_option_names": ["-h", "--help"]}
_HEADS = ("logreg", "svm", "svm-rbf", "knn", "ridge", "lda", "centroid")
_SHOWN = 10
_KINDS = (
    "unreadable",
    "duplicate",
    "near-duplicate",
    "two-labels",
    "wrong-label",
    "unlike-others",
    "blank",
    "dark",
    "blurred",
    "odd-size",
)


@click.command(context_settings=_HELP)
@click.argument("store", required=False, type=STORE)
@click.option(
    "--head",
    type=click.Choice(_HEADS),
    default="ridge",
    show_default=True,
    help="What judges the labels.",
)
@click.option("--target", metavar="COLUMN", help="Label column, where there are several.")
@click.option("--all", "show_all", is_flag=True, help=f"List all images, not {_SHOWN} of a kind.")
@click.option("--json", "as_json", is_flag=True, help="Print what was found as JSON.")
@click.option("--csv", "as_csv", is_flag=True, help="Print what was found as CSV.")
@click.option(
    "--sheet",
    type=click.Path(path_type=Path),
    metavar="FILE.png",
    help="Draw what was found as a contact sheet, 24 pictures of a kind at most.",
)
@click.option(
    "--move-to",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Move images below DIR, with a list (moved.csv) by which it can be undone.",
)
@click.option(
    "--rm-list",
    metavar="FILE",
    help="Write the paths of images, one a line and quoted for a shell; '-' is stdout.",
)
@click.option("-0", "--null", is_flag=True, help="End the paths of --rm-list by NUL: xargs -0.")
@click.option(
    "--kind",
    "kinds",
    multiple=True,
    type=click.Choice(_KINDS),
    help="What --move-to and --rm-list take; several times for several. [default: unreadable, "
    "duplicate, near-duplicate]",
)
@click.option(
    "--move-back",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Undo --move-to DIR, by the list in DIR; no STORE is needed.",
)
@click.option(
    "--dry-run", is_flag=True, help="Say what --move-to or --move-back would move; move nothing."
)
@debug_option
@click.pass_context
def clean(
    context: click.Context,
    store: Path | str | None,
    head: str,
    target: str | None,
    show_all: bool,
    as_json: bool,
    as_csv: bool,
    sheet: Path | None,
    move_to: Path | None,
    rm_list: str | None,
    null: bool,
    kinds: tuple[Kind, ...],
    move_back: Path | None,
    dry_run: bool,
) -> None:
    """Find copies, wrong labels and poor images in STORE.

    Without STORE, the newest under embeddings/. What is found is for a person to look at: an
    image that is unlike all others may be the most valuable one. No image is changed; with
    --move-to images are moved: a copy goes only if an image stays that it is a copy of.
    """
    if move_back is not None:
        _require_alone(context)
        _move_back(move_back, dry_run)
        return
    _require_sense(as_json, as_csv, move_to, rm_list, null, kinds, dry_run)
    from featpipe.quality import TAKEN
    from featpipe.quality import clean as look
    from featpipe.quality.sheet import require_png

    if sheet is not None:
        require_png(sheet)
    opened = _opened(store)
    with progress_display("images") as progress:
        found = look(opened, head=head, target=target, progress=progress)
    for note in found.notes:
        say(f"Note: {note}.")
    if as_json:
        print_json(found.to_json())
    elif as_csv:
        _print_csv(found)
    elif rm_list != "-":
        click.echo("\n".join(_table(found, None if show_all else _SHOWN)))
    if sheet is not None:
        _draw(found, opened, sheet)
    if move_to is not None:
        _move(found, opened, move_to, kinds or TAKEN, dry_run)
    if rm_list is not None:
        _list(found, opened, rm_list, kinds or TAKEN, null)


def _opened(store: Path | str | None) -> EmbeddingStore:
    from featpipe.store import EmbeddingStore, newest_store

    if store is not None:
        return EmbeddingStore.open(store)
    newest = newest_store()
    say(f"using the newest store: {newest.path}")
    return newest


def _require_sense(
    as_json: bool,
    as_csv: bool,
    move_to: Path | None,
    rm_list: str | None,
    null: bool,
    kinds: Sequence[Kind],
    dry_run: bool,
) -> None:
    taken = [move_to is not None, rm_list is not None]
    for is_wrong, sentence in (
        (as_json and as_csv, "give --json or --csv, not both"),
        (all(taken), "give --move-to or --rm-list, not both"),
        (
            rm_list == "-" and (as_json or as_csv),
            "one thing alone can go to stdout: give --rm-list a file",
        ),
        (
            kinds and not any(taken),
            "--kind says what --move-to or --rm-list takes: give one of them, too",
        ),
        (
            dry_run and not taken[0],
            "--dry-run says what --move-to or --move-back would do: give one of them, too",
        ),
        (null and not taken[1], "--null says how --rm-list writes: give it, too"),
    ):
        if is_wrong:
            raise click.UsageError(sentence)


def _require_alone(context: click.Context) -> None:
    given = {
        name
        for name in context.params
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE
    }
    if given - {"move_back", "dry_run"}:
        raise click.UsageError("--move-back needs no STORE and no other option but --dry-run")


def _draw(found: Cleaning, store: EmbeddingStore, sheet: Path) -> None:
    from featpipe.quality import draw_sheet

    with progress_display("images") as progress:
        draw_sheet(found, store, sheet, progress=progress)
    say(f"contact sheet → {sheet}")


def _move(
    found: Cleaning, store: EmbeddingStore, folder: Path, kinds: Sequence[Kind], dry_run: bool
) -> None:
    """Move images; say what was moved, what was not and why, and what to do next."""
    from featpipe.quality import move

    with progress_display("images") as progress:
        moved = move(found, store, folder, kinds, dry_run=dry_run, progress=progress)
    if dry_run:
        for one in moved.moves:
            say(f"would move {one.path} ({one.kind}) → {one.target}")
        say(f"{len(moved.moves):,} images would move to {moved.directory}")
    elif moved.moves:
        say(f"moved {len(moved.moves):,} images to {moved.directory}")
    else:
        say("nothing was moved")
    _say_splits(moved.splits)
    for reason, count in moved.left.items():
        say(f"{count:,} stay where they are: they {reason}")
    if moved.moves and not dry_run:
        say(f"{moved.directory / 'moved.csv'} lists them; run `featpipe embed` again")


def _move_back(folder: Path, dry_run: bool) -> None:
    from featpipe.quality import move_back

    with progress_display("images") as progress:
        found = move_back(folder, dry_run=dry_run, progress=progress)
    if not found.moves:
        say("nothing would move back" if dry_run else "nothing was moved back")
    elif dry_run:
        for one in found.moves:
            say(f"would move {one.path} back to {one.source}")
        say(f"{len(found.moves):,} images would move back to {found.root}")
    else:
        say(f"moved {len(found.moves):,} images back to {found.root}")
    for reason, count in found.left.items():
        say(f"{count:,} of the list are not moved back: they {reason}")
    if found.moves and not dry_run:
        say("run `featpipe embed` again")


def _say_splits(counts: Mapping[str | None, int]) -> None:
    if counts:
        parts = (f"{count:,} in {name or 'no split'}" for name, count in counts.items())
        say(f"by split: {', '.join(parts)}")


def _list(
    found: Cleaning, store: EmbeddingStore, where: str, kinds: Sequence[Kind], null: bool
) -> None:
    """Write the paths of images, and say how many, and which are not listed."""
    from featpipe.quality import choose, removal_list

    with progress_display("images") as progress:
        choice = choose(found, store, kinds, progress=progress)
    listed = removal_list(choice, null=null)
    if where == "-":
        sys.stdout.buffer.write(listed)
    else:
        with atomic_file(Path(where)) as file:
            file.write(listed)
    say(f"{len(choice.problems):,} images listed" + ("" if where == "-" else f" → {where}"))
    _say_splits(choice.by_split(problem.path for problem in choice.problems))
    for reason, count in choice.left.items():
        say(f"{count:,} are not listed: they {reason}")


def _print_csv(found: Cleaning) -> None:
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(["kind", "path", "label", "other", "value", "detail"])
    for problem in found.problems:
        cells = problem.to_json().values()
        writer.writerow(["" if cell is None else guard_cell(str(cell)) for cell in cells])


def _table(found: Cleaning, most: int | None) -> Iterator[str]:
    """Yield a headline for each kind of problem, and the images below it."""
    from featpipe.quality.cleaning import COPIES, MEANING

    yield f"{found.images:,} images in {printable(found.store)}"
    yield f"copies: {found.threshold}"
    for kind, meaning in MEANING.items():
        problems = found.of(kind)
        if not problems:
            continue
        yield ""
        yield f"{kind}: {len(problems):,} {meaning}"
        for problem in problems[:most]:
            label = "" if problem.label is None else f" ({printable(problem.label)})"
            beside = f" = {printable(problem.other)}" if kind in COPIES and problem.other else ""
            yield f"    {printable(problem.path)}{label}{beside}: {printable(problem.detail)}"
        if most is not None and len(problems) > most:
            yield f"    … and {len(problems) - most:,} more: --all, --csv or --json lists them"
    if not found.problems:
        yield "nothing was found amiss"
