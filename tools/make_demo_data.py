"""Rebuild the demo's photographs, ``featpipe/demo/data/surfaces.zip``: ``make demo-data``.

Eight surfaces are cut from photographs that scikit-image carries, of which it documents that
they are CC0 or in the public domain. Training crops come from the left half of each
photograph, test crops and the unlabelled ones from the right half, with a gap of at least
``GAP`` pixels between them. Every crop is grey, of varied scale, turned by quarters, and gets
a mean and a contrast drawn independently of its class: what is left to learn is the surface.

``--source`` names the data folder of scikit-image or its wheel; the installed one otherwise.
With ``--check`` nothing is replaced: the archive is rebuilt and compared with the committed
one. The bytes depend on the versions in ``tools/requirements-demo.txt`` and on nothing else.
"""

from __future__ import annotations

import argparse
import csv
import io
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

DATA = Path(__file__).resolve().parent.parent / "featpipe" / "demo" / "data"
ARCHIVE = DATA / "surfaces.zip"
LICENSES = DATA / "LICENSES.md"

SIDE = 96
QUALITY = 66
GAP = 8
COUNTS = {"train": 20, "test": 25, "new": 1}
SEED = 20
MEANS = (92.0, 164.0)
CONTRASTS = (24.0, 52.0)
COLUMNS = ("path", "class", "source", "left", "top", "size", "turns", "mean", "contrast")

Box = tuple[int, int, int, int]
"""Left, top, right, bottom in pixels of the photograph."""


@dataclass(frozen=True)
class Surface:
    """One class: its photograph, where its crops may lie, and whose it is.

    ``left`` and ``right`` are the windows for training and for test; ``sizes`` is the range
    of a crop's side, in pixels of the photograph.
    """

    name: str
    file: str
    sizes: tuple[int, int]
    left: tuple[Box, ...]
    right: tuple[Box, ...]
    shows: str
    origin: str
    licence: str


SURFACES = (
    Surface(
        name="brick",
        file="brick.png",
        sizes=(110, 220),
        left=((0, 0, 250, 512),),
        right=((262, 0, 512, 512),),
        shows="a brick wall",
        origin="CC0Textures, Bricks25 (cc0textures.com/view.php?tex=Bricks25), "
        "changed in perspective by scikit-image",
        licence="CC0",
    ),
    Surface(
        name="fur",
        file="chelsea.png",
        sizes=(75, 125),
        left=((8, 0, 216, 250),),
        right=((236, 0, 372, 250),),
        shows="the cat Chelsea",
        origin="photographer Stefan van der Walt",
        licence="CC0",
    ),
    Surface(
        name="grass",
        file="grass.png",
        sizes=(110, 220),
        left=((0, 0, 250, 512),),
        right=((262, 0, 512, 512),),
        shows="grass",
        origin="linolafett, DeviantArt (deviantart.com/linolafett/art/Grass-01-434853879)",
        licence="CC0",
    ),
    Surface(
        name="gravel",
        file="gravel.png",
        sizes=(110, 220),
        left=((0, 0, 250, 512),),
        right=((262, 0, 512, 512),),
        shows="gravel",
        origin="CC0Textures, Gravel04 (cc0textures.com/view.php?tex=Gravel04)",
        licence="CC0",
    ),
    Surface(
        name="retina",
        file="retina.jpg",
        sizes=(260, 460),
        left=((130, 250, 700, 1160),),
        right=((712, 250, 1280, 1160),),
        shows="the fundus of a human eye",
        origin="Mikael Häggström, Medical gallery 2014, Wikimedia Commons "
        "(Fundus_photograph_of_normal_left_eye.jpg)",
        licence="CC0 1.0 Universal Public Domain Dedication",
    ),
    Surface(
        name="stars",
        file="hubble_deep_field.jpg",
        sizes=(150, 320),
        left=((0, 0, 494, 872),),
        right=((506, 0, 1000, 872),),
        shows="galaxies, the Hubble eXtreme Deep Field",
        origin="NASA, HubbleSite (hubblesite.org/newscenter/archive/releases/2012/37/image/a/)",
        licence="public domain",
    ),
    Surface(
        name="wood",
        file="coffee.png",
        sizes=(58, 90),
        left=((0, 100, 90, 205), (0, 240, 92, 400), (85, 8, 172, 98)),
        right=((478, 225, 600, 400),),  # what lies above is out of focus: no wood is seen
        shows="the table under a cup of coffee",
        origin="photographer Rachel Michetti, courtesy of Pikolo Espresso Bar",
        licence="CC0",
    ),
    Surface(
        name="writing",
        file="text.png",
        sizes=(80, 150),
        left=((0, 0, 218, 172),),
        right=((230, 0, 448, 172),),
        shows="handwriting on squared paper",
        origin="Wikipedia (en.wikipedia.org/wiki/File:Corner.png)",
        licence="public domain, no known copyright restrictions",
    ),
)


@dataclass(frozen=True)
class Crop:
    """Where one image of the set comes from, and what was done to it."""

    path: str
    surface: Surface
    left: int
    top: int
    size: int
    turns: int
    mean: float
    contrast: float

    def row(self) -> tuple[object, ...]:
        """Return the crop's line of ``crops.csv``, in the order of `COLUMNS`."""
        place = (self.left, self.top, self.size, self.turns)
        numbers = (f"{self.mean:.1f}", f"{self.contrast:.1f}")
        return (self.path, self.surface.name, self.surface.file, *place, *numbers)


