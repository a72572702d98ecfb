"""Bundles in Python, Node.js and the browser beside featpipe itself: the tables of docs/bundle.md.

With FEATPIPE_SHARED: all seven heads on clothing_small's test images; smaller backbones; large
photographs; kinds of files; and what it costs when a host decodes otherwise. The programs are
those of ``examples/``; Node.js and Chromium need ``npm ci`` there (and ``npm run build`` in
``examples/web``), and are left out, said so, where they are missing. Two figures stand for a
runtime with its own decoder and with the pixels of Pillow handed over.

    PYTHONPATH=. python benchmarks/bundle.py [--heads FOLDER] [--images N] [--json FILE]
"""

from __future__ import annotations

import argparse
import io
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from bundle_runtimes import Found, Pictures, runtimes, versions
from PIL import Image, ImageCms
from pipeline import enlarged, photographs

import featpipe
from featpipe.bundling import BundleOptions, bundle
from featpipe.heads import HEADS, Head, load_head
from featpipe.images import square_of, whole_picture

ROOT = Path(os.environ["FEATPIPE_SHARED"]) / "datasets"
CLOTHES = ROOT / "clothing_small"
PHOTO = ROOT / "hymenoptera_data" / "val" / "ants" / "desert_ant.jpg"
LARGE = "ants-devouring-remains-of-large-dead-insect-*.jpg"


def fitted(folder: Path | None) -> dict[str, Head]:
    """Return the seven heads, from a folder of saved ones or fitted now."""
    if folder is not None:
        saved = {load_head(path).name: load_head(path) for path in sorted(folder.glob("*/"))}
        return {name: saved[name] for name in HEADS}
    with tempfile.TemporaryDirectory() as work:
        store = featpipe.embed(CLOTHES, output=Path(work) / "store", device="cpu")
        return {name: featpipe.fit(store, name, baselines=False) for name in HEADS}


def by_featpipe(files: list[Path], folder: Path, heads: dict[str, Head]) -> dict[str, Any]:
    """Return featpipe's own probabilities of files, (n, K) by head."""
    folder.mkdir()
    for i, path in enumerate(files):
        (folder / f"{i:06d}{path.suffix}").symlink_to(path)
    store = featpipe.embed(folder, output=folder.with_suffix(".store"), device="cpu")
    return {name: head.predict_proba(store.X) for name, head in heads.items()}


def agreement(expected: Any, found: list[Any]) -> str:
    """Return labels equal and the largest difference of a probability."""
    pairs = [(e, f) for e, f in zip(expected, found, strict=True) if f is not None]
    same = sum(int(np.argmax(e) == np.argmax(f)) for e, f in pairs)
    apart = max(float(np.abs(e - f).max()) for e, f in pairs)
    return f"{same}/{len(pairs)}, {apart:.1g}"


def heads_table(work: Path, heads: dict[str, Head], files: list[Path]) -> Iterator[str]:
    """Compare every head, in every runtime, with featpipe."""
    available = runtimes()
    expected = by_featpipe(files, work / "test", heads)
    pictures = Pictures.of(files, work / "pixels")
    yield "| head | MB | runtime | own decoder | Pillow's pixels | images/s (best tenth) |"
    yield "|---|---|---|---|---|---|"
    for name, head in heads.items():
        path = work / f"{name}.onnx"
        size = bundle(head, path, images=CLOTHES / "test").size / 1e6
        for runtime, run in available.items():
            found = run(path, pictures)
            yield row(f"{name} | {size:.1f} | {runtime}", expected[name], found)


def row(begin: str, expected: Any, found: Found) -> str:
    """Return a row: how far own decoder and Pillow's pixels lead from featpipe; images/s."""
    return (
        f"| {begin} | {agreement(expected, found.own)} | {agreement(expected, found.given)} | "
        f"{found.rate} |"
    )


def precisions_table(work: Path, head: Head, files: list[Path]) -> Iterator[str]:
    """Compare bundles with smaller backbones with featpipe in fp32, and runtimes with Python."""
    available = runtimes()
    expected = by_featpipe(files, work / "again", {"head": head})["head"]
    pictures = Pictures.of(files, work / "pixels")
    yield (
        "| precision | MB | runtime | beside featpipe in fp32 | beside Python | "
        "images/s (best tenth) |"
    )
    yield "|---|---|---|---|---|---|"
    for precision in ("fp32", "fp16", "int8"):
        path = work / f"{precision}.onnx"
        options = BundleOptions(precision=precision)
        size = bundle(head, path, images=CLOTHES / "train", options=options).size / 1e6
        in_python = None
        for runtime, run in available.items():
            found = run(path, pictures)
            in_python = in_python or found
            yield (
                f"| {precision} | {size:.1f} | {runtime} | {agreement(expected, found.own)} | "
                f"{agreement(in_python.own, found.own)} | {found.rate} |"
            )


