"""Embedding: what is opened, what is computed, and what is left when something breaks."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from conftest import PHOTOS, as_nobody, build_tiny_backbone
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from featpipe import load_backbone
from featpipe.backbones import Backbone
from featpipe.embedding import EmbedOptions, EmbedReport, embed, run_embedding, stream
from featpipe.errors import (
    DeviceError,
    FingerprintError,
    LockedError,
    SourceError,
    StoreError,
    TooManyFailuresError,
)
from featpipe.sources import FolderSource, open_source
from featpipe.store import EmbeddingStore, Manifest, StoreWriter, merge_stores
from featpipe.types import ImageRef, Progress


@pytest.fixture
def run(tiny_backbone: Path, photos: Path, tmp_path: Path):
    """Return a function that embeds the photographs into one store."""

    def go(**options: object) -> EmbedReport:
        return run_embedding(
            photos, tiny_backbone, output=tmp_path / "store", options=EmbedOptions(**options)
        )

    return go


def counts(report: EmbedReport) -> tuple[int, int, int, int]:
    """Images, opened, computed, failed."""
    return report.images, report.opened, report.computed, report.failed


def content(store: EmbeddingStore) -> dict[str, tuple[object, ...]]:
    """All that a store says of every image, independent of how its parts are cut."""
    index = store.index
    columns = ("key", "size", "width", "height", "status", "reason", "label", "split")
    rows = zip(index.paths(), *(index.values(c) for c in columns), strict=True)
    vectors = {path: x.tobytes() for path, x in zip(store.paths, store.X, strict=True)}
    return {path: (*rest, vectors.get(path)) for path, *rest in rows}


def test_every_image_gets_its_vector(run, photos: Path) -> None:
    """Ten photographs give ten vectors with labels, in the order of their names."""
    report = run()
    assert counts(report) == (10, 10, 10, 0)
    store = report.store
    assert store.paths == sorted(p.relative_to(photos).as_posix() for p in photos.rglob("*.jpg"))
    assert list(store.labels()) == [p.split("/")[0] for p in store.paths]
    assert store.X.shape == (10, 27)
    assert store.X.dtype == np.float32


def test_batch_size_and_workers_change_no_bit(
    tiny_backbone: Path, photos: Path, tmp_path: Path
) -> None:
    """However the work is divided, the vectors are the same bits in the same order."""
    stores = [
        embed(photos, tiny_backbone, output=tmp_path / f"{b}-{w}", batch_size=b, workers=w)
        for b, w in ((1, 1), (3, 2), (64, 4))
    ]
    assert all(np.array_equal(s.X, stores[0].X) for s in stores)
    assert all(s.index == stores[0].index for s in stores)


def test_second_run_opens_nothing(run, photos: Path) -> None:
    """Unchanged files are not opened: they may even be unreadable by then."""
    first = run().store
    index = first.path / "index.parquet"
    before = index.stat().st_mtime_ns
    opened: list[str] = []
    sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event == "open" else None)
    report = run()
    assert not [path for path in opened if path.startswith(str(photos))]
    assert counts(report) == (10, 0, 0, 0)
    assert report.unchanged == 10
    assert index.stat().st_mtime_ns == before
    assert content(report.store) == content(first)


def test_what_needs_no_vector_starts_no_device(run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run without anything to compute opens no session, and says so."""
    first = run(device="cpu")
    engine = first.store.manifest.engines[0]
    assert (engine["provider"], engine["decoder"].split()[0]) == ("cpu", "pillow")
    monkeypatch.setattr(Backbone, "open_session", pytest.fail)
    second = run()
    assert second.device == "nothing had to be computed, so no device was started"
    assert second.store.manifest == first.store.manifest


def test_a_device_that_is_asked_for_is_had_or_the_run_fails(run) -> None:
    """Also where nothing has to be computed: the command was not what the machine can do."""
    run()
    with pytest.raises(DeviceError, match=r"^CoreML cannot be used: "):
        run(device="coreml")


