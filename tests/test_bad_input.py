"""Bad, odd and hostile images through the whole command line: embed, fit, score."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import PHOTOS, Result, as_nobody
from PIL import Image

from featpipe._files import escape_path, unescape_path, unguard_cell
from featpipe.errors import EXIT_SOME_FAILED
from featpipe.store import EmbeddingStore

Run = Callable[..., Result]
CAT = (PHOTOS / "cat.jpg").read_bytes()


@pytest.fixture
def place(tiny_backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a working folder in which the backbone ``tiny`` has a name."""
    monkeypatch.setenv("FEATPIPE_MODELS", str(tiny_backbone.parent))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def head(run_cli: Run, place: Path, photos: Path) -> Path:
    """Return a head that was fitted with the backbone ``tiny``."""
    assert run_cli("embed", photos, "--model", "tiny", "-o", "stores/photos").code == 0
    assert run_cli("fit", "stores/photos", "--head", "centroid", "-o", "heads/mine").code == 0
    return Path("heads/mine")


def rows_of(path: str) -> list[dict[str, str]]:
    """Read the CSV file that `score` has written."""
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    """Return an image as the bytes of a file."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def png_of_zeros(side: int) -> bytes:
    """Return a real, whole PNG of ``side`` × ``side`` black pixels: small, as zeros are."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        checksum = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)

    packer = zlib.compressobj(9)
    line = bytes(1 + (side + 7) // 8)
    data = b"".join(packer.compress(line) for _ in range(side)) + packer.flush()
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    )


def jpeg_that_claims(width: int, height: int) -> bytes:
    """Return a small JPEG file whose header promises more pixels than it has."""
    data = bytearray(encoded(Image.new("RGB", (16, 16)), "JPEG"))
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = struct.pack(">HH", height, width)
    return bytes(data)


# What is wrong with a file, and what is said of it.
_TOO_LARGE = (
    "its size in pixels is more than the 178,956,970 that featpipe decodes: make it smaller"
)
FAULTY = {
    "bomb.jpg": (lambda: jpeg_that_claims(30_000, 30_000), _TOO_LARGE),
    "bomb.png": (lambda: png_of_zeros(30_000), _TOO_LARGE),
    "empty.jpg": (lambda: b"", "the file is empty (0 bytes)"),
    "html.png": (
        lambda: b"<!doctype html><title>404</title>",
        "not an image in a format that can be read",
    ),
    "text.jpg": (lambda: b"a cat\n" * 100, "not an image in a format that can be read"),
    "zeros.jpg": (lambda: bytes(5000), "not an image: the file begins with zeros"),
}


@pytest.fixture
def faulty(photos: Path) -> Path:
    """Return the photographs with every kind of faulty file beside them."""
    for name, (content, _) in FAULTY.items():
        (photos / name).write_bytes(content())
    return photos


def test_faulty_files_are_failures_of_embed(run_cli: Run, place: Path, faulty: Path) -> None:
    """Each is named with its reason, the good ones are embedded, the exit code is 3."""
    result = run_cli("embed", faulty, "--model", "tiny", "-o", "s", "--device", "cpu")
    assert result.code == EXIT_SOME_FAILED
    expected = [f"Failed: {name}: {reason}" for name, (_, reason) in FAULTY.items()]
    *failed, device, summary = result.err.splitlines()
    assert failed == expected
    assert device == "running on cpu, fp32 (it was asked for)"
    assert summary.startswith("16 images: 10 embedded (")
    assert ", 6 failed; " in summary
    assert len(EmbeddingStore.open("s")) == 10


def test_fit_leaves_faulty_files_out(run_cli: Run, place: Path, faulty: Path) -> None:
    """A head is fitted on the images that have a vector."""
    run_cli("embed", faulty, "--model", "tiny", "-o", "s")
    result = run_cli("fit", "s", "--head", "centroid", "-o", "h", "--json")
    assert result.code == 0
    value = json.loads(result.out)
    assert value["classes"] == ["living", "things"]
    assert json.loads(run_cli("evaluate", "h", "s", "--json").out)["n_samples"] == 10


def test_faulty_files_are_rows_of_score(run_cli: Run, head: Path, faulty: Path) -> None:
    """Each has a row with status and reason and without a label, in the order of the names."""
    result = run_cli("score", faulty, "--head", head, "-o", "out.csv", "--device", "cpu")
    assert result.code == EXIT_SOME_FAILED
    rows = {row["path"]: row for row in rows_of("out.csv")}
    assert len(rows) == 16
    for name, (_, reason) in FAULTY.items():
        assert rows[name] == {
            "path": name,
            "status": "undecodable",
            "reason": reason,
            "label": "",
            "probability": "",
            "ood_p": "",
        }
    assert result.err.splitlines()[:6] == [
        f"Failed: {name}: {reason}" for name, (_, reason) in FAULTY.items()
    ]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "TIFF", "WEBP", "BMP"])
