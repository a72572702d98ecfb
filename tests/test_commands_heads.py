"""``featpipe fit`` and ``featpipe evaluate``: what is printed where, and the exit codes."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from vectors import card, make_store, small

from featpipe.commands.heads import default_head
from featpipe.heads import load_head


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with one store: two surfaces, twelve photographs each, half of them test."""
    monkeypatch.chdir(tmp_path)
    X, labels = small(2, 12)
    make_store(tmp_path / "embeddings" / "surfaces-tiny", X, labels, splits=["train", "test"] * 12)
    return tmp_path


def test_fit_takes_the_newest_store_and_says_which(work: Path, run_cli) -> None:
    """The table on stdout, everything else on stderr; the head under heads/<store>-<head>/."""
    result = run_cli("fit", "--no-check", "--head", "centroid", "--cv", "2")
    assert result.code == 0
    assert result.err == (
        "using the newest store: embeddings/surfaces-tiny\nsaved → heads/surfaces-tiny-centroid\n"
    )
    lines = result.out.splitlines()
    head = load_head(work / "heads" / "surfaces-tiny-centroid")
    found = head.report["calibration"]
    before, after = (f"{100 * found[k]['calibration_error']:.1f}" for k in ("before", "after"))
    assert lines[:5] == [
        "centroid on tiny: 2 classes, 12 training images",
        f"probabilities: temperature {head.temperature:.3g} of 2 methods (calibration error "
        f"{before} % before, {after} % after, out of fold)",
        "estimate: the split test, not used before",
        "",
        "on 12 images".ljust(33) + "95 % interval",
    ]
    assert f"{100 * head.metrics['accuracy']:.1f} %" in lines[5]


@pytest.mark.parametrize(
    ("method", "said"),
    [
        ("temperature", "temperature {t:.3g} (calibration error {b} % before, {a} % after, out"),
        ("sigmoid", "sigmoid (calibration error {b} % before, {a} % after, out"),
        ("isotonic", "isotonic (calibration error {b} % before, {a} % after, out"),
        ("none", "not calibrated (calibration error {b} %, out"),
    ],
)
def test_calibration_is_as_asked_for(work: Path, run_cli, method: str, said: str) -> None:
    """One line says what was taken, and what it does; the head does it after it is read back."""
    result = run_cli(
        *("fit", "--no-check", "--head", "ridge", "--no-tune", "--cv", "3", "-o", "mine"),
        *("--calibration", method),
    )
    assert result.code == 0
    head = load_head(work / "mine")
    found = head.report["calibration"]
    before, after = (f"{100 * found[k]['calibration_error']:.1f}" for k in ("before", "after"))
    shown = said.format(t=head.temperature, b=before, a=after)
    assert result.out.splitlines()[1] == f"probabilities: {shown} of fold)"
    assert found["method"] == method
    assert list(found["log_loss"]) == [method]
    assert head.calibrator.method == ("temperature" if method == "none" else method)
    assert (method != "none") or head.temperature == 1.0


def test_the_newest_store_is_the_one_written_last(work: Path, run_cli) -> None:
    """By time, not by name."""
    X, labels = small(2, 12)
    make_store(work / "embeddings" / "another", X, labels)
    for number, name in enumerate(("another", "surfaces-tiny")):
        for file in ("store.json", "index.parquet"):
            os.utime(work / "embeddings" / name / file, ns=(number, number))
    result = run_cli("fit", "--no-check", "--head", "centroid", "--cv", "2")
    assert result.err.splitlines()[0] == "using the newest store: embeddings/surfaces-tiny"


def test_without_any_store_the_way_to_one_is_named(tmp_path: Path, monkeypatch, run_cli) -> None:
    """Exit code 7, one sentence."""
    monkeypatch.chdir(tmp_path)
    result = run_cli("fit")
    assert (result.code, result.out) == (7, "")
    assert result.err == (
        "Error: there is no store under embeddings/: make one with `featpipe embed SOURCE`, or "
        "name the store\n"
    )


def test_fit_prints_what_was_chosen(work: Path, run_cli) -> None:
    """Parameters stand in the first line; -o and --seed are honoured."""
    store = work / "embeddings" / "surfaces-tiny"
    result = run_cli(
        "fit", "--no-check", store, "--head", "ridge", "-o", "mine", "--cv", "2", "--seed", "3"
    )
    assert result.code == 0
    assert result.err == "saved → mine\n"
    head = load_head(work / "mine")
    alpha = head.parameters["alpha"]
    assert result.out.startswith(
        f"ridge on tiny: 2 classes, 12 training images, alpha = {alpha:g}\n"
    )
    assert head.report["seed"] == 3


def test_no_tune_takes_the_default(work: Path, run_cli) -> None:
    """--no-tune and --json together."""
    result = run_cli("fit", "--no-check", "--head", "knn", "--no-tune", "--cv", "2", "--json")
    value = json.loads(result.out)
    assert value["parameters"]["n_neighbors"] <= 10
    assert len(value["tuning"]) == 1