def test_a_run_that_fails_at_its_device_leaves_no_store(run, tmp_path: Path) -> None:
    """The same command for another folder of that name would be refused otherwise."""
    for options in ({"device": "coreml"}, {"device": "cpu", "precision": "fp16"}):
        with pytest.raises(DeviceError):
            run(**options)
    assert not (tmp_path / "store").exists()


def test_changed_added_renamed_copied_and_deleted(run, photos: Path) -> None:
    """Only new contents are computed; what is gone is gone."""
    run()
    shutil.copy(PHOTOS / "rocket.jpg", photos / "living" / "cat.jpg")
    (photos / "things" / "coins.jpg").rename(photos / "things" / "money.jpg")
    shutil.copy(photos / "things" / "brick.jpg", photos / "living" / "brick.jpg")
    (photos / "things" / "gravel.jpg").unlink()
    (photos / "things" / "new.jpg").write_bytes((PHOTOS / "cat.jpg").read_bytes() + b"\0")
    report = run()
    assert counts(report) == (11, 4, 1, 0)
    assert report.removed == 2
    note = (
        "equal images under two labels: living/brick.jpg (living) = things/brick.jpg (things); "
        "living/cat.jpg (living) = things/rocket.jpg (things): correct one label"
    )
    assert report.notes == (note,)
    fresh = embed(photos, _path(report), output=report.store.path.parent / "fresh")
    assert content(report.store) == content(fresh)


def _path(report: EmbedReport) -> Path:
    """Return the file of the tiny backbone again, made beside the store."""
    path = report.store.path.parent / "again.onnx"
    build_tiny_backbone(path)
    return path


def test_touched_file_is_hashed_and_not_computed(run, photos: Path) -> None:
    """A new time of change with the same bytes costs a read, no inference."""
    run()
    os.utime(photos / "living" / "cat.jpg", ns=(1, 1))
    assert counts(run()) == (10, 1, 0, 0)
    assert counts(run()) == (10, 0, 0, 0)


def test_rehash_finds_what_size_and_time_hide(run, photos: Path) -> None:
    """A file changed behind its time stamp is found when every file is opened."""
    run()
    path = photos / "living" / "cat.jpg"
    stat = path.stat()
    data = bytearray(path.read_bytes())
    data[-20] ^= 1
    path.write_bytes(bytes(data))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert counts(run()) == (10, 0, 0, 0)
    assert counts(run(rehash=True)) == (10, 10, 1, 0)


def test_equal_files_are_computed_once(tiny_backbone: Path, photos: Path, tmp_path: Path) -> None:
    """Copies within one run share one inference and one row, even with many threads."""
    for i in range(20):
        shutil.copy(photos / "living" / "cat.jpg", photos / "living" / f"cat{i}.jpg")
    report = run_embedding(
        photos,
        tiny_backbone,
        output=tmp_path / "s",
        options=EmbedOptions(batch_size=1, workers=8),
    )
    assert counts(report) == (30, 30, 10, 0)
    cats = [x for p, x in zip(report.store.paths, report.store.X, strict=True) if "cat" in p]
    assert all(np.array_equal(x, cats[0]) for x in cats)
    assert set(report.store.index.values("width")) >= {451}


def test_failures_are_rows_and_are_remembered(run, photos: Path) -> None:
    """What cannot be decoded is not tried again; what could not be read is."""
    (photos / "living" / "broken.jpg").write_bytes(b"no image")
    (photos / "living" / "copy.jpg").write_bytes(b"no image")
    (photos / "living" / "gone.jpg").symlink_to(photos / "nowhere.jpg")
    report = run()
    assert counts(report) == (13, 13, 10, 3)
    assert report.exit_code == 3
    reason = "not an image in a format that can be read"
    assert report.store.failures == [
        ("living/broken.jpg", "undecodable", reason),
        ("living/copy.jpg", "undecodable", reason),
        ("living/gone.jpg", "unreadable", "the link leads nowhere (No such file or directory)"),
    ]
    assert counts(run()) == (13, 1, 0, 3)
    shutil.copy(PHOTOS / "cat.jpg", photos / "nowhere.jpg")
    assert counts(run()) == (14, 2, 0, 2)


