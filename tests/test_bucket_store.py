"""A store in a bucket: what a store on this machine is, with the crash rule that buckets allow."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from buckets import CREDENTIALS, Server, Wire, server_of_buckets
from conftest import PHOTOS, build_tiny_backbone

from featpipe import storage
from featpipe.backbones import load_backbone
from featpipe.embedding import embed, run_embedding
from featpipe.embedding.block_worker import BlockWorker, Destination, Recipe, Witness
from featpipe.embedding.blocks import in_blocks, raise_problem
from featpipe.embedding.plan import make_plan
from featpipe.errors import FingerprintError, StoreError, WriteError
from featpipe.heads import load_head
from featpipe.sources import FolderSource
from featpipe.store import (
    EmbeddingStore,
    Index,
    Manifest,
    Places,
    StoreWriter,
    collect_garbage,
    merge_stores,
    parts,
    verify_store,
    write_parquet,
)
from featpipe.store.folder import cannot_read
from featpipe.store.ranges import read_rows

ROW = 27 * 4
"""Bytes of a vector of the tiny backbone."""
HEADER = 128


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """Return a server of S3 with one bucket, ``bucket``."""
    with server_of_buckets() as running:
        yield running


@pytest.fixture(autouse=True)
def _all_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the share of a worker from this process."""
    monkeypatch.setattr("featpipe._machine._share", [])


