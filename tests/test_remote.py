"""Images behind addresses: listed with versions, read ahead, and what happens when they go away."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from buckets import Server, Wire, server_of_buckets
from conftest import PHOTOS, Result
from webserver import WebServer, web_server

from featpipe import storage
from featpipe.embedding import EmbedOptions, embed, run_embedding
from featpipe.errors import SourceError
from featpipe.sources import BucketSource, open_source
from featpipe.storage import faults
from featpipe.storage.reading import filesystem
from featpipe.store import EmbeddingStore

SECRET = "do-not-tell"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return real photographs in two splits and two classes, and what is no image."""
    root = tmp_path_factory.mktemp("images") / "pets"
    for at, path in enumerate(sorted(PHOTOS.glob("*.jpg"))):
        place = root / ("train" if at % 3 else "test") / ("even" if at % 2 else "odd")
        place.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, place / f"{path.stem} ä.jpg" if at == 1 else place)
    (root / "train" / "odd" / "notes.txt").write_text("no image")
    (root / "train" / ".hidden.jpg").write_bytes(b"no image")
    return root


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    """Return a server of S3 that holds the folder as ``s3://bucket/pets``."""
    with server_of_buckets() as running:
        system, _ = filesystem("s3://bucket")
        for path in folder.rglob("*"):
            if path.is_file():
                name = path.relative_to(folder).as_posix()
                system.pipe_file(f"bucket/pets/{name}", path.read_bytes())
        yield running


@pytest.fixture(scope="module")
def web(folder: Path) -> Iterator[WebServer]:
    """Return a web server of the folder."""
    with web_server(folder.parent) as running:
        yield running


@pytest.fixture(autouse=True)
def _in_order(server: Server, web: WebServer) -> Iterator[None]:
    yield
    server.ask = web.ask = lambda _: None
    server.requests.clear()
    web.requests.clear()