def test_unreadable_file_is_tried_again(
    tiny_backbone: Path, open_folder: Path, tmp_path: Path
) -> None:
    """Permissions change without a trace in size and time: such a file is opened each run."""
    shutil.copy(PHOTOS / "cat.jpg", open_folder / "cat.jpg")
    (open_folder / "cat.jpg").chmod(0)
    source = FolderSource(open_folder)
    backbone = load_backbone(tiny_backbone)
    session = backbone.open_session("cpu")
    with as_nobody():
        [batch] = stream(source, list(source), backbone, session)
    assert batch.failures[0] is not None
    assert batch.failures[0].reason == "the file cannot be read: Permission denied"
    assert batch.failures[0].status == "unreadable"


@pytest.mark.parametrize(
    ("options", "asked"),
    [({"strict": True}, "--strict"), ({"max_failures": 0}, "--max-failures 0")],
)
def test_stopping_at_failures_keeps_what_was_done(run, photos: Path, options, asked: str) -> None:
    """`--strict` stops with a sentence; the next run goes on from there."""
    (photos / "things" / "zz.jpg").write_bytes(b"")
    with pytest.raises(TooManyFailuresError) as caught:
        run(batch_size=2, workers=1, **options)
    assert str(caught.value) == (
        f"stopped, as {asked} asks, at things/zz.jpg: the file is empty (0 bytes); "
        "what was finished is kept"
    )
    assert counts(run()) == (11, 0, 0, 1)
    with pytest.raises(TooManyFailuresError):
        run(**options)
    assert counts(run(max_failures=1)) == (11, 0, 0, 1)


def test_labels_may_change_without_opening(
    run, photos: Path, tiny_backbone: Path, tmp_path: Path
) -> None:
    """Moving an image's label in a table costs nothing."""
    run()
    table = tmp_path / "labels.csv"
    table.write_text("path,label\nliving/cat.jpg,animal\n")
    report = run_embedding(photos, tiny_backbone, output=tmp_path / "store", labels=table)
    assert counts(report) == (10, 0, 0, 0)
    assert "animal" in list(report.store.labels())


