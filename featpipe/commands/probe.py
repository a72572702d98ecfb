"""``featpipe probe``: vectors measured by a protocol of the literature, or from a few images."""

from __future__ import annotations

from pathlib import Path

import click

from featpipe.commands._common import STORE, debug_option, print_json, progress_display, say

_HELP = {"help_option_names": ["-h", "--help"]}
_HEADS = ("logreg", "svm", "svm-rbf", "knn", "ridge", "lda", "centroid")
_PROTOCOLS = ("kornblith", "dinov2-knn", "dinov2-logreg", "vtab1k")


def _numbers(
    _context: click.Context, _option: click.Parameter, value: str | None
) -> tuple[int, ...] | None:
    if value is None:
        return None
    try:
        numbers = tuple(int(part) for part in value.split(","))
    except ValueError:
        numbers = ()
    if not numbers or min(numbers) < 1:
        raise click.BadParameter(
            f"{value!r} is no list of numbers of images a class, such as 1,2,5,10"
        )
    return numbers


@click.command(context_settings=_HELP)
@click.argument("store", required=False, type=STORE)
@click.option("--protocol", type=click.Choice(_PROTOCOLS), help="What measures the vectors.")
@click.option(
    "--shots",
    callback=_numbers,
    metavar="K,K,K",
    help="A few-shot curve in place of a protocol: images of every class to learn on, such as "
    "1,2,5,10.",
)
@click.option("--repeats", type=click.IntRange(1), help="Draws a number of shots. [default: 5]")
@click.option(
    "--head", type=click.Choice(_HEADS), help="What learns on the shots. [default: logreg]"
)
@click.option("--target", metavar="COLUMN", help="Label column, where there are several.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of all chance.")
@click.option("--json", "as_json", is_flag=True, help="Print what was measured as JSON.")
@debug_option
def probe(
    store: Path | str | None,
    protocol: str | None,
    shots: tuple[int, ...] | None,
    repeats: int | None,
    head: str | None,
    target: str | None,
    seed: int,
    as_json: bool,
) -> None:
    """Measure the vectors in STORE by a protocol of the literature; save no head.

    Without STORE, the newest under embeddings/. What a protocol chooses, it chooses on the split
    val, or on a part of the training images; the split test is measured once. Without a split
    test, val is measured, and chooses nothing.

    \b
    kornblith      logistic regression, 45 penalties (Kornblith et al. 2019)
    dinov2-knn     weighted vote of 10, 20, 100, 200 neighbours (Oquab et al. 2023)
    dinov2-logreg  logistic regression, 45 values of C (Oquab et al. 2023)
    vtab1k         1,000 training images, 200 of them to choose on (Zhai et al. 2019)
    """
    if (protocol is None) == (shots is None):
        raise click.UsageError(
            "give --protocol NAME, or --shots 1,2,5,10 for a few-shot curve; not both"
        )
    if shots is None and (repeats is not None or head is not None):
        raise click.UsageError("--head and --repeats belong to --shots: a protocol has its own")
    from featpipe.evaluation import FewShotCurve, Probe, few_shot_curve
    from featpipe.evaluation import probe as measure
    from featpipe.store import EmbeddingStore, newest_store

    if store is None:
        opened = newest_store()
        say(f"using the newest store: {opened.path}")
    else:
        opened = EmbeddingStore.open(store)
    found: Probe | FewShotCurve
    with progress_display("fits") as progress:
        if protocol is not None:
            found = measure(opened, protocol, target=target, seed=seed, progress=progress)
        else:
            found = few_shot_curve(
                opened,
                head or "logreg",
                shots=shots or (),
                repeats=repeats or 5,
                target=target,
                seed=seed,
                progress=progress,
            )
    for note in found.notes:
        say(f"Note: {note}.")
    if as_json:
        print_json(found.to_json())
    else:
        click.echo(found.table())