def test_json_is_one_document_on_stdout(work: Path, run_cli) -> None:
    """Nothing but JSON on stdout; it has the estimate, and where the head is."""
    result = run_cli("fit", "--no-check", "--head", "centroid", "--cv", "2", "--json")
    value = json.loads(result.out)
    assert list(value) == [
        "head",
        "kind",
        "backbone",
        "fingerprint",
        "classes",
        "parameters",
        "estimate",
        "baselines",
        "tuning",
        "calibration",
        "folds",
        "options",
        "seed",
        "target",
        "notes",
        "quality",
        "data",
    ]
    assert value["head"] == "heads/surfaces-tiny-centroid"
    assert value["kind"] == "centroid"
    assert value["estimate"]["n_samples"] == 12
    assert result.err.endswith("saved → heads/surfaces-tiny-centroid\n")


def test_notes_are_said_before_the_table_and_twins_after_it(work: Path, run_cli) -> None:
    """Fewer folds than asked for; test images that are training images, too."""
    X, labels = small(2, 12)
    contents = [0, 0, *range(2, 24)]
    store = make_store(
        work / "twins", X, labels, splits=["train", "test"] * 12, contents=contents
    ).path
    result = run_cli("fit", "--no-check", store, "--head", "centroid", "--cv", "9")
    assert result.code == 0
    assert result.err.splitlines() == [
        "Note: 6 folds instead of 9: the smallest class has no more distinct images or groups.",
        (
            "Note: 1 images of the split that is measured on are in the training split, too: the "
            "estimate without them stands beside it."
        ),
        "saved → heads/twins-centroid",
    ]
    assert result.out.splitlines()[-1].startswith(
        "without the 1 that are copies of training images: accuracy "
    )


@pytest.mark.parametrize(
    ("labels", "code", "message"),
    [
        (
            [None] * 6,
            4,
            (
                "{store} has no labels: put the images into class folders, or run `featpipe embed` "
                "again with --labels TABLE; no vector is computed twice"
            ),
        ),
        (
            ["ant"] * 6,
            4,
            (
                "all labelled images of {store} to learn on have the label ant: a classifier needs "
                "two classes at least"
            ),
        ),
        (
            ["ant"] * 5 + ["bee"],
            4,
            (
                "class bee has a single distinct image, and cross-validation needs two at least: "
                "add images, or leave the class out"
            ),
        ),
    ],
)
def test_labels_that_do_not_do_are_one_sentence_and_exit_code_4(
    work, run_cli, labels, code, message
):
    """No labels, one class, one image of a class; nothing is saved."""
    store = make_store(work / "s", np.eye(6), labels).path
    result = run_cli("fit", store)
    assert (result.code, result.out) == (code, "")
    assert result.err == f"Error: {message.format(store=store)}\n"
    assert not (work / "heads").exists()


def test_nan_in_a_store_is_exit_code_7(work: Path, run_cli) -> None:
    """The image is named."""
    X = np.eye(6)
    X[4, 4] = np.nan
    store = make_store(work / "s", X, ["ant", "bee"] * 3).path
    result = run_cli("fit", store)
    assert (result.code, result.out) == (7, "")
    assert result.err == (
        f"Error: the vector of 00004.jpg in {store} holds NaN or infinity (1 vectors do): embed "
        "again with --dtype float32 into a new store, or take the image out\n"
    )


@pytest.mark.parametrize("options", [["--head", "smv"], ["--cv", "1"], ["--seed", "-1"]])
def test_a_wrong_command_line_is_exit_code_2(work: Path, run_cli, options) -> None:
    """click says which option, and what it takes."""
    result = run_cli("fit", *options)
    assert (result.code, result.out) == (2, "")
    assert f"Invalid value for '{options[0]}'" in result.err


def test_the_heads_of_the_option_are_those_of_the_registry() -> None:
    """The command line lists them without importing scikit-learn: the lists must agree."""
    from featpipe.commands.heads import _HEADS
    from featpipe.heads import HEADS

    assert list(HEADS) == list(_HEADS)


@pytest.mark.parametrize(
    ("folder", "stem"), [("a b", "a_b"), ("naïve-é", "naïve-é"), ("...", "..."), ("[x]", "x")]
)
def test_the_default_name_is_fit_for_a_folder(tmp_path: Path, folder: str, stem: str) -> None:
    """Blanks and brackets become underscores."""
    store = make_store(tmp_path / folder, np.eye(2), ["a", "b"])
    assert default_head(store, "knn") == Path("heads") / f"{stem}-knn"


@pytest.fixture
def fitted(work: Path, run_cli) -> Path:
    assert run_cli("fit", "--no-check", "--head", "centroid", "--cv", "2").code == 0
    return work / "heads" / "surfaces-tiny-centroid"


