"""``kill -9`` while images are moved, or moved back: none is lost, and the next run goes on."""

from __future__ import annotations

import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from featpipe import embed
from featpipe.quality import clean

GOING = ("living/cat_0.jpg", "living/cat_1.jpg", "things/coffee_0.jpg")

_RUN = """
import pickle, shutil, sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from kills import forbid_links, kill_everywhere
from featpipe.quality import move, move_back
from featpipe.quality.journal import read_moves
from featpipe.store import EmbeddingStore
from test_kills import GOING
from test_moving import contents

folder = Path(sys.argv[2])
found = pickle.loads((folder / "found").read_bytes())
store = EmbeddingStore.open(folder / "s")
photos, out = folder / "photos", folder / "out"
before = contents(photos)

def keep(name):
    for place in (photos, out):
        if place.exists():
            shutil.copytree(place, folder / name / place.name)

def reset_to(name):
    for place in (photos, out):
        shutil.rmtree(place, ignore_errors=True)
        if (folder / name / place.name).exists():
            shutil.copytree(folder / name / place.name, place)

def look():
    found = contents(out) if out.exists() else {}
    there, gone = (
        {path: key for path, key in files.items() if not path.endswith(".tmp")}
        for files in (contents(photos), found)
    )
    assert there | gone == before
    listed = {one.path for one in read_moves(out)}
    assert gone.keys() <= listed <= set(GOING)
    return there, gone, listed

def check_move(is_end):
    there, gone, listed = look()
    if is_end:
        assert tuple(gone) == tuple(sorted(listed)) == GOING and not there.keys() & set(GOING)

def check_back(is_end):
    there, gone, listed = look()
    if is_end:
        assert there == before and not gone and not listed

keep("start")
move(found, store, out)
keep("moved")
for forbid in (lambda: None, forbid_links):
    forbid()
    print(kill_everywhere(lambda: move(found, store, out), lambda: reset_to("start"), check_move))
    print(kill_everywhere(lambda: move_back(out), lambda: reset_to("moved"), check_back))
"""


@pytest.mark.slow
def test_kill_leaves_every_image_somewhere_and_the_next_run_goes_on(
    photos: Path, tiny_backbone: Path, tmp_path: Path
) -> None:
    """Before each call of the system, on one file system and as between two, there and back.

    No image is lost or cut, and all that is in the other folder is in the list; the next run
    takes up what the one before has left; in the end all have moved.
    """
    for place in GOING:
        shutil.copy(photos / f"{place.split('_')[0]}.jpg", photos / place)
    store = embed(photos, tiny_backbone, output=tmp_path / "s")
    (tmp_path / "found").write_bytes(pickle.dumps(clean(store, head="centroid")))
    command = [sys.executable, "-c", _RUN, os.path.dirname(__file__), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    linked, linked_back, copied, copied_back = map(int, done.stdout.split())
    # Three calls an image at least, six where it is copied; and the list, which `move` writes
    # before and after.
    assert linked >= 3 * len(GOING) + 6
    assert linked_back >= 3 * len(GOING) + 3
    assert copied >= 6 * len(GOING) + 6
    assert copied_back >= 6 * len(GOING) + 3