def large_table(work: Path, head: Head) -> Iterator[str]:
    """Compare large photographs, which featpipe itself decodes at a reduced scale."""
    (work / "large").mkdir()
    made = enlarged(photographs()[::90][:5], work / "large")
    files = [*map(Path, made), next((ROOT / "hymenoptera_data").rglob(LARGE))]
    expected = by_featpipe(files, work / "largest", {"head": head})["head"]
    path = work / "large.onnx"
    bundle(head, path, images=CLOTHES / "test")
    pictures = Pictures.of(files, work / "large-pixels")
    backbone = featpipe.load_backbone()
    squares = [
        square_of(np.asarray(whole_picture(f.read_bytes())), backbone.card.resize) for f in files
    ]
    whole = head.predict_proba(backbone.open_session("cpu").run(np.stack(squares)))
    yield (
        "| runtime | beside featpipe | beside featpipe with a full decode | beside Python | "
        "pixels from Pillow's | images/s (best tenth) |"
    )
    yield "|---|---|---|---|---|---|"
    in_python = None
    for runtime, run in runtimes().items():
        found = run(path, pictures)
        in_python = in_python or found
        yield (
            f"| {runtime} | {agreement(expected, found.own)} | "
            f"{agreement(whole, found.own)} | {agreement(in_python.own, found.own)} | "
            f"up to {max(found.largest):.0f} | {found.rate} |"
        )


def kinds(folder: Path) -> dict[str, Path]:
    """Write one photograph as every kind of file that decoders may differ on."""
    photo = Image.open(PHOTO).convert("RGB").resize((640, 480))
    turned = Image.Exif()
    turned[0x0112] = 6
    clear = photo.copy()
    clear.putalpha(Image.linear_gradient("L").resize(photo.size))
    deep = Image.fromarray(np.asarray(photo.convert("L")).astype(np.uint16) * 257 + 90)
    made: dict[str, tuple[str, Image.Image, dict[str, Any]]] = {
        "JPEG, 4:4:4": ("444.jpg", photo, {"subsampling": 0}),
        "JPEG, 4:2:2": ("422.jpg", photo, {"subsampling": 1}),
        "JPEG, 4:2:0": ("420.jpg", photo, {"subsampling": 2}),
        "JPEG, progressive": ("progressive.jpg", photo, {"progressive": True}),
        "JPEG, grey": ("grey.jpg", photo.convert("L"), {}),
        "JPEG, CMYK": ("cmyk.jpg", photo.convert("CMYK"), {}),
        "JPEG, EXIF orientation 6": ("turned.jpg", photo, {"exif": turned}),
        "JPEG, colour profile with red and blue exchanged": (
            "profile.jpg",
            photo,
            {"icc_profile": exchanged()},
        ),
        "PNG, transparent": ("clear.png", clear, {}),
        "PNG, 16-bit grey": ("grey16.png", deep, {}),
        "PNG, palette": ("palette.png", photo.quantize(64), {}),
        "WebP": ("photo.webp", photo, {}),
        "AVIF, 4:2:0": ("photo.avif", photo, {}),
        "TIFF": ("photo.tif", photo, {}),
    }
    for name, image, options in made.values():
        image.save(folder / name, **options)
    return {kind: folder / name for kind, (name, _, _) in made.items()}


def exchanged() -> bytes:
    """Return sRGB's profile with the primaries of red and blue in each other's place."""
    data = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    at = {bytes(data[i : i + 4]): i + 4 for i in range(132, 132 + 12 * data[131], 12)}
    red, blue = at[b"rXYZ"], at[b"bXYZ"]
    data[red : red + 4], data[blue : blue + 4] = data[blue : blue + 4], data[red : red + 4]
    return bytes(data)


def kinds_table(work: Path, head: Head) -> Iterator[str]:
    """Compare decoders: pixels, largest and mean difference, and the probabilities."""
    path = work / "kinds.onnx"
    bundle(head, path, images=CLOTHES / "test")
    (work / "kinds").mkdir()
    files = kinds(work / "kinds")
    pictures = Pictures.of(list(files.values()), work / "kinds-pixels")
    available = {name: run for name, run in runtimes().items() if name != "Python"}
    found = {name: run(path, pictures) for name, run in available.items()}
    yield f"| file | {' | '.join(found)} |"
    yield "|---|" + "---|" * len(found)
    for i, kind in enumerate(files):
        yield f"| {kind} | {' | '.join(decoded(one, i) for one in found.values())} |"


