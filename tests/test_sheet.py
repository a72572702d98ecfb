"""The contact sheet of `clean`: what stands on it, and what cannot break it."""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_images import bomb
from test_quality import re_encode
from vectors import make_store

from featpipe import embed
from featpipe.errors import FeatpipeError
from featpipe.images import MAX_PIXELS, thumbnail
from featpipe.quality import Problem, clean, draw_sheet
from featpipe.quality.cleaning import KINDS, MEANING, Cleaning
from featpipe.quality.sheet import MOST, WIDTH, shorten
from featpipe.store import EmbeddingStore
from featpipe.types import Failure, Progress

_GREY = (236, 239, 242)
_TOP, _LEFT, _SIDE, _TALL = 118 + 64, 36, 201, 164


@pytest.fixture
def store(photos: Path, tiny_backbone: Path, tmp_path: Path) -> EmbeddingStore:
    shutil.copy(photos / "living/cat.jpg", photos / "living/cat_again.jpg")
    re_encode(photos / "things/coffee.jpg")
    return embed(photos, tiny_backbone, output=tmp_path / "store")


def drawn(cleaning: Cleaning, store: EmbeddingStore, path: Path) -> np.ndarray:
    draw_sheet(cleaning, store, path)
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"))


def found_with(store: EmbeddingStore, *problems: Problem) -> Cleaning:
    return Cleaning(str(store.path), len(store), problems, "cosine ≥ 0.9", ())


def test_copies_stand_beside_each_other(store: EmbeddingStore, tmp_path: Path) -> None:
    """Two tiles of the first section are the cat, equal to the pixel; each step is told."""
    steps: list[Progress] = []
    found = clean(store, head="centroid")
    path = draw_sheet(found, store, tmp_path / "a" / "sheet.png", progress=steps.append)
    with Image.open(path) as image:
        pixels = np.asarray(image)
    assert [(p.done, p.stage) for p in steps] == [
        (n, "drawing") for n in range(1, len(found.problems) + 1)
    ]
    first = pixels[_TOP : _TOP + _TALL, _LEFT : _LEFT + _SIDE]
    second = pixels[_TOP : _TOP + _TALL, _LEFT + _SIDE + 6 : _LEFT + 2 * _SIDE + 6]
    assert (first == second).all()
    cat = thumbnail((Path(store.source) / "living/cat.jpg").read_bytes(), _SIDE, _TALL)
    assert isinstance(cat, Image.Image)
    left, top = (_SIDE - cat.width) // 2, (_TALL - cat.height) // 2
    assert (first[top : top + cat.height, left : left + cat.width] == np.asarray(cat)).all()


def test_images_that_are_gone_or_changed_get_a_grey_tile(
    store: EmbeddingStore, tmp_path: Path
) -> None:
    """And the other one of the pair is shown."""
    found = clean(store, head="centroid")
    shutil.copy(
        Path(store.source) / "living/grass.jpg", Path(store.source) / "living/cat_again.jpg"
    )
    pixels = drawn(found, store, tmp_path / "sheet.png")
    assert tuple(pixels[_TOP + 3, _LEFT + 3]) == _GREY
    assert tuple(pixels[_TOP + 3, _LEFT + _SIDE + 9]) != _GREY
    shutil.rmtree(store.source)
    pixels = drawn(found, store, tmp_path / "sheet.png")
    assert tuple(pixels[_TOP + 3, _LEFT + _SIDE + 9]) == _GREY


def test_the_sheet_is_bounded(tmp_path: Path) -> None:
    """A thousand problems of every kind: 24 pictures each, and one height whatever the number."""
    store = make_store(tmp_path / "s", np.eye(2), ["a", "b"])
    path, other = store.paths[0], store.paths[1]
    sizes = set()
    for count in (MOST + 1, 1000):
        problems = [
            Problem(kind, path, "a", other, None, "detail") for kind in KINDS for _ in range(count)
        ]
        sizes.add(drawn(found_with(store, *problems), store, tmp_path / "sheet.png").shape)
    assert len(sizes) == 1
    height, width, _ = sizes.pop()
    assert width == WIDTH
    assert 10_000 < height < 11_000
    few = drawn(found_with(store, problems[0]), store, tmp_path / "few.png")
    assert few.shape[0] < 500