def draw_crops(seed: int = SEED) -> list[Crop]:
    """Draw all crops of the set, class by class, in a fixed order."""
    random = np.random.default_rng(seed)
    crops = []
    for position, surface in enumerate(SURFACES):
        for split, count in COUNTS.items():
            windows = surface.left if split == "train" else surface.right
            for number in range(1, count + 1):
                path = f"images/{split}/{surface.name}/{surface.name}-{number:02d}.jpg"
                if split == "new":  # the name gives nothing away
                    path = f"new/{(position * 5) % len(SURFACES) + 1:02d}.jpg"
                crops.append(_draw(random, surface, windows, path))
    return crops


def _draw(
    random: np.random.Generator, surface: Surface, windows: tuple[Box, ...], path: str
) -> Crop:
    left, top, right, bottom = windows[int(random.integers(len(windows)))]
    largest = min(surface.sizes[1], right - left, bottom - top)
    size = int(random.integers(surface.sizes[0], largest + 1))
    return Crop(
        path,
        surface,
        left=int(random.integers(left, right - size + 1)),
        top=int(random.integers(top, bottom - size + 1)),
        size=size,
        turns=int(random.integers(4)),
        mean=float(random.uniform(*MEANS)),
        contrast=float(random.uniform(*CONTRASTS)),
    )


def check_halves(width: int, surface: Surface) -> None:
    """Refuse a surface whose two sides come closer to the middle than half the gap."""
    if any(box[2] > (width - GAP) // 2 for box in surface.left):
        raise SystemExit(f"{surface.name}: a training window reaches into the gap")
    if any(box[0] < (width + GAP) // 2 for box in surface.right):
        raise SystemExit(f"{surface.name}: a test window reaches into the gap")


def render(photograph: Image.Image, crop: Crop) -> bytes:
    """Cut, scale, turn and level one crop; return it as a grey JPEG of `SIDE` pixels."""
    box = (crop.left, crop.top, crop.left + crop.size, crop.top + crop.size)
    scaled = photograph.resize((SIDE, SIDE), Image.Resampling.BICUBIC, box=box)
    pixels = level(np.rot90(np.asarray(scaled), crop.turns), crop.mean, crop.contrast)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=QUALITY, optimize=True)
    return file.getvalue()


def level(pixels: NDArray[np.uint8], mean: float, contrast: float) -> NDArray[np.uint8]:
    """Give ``pixels`` (H, W) the mean and the standard deviation that were drawn."""
    grey = pixels.astype(np.float64)
    grey = (grey - grey.mean()) / max(float(grey.std()), 1.0)
    return np.clip(np.rint(grey * contrast + mean), 0, 255).astype(np.uint8)


def photographs(source: Path) -> Iterator[tuple[Surface, Image.Image]]:
    """Read the photographs from scikit-image's data folder or wheel, in grey."""
    for surface in SURFACES:
        if source.is_dir():
            data = (source / surface.file).read_bytes()
        else:
            with zipfile.ZipFile(source) as wheel:
                data = wheel.read(f"skimage/data/{surface.file}")
        image = Image.open(io.BytesIO(data)).convert("L")
        check_halves(image.width, surface)
        yield surface, image


def build(source: Path) -> bytes:
    """Return the archive: the images, and ``crops.csv`` that says where each comes from."""
    images = {surface.name: image for surface, image in photographs(source)}
    crops = draw_crops()
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for crop in sorted(crops, key=lambda crop: crop.path):
            add(archive, crop.path, render(images[crop.surface.name], crop), zipfile.ZIP_STORED)
        add(archive, "crops.csv", table(crops), zipfile.ZIP_DEFLATED)
    return file.getvalue()


def add(archive: zipfile.ZipFile, name: str, data: bytes, compression: int) -> None:
    """Add a file with a fixed date, system and permissions, so that the bytes do not vary."""
    info = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
    info.compress_type = compression
    info.create_system = 3
    info.external_attr = 0o644 << 16
    archive.writestr(info, data)


def table(crops: list[Crop]) -> bytes:
    """Return ``crops.csv``, sorted by path."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(crop.row() for crop in sorted(crops, key=lambda crop: crop.path))
    return text.getvalue().encode()


def licenses() -> bytes:
    """Return ``LICENSES.md``: origin and licence of every photograph."""
    lines = [
        "# Where the demo's photographs come from",
        "",
        "Grey crops of eight photographs in the data folder of scikit-image 0.26.0, whose",
        "`skimage/data/_fetchers.py` documents the origin and the licence given here. The crops",
        "are free for any use, as the photographs are. `crops.csv` in the archive has the place",
        "of every crop in its photograph.",
        "",
        "| class | file | shows | origin | licence |",
        "|---|---|---|---|---|",
    ]
    lines += [f"| {s.name} | {s.file} | {s.shows} | {s.origin} | {s.licence} |" for s in SURFACES]
    return ("\n".join(lines) + "\n").encode()


def installed() -> Path:
    """Return the data folder of the installed scikit-image."""
    spec = find_spec("skimage")
    if spec is None or spec.origin is None:
        raise SystemExit("scikit-image is not installed: give its data folder with --source")
    return Path(spec.origin).parent / "data"


def main() -> int:
    """Build; then compare, or put the files in place."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--source", type=Path, help="scikit-image's data folder or wheel")
    parser.add_argument("--check", action="store_true", help="compare, replace nothing")
    arguments = parser.parse_args()
    different = False
    for path, data in (
        (ARCHIVE, build(arguments.source or installed())),
        (LICENSES, licenses()),
    ):
        same = path.is_file() and path.read_bytes() == data
        different |= not same
        if not same and not arguments.check:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        verdict = "the same" if same else "different" if arguments.check else "written"
        print(f"{path.name}: {verdict}, {len(data):,} bytes")
    return 1 if arguments.check and different else 0


if __name__ == "__main__":
    sys.exit(main())