def test_evaluate_prints_a_table(work: Path, fitted: Path, run_cli) -> None:
    """The figures of `fit`, once more; nothing on stderr."""
    result = run_cli("evaluate", fitted, "embeddings/surfaces-tiny", "--no-check")
    assert (result.code, result.err) == (0, "")
    assert result.out.startswith("on 12 images".ljust(33) + "95 % interval\naccuracy ")


def test_evaluate_prints_json_and_draws(work: Path, fitted: Path, run_cli) -> None:
    """--json, --split and --plot together: JSON on stdout, the rest on stderr."""
    result = run_cli(
        *("evaluate", fitted, "embeddings/surfaces-tiny"),
        *("--json", "--split", "train", "--plot", "p.png"),
    )
    assert result.code == 0
    assert json.loads(result.out)["split"] == "train"
    assert result.err.splitlines() == [
        (
            "Note: the head was fitted on these images: the figures are too good; its estimate for "
            "new ones is what `featpipe fit` printed."
        ),
        "picture → p.png",
    ]
    assert (work / "p.png").read_bytes().startswith(b"\x89PNG")


def test_evaluate_refuses_another_backbone_with_exit_code_5(work, fitted, run_cli) -> None:
    """Both are named."""
    X, labels = small(2, 3)
    store = make_store(work / "o", X, labels, backbone=card(1280, "resnet50", "f" * 16)).path
    result = run_cli("evaluate", fitted, store)
    assert (result.code, result.out) == (5, "")
    assert result.err == (
        f"Error: the head was fitted on tiny (0123456789ab), {store} holds vectors of resnet50 "
        "(ffffffffffff): use a store of the head's backbone, or fit a head on this one\n"
    )


def test_evaluate_refuses_what_is_no_head_with_exit_code_7(work: Path, run_cli) -> None:
    """A store in the place of the head, as hands will do it."""
    result = run_cli("evaluate", "embeddings/surfaces-tiny", "embeddings/surfaces-tiny")
    assert (result.code, result.out) == (7, "")
    assert result.err == (
        "Error: embeddings/surfaces-tiny is not a head of featpipe: it has no head.json; make one "
        "with: featpipe fit\n"
    )


def test_a_picture_of_another_kind_is_refused(work: Path, fitted: Path, run_cli) -> None:
    """A usage error before any work, with the names that will do."""
    result = run_cli("evaluate", fitted, "embeddings/surfaces-tiny", "--plot", "p.doc")
    assert result.code == 2
    assert result.err.endswith(
        "Invalid value for --plot: cannot draw p.doc: give a name that ends in .png, .pdf, .svg\n"
    )


def test_evaluate_compares_two_heads(work: Path, fitted: Path, run_cli) -> None:
    """A table and a sentence; the same as JSON; notes on stderr."""
    X, labels = small(2, 12)
    backbone = card(3, "small", "f" * 16)
    splits = ["train", "test"] * 12
    other = make_store(work / "o", X[:, :3], labels, splits=splits, backbone=backbone).path
    assert run_cli("fit", other, "--no-check", "--head", "lda", "-o", "second").code == 0
    both = ("evaluate", fitted, "embeddings/surfaces-tiny", "--against", "second")
    result = run_cli(*both, "--against-store", other)
    assert (result.code, result.err) == (0, "")
    lines = result.out.splitlines()
    width = len(str(fitted)) + 2
    assert lines[0] == "on 12 images".ljust(width) + "accuracy   95 % interval   right alone"
    assert lines[1].startswith(str(fitted))
    assert lines[2].startswith("second ")
    assert lines[3].startswith("difference, points ")
    assert lines[4].endswith("   (McNemar, exact)")
    result = run_cli(*both, "--against-store", other, "--split", "train", "--json")
    assert result.code == 0
    value = json.loads(result.out)
    assert value["second"]["head"] == "second"
    assert (value["n_samples"], value["better"]) == (12, None)
    assert value["sentence"] == (
        f"no verdict: {fitted} and second were fitted on all of these 12 images, or on copies of "
        "them, which flatters them: compare on images that are new to both"
    )
    too_good = (
        "the head was fitted on these images: the figures are too good; its estimate for new ones "
        "is what `featpipe fit` printed."
    )
    assert result.err == f"Note: {fitted}: {too_good}\nNote: second: {too_good}\n"
    result = run_cli(*both)
    assert result.code == 5
    assert result.err.startswith("Error: the head was fitted on small (ffffffffffff), ")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--against-store", "s"], "--against-store is for the head of --against: give that, too"),
        (
            ["--against", "h", "--plot", "p.png"],
            "--plot draws one head: leave it out, or --against",
        ),
    ],
)
def test_comparing_asks_for_what_it_needs(fitted: Path, run_cli, options, sentence) -> None:
    """Exit code 2, before anything is read."""
    result = run_cli("evaluate", fitted, "embeddings/surfaces-tiny", *options)
    assert result.code == 2
    assert result.err.splitlines()[-1] == f"Error: {sentence}"