def decoded(found: Found, i: int) -> str:
    """Return how far one picture is from Pillow's."""
    if found.largest[i] is None:
        return "not read"
    if found.largest[i] == 0:
        return "equal"
    apart = float(np.abs(found.own[i] - found.given[i]).max())
    return f"up to {found.largest[i]}, mean {found.mean[i]:.2f}; probability {apart:.2g}"


def hosts() -> dict[str, Callable[[bytes], Any]]:
    """Return ways to decode that a host may have instead, each bytes → pixels."""

    def opened(data: bytes) -> Image.Image:
        return Image.open(io.BytesIO(data))

    def fitting(data: bytes, filter_: Image.Resampling) -> Any:
        image = opened(data).convert("RGB")
        scale = 256 / min(image.size)
        size = [max(256, round(side * scale)) for side in image.size]
        return np.asarray(image.resize((size[0], size[1]), filter_))

    def compressed(data: bytes) -> Any:
        again = io.BytesIO()
        opened(data).convert("RGB").save(again, "JPEG", quality=75)
        return np.asarray(opened(again.getvalue()))

    ways: dict[str, Callable[[bytes], Any]] = {
        "as featpipe does it": lambda data: np.asarray(whole_picture(data)),
        "saved as JPEG of quality 75 once more": compressed,
        "brought to 256 pixels before, with antialiasing (bilinear)": lambda data: fitting(
            data, Image.Resampling.BILINEAR
        ),
        "brought to 256 pixels before, nearest pixel": lambda data: fitting(
            data, Image.Resampling.NEAREST
        ),
        "blue, green, red instead of red, green, blue": lambda data: np.ascontiguousarray(
            np.asarray(whole_picture(data))[..., ::-1]
        ),
    }
    try:
        from simplejpeg import decode_jpeg
    except ImportError:
        return ways
    return ways | {
        "chroma upsampled without smoothing": lambda data: decode_jpeg(data, fastupsample=True),
        "fast, inexact DCT": lambda data: decode_jpeg(data, fastdct=True),
    }


def hosts_table(work: Path, head: Head, files: list[Path]) -> Iterator[str]:
    """Tell what other ways to decode cost."""
    from serve_onnx import Bundle

    path = work / "hosts.onnx"
    bundle(head, path, images=CLOTHES / "test")
    model = Bundle(path)
    expected = None
    yield "| pixels are | labels equal | largest difference of a probability | mean |"
    yield "|---|---|---|---|"
    for way, decode in hosts().items():
        found = [model.answer(decode(file.read_bytes()))[0] for file in files]
        expected = expected or found
        apart = [float(np.abs(e - f).max()) for e, f in zip(expected, found, strict=True)]
        same = sum(e.argmax() == f.argmax() for e, f in zip(expected, found, strict=True))
        yield f"| {way} | {same}/{len(files)} | {max(apart):.2g} | {np.mean(apart):.2g} |"


def main() -> None:
    """Print all tables, line by line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--heads", type=Path, help="folder of the seven heads (default: fit them)")
    parser.add_argument("--images", type=int, help="take so many test images (default: all)")
    parser.add_argument("--only", action="append", choices=list(PARTS))
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    files = sorted((CLOTHES / "test").glob("*/*.jpg"))
    files = files[:: max(1, len(files) // asked.images)] if asked.images else files
    heads = fitted(asked.heads)
    tables: dict[str, list[str]] = {}
    print(f"{versions()}. {len(files)} test images of clothing_small.")
    for name in asked.only or PARTS:
        title, table = PARTS[name]
        print(f"\n{title}\n", flush=True)
        tables[name] = []
        with tempfile.TemporaryDirectory() as work:
            for line in table(Path(work), heads, files):
                print(line, flush=True)
                tables[name].append(line)
    if asked.json:
        asked.json.write_text(json.dumps({"versions": versions(), "tables": tables}))


Table = Callable[[Path, dict[str, Head], list[Path]], Iterator[str]]
PARTS: dict[str, tuple[str, Table]] = {
    "heads": ("Labels equal to featpipe's, and the largest difference:", heads_table),
    "precisions": (
        "logreg with smaller backbones:",
        lambda work, heads, files: precisions_table(work, heads["logreg"], files),
    ),
    "large": (
        "Six large photographs:",
        lambda work, heads, files: large_table(work, heads["logreg"]),  # noqa: ARG005
    ),
    "kinds": (
        "Decoders beside Pillow:",
        lambda work, heads, files: kinds_table(work, heads["logreg"]),  # noqa: ARG005
    ),
    "hosts": (
        "Hosts that decode otherwise:",
        lambda work, heads, files: hosts_table(work, heads["logreg"], files),
    ),
}

if __name__ == "__main__":
    main()
