"""What a head looks at: maps that add up to its score, patches that are covered, neighbours."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from browser import ask, needs_browser
from conftest import build_tiny_backbone
from convnet import build_convnet
from onnx import helper
from PIL import Image
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MaxAbsScaler, Normalizer, StandardScaler
from test_report import Page, read

from featpipe import embed, fit, load_backbone
from featpipe.backbones.card import CARD_KEY, BackboneCard
from featpipe.backbones.contract import with_fingerprint
from featpipe.errors import FeatpipeError, FingerprintError, SourceError, StoreError
from featpipe.heads import HEADS
from featpipe.heads.centroid import CosineCentroid
from featpipe.heads.registry import class_scores, head_spec
from featpipe.images import decode_image
from featpipe.inspection import Explanation, colours, explain
from featpipe.inspection.activation import is_mean
from featpipe.inspection.linear import linear_form
from featpipe.inspection.measures import cosine_margins, mean_margins, measured
from featpipe.inspection.occlusion import COARSE, FINE, Patches
from featpipe.inspection.page import write_page
from featpipe.inspection.peaks import peak_of
from featpipe.inspection.picture import MOST_ROWS, WIDTH, draw_explanation
from featpipe.inspection.run import MOST_IMAGES
from featpipe.store import EmbeddingStore

LINEAR = ("logreg", "svm", "ridge", "lda", "centroid")
OTHER = ("knn", "svm-rbf")


@pytest.mark.parametrize("n_classes", [2, 4])
@pytest.mark.parametrize("name", LINEAR)
def test_a_linear_head_is_one_matrix(name: str, n_classes: int) -> None:
    """Scaling and estimator as one matrix give the scores of the pipeline."""
    rng = np.random.default_rng(n_classes)
    y = np.arange(80) % n_classes
    X = (rng.gamma(2, size=(80, 24)) + np.eye(24)[y]).astype(np.float32)
    spec = head_spec(name)
    pipeline = spec.fit(spec.default, X, y, 0)
    form = linear_form(pipeline)
    assert form is not None
    new = rng.gamma(2, size=(50, 24)).astype(np.float32)
    scores = class_scores(pipeline, new)
    np.testing.assert_allclose(form.scores(new), scores, rtol=0, atol=2e-5)
    shown = form.compared().scores(new)
    if n_classes == 2:
        np.testing.assert_allclose(shown, np.column_stack([-scores[:, 1], scores[:, 1]]), atol=2e-5)
    else:
        wanted = scores - scores.mean(axis=1, keepdims=True)
        np.testing.assert_allclose(shown, wanted, rtol=0, atol=2e-5)


def test_what_is_no_matrix_is_not_taken_for_one() -> None:
    """Other heads, and linear ones behind other scalings, have no linear form."""
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(20, 4)), np.arange(20) % 2
    for name in OTHER:
        spec = head_spec(name)
        assert linear_form(spec.pipeline(spec.default, 0).fit(X, y)) is None
    estimator = head_spec("logreg").estimator({"C": 1.0}, 0)
    assert linear_form(make_pipeline(MaxAbsScaler(), estimator).fit(X, y)) is None
    assert linear_form(make_pipeline(Normalizer("l1"), estimator).fit(X, y)) is None
    assert linear_form(make_pipeline(StandardScaler(), CosineCentroid()).fit(X, y)) is None
    assert set(LINEAR) | set(OTHER) == set(HEADS)


SETS = ("hymenoptera_data", "clothing_small", "brain_mri")


@pytest.fixture(scope="module", params=SETS)
def real(
    request: pytest.FixtureRequest, shared: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[EmbeddingStore, list[Path]]:
    """Return a store of some real photographs of every class, and others that it has not."""
    root = shared / "datasets" / request.param
    splits = [root / name for name in ("train", "Training", "val", "test", "Testing")]
    learn, new = [split for split in splits if split.is_dir()]
    folder = tmp_path_factory.mktemp(request.param)
    for label in sorted(path.name for path in learn.iterdir()):
        (folder / "photos" / label).mkdir(parents=True)
        for path in sorted((learn / label).iterdir())[:5]:
            shutil.copy(path, folder / "photos" / label)
    store = embed(folder / "photos", output=folder / "store", device="cpu")
    return store, [sorted(path.iterdir())[1] for path in sorted(new.iterdir())][:4]


@pytest.mark.slow
def test_maps_and_bias_are_the_score_on_photographs(
    real: tuple[EmbeddingStore, list[Path]],
) -> None:
    """Within 1e-3 for every linear head: map plus bias, and the score of the head itself."""
    store, photos = real
    vectors = embed(photos, output=store.path.with_name("new"), device="cpu").X
    for name in LINEAR:
        head = fit(store, name, tune=False, check=False, cv=2)
        found = explain(photos, head, device="cpu", n_nearest=0)
        scores = class_scores(head.pipeline, vectors)
        scores = scores - (scores[:, ::-1] if scores.shape[1] == 2 else scores.mean(1)[:, None])
        for image, row, odds in zip(found.images, scores, head.predict_proba(vectors), strict=True):
            assert image.seen is not None
            assert image.seen.method == "activation-map"
            for shown, rank in ((image.seen.predicted, 0), (image.seen.runner_up, 1)):
                assert shown.label == head.classes[np.argsort(-odds, kind="stable")[rank]]
                assert shown.values.shape == (7, 7)
                assert abs(shown.total + shown.bias - shown.score) < 1e-3
                assert abs(shown.score - row[head.classes.index(shown.label)]) < 1e-3
                wanted = np.sort(odds)[-1 - rank]
                assert shown.probability == pytest.approx(wanted, abs=1e-5)
            if len(head.classes) == 2:
                np.testing.assert_array_equal(
                    image.seen.predicted.values, -image.seen.runner_up.values
                )


def test_the_mean_of_the_map_is_the_vector(real: tuple[EmbeddingStore, list[Path]]) -> None:
    """So it is for the built-in backbone, to six digits; powers of the map have another mean."""
    backbone = load_backbone()
    pixels = np.stack(
        [decode_image(path.read_bytes(), backbone.card.resize).pixels for path in real[1]]
    )
    vectors, maps = backbone.open_session("cpu").run_with_maps(pixels)
    np.testing.assert_allclose(maps.mean(axis=(2, 3)), vectors, rtol=1e-4, atol=1e-5)
    assert is_mean(maps, vectors)
    generalised = np.power((maps.astype(np.float64) ** 3).mean(axis=(2, 3)), 1 / 3)
    assert not is_mean(maps, generalised.astype(np.float32))
    assert not is_mean(maps, generalised.astype(np.float32), is_exact=False)
    assert not is_mean(maps[:, :5], vectors)


@pytest.fixture
def squares(tmp_path: Path) -> Path:
    """Return a folder of dark noise, with a bright square in it and without."""
    rng = np.random.default_rng(3)
    for label in ("empty", "square"):
        folder = tmp_path / "squares" / label
        folder.mkdir(parents=True)
        for number in range(12):
            at = tuple(rng.integers(2, 20, 2).tolist())
            planted(at if label == "square" else None, number).save(folder / f"{number:02d}.png")
    return tmp_path / "squares"


def planted(at: tuple[int, int] | None, seed: int) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 40, (32, 32, 3)).astype(np.uint8)
    if at is not None:
        pixels[at[1] : at[1] + 10, at[0] : at[0] + 10] = 230
    return Image.fromarray(pixels)


@pytest.mark.parametrize("name", ["svm-rbf", "knn", "logreg"])
def test_occlusion_finds_a_planted_square(
    squares: Path, tiny_backbone: Path, tmp_path: Path, name: str
) -> None:
    """Its maximum lies on the square, wherever that is; the score is the log-odds."""
    store = embed(squares, tiny_backbone, output=tmp_path / "store")
    head = fit(store, name, cv=2, check=False)
    places = [(1, 1), (20, 3), (11, 11), (3, 19), (20, 20)]
    for number, at in enumerate(places):
        planted(at, 100 + number).resize((64, 64), 0).save(tmp_path / f"{number}.png")
    paths = [tmp_path / f"{number}.png" for number in range(len(places))]
    found = explain(paths, head, model=tiny_backbone)
    vectors = embed(paths, tiny_backbone, output=tmp_path / "new").X
    measure, scores = measured(head, vectors)
    assert measure == ("cosine margin" if name == "knn" else "log-odds")
    for (left, top), image, score in zip(places, found.images, scores[:, 1], strict=True):
        seen = image.seen
        assert seen is not None
        assert (seen.method, seen.predicted.label) == ("occlusion", "square")
        assert (seen.predicted.measure, seen.predicted.bias) == (measure, None)
        assert seen.predicted.score == pytest.approx(score, abs=1e-6)
        assert seen.runner_up.score == pytest.approx(-score, abs=1e-6)
        x, y = seen.predicted.peak
        assert 2 * left <= x <= 2 * left + 20, (name, left, top, x, y)
        assert 2 * top <= y <= 2 * top + 20, (name, left, top, x, y)


def test_what_classes_lose_has_no_steps() -> None:
    """Leads of the nearest rows of a class, and mean margins, as they are by their definitions."""
    rng = np.random.default_rng(5)
    y = np.arange(60) % 3
    X = (rng.gamma(2, size=(60, 16)) + 2 * np.eye(16)[y]).astype(np.float32)
    new = rng.gamma(2, size=(7, 16)).astype(np.float32)
    spec = head_spec("knn")
    neighbours = spec.fit({"n_neighbors": 4}, X, y, 0)[-1]
    units, others = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (new, X))
    cosines = units @ others.T
    near = np.stack([np.sort(cosines[:, y == k])[:, -4:].mean(axis=1) for k in range(3)], axis=1)
    lead = np.stack([near[:, k] - np.delete(near, k, 1).max(1) for k in range(3)], axis=1)
    np.testing.assert_allclose(cosine_margins(neighbours, new), lead, atol=1e-5)
    spec = head_spec("svm-rbf")
    pipeline = spec.fit(spec.default, X, y, 0)
    scores = class_scores(pipeline, new)
    pipeline[-1].decision_function_shape = "ovo"
    first, second, third = pipeline.decision_function(new).T
    wanted = np.stack([first + second, third - first, -second - third], axis=1) / 2
    np.testing.assert_allclose(mean_margins(scores), wanted, atol=1e-6)


@pytest.mark.parametrize("patches", [FINE, COARSE, Patches(5, 2, 2)])
def test_patches_cover_every_pixel(patches: Patches) -> None:
    """Each pixel is covered by one patch at least, each patch changes its own pixels alone."""
    pixels = np.zeros((32, 32, 3), dtype=np.uint8)
    pixels[::2] = 200
    changed = [(picture != pixels).any(axis=2) for picture in patches.covered(pixels)]
    assert len(changed) == len(patches.corners())
    assert np.logical_or.reduce(changed).all()
    spread = patches.spread(np.arange(len(changed))[None].astype(float))
    assert spread.shape == (1, patches.cells, patches.cells)
    assert (spread[0, 0, 0], spread[0, -1, -1]) == (0, len(changed) - 1)


def test_another_pooling_is_explained_by_occlusion(photos: Path, tmp_path: Path) -> None:
    """A feature map whose mean is not the vector is not taken for one."""
    build_convnet(tmp_path / "mean.onnx", "mean")
    model = onnx.load(tmp_path / "mean.onnx")
    for node in model.graph.node:
        if node.op_type == "GlobalAveragePool":
            node.op_type = "GlobalMaxPool"
    card = json.loads({p.key: p.value for p in model.metadata_props}[CARD_KEY])
    card = replace(BackboneCard.from_json(card), name="largest", fingerprint="")
    card = with_fingerprint(card, model.SerializeToString())
    helper.set_model_props(model, {CARD_KEY: json.dumps(card.to_json())})
    (tmp_path / "largest.onnx").write_bytes(model.SerializeToString())
    methods = {}
    for name in ("mean", "largest"):
        backbone = tmp_path / f"{name}.onnx"
        head = fit(embed(photos, backbone, output=tmp_path / name), "ridge", cv=2, check=False)
        found = explain(photos / "living", head, model=backbone)
        methods[name] = {image.seen.method for image in found.images if image.seen}
    assert methods == {"mean": {"activation-map"}, "largest": {"occlusion"}}


def test_the_place_of_a_maximum() -> None:
    """The vertex between neighbours, the cell itself at an edge and on a flat."""
    assert peak_of(np.array([[0.0, 0, 0], [0, 2, 1], [0, 0, 0]])) == (1.5, pytest.approx(5 / 3))
    assert peak_of(np.array([[3.0, 1], [1, 0]])) == (0.5, 0.5)
    assert peak_of(np.zeros((3, 3))) == (0.5, 0.5)


def lightness_and_colour(rgb: np.ndarray) -> np.ndarray:
    """Return Oklab of sRGB between 0 and 1, (n, 3), by Ottosson's forward matrices."""
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    to_cones = np.array(
        [
            [0.4122214708, 0.5363325363, 0.0514459929],
            [0.2119034982, 0.6806995451, 0.1073969566],
            [0.0883024619, 0.2817188376, 0.6299787005],
        ]
    )
    to_lab = np.array(
        [
            [0.2104542553, 0.7936177850, -0.0040720468],
            [1.9779984951, -2.4285922050, 0.4505937099],
            [0.0259040371, 0.7827717662, -0.8086757660],
        ]
    )
    return np.cbrt(linear @ to_cones.T) @ to_lab.T