@pytest.fixture(scope="module")
def here(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> EmbeddingStore:
    """Return the vectors of the folder on this machine, of the built-in backbone."""
    return embed(folder, output=tmp_path_factory.mktemp("store") / "here", device="cpu")


def listed(source: object) -> list[tuple]:
    """Return what a source says of its images, but for what depends on where they lie."""
    return [(r.path, r.size, r.label, r.split, r.problem) for r in open_source(source)]


def test_a_bucket_is_the_same_source_as_a_folder(
    server: Server, folder: Path, here: EmbeddingStore, tmp_path: Path
) -> None:
    """Paths, labels, splits, keys, vectors; notes, too. A re-run reads nothing."""
    assert listed("s3://bucket/pets/") == listed(folder)
    store = embed("s3://bucket/pets", output=tmp_path / "store", device="cpu")
    assert (store.paths, store.keys) == (here.paths, here.keys)
    assert store.labels().tolist() == here.labels().tolist()
    assert store.splits.tolist() == here.splits.tolist()
    np.testing.assert_array_equal(store.X, here.X)
    server.requests.clear()
    again = run_embedding("s3://bucket/pets", output=tmp_path / "store")
    assert (again.unchanged, again.opened) == (10, 0)
    assert again.notes == ("left out 1 files whose suffix is not an image's: 1 .txt",)
    assert all("list-type=2" in request for request in server.requests)


def test_what_changes_in_a_bucket_is_opened(
    server: Server, tiny_backbone: Path, tmp_path: Path
) -> None:
    """By its ETag: the same size and second are no proof."""
    system, _ = filesystem("s3://bucket")
    photos = sorted(PHOTOS.glob("*.jpg"))[:3]
    for path in photos:
        system.pipe_file(f"bucket/changing/{path.name}", path.read_bytes())
    store = tmp_path / "store"
    embed("s3://bucket/changing", tiny_backbone, output=store)
    system.pipe_file(f"bucket/changing/{photos[1].name}", photos[0].read_bytes())
    report = run_embedding("s3://bucket/changing", tiny_backbone, output=store)
    assert (report.unchanged, report.known) == (2, 1)
    assert report.store.keys[0] == report.store.keys[1]


def test_a_table_of_addresses_is_the_same_source(
    server: Server, web: WebServer, folder: Path, here: EmbeddingStore, tmp_path: Path
) -> None:
    """``https``, ``s3`` and local paths in one table; HEAD tells whether anything has changed."""
    lines = ["url,label,split"]
    for at, row in enumerate(open_source(folder)):
        roots = f"{web.url}/pets", "s3://bucket/pets", str(folder)
        lines.append(f"{roots[at % 3]}/{row.path},{row.label},{row.split}")
    table = tmp_path / "images.csv"
    table.write_text("\n".join(lines))
    store = embed(table, output=tmp_path / "store", device="cpu")
    assert store.keys == here.keys
    assert store.labels().tolist() == here.labels().tolist()
    np.testing.assert_array_equal(store.X, here.X)
    web.requests.clear()
    again = run_embedding(table, output=tmp_path / "store")
    assert (again.unchanged, again.opened) == (10, 0)
    assert {request.partition(" ")[0] for request in web.requests} == {"HEAD"}


def test_a_table_may_lie_behind_an_address(web: WebServer, folder: Path, tmp_path: Path) -> None:
    """Its paths are relative to where it lies, as on this machine."""
    rows = ["path,label", *(f"{row.path},{row.label}" for row in open_source(folder))]
    table = folder / "all.csv"
    table.write_text("\n".join(rows))
    try:
        assert listed(f"{web.url}/pets/all.csv") == listed(table)
        assert open_source(f"{web.url}/pets/all.csv").columns == ()
    finally:
        table.unlink()


def test_labels_may_lie_behind_an_address(server: Server, tmp_path: Path) -> None:
    """For images that lie anywhere."""
    system, _ = filesystem("s3://bucket")
    system.pipe_file("bucket/labels.csv", b"path,label\ncat.jpg,pet\n")
    shutil.copy(PHOTOS / "cat.jpg", tmp_path / "cat.jpg")
    (ref,) = open_source(tmp_path, labels="s3://bucket/labels.csv")
    assert ref.label == "pet"


def test_one_image_behind_an_address(web: WebServer, tiny_backbone: Path, tmp_path: Path) -> None:
    """And what is no image is refused with what may be given instead."""
    (image,) = (row for row in open_source("s3://bucket/pets") if "ä" in row.path)
    store = embed(f"{web.url}/pets/{image.path}", tiny_backbone, output=tmp_path / "one")
    assert len(store) == 1
    with pytest.raises(SourceError) as caught:
        open_source(f"{web.url}/pets/")
    assert str(caught.value) == (
        f"{web.url}/pets/ is no image and no table, and a web server lists no folders: give a "
        "table of addresses (column 'path')"
    )


@pytest.mark.parametrize("place", ["s3://bucket/none", "s3://no-bucket/"])
def test_a_place_that_is_not_there(
    server: Server, run_cli: Callable[..., Result], place: str
) -> None:
    """One line, one code, no traceback."""
    result = run_cli("embed", place)
    assert (result.code, result.out) == (4, "")
    assert result.err.startswith(f"Error: cannot list {place.rstrip('/')}: there is nothing at ")


def test_secrets_reach_no_record_and_no_message(
    web: WebServer, tiny_backbone: Path, tmp_path: Path, run_cli: Callable[..., Result]
) -> None:
    """Passwords and signatures in a table: images are read with them, and kept without."""
    host = web.url.removeprefix("http://")
    table = tmp_path / "signed.csv"
    rows = [f"http://me:{SECRET}@{host}/pets/{r.path}" for r in open_source("s3://bucket/pets")]
    rows += [f"{web.url}/pets/none.jpg?X-Amz-Signature={SECRET}"]
    table.write_text("\n".join(["url", *rows]))
    store = tmp_path / "store"
    result = run_cli("embed", table, "--model", tiny_backbone, "-o", store, "--json")
    assert result.code == 3
    (failure,) = json.loads(result.out)["failures"]
    assert failure["path"] == f"{web.url}/pets/none.jpg"
    assert failure["reason"] == f"there is nothing at {web.url}/pets/none.jpg"
    assert SECRET not in result.out + result.err
    for path in store.rglob("*"):
        assert not path.is_file() or SECRET.encode() not in path.read_bytes()
    assert SECRET not in str(EmbeddingStore.open(store).index.table.to_pydict())


def test_a_dark_host_is_rows_and_the_others_are_embedded(
    server: Server, web: WebServer, tiny_backbone: Path, tmp_path: Path, monkeypatch
) -> None:
    """In a table one silent host of several is asked for once, as long as it takes."""
    monkeypatch.setenv(faults.PATIENCE_VARIABLE, "0.3")
    rows = [f"{web.url}/pets/{r.path}" for r in open_source("s3://bucket/pets")]
    dark = [f"http://127.0.0.1:9/{i}.jpg" for i in range(200)]
    table = tmp_path / "images.csv"
    table.write_text("\n".join(["path", *dark, *rows]))
    report = run_embedding(table, tiny_backbone, output=tmp_path / "store")
    assert (report.computed, report.failed, report.exit_code) == (10, 200, 3)
    _, status, reason = report.store.failures[0]
    assert status == "unreadable"
    assert reason.startswith("http://127.0.0.1:9/")
    assert "does not answer" in reason


class Cut:
    """Cuts the wire at the n-th reading of an image; mends it after some seconds, if asked to."""

    def __init__(self, wire: Wire, at: int, mended_after: float | None = None) -> None:
        self.wire, self.at, self.count = wire, at, 0
        self.lock, self.mended_after = threading.Lock(), mended_after
        self.ended = threading.Event()

    def __call__(self, asked: str) -> None:
        with self.lock:
            is_image = asked.startswith("GET") and ".jpg" in asked
            self.count += is_image
            if is_image and self.count == self.at:
                threading.Thread(target=self.cut).start()

    def cut(self) -> None:
        self.wire.cut()
        if self.mended_after is not None:
            time.sleep(self.mended_after)
            self.wire.mend()
        self.ended.set()


@pytest.fixture
def many(server: Server) -> str:
    """Return the address of 120 photographs, all different."""
    import io

    from PIL import Image

    system, _ = filesystem("s3://bucket")
    with Image.open(PHOTOS / "cat.jpg") as photo:
        for i in range(120):
            left, top = i % 12, i // 12
            data = io.BytesIO()
            photo.crop((left, top, left + 160, top + 160)).save(data, "jpeg")
            system.pipe_file(f"bucket/many/{i:03}.jpg", data.getvalue())
    return "s3://bucket/many"


@pytest.fixture
def wire(server: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Wire]:
    """Return a wire to the server of buckets through which everything goes."""
    wire = Wire(server.port)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{wire.port}")
    filesystem("s3://bucket")[0].clear_instance_cache()
    yield wire
    wire.cut()
    filesystem("s3://bucket")[0].clear_instance_cache()


def test_a_bucket_that_comes_back_is_waited_for(
    server: Server, many: str, wire: Wire, tiny_backbone: Path, tmp_path: Path
) -> None:
    """The run ends complete; nobody has to do anything."""
    server.ask = cut = Cut(wire, at=40, mended_after=1.0)
    report = run_embedding(
        many, tiny_backbone, output=tmp_path / "store", options=EmbedOptions(workers=2)
    )
    assert cut.ended.is_set()
    assert (report.computed, report.failed) == (120, 0)


def test_a_bucket_that_stays_away_ends_the_run_and_loses_nothing(
    server: Server,
    many: str,
    wire: Wire,
    tiny_backbone: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    run_cli: Callable[..., Result],
) -> None:
    """One line; what was finished is not computed again by the next run."""
    monkeypatch.setenv(faults.PATIENCE_VARIABLE, "0.5")
    store = tmp_path / "store"
    command = ("embed", many, "--model", tiny_backbone, "-o", store, "--batch-size", 2)
    # Some of what was read before the cut has been embedded by then: readers are not far ahead.
    server.ask = Cut(wire, at=110)
    result = run_cli(*command)
    assert result.code == 4
    assert result.err.startswith("Error: s3://bucket/many/")
    assert "does not answer (" in result.err
    assert result.err.endswith(
        ": what was finished is kept; run the same command again when it does\n"
    )
    done = len(EmbeddingStore.open(store))
    assert 0 < done < 120
    wire.mend()
    server.ask = lambda _: None
    report = run_embedding(many, tiny_backbone, output=store)
    assert (report.computed, report.unchanged) == (120 - done, done)


def test_images_are_read_ahead_and_no_further(
    server: Server, many: str, tiny_backbone: Path, tmp_path: Path
) -> None:
    """Many requests at one time, and never more than there are readers."""
    under_way, most = 0, 0
    lock = threading.Lock()

    class Counting(BucketSource):
        def read(self, ref):
            nonlocal under_way, most
            with lock:
                under_way += 1
                most = max(most, under_way)
            try:
                return super().read(ref)
            finally:
                with lock:
                    under_way -= 1

    source = Counting(many)
    report = run_embedding(
        source, tiny_backbone, output=tmp_path / "store", options=EmbedOptions(workers=1)
    )
    assert report.computed == 120
    assert 8 < most <= source.readers


def test_score_reads_a_bucket(
    server: Server, here: EmbeddingStore, tmp_path: Path, run_cli: Callable[..., Result]
) -> None:
    """Rows as of the folder."""
    from featpipe.training import fit

    head = tmp_path / "head"
    fit(here, "centroid", check=False).save(head)
    output = tmp_path / "out.csv"
    result = run_cli("score", "s3://bucket/pets", "--head", head, "-o", output, "--device", "cpu")
    assert result.code == 0, result.err
    paths = [line.partition(",")[0] for line in output.read_text().splitlines()[1:]]
    assert paths == here.paths
    assert storage.is_url(BucketSource("s3://bucket/pets").location)


def test_a_table_of_odd_addresses_is_a_row_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """None of them stops the others, is taken for another one, or tells what opens it."""
    monkeypatch.setenv("FEATPIPE_RETRY_SECONDS", "0")
    paths = [
        "ftp://host/a.jpg",
        "https://[bad/a.jpg?sig=zq9",
        "https://[bad/b.jpg?sig=zq9",
        "HTTP://me:zq9@127.0.0.1:1/a.jpg",
        "s3://AKIA:zq9/z@bucket/a.jpg",
        "http://127.0.0.1:1/\x1b[31m::file:///etc/passwd",
        "s3://",
        "javascript:x",
    ]
    rows = [f"{path},{label}\n" for label, path in enumerate(paths)]
    table = tmp_path / "odd.csv"
    table.write_text("path,label\n" + "".join(rows), encoding="utf-8")
    refs = list(open_source(str(table)))
    assert [ref.label for ref in refs] == [str(label) for label in range(len(paths))]
    assert all(ref.problem and ref.problem.isprintable() for ref in refs)
    assert "zq9" not in str(refs)


def test_an_address_without_a_bucket_is_said() -> None:
    """In a sentence."""
    with pytest.raises(SourceError) as caught:
        open_source("s3:///")
    assert str(caught.value) == "s3:/// names no bucket: give its name"
