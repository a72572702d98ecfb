"""The images that travel with featpipe, and how they become a folder.

``data/surfaces.zip`` is made by ``tools/make_demo_data.py``: 160 training and 200 test crops
of eight surfaces, and eight new ones without a label. Training crops come from the left half
of each photograph, test crops and new ones from the right half; ``crops.csv`` in the archive
has the place of each. ``data/LICENSES.md`` says whose the photographs are.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from zipfile import ZipFile

from featpipe._files import make_folder, printable, write_error, write_json
from featpipe.errors import WriteError

ARCHIVE = Path(__file__).resolve().parent / "data" / "surfaces.zip"
LICENSES = ARCHIVE.with_name("LICENSES.md")
MARKER = "demo.json"
_MADE_BY = "featpipe demo"


@dataclass(frozen=True, slots=True)
class DemoFolder:
    """The demo's folder, with the images in it.

    Attributes
    ----------
    root : Path
        Everything that the demo writes is below it.
    images : Path
        ``train/<class>/`` and ``test/<class>/``.
    new : Path
        Photographs without a label.
    written, kept : int
        Images written now, and images that were there already.
    """

    root: Path
    images: Path
    new: Path
    written: int
    kept: int


def unpack(root: Path) -> DemoFolder:
    """Write the images below ``root``; what is there already, and right, is not touched.

    Raises
    ------
    WriteError
        When ``root`` holds other things, or the operating system refuses to write.
    """
    _refuse_foreign(root)
    make_folder(root)
    write_json(root / MARKER, {"made_by": _MADE_BY})
    members = dict(_members())
    _refuse_additions(root / "images", set(members))
    written = sum(_write_if_different(root / name, data) for name, data in members.items())
    _write_if_different(root / LICENSES.name, LICENSES.read_bytes())
    return DemoFolder(root, root / "images", root / "new", written, len(members) - written)


def _members() -> Iterator[tuple[str, bytes]]:
    with ZipFile(ARCHIVE) as archive:
        for name in archive.namelist():
            if name.endswith(".jpg"):
                yield name, archive.read(name)


def _refuse_foreign(root: Path) -> None:
    """Let only a folder pass that is new, empty, or the demo's own."""
    shown = printable(str(root))
    try:
        names = sorted(os.listdir(root))
    except FileNotFoundError:
        return
    except NotADirectoryError:
        raise WriteError(
            f"cannot write the demo into {shown}: it is a file; name a new or an empty folder"
        ) from None
    except OSError as exc:
        raise write_error(root, exc) from exc
    if names and not _is_ours(root / MARKER):
        first = ", ".join(printable(name) for name in names[:3])
        more = ", …" if len(names) > 3 else ""
        raise WriteError(
            f"cannot write the demo into {shown}: it holds other things ({first}{more}); "
            "name a new or an empty folder, as in `featpipe demo another-folder`"
        )


def _is_ours(marker: Path) -> bool:
    try:
        value = json.loads(marker.read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(value, dict) and value.get("made_by") == _MADE_BY


def _refuse_additions(images: Path, expected: set[str]) -> None:
    """Keep images out that somebody has added: the table would no longer be the demo's."""
    for folder, folders, files in os.walk(images):
        folders.sort()
        for file in sorted(files):
            path = Path(folder, file)
            if file[0] != "." and path.relative_to(images.parent).as_posix() not in expected:
                raise WriteError(
                    f"cannot use {printable(str(images))}: {printable(str(path))} is not the "
                    "demo's; move it away, or put images without a label into "
                    f"{printable(str(images.with_name('new')))}"
                )


def _write_if_different(path: Path, data: bytes) -> bool:
    """Tell whether ``path`` had to be written."""
    try:
        if path.is_file() and path.read_bytes() == data:
            return False
        path.parent.mkdir(parents=True, exist_ok=True)
        # Not synced one by one: the next run compares the contents and mends what is torn.
        path.write_bytes(data)
    except OSError as exc:
        raise write_error(path, exc) from exc
    return True