def test_the_scale_can_be_read_by_everyone() -> None:
    """Equal steps, equal lightness on both sides, two hues that red-green blindness keeps apart."""
    rgb = colours.scale() / 255
    lab = lightness_and_colour(rgb)
    # Eight bits a channel are coarse: 16 colours make one step.
    steps = np.linalg.norm(lab[16:] - lab[:-16], axis=1)
    beside = np.delete(steps, slice(colours.STEPS // 2 - 16, colours.STEPS // 2 + 1))
    assert beside.max() / beside.min() < 1.15
    np.testing.assert_allclose(lab[:, 0], lab[::-1, 0], atol=0.01)
    assert (np.diff(lab[: colours.STEPS // 2, 0]) > -0.004).all()
    ends = [colours.end(hue) for hue in (colours.BLUE, colours.ORANGE)]
    inside = colours.oklab_to_rgb(np.array(ends))
    assert inside.min() >= 0
    assert inside.max() <= 1
    # Viénot, Brettel, Mollon 1999, equations for protanopia and deuteranopia on linear RGB.
    for matrix in (
        [[0.11238, 0.88762, 0.0], [0.11238, 0.88762, 0.0], [0.00401, -0.00401, 1.0]],
        [[0.29275, 0.70725, 0.0], [0.29275, 0.70725, 0.0], [-0.02234, 0.02234, 1.0]],
    ):
        linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
        seen = (linear[[0, -1]] @ np.array(matrix).T).clip(0, 1)
        seen = np.where(seen <= 0.0031308, 12.92 * seen, 1.055 * seen ** (1 / 2.4) - 0.055)
        first, last = lightness_and_colour(seen)
        assert np.linalg.norm(first - last) > 0.2


def test_nothing_lies_over_a_place_without_evidence() -> None:
    """Zero is transparent; what speaks for is orange, what speaks against is blue."""
    values = np.zeros((4, 4))
    values[0, 0], values[3, 3] = 1.0, -1.0
    over = np.asarray(colours.layer(values, 1.0, 64))
    assert over[8, 56, 3] == 0
    assert tuple(over[60, 60, :3]) == tuple(colours.scale()[0])
    assert tuple(over[2, 2, :3]) == tuple(colours.scale()[-1])
    assert over[60, 60, 3] == over[2, 2, 3] == round(0.85 * 255)
    assert np.asarray(colours.layer(np.zeros((2, 2)), 0.0, 8))[..., 3].max() == 0
    white = np.full((64, 64, 3), 255, dtype=np.uint8)
    assert colours.laid_over(white, colours.layer(values, 1.0, 64)).getpixel((56, 8)) == (255,) * 3


@pytest.fixture
def place(
    photos: Path, tiny_backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """Return a working folder with ``heads/mine``, ``store`` and ``photos``."""
    monkeypatch.setenv("FEATPIPE_MODELS", str(tiny_backbone.parent))
    monkeypatch.chdir(tmp_path)
    store = embed(photos, tiny_backbone, output="store")
    fit(store, "ridge", cv=2, check=False, tune=False).save("heads/mine")
    return tmp_path


def test_neighbours_are_training_images(place: Path) -> None:
    """The nearest first, with label, cosine and picture; never the image itself or its copies."""
    shutil.copy("photos/living/cat.jpg", "other-name.jpg")
    found = explain(["other-name.jpg", "photos/things/coins.jpg"], "heads/mine", n_nearest=9)
    store = EmbeddingStore.open("store")
    units = store.X / np.linalg.norm(store.X, axis=1, keepdims=True)
    for image, own in zip(found.images, ("living/cat.jpg", "things/coins.jpg"), strict=True):
        assert image.seen is not None
        near = image.seen.nearest
        cosines = dict(zip(store.paths, units @ units[store.paths.index(own)], strict=True))
        del cosines[own]
        assert [n.path for n in near] == sorted(cosines, key=lambda path: -cosines[path])
        assert [n.cosine for n in near] == pytest.approx([cosines[n.path] for n in near], abs=1e-5)
        assert all(n.label == n.path.split("/")[0] for n in near)
        assert all(n.pixels is not None and n.pixels.shape == (144, 144, 3) for n in near)
    assert found.notes == ()


def test_neighbours_whose_files_are_gone(place: Path) -> None:
    """They are named, without a picture."""
    shutil.move("photos/things/coins.jpg", "coins.jpg")
    shutil.rmtree("photos")
    (image,) = explain("coins.jpg", "heads/mine").images
    assert image.seen is not None
    assert len(image.seen.nearest) == 3
    assert all(near.pixels is None for near in image.seen.nearest)


def test_a_store_that_is_gone_is_said(place: Path) -> None:
    """In one sentence, and the rest goes on; another place of the store may be named."""
    shutil.move("store", "elsewhere")
    found = explain("photos/living/cat.jpg", "heads/mine")
    assert found.notes == (
        "no training images: there is no store at store: check the path, or make one with "
        "`featpipe embed`; name a store that has them with --store",
    ) or found.notes[0].startswith("no training images: ")
    assert found.images[0].seen is not None
    assert found.images[0].seen.nearest == ()
    again = explain("photos/living/cat.jpg", "heads/mine", store="elsewhere")
    assert again.notes == ()
    assert len(again.images[0].seen.nearest) == 3


def test_a_store_of_other_images_is_refused(place: Path, squares: Path) -> None:
    """And one of another backbone; the message says what to do."""
    embed(squares, "tiny", output="squares.store")
    with pytest.raises(StoreError) as error:
        explain("photos/living/cat.jpg", "heads/mine", store="squares.store")
    assert str(error.value) == (
        "squares.store holds none of the images that the head was fitted on: name a store that "
        "has them with --store"
    )
    build_tiny_backbone(place / "other.onnx", "other", scale=1.0)
    embed("photos", "other.onnx", output="other.store")
    with pytest.raises(FingerprintError, match=r"the head was fitted on tiny .*, other.store hold"):
        explain("photos/living/cat.jpg", "heads/mine", store="other.store")


@pytest.mark.parametrize("data", [None, 3, {}, {"store": 5, "keys": 7}, {"store": "a\0b"}])
def test_an_edited_record_is_no_obstacle(place: Path, data: Any) -> None:
    """What a head says of its training images may be anything: the maps do not need it."""
    from featpipe import load_head

    head = load_head("heads/mine")
    edited = replace(head, report={**head.report, "data": data})
    found = explain("photos/living/cat.jpg", edited)
    assert found.images[0].status == "ok"
    assert found.notes[0].startswith("no training images: ")


def test_the_limit_of_images(place: Path) -> None:
    """More than five hundred are refused before anything is computed; none at all, too."""
    with pytest.raises(FeatpipeError) as error:
        explain([f"{number}.jpg" for number in range(MOST_IMAGES + 1)], "heads/mine")
    assert str(error.value) == (
        "there are more than 500 images to explain at once: name some of them"
    )
    Path("empty").mkdir()
    with pytest.raises(SourceError, match=r"there is no image in .*empty: give a folder"):
        explain("empty", "heads/mine")
    with pytest.raises(ValueError, match="n_nearest must lie between 0 and 10, not 11"):
        explain("photos", "heads/mine", n_nearest=11)


@pytest.fixture
def explained(place: Path) -> Explanation:
    """Return three images that were explained, one of them no image."""
    Path("no\nimage.jpg").write_text("words")
    paths = ["photos/living/cat.jpg", "no\nimage.jpg", "photos/things/coins.jpg"]
    return explain(paths, "heads/mine")


def test_the_picture(explained: Explanation, tmp_path: Path) -> None:
    """A row an image: as the backbone sees it, and both maps; the failed one is a line."""
    path = draw_explanation(explained, tmp_path / "out.png")
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert image.width == WIDTH
        sheet = image.convert("RGB")
    seen = explained.images[0].seen
    assert seen is not None
    shown = np.asarray(sheet.crop((24, 164, 284, 424)).resize((16, 16), 4), dtype=float)
    given = np.asarray(Image.fromarray(seen.pixels).resize((16, 16), 4), dtype=float)
    assert np.abs(shown - given).mean() < 6
    over = colours.laid_over(seen.pixels, colours.layer(seen.predicted.values, seen.limit, 260))
    np.testing.assert_array_equal(np.asarray(sheet.crop((300, 164, 560, 424))), np.asarray(over))
    one = draw_explanation(replace(explained, images=explained.images[1:2]), tmp_path / "one.png")
    with Image.open(one) as image:
        assert image.height < sheet.height / 3


def test_pictures_that_cannot_be_drawn(explained: Explanation, tmp_path: Path) -> None:
    """Another suffix, or more rows than a picture may have."""
    with pytest.raises(FeatpipeError) as error:
        draw_explanation(explained, "out.jpg")
    assert str(error.value) == "cannot draw out.jpg: give a name that ends in .png"
    many = replace(explained, images=explained.images[:1] * (MOST_ROWS + 1))
    with pytest.raises(FeatpipeError) as error:
        draw_explanation(many, tmp_path / "out.png")
    assert str(error.value) == (
        "51 images do not fit on one picture, 50 do: name fewer, or give a name that ends in .html"
    )
    with pytest.raises(FeatpipeError) as error:
        write_page(explained, "out.pdf")
    assert str(error.value) == "cannot write a page to out.pdf: give a name that ends in .html"


@pytest.fixture
def page(explained: Explanation, tmp_path: Path) -> Path:
    """Return the page of three images."""
    return write_page(explained, tmp_path / "out.html")


def test_the_page(page: Path, explained: Explanation) -> None:
    """It says what the records say, and the method; nothing in it is fetched."""
    text = read(page).text
    assert "What ridge on tiny looks at" in text
    assert "Made by occlusion (a cell is what the log-odds of the class lose" in text
    assert "There are two classes and one score" in text
    first = explained.images[0].seen
    assert first is not None
    assert f"{first.predicted.label} {100 * first.predicted.probability:.1f} %" in text
    assert "no\\nimage.jpg Undecodable: not an image in a format that can be read." in text
    for near in first.nearest:
        assert near.path in text
    found = read(page)
    for tag, attributes in found.tags:
        for name in ("src", "href"):
            assert (attributes.get(name) or "#").startswith(("#", "data:")), tag
    assert all(image["alt"] for image in found.of("img"))
    assert found.of("script") == []
    policy = next(m["content"] for m in found.of("meta") if "http-equiv" in m)
    assert policy.startswith("default-src 'none'")


def test_names_on_the_page_are_names(explained: Explanation, tmp_path: Path) -> None:
    """Paths, labels and notes from outside are shown, never read as part of the page."""
    name = '<b>"x" & <script>alert(1)</script>'
    image = explained.images[0]
    assert image.seen is not None
    near = replace(image.seen.nearest[0], path=name, label=name)
    seen = replace(image.seen, predicted=replace(image.seen.predicted, label=name), nearest=(near,))
    odd = replace(explained, images=(replace(image, path=name, seen=seen),), notes=(name,))
    found: Page = read(write_page(odd, tmp_path / "odd.html"))
    assert found.of("b") == []
    assert found.of("script") == []
    assert found.text.count(name) >= 4


def test_neighbours_of_another_class_are_marked(explained: Explanation, tmp_path: Path) -> None:
    """Those whose label is not the predicted one, and no others."""
    image = explained.images[0]
    assert image.seen is not None
    own = replace(image.seen.nearest[0], label=image.seen.predicted.label)
    seen = replace(image.seen, nearest=(own, replace(own, label="other"), own))
    only = replace(explained, images=(replace(image, seen=seen),))
    found: Page = read(write_page(only, tmp_path / "marked.html"))
    assert [strong.get("class") for strong in found.of("strong")[-3:]] == [None, "wrong", None]


@needs_browser
@pytest.mark.parametrize(("width", "dark"), [(1280, False), (390, True)])
def test_the_page_in_a_browser(page: Path, width: int, dark: bool) -> None:
    """As wide as its window, in light and dark; every picture is drawn, the console is empty."""
    script = """
      const root = document.documentElement;
      out.over = root.scrollWidth - root.clientWidth;
      out.blank = [...document.images].filter(image => !image.naturalWidth).length;
      out.images = document.images.length;
      out.ground = getComputedStyle(document.body).backgroundColor
    """
    # The page itself allows no script, not even ours.
    text = page.read_text(encoding="utf-8")
    allowed = text.replace("default-src 'none';", "default-src 'none'; script-src 'unsafe-inline';")
    assert allowed != text
    page.write_text(allowed, encoding="utf-8")
    found = ask(page, script, width=width, dark=dark)
    assert found["console"] == []
    assert found["over"] <= 0
    assert found["blank"] == 0
    assert found["images"] == 2 * (3 + 1 + 3)
    assert found["ground"] == ("rgb(18, 22, 28)" if dark else "rgb(255, 255, 255)")