@pytest.fixture(autouse=True)
def _in_order(server: Server) -> Iterator[None]:
    """Let the server answer everything, whatever a test has done to it."""
    yield
    server.ask = lambda _: None
    server.requests.clear()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the backbone of mean colours."""
    path = tmp_path_factory.mktemp("models") / "tiny.onnx"
    build_tiny_backbone(path)
    return path


@pytest.fixture(scope="module")
def crops(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return two classes of 60 small crops each, all of real photographs and all different."""
    from PIL import Image

    root = tmp_path_factory.mktemp("crops")
    for name in ("cat", "coffee"):
        (root / name).mkdir()
        with Image.open(PHOTOS / f"{name}.jpg") as photo:
            for i in range(60):
                left, top = 3 * (i % 10), 5 * (i // 10)
                photo.crop((left, top, left + 160, top + 160)).save(root / name / f"{i:02}.jpg")
    return root


@pytest.fixture(scope="module")
def here(crops: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> EmbeddingStore:
    """Return the vectors of the crops on this machine."""
    return embed(crops, model, output=tmp_path_factory.mktemp("stores") / "crops")


@pytest.fixture(scope="module")
def there(server: Server, crops: Path, model: Path) -> str:
    """Return the address of the vectors of the crops, which no test changes."""
    embed(crops, model, output="s3://bucket/stores/crops/")
    return "s3://bucket/stores/crops"


@pytest.fixture
def copy(there: str, request: pytest.FixtureRequest) -> str:
    """Return the address of a copy, which a test may change."""
    place = f"s3://bucket/copies/{request.node.name}"
    for name in names(there):
        storage.write_file(f"{place}/{name}", storage.read_file(f"{there}/{name}"))
    return place


@pytest.fixture
def wire(server: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Wire]:
    """Return a wire to the server, over which this test talks to it."""
    import s3fs

    leads = Wire(server.port)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{leads.port}")
    s3fs.S3FileSystem.clear_instance_cache()
    yield leads
    s3fs.S3FileSystem.clear_instance_cache()
    leads.cut()


def names(place: str) -> list[str]:
    """Return the names of all objects of a store."""
    found = []
    for entry in storage.list_folder(place):
        inner = names(f"{place}/{entry.name}") if entry.is_folder else [""]
        found += [f"{entry.name}/{name}".rstrip("/") for name in inner]
    return found


def process(*arguments: str | Path, port: int) -> subprocess.Popen[str]:
    """Start ``featpipe``; its buckets are behind ``port``."""
    return subprocess.Popen(
        [sys.executable, "-m", "featpipe", *map(str, arguments)],
        env={**os.environ, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def at_the_second_part(server: Server, do: Callable[[], None]) -> None:
    """Do something once, when the vectors of the second part arrive."""
    once = threading.Lock()

    def ask(request: str) -> None:
        if request.startswith("PUT") and request.endswith("00001.npy") and once.acquire(False):
            do()

    server.ask = ask


def test_it_equals_a_store_on_this_machine(here: EmbeddingStore, there: str) -> None:
    """Index, record and vectors are the same, bit by bit."""
    store = EmbeddingStore.open(there)
    assert store.path == there
    assert store.name == "crops"
    assert store.index == here.index
    assert store.manifest == here.manifest
    assert np.array_equal(store.X, here.X)
    rows = np.array([100, 3, 3, 57, 0, 119])
    assert np.array_equal(store.read(rows), here.read(rows))
    assert names(there) == [
        "index.parquet",
        *(f"parts/0000{i}.{end}" for i in range(3) for end in ("keys", "npy")),
        "store.json",
    ]


def test_a_run_over_unchanged_images_writes_nothing(
    server: Server, crops: Path, model: Path, there: str
) -> None:
    """And opens none of them; the keys of each part are fetched once."""
    server.requests.clear()
    report = run_embedding(crops, model, output=there)
    assert (report.opened, report.unchanged) == (0, 120)
    assert not [asked for asked in server.requests if asked.startswith("PUT")]
    keys = [asked for asked in server.requests if ".keys" in asked]
    assert sorted(keys) == [f"GET /bucket/stores/crops/parts/0000{i}.keys" for i in range(3)]


def test_little_is_asked_for(server: Server, there: str) -> None:
    """Opening takes three requests; rows are read by ranges, near ones and whole parts in one."""
    server.requests.clear()
    store = EmbeddingStore.open(there)
    assert server.requests == [
        "GET /bucket/stores/crops/store.json",
        "HEAD /bucket/stores/crops/index.parquet",
        "GET /bucket/stores/crops/index.parquet",
    ]
    server.requests.clear()
    store.read(np.array([50, 40, 44]))
    start = HEADER + 8 * ROW
    wanted = f"bytes={start}-{start + 11 * ROW - 1}"
    assert server.requests == [f"GET /bucket/stores/crops/parts/00001.npy {wanted}"]
    server.requests.clear()
    assert len(store.X) == 120
    assert sorted(server.requests) == [
        f"GET /bucket/stores/crops/parts/0000{i}.npy bytes=0-{HEADER + rows * ROW - 1}"
        for i, rows in enumerate((32, 64, 24))
    ]


def test_what_is_read_again_is_fetched_once_more_and_kept(
    server: Server, there: str, here: EmbeddingStore
) -> None:
    """A fit reads vectors many times; a bucket is asked for all of them twice at most."""
    store = EmbeddingStore.open(there)
    server.requests.clear()
    for rows in (np.arange(120), np.array([5]), np.arange(119, -1, -1), np.arange(120)):
        assert np.array_equal(store.read(rows), here.read(rows))
    assert len(server.requests) == 6


def test_heads_learn_from_it(there: str, here: EmbeddingStore, tmp_path: Path, run_cli) -> None:
    """`fit` finds what it finds here; the head remembers the address."""
    options = ("--no-check", "--head", "centroid", "--cv", "2")
    for name, store in (("there", there), ("here", here.path)):
        assert run_cli("fit", store, *options, "-o", tmp_path / name).code == 0
    mine, other = load_head(tmp_path / "there"), load_head(tmp_path / "here")
    assert mine.metrics == other.metrics
    assert mine.report["data"]["store"] == there
    result = run_cli("evaluate", tmp_path / "there", there, "--no-check", "--json")
    assert result.code == 0
    assert json.loads(result.out)["store"] == there


def test_info_tells_and_verifies(there: str, here: EmbeddingStore, run_cli) -> None:
    """The same as of a store here, but for where it lies."""
    result = run_cli("info", there, "--verify", "--json")
    assert (result.code, result.err) == (0, "")
    told = json.loads(result.out)
    expected = json.loads(run_cli("info", here.path, "--verify", "--json").out)
    assert told.pop("store") == there
    del expected["store"]
    assert told == expected


def test_damaged_parts_are_named(copy: str, run_cli) -> None:
    """By `info --verify`, and by whoever reads one that is too short, or gone."""
    part = f"{copy}/parts/00001.npy"
    data = storage.read_file(part)
    storage.write_file(part, data[:-1] + b"x")
    result = run_cli("info", copy, "--verify")
    assert result.code == 7
    assert f"damaged    {part} is damaged (its bytes have changed): delete it and run" in result.out
    again = "delete it and run `featpipe embed` again; only its images are computed anew"
    storage.write_file(part, data[: HEADER + 8 * ROW])
    for rows in (np.arange(40, 50), np.array([90]), np.arange(120)):
        with pytest.raises(StoreError) as raised:
            EmbeddingStore.open(copy).read(rows)
        short = "it has fewer rows than the index says"
        assert str(raised.value) == f"{part} is damaged ({short}): {again}"
    storage.delete_file(part)
    with pytest.raises(StoreError) as raised:
        _ = EmbeddingStore.open(copy).X
    assert str(raised.value) == f"{part} is damaged (the file is missing): {again}"


def test_damaged_parts_are_computed_anew(
    copy: str, crops: Path, model: Path, here: EmbeddingStore
) -> None:
    """They are put aside under another name; so is an index that cannot be read made anew."""
    part = f"{copy}/parts/00001.npy"
    data = storage.read_file(part)[:-1]
    storage.write_file(part, data)
    storage.write_file(f"{copy}/index.parquet", b"PAR1")
    report = run_embedding(crops, model, output=copy)
    assert report.notes == (
        f"{part} was damaged and is set aside; its images are computed anew",
        f"{copy}/index.parquet was damaged and is made anew; its vectors are kept",
    )
    assert (report.computed, report.known) == (64, 56)
    assert storage.read_file(f"{part}.damaged") == data
    assert np.array_equal(EmbeddingStore.open(copy).X, here.X)


def test_killed_runs_lose_no_finished_part(
    server: Server,
    crops: Path,
    model: Path,
    here: EmbeddingStore,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A process that is killed while a part is under way: the next run has all those before.

    The vectors may have got there; without keys they count for nothing, and `gc` takes them
    away when they are no other writer's for certain.
    """
    place = "s3://bucket/killed"
    reached, release = threading.Event(), threading.Event()
    at_the_second_part(server, lambda: (reached.set(), release.wait(60)))
    run = process("embed", crops, "--model", model, "-o", place, port=server.port)
    assert reached.wait(60)
    run.kill()
    run.communicate()
    release.set()
    report = run_embedding(crops, model, output=place)
    assert (report.computed, report.known) == (88, 32)
    assert np.array_equal(EmbeddingStore.open(place).X, here.X)
    storage.write_file(f"{place}/parts/00009.npy", b"left")
    refused = rf"^another process may be writing to {place}: a part has been without its keys for"
    with pytest.raises(StoreError, match=refused):
        collect_garbage(place)
    monkeypatch.setattr("featpipe.store.writer._RECENT_SECONDS", -60)
    collect_garbage(place)
    assert not [name for name in names(place) if "00009" in name]
    assert np.array_equal(EmbeddingStore.open(place).X, here.X)


def test_a_storage_that_comes_back_is_waited_for(
    server: Server, wire: Wire, crops: Path, model: Path, here: EmbeddingStore
) -> None:
    """The wire is cut while a part is under way, and mended a second later.

    Nobody can tell whether the part has got there: it is written again, under another number.
    """

    def interrupt() -> None:
        wire.cut()
        threading.Timer(1, wire.mend).start()

    at_the_second_part(server, interrupt)
    report = run_embedding(crops, model, output="s3://bucket/back")
    assert report.computed == 120
    assert np.array_equal(report.store.X, here.X)
    assert verify_store(report.store) == []


def test_a_storage_that_does_not_come_back_ends_the_run(
    server: Server, wire: Wire, crops: Path, model: Path, run_cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line says what to do; the next run computes what is missing, and nothing else."""
    monkeypatch.setenv("FEATPIPE_RETRY_SECONDS", "1")
    at_the_second_part(server, wire.cut)
    result = run_cli("embed", crops, "--model", model, "-o", "s3://bucket/gone")
    assert (result.code, result.out) == (8, "")
    place = "s3://bucket/gone/parts/00001.npy"
    assert result.err.startswith(f"Error: cannot write a store: {place} does not answer (")
    assert result.err.endswith("): see that it can be reached and run the same command again\n")
    assert result.err.count("\n") == 1
    result = run_cli("info", "s3://bucket/gone", "--verify")
    assert result.code == 7
    assert result.err.startswith("Error: cannot read a store: s3://bucket/gone/store.json does")
    wire.mend()
    report = run_embedding(crops, model, output="s3://bucket/gone")
    assert (report.computed, report.known) == (88, 32)


def test_two_writers_do_not_lose_each_others_parts(
    server: Server, crops: Path, model: Path, here: EmbeddingStore
) -> None:
    """Who comes second to a number takes the next one; what the last index says is right."""
    place = "s3://bucket/two"
    first = "PUT /bucket/two/parts/00000.npy"
    both_are_there = threading.Barrier(2)
    server.ask = lambda asked: both_are_there.wait(60) if asked == first else None
    with ThreadPoolExecutor(2) as pool:
        both = [pool.submit(run_embedding, crops, model, output=place) for _ in range(2)]
        assert [run.result().computed for run in both] == [120, 120]
    assert server.requests.count(first) == 2
    assert len([name for name in names(place) if name.endswith(".keys")]) == 6
    store = EmbeddingStore.open(place)
    assert np.array_equal(store.X, here.X)
    assert verify_store(store) == []
    report = run_embedding(crops, model, output=place)
    assert (report.computed, report.unchanged) == (0, 120)
    assert collect_garbage(place).kept == 120
    assert np.array_equal(EmbeddingStore.open(place).X, here.X)


def test_workers_of_two_runs_do_not_write_over_each_other(
    server: Server, crops: Path, model: Path, here: EmbeddingStore
) -> None:
    """Two drivers may promise the same number; a part goes under the next one that is free."""
    place, source, backbone = "s3://bucket/drivers", FolderSource(crops), load_backbone(model)
    manifest = Manifest(backbone.card.to_json(), "float32", source.location)
    with ExitStack() as stack:
        writers = [stack.enter_context(StoreWriter.opened(place, manifest)) for _ in range(2)]
        listed = make_plan(source, Index.empty(), Places()).to_open()
        halves = [listed.slice(0, 60), listed.slice(60)]
        # The second has opened the store before the first one has promised anything.
        promised = [list(writer.promise(1)) for writer in writers]
        assert promised == [[0], [1]]
        results = []
        # Both could have read the record at the same moment: then both have promised 0.
        for writer, half in zip(writers, halves, strict=True):
            recipe = Recipe.of(source, backbone, "cpu", "fp32", 8)
            recipe = replace(recipe, destination=Destination(place, writer.shape, 1))
            [block] = in_blocks(half, [60], [0])
            results.append(BlockWorker(recipe, np.empty((2, 0), np.uint64), Witness())(block))
    assert [set(result.column("part").to_pylist()) for result in results] == [{0}, {1}]
    assert sorted(names(place))[1:4] == [f"parts/0000{n}" for n in ("0.npy", "1.keys", "1.npy")]
    report = run_embedding(crops, model, output=place)
    assert (report.computed, report.known) == (0, 120)
    assert np.array_equal(report.store.X, here.X)
    assert verify_store(report.store) == []


def test_workers_leave_the_parts_of_another_writer_alone(
    server: Server, crops: Path, model: Path
) -> None:
    """A number that was promised to a worker, and that somebody else has taken, is left to them."""
    place, backbone, source = "s3://bucket/workers", load_backbone(model), FolderSource(crops)
    manifest = Manifest(backbone.card.to_json(), "float32", source.location)
    with (
        StoreWriter.opened(place, manifest) as writer,
        StoreWriter.opened(place, manifest) as other,
    ):
        [number] = writer.promise(1)
        assert list(other.promise(2)) == [1, 2]
        destination = Destination(place, writer.shape, 1)
        other_keys, others = [bytes([i]) * 16 for i in range(3)], np.ones((3, 27), np.float32)
        parts.write_part(place, number, writer.shape, other_keys, others)
        listed = make_plan(source, Index.empty(), Places()).to_open()
        [block] = in_blocks(listed, [len(listed)], [number])
        recipe = replace(Recipe.of(source, backbone, "cpu", "fp32", 8), destination=destination)
        nothing = np.empty((2, 0), dtype=np.uint64)
        result = BlockWorker(recipe, nothing, Witness())(block)
    raise_problem(result)
    assert parts.read_keys(place, number) == other_keys
    assert result.column("part").to_pylist() == [1] * 120
    by_row = np.argsort(result.column("row").to_numpy())
    keys = result.column("key").take(by_row).to_pylist()
    assert parts.read_keys(place, 1) == keys
    assert parts.list_parts(place) == [0, 1]


def test_another_backbone_is_refused(there: str, crops: Path, tmp_path: Path) -> None:
    """As in a store here, with both names."""
    build_tiny_backbone(tmp_path / "other.onnx", "other", scale=1.0)
    with pytest.raises(FingerprintError, match=rf"^{there} holds vectors of tiny \("):
        embed(crops, tmp_path / "other.onnx", output=there)


def test_strangers_are_left_alone(server: Server, crops: Path, model: Path) -> None:
    """Nothing is written below a name that holds other things."""
    storage.write_file("s3://bucket/mine/notes.txt", b"notes")
    with pytest.raises(StoreError) as raised:
        embed(crops, model, output="s3://bucket/mine")
    assert str(raised.value) == (
        "s3://bucket/mine holds other things (such as notes.txt) and is no store: give an empty or "
        "new folder with -o"
    )
    assert names("s3://bucket/mine") == ["notes.txt"]


def test_stores_are_merged_cleaned_and_exported(
    crops: Path, model: Path, here: EmbeddingStore, tmp_path: Path, run_cli
) -> None:
    """Here and there, in any mixture: two shards give the store of one run."""
    import pyarrow.parquet as pq

    embed(crops, model, output="s3://bucket/half", shard="1/2")
    embed(crops, model, output=tmp_path / "half", shard="2/2")
    place = "s3://bucket/merged"
    result = run_cli("merge", place, "s3://bucket/half", tmp_path / "half")
    assert result.err == f"120 images from 2 stores → {place}\n"
    merged = EmbeddingStore.open(place)
    assert merged.paths == here.paths
    assert np.array_equal(merged.X, here.X)
    with pytest.raises(StoreError, match=rf"^{place} is a store already: give a new folder"):
        merge_stores(place, [here.path])

    collected = collect_garbage(place)
    assert (collected.kept, collected.dropped) == (120, 0)
    assert [name for name in names(place) if name.startswith("parts")] == [
        "parts/00003.keys",
        "parts/00003.npy",
    ]
    assert np.array_equal(EmbeddingStore.open(place).X, here.X)
    # One that was opened before finds where they are now.
    assert np.array_equal(merged.X, here.X)

    assert write_parquet(EmbeddingStore.open(place), tmp_path / "all.parquet") == 120
    vectors = pq.read_table(tmp_path / "all.parquet").column("embedding").combine_chunks()
    assert np.array_equal(vectors.flatten().to_numpy().reshape(120, 27), here.X)


def test_what_opens_a_bucket_is_nowhere(there: str, crops: Path, model: Path, run_cli) -> None:
    """No object of a store holds a secret; an address that does is refused without a copy of it."""
    secrets = [
        CREDENTIALS["AWS_SECRET_ACCESS_KEY"].encode(),
        CREDENTIALS["AWS_ACCESS_KEY_ID"].encode(),
    ]
    for name in names(there):
        data = storage.read_file(f"{there}/{name}")
        assert not any(secret in data for secret in secrets)
    result = run_cli("embed", crops, "--model", model, "-o", "s3://me:hidden@bucket/store")
    assert result.code == 7
    assert result.err.startswith("Error: the address s3://bucket/store was given with credentials")
    assert "hidden" not in result.err


def test_what_cannot_be_is_said_in_one_line(server: Server, crops: Path, model: Path) -> None:
    """No bucket, no store, no way to write."""
    with pytest.raises(WriteError) as raised:
        embed(crops, model, output="s3://nobody/store")
    assert str(raised.value) == (
        "cannot write s3://nobody/store/store.json: there is no such bucket: make it, or give "
        "another place with -o"
    )
    with pytest.raises(StoreError, match=r"^s3://bucket/none is not a store of featpipe: it has"):
        EmbeddingStore.open("s3://bucket/none")
    with pytest.raises(StoreError) as error:
        EmbeddingStore.open(Path("s3://bucket/stores/crops"))
    assert str(error.value) == (
        "s3:/bucket/stores/crops was the address of a bucket before it was made a path: give it "
        "as a text"
    )


def test_an_object_is_made_once(server: Server) -> None:
    """With ``create`` a name belongs to one writer; without, the last one counts."""
    place = "s3://bucket/objects/one"
    storage.write_file(place, b"first", create=True)
    with pytest.raises(FileExistsError, match=f"there is something at {place} already"):
        storage.write_file(place, b"second", create=True)
    assert storage.read_file(place) == b"first"
    storage.write_file(place, b"third")
    assert storage.read_file(place) == b"third"
    storage.delete_file(place)
    storage.delete_file(place)
    with pytest.raises(FileNotFoundError):
        storage.read_file(place)
    with pytest.raises(storage.StorageError, match=r"^featpipe does not write to https:// addr"):
        storage.write_file("https://example.org/1", b"")


def test_an_index_that_leads_nowhere_asks_for_nothing(server: Server, there: str) -> None:
    """Rows that no part can have are damage, as in a store here; none is asked for."""
    store = EmbeddingStore.open(there)
    into = np.empty((1, 27), np.float32)
    server.requests.clear()
    with pytest.raises(StoreError, match=r"00000\.npy is damaged \(it has fewer rows than"):
        read_rows(there, store.shape, np.array([0]), np.array([-1]), into)
    assert server.requests == []


def test_what_is_refused_says_whose_turn_it_is() -> None:
    """A storage that says no is no damaged store."""
    refused = PermissionError(errno.EACCES, "s3://b/x may not be read or written (Forbidden)")
    assert str(cannot_read("s3://b/x", refused)) == (
        "cannot read a store: s3://b/x may not be read or written (Forbidden): see what its "
        "credentials allow"
    )
