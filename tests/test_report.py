"""The page on a head: what it says, that it opens anywhere, and that it does what it offers."""

from __future__ import annotations

import base64
import io
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from importlib.resources import files
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import ask, needs_browser
from PIL import Image
from test_quality import re_encode
from vectors import hymenoptera_store, make_store

from featpipe import embed, evaluate, load_head
from featpipe.errors import FeatpipeError, FingerprintError, HeadError, LabelError
from featpipe.report import charts, write_report
from featpipe.report.contents import gather
from featpipe.report.map import embedding_map
from featpipe.report.maps import mistake_maps
from featpipe.report.pictures import COLUMNS, SPRITE, sprite_sheet
from featpipe.store import EmbeddingStore
from featpipe.training import FitOptions, fit, train

VOID = {"meta", "link", "img", "br", "input"}


class Page(HTMLParser):
    """Reads a page strictly: every tag is closed, in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, Any]]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in {"style", "script"}:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).replace("\N{NO-BREAK SPACE}", " ").split())

    def of(self, tag: str) -> list[dict[str, Any]]:
        return [attributes for name, attributes in self.tags if name == tag]


def read(path: Path) -> Page:
    return Page(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def hymenoptera(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a store, a head and its report on real photographs."""
    folder = tmp_path_factory.mktemp("hymenoptera")
    store = hymenoptera_store(shared, folder / "store")
    trained = train(store)
    trained.head.save(folder / "head")
    write_report(trained.head, store, folder / "report.html", trained=trained)
    return folder


@pytest.mark.slow
def test_the_page_says_what_fit_has_measured(hymenoptera: Path) -> None:
    """Figures, intervals, method and verdict stand on it; nothing was found amiss."""
    head, page = load_head(hymenoptera / "head"), read(hymenoptera / "report.html")
    low, high = (100 * v for v in head.metrics["intervals_95"]["accuracy"])
    assert f"{100 * head.metrics['accuracy']:.1f} % of 153 images right" in page.text
    assert f"95 % interval {low:.1f} % to {high:.1f} %" in page.text
    assert "Measured on the split val, not used before." in page.text
    assert "Nothing was found that would make these figures untrue." in page.text
    assert "Transfer leads by " in page.text
    assert head.report["baselines"]["words"][1:] in page.text
    calibration = head.report["calibration"]
    for when, name in (("before", "scores as they are"), ("after", calibration["method"])):
        error = f"{100 * calibration[when]['calibration_error']:.1f} %"
        assert re.search(
            rf"{name}[^%]*{re.escape(error)} {calibration[when]['log_loss']:.3f}", page.text
        )
    wrong = round(153 * (1 - head.metrics["accuracy"]))
    assert f"{wrong} of 153 images are wrong" in page.text


def test_a_report_of_a_saved_head_is_the_same(hymenoptera: Path, tmp_path: Path) -> None:
    """Measured again from head and store, all but the time and the head's place is equal."""
    again = write_report(hymenoptera / "head", hymenoptera / "store", tmp_path / "again.html")
    made = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d UTC|<dt>Head</dt><dd>[^<]*</dd>")
    first, second = (
        made.sub("", path.read_text(encoding="utf-8"))
        for path in (hymenoptera / "report.html", again)
    )
    assert first == second


def test_the_page_opens_anywhere(hymenoptera: Path) -> None:
    """Nothing is fetched: no address in it leads out, and its own policy forbids it."""
    page = read(hymenoptera / "report.html")
    policy = next(m["content"] for m in page.of("meta") if "http-equiv" in m)
    assert policy.startswith("default-src 'none'")
    for tag, attributes in page.tags:
        for name in ("src", "href", "xlink:href"):
            address = attributes.get(name) or "#"
            assert address.startswith(("#", "data:")), (tag, address[:80])
    text = (hymenoptera / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"url\((?!data:)", text)


def test_the_page_can_be_read_without_eyes(hymenoptera: Path) -> None:
    """One h1, headings in order, a text for every picture and drawing, heads for every table."""
    page = read(hymenoptera / "report.html")
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(b <= a + 1 for a, b in pairwise(levels))
    assert all(image["alt"] for image in page.of("img"))
    drawings = [svg for svg in page.of("svg") if svg.get("aria-hidden") != "true"]
    assert drawings
    assert all(svg["role"] == "img" and svg["aria-label"] for svg in drawings)
    assert all(head["scope"] in {"col", "row"} for head in page.of("th"))
    assert page.of("html")[0]["lang"] == "en"
    targets = {attributes.get("id") for _, attributes in page.tags}
    assert all(link["href"][1:] in targets for link in page.of("a"))


