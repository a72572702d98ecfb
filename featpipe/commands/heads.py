"""``featpipe fit`` and ``featpipe evaluate``: vectors to a classifier, and how good it is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from featpipe._files import printable, slug
from featpipe.commands._common import debug_option, print_json, progress_display, say

if TYPE_CHECKING:
    from featpipe.heads import Head
    from featpipe.store import EmbeddingStore

_HELP = {"help_option_names": ["-h", "--help"]}
_HEADS = ("logreg", "svm", "svm-rbf", "knn", "ridge", "lda", "centroid")


@click.command(context_settings=_HELP)
@click.argument("store", required=False, type=click.Path(path_type=Path))
@click.option(
    "--head",
    "name",
    type=click.Choice(_HEADS),
    default="logreg",
    show_default=True,
    help="What learns on the vectors.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Where the head goes. [default: heads/<store>-<head>/]",
)
@click.option("--target", metavar="COLUMN", help="Label column, where there are several.")
@click.option("--cv", type=click.IntRange(2, 100), default=5, show_default=True, help="Folds.")
@click.option("--no-tune", is_flag=True, help="Take the head's default parameters.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of all chance.")
@click.option(
    "--stream/--no-stream",
    default=None,
    help="Read the vectors from the store in each pass, or hold them in memory (logreg, svm). "
    "[default: as memory allows]",
)
@click.option(
    "--calibration",
    type=click.Choice(("auto", "temperature", "sigmoid", "isotonic", "none")),
    default="auto",
    show_default=True,
    help="How scores become probabilities; auto compares the first three on held-out scores.",
)
@click.option(
    "--check/--no-check",
    default=True,
    help="Look for copies among the images, and for differences between the splits. "
    "[default: check]",
)
@click.option("--json", "as_json", is_flag=True, help="Print what was measured as JSON.")
@debug_option
def fit(
    store: Path | None,
    name: str,
    output: Path | None,
    target: str | None,
    cv: int,
    no_tune: bool,
    seed: int,
    stream: bool | None,
    calibration: str,
    check: bool,
    as_json: bool,
) -> None:
    """Learn a classifier on the vectors in STORE, measure and save it.

    Without STORE, the newest under embeddings/. Parameters are tuned by cross-validation on
    the training split; the test split (or val) is measured once, at the end; without one,
    nested cross-validation gives the estimate.
    """
    from featpipe.heads import check_head_folder
    from featpipe.store import EmbeddingStore, newest_store
    from featpipe.training import fit as fit_head

    if store is None:
        opened = newest_store()
        say(f"using the newest store: {opened.path}")
    else:
        opened = EmbeddingStore.open(store)
    path = output if output is not None else default_head(opened, name)
    check_head_folder(path)
    with progress_display("fits") as progress:
        head = fit_head(
            opened,
            name,
            target=target,
            cv=cv,
            tune=not no_tune,
            seed=seed,
            stream=stream,
            calibration=calibration,
            check=check,
            progress=progress,
        )
    head.save(path)
    for note in head.report["notes"]:
        say(f"Note: {note}.")
    if as_json:
        print_json(fit_json(head, path))
    else:
        click.echo(fit_text(head))
    say(f"saved → {path}")


def default_head(store: EmbeddingStore, name: str) -> Path:
    """Return ``heads/<store>-<head>``."""
    return Path("heads") / f"{slug(store.path.resolve().name, 'store')}-{name}"


def fit_json(head: Head, path: Path) -> dict[str, Any]:
    """Return what ``featpipe fit --json`` prints."""
    return {
        "head": str(path),
        "kind": head.name,
        "backbone": head.backbone["name"],
        "fingerprint": head.fingerprint,
        "classes": list(head.classes),
        "parameters": dict(head.parameters),
        **head.report,
        "data": _without_keys(head.report["data"]),
    }


def _without_keys(data: dict[str, Any]) -> dict[str, Any]:
    """Leave out what only `evaluate` has a use for: a line for every image."""
    return {name: value for name, value in data.items() if name != "keys"}


def fit_text(head: Head) -> str:
    """Return what ``featpipe fit`` prints: what was fitted, then the estimate."""
    from featpipe.evaluation import metrics_table

    chosen = ", ".join(f"{key} = {value:g}" for key, value in head.parameters.items())
    estimate = head.report["estimate"]
    what = f"{head.name} on {printable(str(head.backbone['name']))}: {len(head.classes)} classes"
    lines = [
        ", ".join(filter(None, (what, f"{sum(head.class_counts)} training images", chosen))),
        _probabilities(head),
        f"estimate: {estimate['method']}",
        "",
        metrics_table(estimate),
    ]
    without = estimate.get("without_training_images")
    if without:
        count = estimate["n_samples"] - without["n_samples"]
        lines += [
            "",
            f"without the {count} that are copies of training images: {_accuracy(without)}",
        ]
    without = estimate.get("without_copies")
    if without:
        count = estimate["n_samples"] - without["n_samples"]
        lines += ["", f"without the {count} that are copies of others: {_accuracy(without)}"]
    return "\n".join(lines)


def _probabilities(head: Head) -> str:
    """Say how scores become probabilities, and what that does to the calibration error."""
    found = head.report["calibration"]
    before, after = (100 * found[when]["calibration_error"] for when in ("before", "after"))
    if found["method"] == "none":
        return f"probabilities: not calibrated (calibration error {before:.1f} %, out of fold)"
    of = len(found["log_loss"])
    what = (
        f"temperature {head.temperature:.3g}"
        if found["method"] == "temperature"
        else (found["method"])
    )
    return (
        f"probabilities: {what}{f' of {of} methods' if of > 1 else ''} (calibration error "
        f"{before:.1f} % before, {after:.1f} % after, out of fold)"
    )


def _accuracy(metrics: dict[str, Any]) -> str:
    low, high = (100 * v for v in metrics["intervals_95"]["accuracy"])
    return f"accuracy {100 * metrics['accuracy']:.1f} %, {low:.1f} to {high:.1f} %"


@click.command(context_settings=_HELP)
@click.argument("head", type=click.Path(path_type=Path))
@click.argument("store", type=click.Path(path_type=Path))
@click.option(
    "--split",
    type=click.Choice(["train", "val", "test", "all"]),
    help="What to measure on. [default: test, else val, else all]",
)
@click.option("--target", metavar="COLUMN", help="Label column. [default: that of the head]")
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
@click.option(
    "--plot",
    type=click.Path(path_type=Path),
    metavar="FILE.png",
    help="Draw confusion matrix and reliability (needs the extra 'report').",
)
@debug_option
def evaluate(
    head: Path,
    store: Path,
    split: str | None,
    target: str | None,
    as_json: bool,
    plot: Path | None,
) -> None:
    """Measure HEAD on the labelled images of STORE, with 95 % intervals."""
    from featpipe.evaluation import PLOT_FORMATS
    from featpipe.evaluation import evaluate as measure

    if plot is not None and plot.suffix.lower() not in PLOT_FORMATS:
        raise click.BadParameter(
            f"cannot draw {plot}: give a name that ends in {', '.join(PLOT_FORMATS)}",
            param_hint="--plot",
        )
    evaluation = measure(head, store, split=split, target=target)
    for note in evaluation.notes:
        say(f"Note: {note}.")
    if as_json:
        print_json(evaluation.to_json())
    else:
        click.echo(evaluation.table())
    if plot is not None:
        say(f"picture → {evaluation.plot(plot)}")
