"""``featpipe fit`` and ``featpipe evaluate``: vectors to a classifier, and how good it is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from featpipe._files import printable, slug
from featpipe.commands._common import (
    STORE,
    check_page,
    debug_option,
    print_json,
    progress_display,
    say,
)

if TYPE_CHECKING:
    from featpipe.evaluation import HeadComparison
    from featpipe.heads import Head
    from featpipe.store import EmbeddingStore

_HELP = {"help_option_names": ["-h", "--help"]}
_HEADS = ("logreg", "svm", "svm-rbf", "knn", "ridge", "lda", "centroid")


@click.command(context_settings=_HELP)
@click.argument("store", required=False, type=STORE)
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
@click.option(
    "--baselines/--no-baselines",
    default=None,
    help="Measure the same head on raw pixels and on random weights, too. [default: as --check]",
)
@click.option(
    "--report",
    type=click.Path(path_type=Path),
    metavar="FILE.html",
    help="Write a page that shows the result, its mistakes and its images.",
)
@click.option("--json", "as_json", is_flag=True, help="Print what was measured as JSON.")
@debug_option
def fit(
    store: Path | str | None,
    name: str,
    output: Path | None,
    target: str | None,
    cv: int,
    no_tune: bool,
    seed: int,
    stream: bool | None,
    calibration: str,
    check: bool,
    baselines: bool | None,
    report: Path | None,
    as_json: bool,
) -> None:
    """Learn a classifier on the vectors in STORE, measure and save it.

    Without STORE, the newest under embeddings/. Parameters are tuned by cross-validation on
    the training split; the test split (or val) is measured once, at the end; without one,
    nested cross-validation gives the estimate.
    """
    from featpipe.heads import check_head_folder
    from featpipe.store import EmbeddingStore, newest_store
    from featpipe.training import FitOptions, train

    check_page(report, "--report")
    if store is None:
        opened = newest_store()
        say(f"using the newest store: {opened.path}")
    else:
        opened = EmbeddingStore.open(store)
    path = output if output is not None else default_head(opened, name)
    check_head_folder(path)
    options = FitOptions(target, cv, not no_tune, seed, stream, calibration, check, baselines)
    with progress_display("fits") as progress:
        trained = train(opened, name, options, progress=progress)
    head = trained.head
    head.save(path)
    for note in head.report["notes"]:
        say(f"Note: {note}.")
    if as_json:
        print_json(fit_json(head, path))
    else:
        click.echo(fit_text(head))
    say(f"saved → {path}")
    if report is not None:
        from featpipe.report import write_report

        with progress_display("steps") as progress:
            write_report(head, opened, report, trained=trained, head_path=path, progress=progress)
        say(f"report → {report}")


def default_head(store: EmbeddingStore, name: str) -> Path:
    """Return ``heads/<store>-<head>``."""
    return Path("heads") / f"{slug(store.name, 'store')}-{name}"


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
    from featpipe.evaluation import metrics_table, without_line

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
    for name, what in (
        ("without_training_images", "copies of training images"),
        ("without_copies", "copies of others"),
    ):
        without = estimate.get(name)
        if without:
            count = estimate["n_samples"] - without["n_samples"]
            lines += ["", without_line(count, what, without)]
    if head.report.get("baselines"):
        lines += ["", *_baselines(head.report["baselines"])]
    return "\n".join(lines)


def _baselines(found: dict[str, Any]) -> list[str]:
    """Lay out what the head reaches without transfer, on equal images."""
    learnt, measured = found["learnt_on"], found["measured_on"]
    lines = [f"without transfer, {learnt} images to learn on, {measured} to measure on"]
    for baseline in found["baselines"]:
        low, high = (100 * v for v in baseline["interval_95"])
        accuracy = f"{100 * baseline['accuracy']:.1f} %"
        lines.append(f"{baseline['name']:<22}{accuracy:>8}   {low:.1f} % to {high:.1f} %")
    return [*lines, *(printable(note) for note in found["notes"]), found["words"]]


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


@click.command(context_settings=_HELP)
@click.argument("head", type=click.Path(path_type=Path))
@click.argument("store", type=STORE)
@click.option(
    "--split",
    type=click.Choice(["train", "val", "test", "all"]),
    help="What to measure on. [default: test, else val, else all]",
)
@click.option("--target", metavar="COLUMN", help="Label column. [default: that of the head]")
@click.option(
    "--against",
    type=click.Path(path_type=Path),
    metavar="HEAD2",
    help="Compare with another head on the same images, instead.",
)
@click.option(
    "--against-store",
    type=STORE,
    metavar="STORE2",
    help="Vectors of the same images for HEAD2, where it is of another backbone.",
)
@click.option(
    "--check/--no-check",
    default=True,
    help="Look for copies of training images among those that are measured on. [default: check]",
)
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
    store: Path | str,
    split: str | None,
    target: str | None,
    against: Path | None,
    against_store: Path | str | None,
    check: bool,
    as_json: bool,
    plot: Path | None,
) -> None:
    """Measure HEAD on the labelled images of STORE, with 95 % intervals.

    With --against, say whether HEAD or HEAD2 is better: how far apart they are on the same
    images that neither has learnt on, and whether that may be chance.
    """
    from featpipe.evaluation import PLOT_FORMATS, compare
    from featpipe.evaluation import evaluate as measure

    if against is None and against_store is not None:
        raise click.UsageError("--against-store is for the head of --against: give that, too")
    if against is not None and plot is not None:
        raise click.UsageError("--plot draws one head: leave it out, or --against")
    if plot is not None and plot.suffix.lower() not in PLOT_FORMATS:
        raise click.BadParameter(
            f"cannot draw {plot}: give a name that ends in {', '.join(PLOT_FORMATS)}",
            param_hint="--plot",
        )
    with progress_display("images") as progress:
        evaluation = measure(
            head, store, split=split, target=target, check=check, progress=progress
        )
    if against is not None:
        # The split that was chosen for the first, whatever the other store has.
        same = evaluation.split or "all"
        other = measure(against, against_store or store, split=same, target=target, check=check)
        _print_comparison(compare(evaluation, other), as_json)
        return
    for note in evaluation.notes:
        say(f"Note: {note}.")
    if as_json:
        print_json(evaluation.to_json())
    else:
        click.echo(evaluation.table())
    if plot is not None:
        say(f"picture → {evaluation.plot(plot)}")


def _print_comparison(comparison: HeadComparison, as_json: bool) -> None:
    for note in comparison.notes:
        say(f"Note: {note}.")
    if as_json:
        print_json(comparison.to_json())
    else:
        click.echo(comparison.table())