def test_truncated_file_is_a_failure(run_cli: Run, place: Path, kind: str) -> None:
    """Half a file is no image, whatever its format: no half picture becomes a vector."""
    with Image.open(io.BytesIO(CAT)) as cat:
        data = encoded(cat, kind)
    name = f"half.{kind.lower()}"
    Path("set").mkdir()
    Path("set", name).write_bytes(data[: len(data) // 2])
    Path("set", "whole.jpg").write_bytes(CAT)
    result = run_cli("embed", "set", "--model", "tiny", "-o", "s", "--json")
    value = json.loads(result.out)
    assert (result.code, value["computed"], value["failed"]) == (EXIT_SOME_FAILED, 1, 1)
    assert value["failures"][0]["path"] == name
    assert value["failures"][0]["status"] == "undecodable"
    assert value["failures"][0]["reason"]


def test_only_faulty_files(run_cli: Run, head: Path) -> None:
    """Nothing to learn from: embed says 3, fit says that there is no vector, score has the rows."""
    Path("set", "a").mkdir(parents=True)
    Path("set", "a", "empty.jpg").write_bytes(b"")
    assert run_cli("embed", "set", "--model", "tiny", "-o", "s").code == EXIT_SOME_FAILED
    result = run_cli("fit", "s")
    assert (result.code, result.err.count("\n")) == (4, 1)
    assert result.err.startswith("Error: ")
    assert run_cli("score", "set", "--head", head, "-o", "out.csv").code == EXIT_SOME_FAILED
    assert [row["status"] for row in rows_of("out.csv")] == ["undecodable"]


def odd_files(cat: Image.Image) -> dict[str, bytes]:
    """Return every legitimate, unusual form in which a photograph may come."""
    alpha = cat.copy()
    alpha.putalpha(Image.linear_gradient("L").resize(cat.size))
    grey = np.asarray(cat.convert("L"))
    return {
        "animation.gif": encoded(cat, "GIF", save_all=True, append_images=[cat.rotate(180)]),
        "bmp.bmp": encoded(cat, "BMP"),
        "cmyk.jpg": encoded(cat.convert("CMYK"), "JPEG", quality=95),
        "gif.gif": encoded(cat, "GIF"),
        "grey.jpg": encoded(cat.convert("L"), "JPEG", quality=95),
        "grey16.png": encoded(Image.fromarray(grey.astype(np.uint16) * 257), "PNG"),
        "jpeg_called.png": encoded(cat, "JPEG", quality=95),
        "palette.png": encoded(cat.quantize(256), "PNG", transparency=3),
        "png_called.jpg": encoded(cat, "PNG"),
        "progressive.jpg": encoded(cat, "JPEG", quality=95, progressive=True),
        "tiff.tiff": encoded(cat, "TIFF", compression="tiff_lzw"),
        "transparent.png": encoded(alpha, "PNG"),
        "upper.PNG": encoded(cat, "PNG"),
        "webp.webp": encoded(cat, "WEBP", quality=95),
    }


def cosines(store: str, name: str) -> dict[str, float]:
    """Return the cosine of every vector in a store to that of one image."""
    opened = EmbeddingStore.open(store)
    unit = opened.X / np.linalg.norm(opened.X, axis=1, keepdims=True)
    first = unit[opened.paths.index(name)]
    return dict(zip(opened.paths, (unit @ first).tolist(), strict=True))


def test_every_format_gives_the_vector_of_the_picture(run_cli: Run, place: Path) -> None:
    """GIF to WebP, wrong suffixes, alpha, palette, 16 bits, CMYK: one picture, one vector.

    With the built-in backbone. Lossless forms agree exactly; 256 colours and lossy ones nearly.
    """
    Path("set").mkdir()
    with Image.open(io.BytesIO(CAT)) as cat:
        files = odd_files(cat)
        files["exact.png"] = encoded(cat, "PNG", compress_level=1)
        files["exact_grey.png"] = encoded(cat.convert("L"), "PNG")
    for name, data in files.items():
        Path("set", name).write_bytes(data)
    result = run_cli("embed", "set", "-o", "s", "--device", "cpu")
    assert result.code == 0, result.err
    assert len(EmbeddingStore.open("s")) == len(files)
    near = cosines("s", "exact.png")
    grey = cosines("s", "exact_grey.png")
    for name in ("bmp.bmp", "png_called.jpg", "tiff.tiff", "transparent.png", "upper.PNG"):
        assert near[name] == pytest.approx(1, abs=1e-6), name
    assert grey["grey16.png"] == pytest.approx(1, abs=1e-6)
    assert grey["grey.jpg"] > 0.98
    for name in ("cmyk.jpg", "jpeg_called.png", "progressive.jpg", "webp.webp"):
        assert near[name] > 0.98, name
    for name in ("gif.gif", "palette.png"):
        assert near[name] > 0.9, name
    assert near["animation.gif"] == pytest.approx(near["gif.gif"], abs=0.01)
    assert near["exact_grey.png"] < 0.98


def test_all_eight_exif_orientations_give_one_vector(run_cli: Run, place: Path) -> None:
    """A camera held in any way gives the vector of the upright picture."""
    turns = {
        1: None,
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    Path("set").mkdir()
    with Image.open(io.BytesIO(CAT)) as opened:
        cat = opened.convert("RGB")
    for orientation, turn in turns.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        stored = cat if turn is None else cat.transpose(turn)
        stored.save(f"set/{orientation}.jpg", quality=97, subsampling=0, exif=exif)
    cat.transpose(Image.Transpose.ROTATE_90).save("set/wrong.jpg", quality=97)
    assert run_cli("embed", "set", "-o", "s", "--device", "cpu").code == 0
    near = cosines("s", "1.jpg")
    assert min(near[f"{i}.jpg"] for i in turns) > 0.99
    assert near["wrong.jpg"] < 0.9
    index = EmbeddingStore.open("s").index
    sizes = set(zip(index.values("width")[:8], index.values("height")[:8], strict=True))
    assert sizes == {cat.size}


@pytest.mark.parametrize("size", [(1, 1), (10_000, 3), (3, 10_000), (1, 2)])
def test_extreme_shapes_are_images(run_cli: Run, head: Path, size: tuple[int, int]) -> None:
    """One pixel and thin strips have vectors and answers as every other image has."""
    Path("set").mkdir()
    Image.new("RGB", size, (200, 60, 30)).save("set/odd.png")
    assert run_cli("embed", "set", "--model", "tiny", "-o", "s").code == 0
    store = EmbeddingStore.open("s")
    assert store.X[0] == pytest.approx(np.repeat(np.array([200, 60, 30]) / 255, 9), abs=0.01)
    assert run_cli("score", "set", "--head", head, "-o", "out.csv").code == 0
    assert rows_of("out.csv")[0]["status"] == "ok"


ODD_NAMES = (
    "with space.jpg",
    "image(1) [copy] {x}.jpg",
    "line\nbreak\r.jpg",
    "\x1b[31mred.jpg",
    "=cmd|' '!A1.jpg",
    "caf\udce9.jpg",
    "日本 ü.jpg",
    "back\\xe9.jpg",
    "%s {0} $HOME *.jpg",
    "-rf.jpg",
)


def test_odd_names_go_all_the_way(run_cli: Run, place: Path) -> None:
    """Any file name and any class name goes through embed, fit and score, and comes back whole."""
    classes = ("cl ass\n[1]", "caf\udce9")
    for label, photo in zip(classes, ("cat", "coins"), strict=True):
        Path("set", label).mkdir(parents=True)
        data = (PHOTOS / f"{photo}.jpg").read_bytes()
        for i, name in enumerate(ODD_NAMES):
            Path("set", label, name).write_bytes(data + bytes([i]))
    names = sorted(f"{label}/{name}" for label in classes for name in ODD_NAMES)
    assert run_cli("embed", "set", "--model", "tiny", "-o", "s").code == 0
    assert sorted(EmbeddingStore.open("s").paths) == names
    again = run_cli("embed", "set", "--model", "tiny", "-o", "s")
    assert "20 unchanged and not opened" in again.err
    fitted = run_cli("fit", "s", "--head", "centroid", "-o", "h")
    assert fitted.code == 0
    assert "\x1b" not in fitted.out + fitted.err
    assert run_cli("evaluate", "h", "s").code == 0
    for form in ("csv", "jsonl", "parquet"):
        result = run_cli("score", "set", "--head", "h", "-o", f"out.{form}")
        assert result.code == 0, result.err
    cells = [row["path"] for row in rows_of("out.csv")]
    lines = Path("out.jsonl").read_text("utf-8").split("\n")[:-1]
    tables = (
        [unguard_cell(cell) for cell in cells],
        [json.loads(line)["path"] for line in lines],
        pq.read_table("out.parquet").column("path").to_pylist(),
    )
    for paths in tables:
        assert sorted(unescape_path(path) for path in paths) == names
    labels = {json.loads(line)["label"] for line in lines}
    assert labels == {escape_path(label) for label in classes}


def test_odd_name_of_a_faulty_file_is_one_line(run_cli: Run, head: Path) -> None:
    """Control characters in a name never reach the terminal, and a message stays one line."""
    Path("set").mkdir()
    Path("set", "a\n\x1b[2Jb\udce9.jpg").write_bytes(b"")
    line = "Failed: a\\n\\x1b[2Jb\\xe9.jpg: the file is empty (0 bytes)"
    for command in (
        ("embed", "set", "--model", "tiny", "-o", "s", "--device", "cpu"),
        ("score", "set", "--head", head, "-o", "out.csv", "--device", "cpu"),
    ):
        result = run_cli(*command)
        assert result.code == EXIT_SOME_FAILED
        assert result.err.splitlines()[0] == line
        assert "\x1b" not in result.err


@pytest.mark.parametrize("command", ["embed", "score"])
def test_link_loop_is_cut_and_said(run_cli: Run, head: Path, photos: Path, command: str) -> None:
    """A folder that links back to a folder above is left out, with a note; the rest is done."""
    (photos / "living" / "again").symlink_to(photos)
    (photos / "things" / "me.jpg").symlink_to(photos / "things" / "me.jpg")
    options = {
        "embed": ("--model", "tiny", "-o", "s"),
        "score": ("--head", head, "-o", "out.csv"),
    }[command]
    result = run_cli(command, photos, *options)
    assert result.code == EXIT_SOME_FAILED
    assert result.err.splitlines()[:2] == [
        "Note: did not follow living/again: it links back to a folder above.",
        "Failed: things/me.jpg: the link leads nowhere (Too many levels of symbolic links)",
    ]
    assert result.err.splitlines()[-1].startswith("11 images: 10 ")


def test_unreadable_file_is_a_row(
    run_cli: Run, head: Path, open_folder: Path, photos: Path, tiny_backbone: Path
) -> None:
    """What may not be read is a row that says so, for embed and score; later it is tried again."""
    for source, name in ((photos, "set"), (head, "head")):
        shutil.copytree(source, open_folder / name)
    shutil.copy(tiny_backbone, open_folder / "tiny.onnx")
    closed, folder = open_folder / "set/living/cat.jpg", open_folder / "set/things"
    closed.chmod(0)
    folder.chmod(0)
    places = ("--model", open_folder / "tiny.onnx", "--device", "cpu")
    embed = ("embed", open_folder / "set", *places, "-o", open_folder / "s")
    with as_nobody():
        embedded = run_cli(*embed)
        scored = run_cli(
            *("score", open_folder / "set", *places, "--head", open_folder / "head"),
            *("-o", open_folder / "out.csv"),
        )
    failed = [
        "Failed: living/cat.jpg: the file cannot be read: Permission denied",
        "Failed: things: the folder cannot be opened: Permission denied",
    ]
    for result in (embedded, scored):
        assert result.code == EXIT_SOME_FAILED
        assert [line for line in result.err.splitlines() if "Failed" in line] == failed
    rows = {row["path"]: row["status"] for row in rows_of(str(open_folder / "out.csv"))}
    assert rows.pop("living/cat.jpg") == rows.pop("things") == "unreadable"
    assert set(rows.values()) == {"ok"}
    closed.chmod(0o644)
    folder.chmod(0o755)
    again = run_cli(*embed)
    assert again.code == 0
    assert again.err.splitlines()[-1].startswith("10 images: 7 embedded ")


def test_equal_images_under_two_labels_are_named(run_cli: Run, place: Path, photos: Path) -> None:
    """A copy in another class is named by embed, and again by fit."""
    note = (
        "Note: equal images under two labels: living/cat.jpg (living) = things/dog.jpg (things): "
        "correct one label."
    )
    shutil.copy(photos / "living" / "cat.jpg", photos / "things" / "dog.jpg")
    result = run_cli("embed", photos, "--model", "tiny", "-o", "s")
    assert result.code == 0
    assert result.err.splitlines()[0] == note
    result = run_cli("fit", "s", "--head", "centroid", "-o", "h")
    assert result.code == 0
    assert result.err.splitlines()[0] == note


@pytest.mark.slow
@pytest.mark.parametrize("model", [None, "tiny"])
def test_all_of_hymenoptera_is_embedded(
    run_cli: Run, shared: Path, place: Path, model: str | None
) -> None:
    """All 398 files have a vector: the GIF, the `.jpeg`, the odd names, the large photograph."""
    folder = shared / "datasets" / "hymenoptera_data"
    result = run_cli("embed", folder, "-o", "s", *(["--model", model] if model else []), "--json")
    value = json.loads(result.out)
    assert (result.code, value["images"], value["failures"]) == (0, 398, [])
    store = EmbeddingStore.open("s")
    assert len(store) == 398
    assert np.isfinite(store.X).all()
    assert {os.path.splitext(path)[1] for path in store.paths} >= {".jpg", ".jpeg", ".gif"}
    assert {s: list(store.splits).count(s) for s in ("train", "val")} == {"train": 245, "val": 153}