def test_default_output_names_source_and_model(
    tiny_backbone: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without -o the store lies under embeddings/, named after source and model."""
    monkeypatch.chdir(photos.parent)
    assert embed("photos", tiny_backbone).path == Path("embeddings/photos-tiny")
    assert embed("photos/living/cat.jpg", tiny_backbone).path == Path("embeddings/cat-tiny")


def test_namesake_is_not_overwritten(tiny_backbone: Path, photos: Path, tmp_path: Path) -> None:
    """A store of another folder is refused as long as that folder is there."""
    other = tmp_path / "other"
    shutil.copytree(photos, other)
    embed(photos, tiny_backbone, output=tmp_path / "s")
    with pytest.raises(StoreError) as caught:
        embed(other, tiny_backbone, output=tmp_path / "s")
    assert str(caught.value) == (
        f"{tmp_path}/s holds the images of {photos}, not of {other}: give another store with -o"
    )
    shutil.rmtree(photos)
    report = run_embedding(other, tiny_backbone, output=tmp_path / "s")
    assert report.computed == 0
    assert report.store.source == str(other)


def test_without_pruning_old_rows_stay(tiny_backbone: Path, photos: Path, tmp_path: Path) -> None:
    """A cache keeps the images of earlier sources."""
    paths = sorted(photos.rglob("*.jpg"))
    embed(paths[:3], tiny_backbone, output=tmp_path / "s", prune=False)
    store = embed(paths[2:5], tiny_backbone, output=tmp_path / "s", prune=False)
    assert sorted(store.paths) == [str(p) for p in paths[:5]]


def test_store_of_another_backbone_is_refused(run, photos: Path, tmp_path: Path) -> None:
    """Vectors of two backbones never share a store."""
    run()
    build_tiny_backbone(tmp_path / "other.onnx", "other", 0.5)
    with pytest.raises(FingerprintError, match=r"holds vectors of tiny \(.*\), not of other \("):
        embed(photos, tmp_path / "other.onnx", output=tmp_path / "store")


def test_half_precision_store_stays_so(run) -> None:
    """--dtype float16 is remembered; asking for another dtype later is refused."""
    assert run(dtype="float16").store.X.dtype == np.float16
    assert run().store.X.dtype == np.float16
    with pytest.raises(StoreError, match="holds float16 vectors, not float32"):
        run(dtype="float32")


@pytest.mark.parametrize(
    ("names", "detail"),
    [([], ""), (["a.txt"], " (left out 1 files whose suffix is not an image's: 1 .txt)")],
)
def test_empty_folder_is_a_sentence(
    tiny_backbone: Path, tmp_path: Path, names: list[str], detail: str
) -> None:
    """A folder without images says so, and what else was there."""
    folder = tmp_path / "set"
    folder.mkdir()
    for name in names:
        (folder / name).write_text("")
    with pytest.raises(SourceError) as caught:
        embed(folder, tiny_backbone, output=tmp_path / "s")
    assert str(caught.value) == (
        f"there is no image in {folder}{detail}: give a folder with images, a table of paths, "
        "or an image file"
    )


def test_second_writer_is_refused(run, tmp_path: Path, tiny_backbone: Path) -> None:
    """Two runs into one store at once: the second is told."""
    manifest = Manifest(load_backbone(tiny_backbone).card.to_json(), "float32", "x")
    with StoreWriter.opened(tmp_path / "store", manifest), pytest.raises(LockedError):
        run()


def test_progress_ends_at_the_total(tiny_backbone: Path, photos: Path, tmp_path: Path) -> None:
    """A callback sees the count rise to the number of images."""
    seen: list[Progress] = []
    embed(photos, tiny_backbone, output=tmp_path / "s", batch_size=3, progress=seen.append)
    assert [p.done for p in seen] == sorted(p.done for p in seen)
    assert seen[-1] == Progress(10, 10)


def test_interrupt_keeps_what_was_finished(
    run, photos: Path, tiny_backbone: Path, tmp_path: Path
) -> None:
    """Ctrl-C in the middle leaves an index of what is done; the next run does the rest."""

    def stop(progress: Progress) -> None:
        if progress.done >= 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_embedding(
            photos,
            tiny_backbone,
            output=tmp_path / "store",
            options=EmbedOptions(batch_size=2, workers=1),
            progress=stop,
        )
    assert len(EmbeddingStore.open(tmp_path / "store")) == 4
    assert counts(run()) == (10, 6, 6, 0)


def test_merged_store_is_not_replaced(tiny_backbone: Path, photos: Path, tmp_path: Path) -> None:
    """Embedding one of the sources into the merged store would drop the others' images."""
    for name in ("living", "things"):
        embed(photos / name, tiny_backbone, output=tmp_path / name)
    merge_stores(tmp_path / "m", [tmp_path / "living", tmp_path / "things"])
    with pytest.raises(StoreError, match="give another store with -o"):
        embed(photos / "living", tiny_backbone, output=tmp_path / "m")


def test_stopping_at_a_copied_failure_keeps_the_index(run, photos: Path) -> None:
    """Two equal broken files count as two failures, and nothing finished is lost for it."""
    for name in ("y1.jpg", "y2.jpg"):
        (photos / "things" / name).write_bytes(b"broken")
    with pytest.raises(TooManyFailuresError):
        run(strict=True, workers=2, batch_size=4)
    assert counts(run())[3] == 2


def test_known_contents_count_as_they_come(
    run, photos: Path, tiny_backbone: Path, tmp_path: Path
) -> None:
    """Files that were touched are read, counted one by one, and never computed again."""
    run()
    for path in photos.rglob("*.jpg"):
        os.utime(path, ns=(1, 1))
    seen: list[Progress] = []
    report = run_embedding(
        photos,
        tiny_backbone,
        output=tmp_path / "store",
        options=EmbedOptions(batch_size=2, workers=1),
        progress=seen.append,
    )
    assert (report.known, report.computed) == (10, 0)
    assert [p.done for p in seen] == [0, 2, 4, 6, 8, 10, 10]


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("dtype", "float64", "dtype must be float32 or float16, not 'float64'"),
        ("batch_size", 0, "batch_size must be 1 or more, not 0"),
        ("workers", -1, "workers must be 1 or more, not -1"),
        ("max_failures", -1, "max_failures must be 0 or more, not -1"),
    ],
)
def test_senseless_options_are_refused(option: str, value: object, message: str) -> None:
    """A wrong option is an error before anything is written."""
    with pytest.raises(ValueError, match=f"^{message}$"):
        EmbedOptions(**{option: value})