@pytest.mark.parametrize(
    "name",
    ["写真/猫.jpg", "صور/قط.jpg", "caf\udce9/a\nb\x1b[31m.jpg", "long/" * 60 + "a.jpg", "😀.jpg"],
)
def test_any_name_can_be_drawn(store: EmbeddingStore, tmp_path: Path, name: str) -> None:
    """Scripts that the font lacks, bytes that are no UTF-8, control characters, long paths."""
    problems = [
        Problem("wrong-label", name, name, name, 0.1, name),
        Problem("two-labels", name, name, name, None, name),
    ]
    pixels = drawn(found_with(store, *problems), store, tmp_path / "sheet.png")
    assert pixels.shape[1] == WIDTH
    # Nothing is drawn into the margin.
    assert (pixels[:, WIDTH - 36 + 2 :] == 255).all()


def test_nothing_amiss_is_a_sheet_too(store: EmbeddingStore, tmp_path: Path) -> None:
    """A heading and no section."""
    assert drawn(found_with(store), store, tmp_path / "sheet.png").shape == (154, WIDTH, 3)


def test_other_names_are_refused(store: EmbeddingStore, tmp_path: Path, run_cli) -> None:
    """Before anything is looked at; the command says so with exit code 1."""
    sentence = f"cannot draw {tmp_path}/sheet.jpg: give a name that ends in .png"
    with pytest.raises(FeatpipeError) as caught:
        draw_sheet(found_with(store), store, tmp_path / "sheet.jpg")
    assert str(caught.value) == sentence
    result = run_cli("clean", store.path, "--sheet", tmp_path / "sheet.jpg")
    assert (result.code, result.out, result.err) == (1, "", f"Error: {sentence}\n")


def test_the_command_says_where_the_sheet_is(store, tmp_path: Path, run_cli) -> None:
    """On stderr: stdout stays what it was."""
    path = tmp_path / "sheet.png"
    plain = run_cli("clean", store.path, "--head", "centroid", "--json")
    result = run_cli("clean", store.path, "--head", "centroid", "--json", "--sheet", path)
    assert (result.code, result.out) == (0, plain.out)
    assert result.err == f"{plain.err}contact sheet → {path}\n"
    assert path.read_bytes().startswith(b"\x89PNG")


def test_every_kind_has_its_words() -> None:
    """What stands beside a count."""
    assert tuple(MEANING) == KINDS


def test_a_text_is_cut_in_its_middle() -> None:
    """Both ends stay; nothing at all where there is no room."""
    assert shorten("abcdefghij", 5, len) == "ab…ij"
    assert shorten("abcdefghij", 10, len) == "abcdefghij"
    assert shorten("abcdefghij", 0, len) == "…"


@pytest.mark.parametrize("orientation", range(1, 9))
def test_thumbnails_stand_upright(orientation: int) -> None:
    """As the file says: a photograph whose left half is dark has its dark half in its place."""
    pixels = np.full((120, 240, 3), 230, np.uint8)
    pixels[:, :120] = 20
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", exif=exif)
    found = thumbnail(file.getvalue(), 60, 60)
    assert isinstance(found, Image.Image)
    dark = np.asarray(found.convert("L")) < 128
    sides = ("left", "right", "right", "left", "top", "top", "bottom", "bottom")
    halves = {
        "left": dark[:, :25].mean(),
        "right": dark[:, -25:].mean(),
        "top": dark[:25].mean(),
        "bottom": dark[-25:].mean(),
    }
    assert found.size == ((60, 30) if orientation < 5 else (30, 60))
    assert max(halves, key=lambda name: halves[name]) == sides[orientation - 1]


def test_thumbnails_of_what_is_no_image_are_failures(photos: Path) -> None:
    """Bombs are refused by their size, before they are decoded; nothing raises."""
    assert thumbnail(bomb(30_000, 30_000), 60, 60) == Failure(
        "undecodable",
        f"its size in pixels is more than the {MAX_PIXELS:,} that featpipe decodes: make it "
        "smaller",
    )
    assert thumbnail(b"", 60, 60) == Failure("undecodable", "the file is empty (0 bytes)")
    cut = thumbnail((photos / "living/cat.jpg").read_bytes()[:3000], 60, 60)
    assert isinstance(cut, Failure)
    small = thumbnail((photos / "living/cat.jpg").read_bytes(), 10_000, 10_000)
    assert isinstance(small, Image.Image)
    with Image.open(photos / "living/cat.jpg") as image:
        assert small.size == image.size