def luminance(colour: str) -> float:
    values = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in values]
    return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))


def contrast(a: str, b: str) -> float:
    light, dark = sorted((luminance(a), luminance(b)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_colours_can_be_told_apart_in_light_and_dark() -> None:
    """WCAG 2.2, 1.4.3 and 1.4.11: 4.5 for text, 3 for points and bars."""
    css = files("featpipe.pages").joinpath("style.css").read_text(encoding="utf-8")
    schemes = re.findall(r":root \{(.*?)\}", css, re.DOTALL)
    assert len(schemes) == 2
    for scheme in schemes:
        colour = dict(re.findall(r"--([a-z0-9-]+): (#[0-9a-f]{6})", scheme))
        for ground in ("ground", "raised", "alert"):
            for ink in ("ink", "quiet", "accent", "wrong"):
                assert contrast(colour[ink], colour[ground]) >= 4.5, (ink, ground)
        for name in [f"c{k}" for k in range(charts.N_COLOURS)] + ["accent", "other"]:
            assert contrast(colour[name], colour["raised"]) >= 2.7, name
    names = set(re.findall(r"\.c(\d+) \{", css))
    assert names == {str(k) for k in range(charts.N_COLOURS + 1)}


@needs_browser
def test_sorting_in_a_browser(hymenoptera: Path) -> None:
    """A click on a column sorts it, a second one turns it round; the console stays empty."""
    script = """
      const table = document.querySelector('#classes table.sortable');
      const column = at => [...table.tBodies[0].rows].map(row => row.cells[at].textContent.trim());
      const button = at => table.tHead.rows[0].cells[at].querySelector('button');
      out.before = column(4);
      button(4).click(); out.down = column(4);
      out.state = table.tHead.rows[0].cells[4].getAttribute('aria-sort');
      button(4).click(); out.up = column(4);
      button(0).click(); out.names = column(0)
    """
    found = ask(hymenoptera / "report.html", script)
    assert found["console"] == []
    values = [float(v.split()[0]) for v in found["down"]]
    assert len(values) == 2
    assert values == sorted(values, reverse=True)
    assert found["up"] == found["down"][::-1]
    assert found["state"] == "descending"
    assert found["names"] == ["ants", "bees"]


@needs_browser
def test_hovering_in_a_browser(hymenoptera: Path) -> None:
    """A point of the map shows its own image and name, also in the dark; leaving hides them."""
    script = """
      const points = [...document.querySelectorAll('#map circle')];
      const at = 205, point = points[at];
      const over = () => point.dispatchEvent(new PointerEvent('pointerover', {bubbles: true}));
      over();
      const tip = document.getElementById('tip'), thumb = document.getElementById('thumb');
      out.points = points.length; out.shown = !tip.hidden;
      out.caption = document.getElementById('caption').textContent;
      out.place = thumb.style.backgroundPosition;
      out.image = getComputedStyle(thumb).backgroundImage.slice(0, 26);
      out.titles = document.querySelectorAll('#map title').length;
      document.querySelector('figure.map').dispatchEvent(new PointerEvent('pointerleave'));
      out.hidden = tip.hidden; out.ground = getComputedStyle(document.body).backgroundColor
    """
    store = EmbeddingStore.open(hymenoptera / "store")
    light, dark = (ask(hymenoptera / "report.html", script, dark=d) for d in (False, True))
    for found in (light, dark):
        assert found["console"] == []
        assert found["points"] == len(store)
        assert found["shown"]
        assert found["hidden"]
        assert found["caption"] == f"{store.labels()[205]}: {store.paths[205]}"
        across, down = 205 % COLUMNS, 205 // COLUMNS
        assert found["place"] == f"-{across * SPRITE}px -{down * SPRITE}px"
        assert found["image"] == 'url("data:image/webp;base6'
        assert found["titles"] == 0
    assert light["ground"] == "rgb(255, 255, 255)"
    assert dark["ground"] == "rgb(18, 22, 28)"


@needs_browser
@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_hangs_over_the_edge(hymenoptera: Path, width: int) -> None:
    """On a desk and on a phone the page is as wide as its window: only tables scroll."""
    script = """
      const root = document.documentElement;
      out.over = root.scrollWidth - root.clientWidth; out.width = root.clientWidth;
      const names = [...document.querySelectorAll('#classes tbody th')];
      out.lines = Math.max(...names.map(name => name.getClientRects()[0].height))
    """
    found = ask(hymenoptera / "report.html", script, width=width)
    assert found["console"] == []
    assert found["over"] <= 0
    assert found["lines"] < 60  # names of classes are not broken letter by letter
    assert abs(found["width"] - width) <= 20


@pytest.fixture
def awkward(photos: Path, tiny_backbone: Path, tmp_path: Path) -> EmbeddingStore:
    """Return photographs in folders and files with names that HTML could take for its own."""
    source = tmp_path / "odd"
    for label, folder in (("<b>living</b>", "living"), ('a "thing" & co', "things")):
        (source / label).mkdir(parents=True)
        for number, path in enumerate(sorted((photos / folder).glob("*.jpg"))):
            shutil.copy(path, source / label / f"{number} <script>alert(1)<!--.jpg")
            re_encode(source / label / f"{number} <script>alert(1)<!--.jpg")
    return embed(source, tiny_backbone, output=tmp_path / "odd.store")


def test_names_are_names(awkward: EmbeddingStore, tmp_path: Path) -> None:
    """Names of files and labels are shown, and never read as part of the page."""
    head = fit(awkward, "ridge", cv=2, check=False)
    page = read(write_report(head, awkward, tmp_path / "odd.html"))
    assert "<b>living</b>" in page.text
    assert 'a "thing" & co' in page.text
    assert len(page.of("script")) == 1
    assert page.of("b") == []
    assert "<script>alert(1)<!--" in page.text or any(
        "<script>alert(1)<!--" in image["alt"] for image in page.of("img")
    )


def test_copies_stand_on_the_page(awkward: EmbeddingStore, tmp_path: Path) -> None:
    """Nested cross-validation keeps them together; the page shows the pairs and both figures."""
    trained = train(awkward, "ridge", FitOptions(cv=2))
    path = write_report(trained.head, awkward, tmp_path / "odd.html", trained=trained)
    page = read(path)
    assert "Measured on nested cross-validation." in page.text
    assert "that are copies of other images" in page.text
    assert " pairs of equal images, or of resized or re-encoded copies" in page.text
    assert "leak ·" not in page.text


def test_leaks_come_first(photos: Path, tiny_backbone: Path, tmp_path: Path) -> None:
    """A copy of a training image among those that are measured on is called a leak."""
    for split in ("train", "test"):
        shutil.copytree(photos, tmp_path / "both" / split)
    for path in (tmp_path / "both/test").rglob("*.jpg"):
        with Image.open(path) as image:
            image.convert("RGB").transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(path)
    shutil.copy(photos / "living/cat.jpg", tmp_path / "both/test/living/other.jpg")
    store = embed(tmp_path / "both", tiny_backbone, output=tmp_path / "store")
    head = fit(store, "ridge", cv=2)
    page = read(write_report(head, store, tmp_path / "leak.html"))
    assert "leak · the same bytes test/living/other.jpg train/living/cat.jpg" in page.text


def test_images_that_are_gone_leave_the_figures(
    photos: Path, tiny_backbone: Path, tmp_path: Path
) -> None:
    """A report of a store whose images were taken away has all but the pictures."""
    store = embed(photos, tiny_backbone, output=tmp_path / "store")
    head = fit(store, "centroid", cv=2, check=False)
    shutil.rmtree(photos)
    page = read(write_report(head, store, tmp_path / "gone.html"))
    assert page.of("img") == []
    assert "95 % interval" in page.text
    assert not [figure for figure in page.of("figure") if "data-there" in figure]


def test_another_store_is_measured_as_evaluate_does(
    photos: Path, tiny_backbone: Path, tmp_path: Path
) -> None:
    """Its figures are those of `evaluate`; what concerns the fit is left out."""
    store = embed(photos, tiny_backbone, output=tmp_path / "store")
    head = fit(store, "centroid", cv=2)
    for path in photos.rglob("*.jpg"):
        with Image.open(path) as image:
            image.convert("RGB").rotate(90, expand=True).save(path, quality=90)
    new = embed(photos, tiny_backbone, output=tmp_path / "new")
    page = read(write_report(head, new, tmp_path / "new.html"))
    accuracy = evaluate(head, new).accuracy
    assert "Measured on all labelled images of the store." in page.text
    assert f"{100 * accuracy:.1f} % of {len(new)} images right" in page.text
    assert page.text.count("These are not the images that the head was fitted on") == 2


def test_images_that_were_learnt_on_are_never_called_new(
    photos: Path, tiny_backbone: Path, tmp_path: Path
) -> None:
    """The same files under another division: the page says what `evaluate` says."""
    store = embed(photos, tiny_backbone, output=tmp_path / "store")
    head = fit(store, "centroid", cv=2, check=False)
    lines = ["path,label,split"]
    for number, path in enumerate(sorted(photos.rglob("*.jpg"))):
        lines.append(f"{path},{path.parent.name},{'test' if number % 2 else 'train'}")
    table = tmp_path / "table.csv"
    table.write_text("\n".join(lines) + "\n", encoding="utf-8")
    divided = embed(table, tiny_backbone, output=tmp_path / "divided")
    page = read(write_report(head, divided, tmp_path / "divided.html"))
    assert "not used before" not in page.text
    assert "The head was fitted on these images: the figures are too good" in page.text
    assert "Nothing was found" not in page.text


@pytest.mark.parametrize(
    "options",
    [
        {"check": False, "tune": False, "calibration": "sigmoid", "seed": 3},
        {"calibration": "none"},
        {"check": True},
    ],
)
def test_a_saved_head_is_measured_as_it_was_fitted(
    photos: Path, tiny_backbone: Path, tmp_path: Path, options: dict[str, Any]
) -> None:
    """Without splits, with copies, with images in no split: the estimate of `fit` again."""
    for path in list(photos.rglob("*.jpg"))[:4]:
        re_encode(path)
    lines = ["path,label,split"]
    for number, path in enumerate(sorted(photos.rglob("*.jpg"))):
        lines.append(f"{path},{path.parent.name},{'' if number % 7 == 0 else 'train'}")
    table = tmp_path / "table.csv"
    table.write_text("\n".join(lines) + "\n", encoding="utf-8")
    store = embed(table, tiny_backbone, output=tmp_path / "store")
    head = fit(store, "ridge", cv=2, **options)
    head.save(tmp_path / "head")
    page = read(write_report(tmp_path / "head", store, tmp_path / "page.html"))
    figures = head.metrics
    low, high = (100 * v for v in figures["intervals_95"]["accuracy"])
    assert "Measured on nested cross-validation." in page.text
    assert (
        f"{100 * figures['accuracy']:.1f} % of {figures['n_samples']} images right 95 % interval "
        f"{low:.1f} % to {high:.1f} %" in page.text
    )
    assert f"log loss {figures['log_loss']:.3f}" in page.text
    asked = (
        f"--cv 2 --seed {options.get('seed', 0)} --calibration {options.get('calibration', 'auto')}"
    )
    assert asked in page.text
    assert ("--no-tune" in page.text) == (options.get("tune") is False)
    assert ("--no-check" in page.text) == (options.get("check") is False)


def test_a_store_that_lacks_a_class_draws_no_curve(tmp_path: Path) -> None:
    """The head has three classes, the store's training images two: columns would be others'."""
    rng = np.random.default_rng(0)
    y = np.arange(90) % 3
    vectors = (3 * np.eye(8)[y] + rng.normal(size=(90, 8))).astype(np.float32)
    names = np.array(["ants", "bees", "cats"])[y]
    head = fit(make_store(tmp_path / "all", vectors, labels=list(names)), "ridge", check=False)
    assert gather(head, make_store(tmp_path / "again", vectors, labels=list(names))).curve
    some = names != "bees"
    lacking = make_store(
        tmp_path / "some",
        vectors[some],
        labels=list(names[some]),
        contents=np.flatnonzero(some).tolist(),
    )
    assert gather(head, lacking).curve is None


@pytest.mark.parametrize(
    "edit",
    [
        {"options": {"seed": "x"}},
        {"options": {"calibration": "<b>"}},
        {"baselines": {"words": "w", "accuracy": "<b>"}},
        {"calibration": {"method": "temperature"}},
        {"notes": 3},
        {"data": []},
    ],
)
def test_an_edited_record_is_refused(
    photos: Path, tiny_backbone: Path, tmp_path: Path, edit: dict[str, Any]
) -> None:
    """One sentence, no traceback, no page."""
    store = embed(photos, tiny_backbone, output=tmp_path / "store")
    head = fit(store, "centroid", cv=2, check=False)
    edited = replace(head, report={**head.report, **edit})
    with pytest.raises(HeadError, match=r"what the head says of its own fit cannot be read \("):
        write_report(edited, store, tmp_path / "no.html")
    assert not (tmp_path / "no.html").exists()


def test_a_report_from_inside_the_head_folder(
    hymenoptera: Path, run_cli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`featpipe report .` writes beside the folder."""
    monkeypatch.chdir(hymenoptera / "head")
    result = run_cli("report", ".", hymenoptera / "store")
    assert result.code == 0
    assert result.err == f"report → {hymenoptera / 'head.html'}\n"


def test_many_classes_are_drawn(tmp_path: Path) -> None:
    """Beyond twenty classes the matrix is a drawing, and the map has ten colours and a grey."""
    rng = np.random.default_rng(0)
    centres = 3 * rng.normal(size=(30, 16))
    names = [f"class {k:02d}" for k in range(30) for _ in range(6)]
    vectors = np.repeat(centres, 6, axis=0) + rng.normal(size=(180, 16))
    store = make_store(tmp_path / "many", vectors.astype(np.float32), labels=names)
    head = fit(store, "ridge", cv=3, check=False)
    page = read(write_report(head, store, tmp_path / "many.html"))
    labels = [svg.get("aria-label", "") for svg in page.of("svg")]
    assert any(label.startswith("Confusion matrix of 30 classes") for label in labels)
    assert {c["class"] for c in page.of("circle") if "data-at" in c} == {
        f"c{k}" for k in range(charts.N_COLOURS + 1)
    }
    assert "other classes" in page.text


def test_a_head_of_another_backbone_is_refused(
    hymenoptera: Path, photos: Path, tiny_backbone: Path, tmp_path: Path
) -> None:
    """Both are named; nothing is written."""
    store = embed(photos, tiny_backbone, output=tmp_path / "store")
    with pytest.raises(FingerprintError, match="the head was fitted on efficientnet_lite0"):
        write_report(hymenoptera / "head", store, tmp_path / "no.html")
    assert not (tmp_path / "no.html").exists()


def test_other_names_of_files_are_refused(hymenoptera: Path, run_cli: Any) -> None:
    """Before anything is measured."""
    head, store = hymenoptera / "head", hymenoptera / "store"
    with pytest.raises(FeatpipeError) as error:
        write_report(head, store, "report.pdf")
    message = "cannot write a report to report.pdf: give a name that ends in .html"
    assert str(error.value) == message
    result = run_cli("fit", store, "--report", "report.pdf")
    assert result.code == 2
    assert f"Invalid value for --report: {message}\n" in result.err
    result = run_cli("report", head, store, "-o", "report.pdf")
    assert result.code == 2
    assert f"Invalid value for --output: {message}\n" in result.err


def test_the_commands(hymenoptera: Path, run_cli: Any, tmp_path: Path) -> None:
    """`fit --report` and `report` write pages and say where."""
    store, path = hymenoptera / "store", tmp_path / "new/page.html"
    path.parent.mkdir()
    result = run_cli("fit", store, "-o", tmp_path / "head", "--head", "ridge", "--report", path)
    assert result.code == 0
    assert result.err == f"saved → {tmp_path / 'head'}\nreport → {path}\n"
    assert "without transfer, 245 images to learn on, 153 to measure on\n" in result.out
    assert "ridge on efficientnet_lite0" in read(path).text
    result = run_cli("report", tmp_path / "head", store)
    assert (result.code, result.out) == (0, "")
    assert result.err == f"report → {tmp_path / 'head.html'}\n"
    assert (tmp_path / "head.html").exists()


def test_a_store_without_labels_is_refused(hymenoptera: Path, shared: Path, tmp_path: Path) -> None:
    """The page is about labelled images."""
    folder = shared / "datasets/hymenoptera_data/val/ants"
    store = embed(folder, output=tmp_path / "store")
    with pytest.raises(LabelError, match="has no labels: put the images into class folders"):
        write_report(hymenoptera / "head", store, tmp_path / "no.html")


def test_the_sheet_holds_every_image_in_its_place(
    photos: Path, tiny_backbone: Path, tmp_path: Path
) -> None:
    """Each square is its own image, as far as compression lets it be."""
    store = embed(photos, tiny_backbone, output=tmp_path / "store")
    rows = list(range(len(store)))
    sheet = sprite_sheet(store, rows)
    assert sheet is not None
    url, there = sheet
    assert all(there)
    image = opened(url)
    assert image.size == (SPRITE * len(rows), SPRITE)
    for at, row in enumerate(rows):
        with Image.open(photos / store.paths[row]) as original:
            side = min(original.size)
            left, top = (original.width - side) // 2, (original.height - side) // 2
            square = original.convert("RGB").crop((left, top, left + side, top + side))
            wanted = np.asarray(square.resize((8, 8), Image.Resampling.BOX), dtype=float)
        shown = image.crop((SPRITE * at, 0, SPRITE * (at + 1), SPRITE))
        found = np.asarray(shown.resize((8, 8), Image.Resampling.BOX), dtype=float)
        assert np.abs(found - wanted).mean() < 12


def test_the_map_is_that_of_the_vectors(tmp_path: Path) -> None:
    """Two groups far apart lie far apart; places fill the square; more images are drawn from."""
    rng = np.random.default_rng(1)
    vectors = rng.normal(size=(60, 8)).astype(np.float32)
    vectors[:30, 0] += 12
    vectors[30:, 1] += 12
    store = make_store(tmp_path / "two", vectors, labels=["a"] * 30 + ["b"] * 30)
    found = embedding_map(store, np.arange(60))
    assert found.places.min() == 0
    assert found.places.max() == 1
    between = abs(found.places[:30, 0].mean() - found.places[30:, 0].mean())
    assert between > 4 * found.places[:30, 0].std()


def test_mistakes_have_maps(hymenoptera: Path) -> None:
    """Beside each stands what speaks for what the head said, and for the label; the method, too."""
    page = read(hymenoptera / "report.html")
    head, store = load_head(hymenoptera / "head"), EmbeddingStore.open(hymenoptera / "store")
    contents = gather(head, store)
    maps = [image["alt"] for image in page.of("img") if image["alt"].startswith("what speaks for")]
    wanted = [
        f"what speaks for {head.classes[k]} in {store.paths[mistake.row]}"
        for mistake in contents.mistakes
        for k in (mistake.predicted, mistake.given)
    ]
    assert maps == wanted
    assert "orange for and blue against, by activation map (exact: its cells" in page.text
    assert "Without maps" not in page.text
    found = mistake_maps(head, store, contents.mistakes)
    assert set(found.pairs) == {mistake.row for mistake in contents.mistakes}
    # Of two classes one map is the other with its sign turned: what is orange is blue.
    for first, second in found.pairs.values():
        warm = [np.asarray(opened(url), dtype=int) @ [1, 0, -1] for url in (first, second)]
        assert np.corrcoef(warm[0].ravel(), warm[1].ravel())[0, 1] < -0.5


def opened(url: str) -> Image.Image:
    data = base64.b64decode(url.partition(",")[2])
    return Image.open(io.BytesIO(data)).convert("RGB")


def test_a_report_without_its_backbone(
    photos: Path, tiny_backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is exported for a picture: one sentence says why there are no maps."""
    store = embed(photos, tiny_backbone, output=tmp_path / "store")
    head = fit(store, "centroid", cv=2, check=False)
    page = read(write_report(head, store, tmp_path / "without.html"))
    assert "Its worst mistakes" in page.text
    assert "Without maps of what the head looks at: there is no backbone 'tiny'" in page.text
    monkeypatch.setenv("FEATPIPE_MODELS", str(tiny_backbone.parent))
    page = read(write_report(head, store, tmp_path / "with.html"))
    assert "Without maps" not in page.text
    assert "by occlusion (a cell is what the log-odds" in page.text
    assert "These maps are of the head that was saved, which has learnt on the images" in page.text