def test_interrupted_rehash_forgets_nothing(
    photos: Path, tiny_backbone: Path, tmp_path: Path
) -> None:
    """Rows of files that were to be opened again stay until they have been."""
    embed(photos, tiny_backbone, output=tmp_path / "s")

    def stop(_: Progress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        embed(photos, tiny_backbone, output=tmp_path / "s", rehash=True, progress=stop)
    assert len(EmbeddingStore.open(tmp_path / "s")) == 10


def test_stream_is_lazy_and_ordered(photos: Path, tiny_backbone: Path) -> None:
    """An endless listing is embedded as it comes; stopping early ends the threads."""
    source = open_source(photos)
    refs = list(source)
    taken = 0

    def endless() -> Iterator[ImageRef]:
        nonlocal taken
        while True:
            for ref in refs:
                taken += 1
                yield ref

    backbone = load_backbone(tiny_backbone)
    batches = stream(
        source, endless(), backbone, backbone.open_session("cpu"), batch_size=4, workers=2
    )
    seen = [ref for _, batch in zip(range(5), batches, strict=False) for ref in batch.refs]
    batches.close()
    assert seen == (refs * 2)[:20]
    assert taken <= 4 * (5 + 2 * 2 + 1)


@pytest.mark.parametrize(
    ("total", "workers", "sizes"),
    [
        (10, 2, [5, 5]),
        (10, 4, [3, 3, 3, 1]),
        (16, 2, [8, 8]),
        (20, 2, [5, 5, 5, 5]),
        (1, 2, [1]),
        (None, 2, [8, 2]),
    ],
)
def test_few_images_are_shared_evenly(
    photos: Path, tiny_backbone: Path, total: int | None, workers: int, sizes: list[int]
) -> None:
    """No thread has much more to do than another, where the number of images is known."""
    source = open_source(photos)
    refs = (list(source) * 2)[: total or 10]
    backbone = load_backbone(tiny_backbone)
    session = backbone.open_session("cpu")
    batches = stream(source, refs, backbone, session, workers=workers, total=total)
    assert [len(batch.refs) for batch in batches] == sizes


_CHILD = """
import sys
from featpipe.embedding import embed
embed(sys.argv[1], sys.argv[2], output=sys.argv[3], batch_size=2, workers=2)
"""


def _many(folder: Path, count: int) -> None:
    """Make a folder of many small, distinct photographs: tails of real ones."""
    photo = (PHOTOS / "cat.jpg").read_bytes()
    for i in range(count):
        path = folder / f"{i % 3}" / f"{i:04d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(photo + i.to_bytes(4, "big"))


@pytest.mark.slow
def test_kill_at_any_moment_loses_nothing_that_was_finished(
    tiny_backbone: Path, tmp_path: Path
) -> None:
    """Four times five kills at spread moments, then a run to the end: an unbroken run's store."""
    _many(tmp_path / "set", 700)
    (tmp_path / "set" / "0" / "bad.jpg").write_bytes(b"bad")
    whole = embed(tmp_path / "set", tiny_backbone, output=tmp_path / "whole")
    for turn in range(4):
        store = tmp_path / f"store{turn}"
        finished: set[str] = set()
        for kill in range(5):
            arguments = [str(tmp_path / "set"), str(tiny_backbone), str(store)]
            child = subprocess.Popen([sys.executable, "-c", _CHILD, *arguments])
            # From before the first part to after the last: 20 moments, none twice.
            time.sleep(0.35 + 0.08 * ((turn + 4 * kill) * 7 % 20))
            child.send_signal(signal.SIGKILL)
            child.wait()
            now = {path.name for path in store.glob("parts/*.keys")}
            assert now >= finished
            finished = now
        report = run_embedding(tmp_path / "set", tiny_backbone, output=store)
        assert content(report.store) == content(whole)
        assert not list(store.rglob("*.tmp"))


class Folder(RuleBasedStateMachine):
    """Any sequence of changes, crashes and runs gives the store of an unbroken run."""

    files = Bundle("files")
    root: Path
    model: Path

    @initialize()
    def begin(self) -> None:
        self.folder = self.root / f"{time.monotonic_ns()}"
        self.set, self.store = self.folder / "set", self.folder / "store"
        self.set.mkdir(parents=True)
        self.count = 0
        self.clock = 1_000_000_000

    def _write(self, name: str, content: int) -> str:
        path = self.set / name
        path.parent.mkdir(exist_ok=True)
        photo = (PHOTOS / ("cat.jpg", "coins.jpg")[content % 2]).read_bytes()
        path.write_bytes(b"bad" if content == 0 else photo + bytes([content]))
        self.clock += 1_000
        os.utime(path, ns=(self.clock, self.clock))
        return name

    @rule(target=files, content=st.integers(0, 4), label=st.sampled_from("ab"))
    def add(self, content: int, label: str) -> str:
        self.count += 1
        return self._write(f"{label}/{self.count}.jpg", content)

    @rule(name=files, content=st.integers(0, 4))
    def change(self, name: str, content: int) -> None:
        self._write(name, content)

    @rule(target=files, name=consumes(files), label=st.sampled_from("ab"))
    def rename(self, name: str, label: str) -> str:
        self.count += 1
        (self.set / label).mkdir(exist_ok=True)
        (self.set / name).rename(self.set / label / f"{self.count}.jpg")
        return f"{label}/{self.count}.jpg"

    @rule(name=consumes(files))
    def delete(self, name: str) -> None:
        (self.set / name).unlink()

    @rule(after=st.integers(0, 3))
    def crash(self, after: int) -> None:
        """Stop a run after some images, without the tidying that an exception brings."""
        if not any(self.set.rglob("*.jpg")):
            return

        def die(progress: Progress) -> None:
            if progress.done >= after:
                os._exit(9)

        child = os.fork()
        if child == 0:  # pragma: no cover - the child dies on purpose
            try:
                embed(
                    self.set, self.model, output=self.store, batch_size=1, workers=1, progress=die
                )
            finally:
                os._exit(9)
        os.waitpid(child, 0)

    @rule()
    def collect(self) -> None:
        from featpipe.store import collect_garbage

        if (self.store / "index.parquet").exists():
            with suppress(StoreError):  # after a crash it may refuse, and says what to do
                collect_garbage(self.store)

    @rule()
    def embed_all(self) -> None:
        if not any(self.set.rglob("*.jpg")):
            return
        store = embed(self.set, self.model, output=self.store)
        fresh = embed(self.set, self.model, output=self.folder / "fresh")
        assert content(store) == content(fresh)
        shutil.rmtree(self.folder / "fresh")

    @invariant()
    def readable(self) -> None:
        if (getattr(self, "store", Path("/nowhere")) / "index.parquet").exists():
            store = EmbeddingStore.open(self.store)
            assert store.X.shape == (len(store), 27)

    def teardown(self) -> None:
        if hasattr(self, "folder"):
            self.embed_all()
            shutil.rmtree(self.folder)


def test_any_history_gives_the_same_store(tiny_backbone: Path, tmp_path: Path) -> None:
    """Add, change, rename, delete, crash, collect and run in any order; compare with afresh."""
    machine = type("Machine", (Folder,), {"root": tmp_path, "model": tiny_backbone})
    run_state_machine_as_test(
        machine, settings=settings(max_examples=20, stateful_step_count=20, deadline=None)
    )
    assert not list(tmp_path.glob("*/fresh"))
