"""Blocks of images and the work on them, in this process; `test_ray` has the cluster."""

from __future__ import annotations

import os
import pickle
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import Result, build_tiny_backbone

from featpipe import load_backbone
from featpipe.embedding import EmbedOptions, run_embedding
from featpipe.embedding.block_worker import (
    DEADLY,
    Before,
    BlockWorker,
    Destination,
    Recipe,
    Witness,
    started_here,
)
from featpipe.embedding.blocks import (
    LARGEST,
    block_sizes,
    in_batches,
    in_blocks,
    problem_table,
    raise_problem,
)
from featpipe.embedding.plan import make_plan
from featpipe.errors import (
    BackboneError,
    DeviceError,
    FeatpipeError,
    FingerprintError,
    StoreError,
    WriteError,
)
from featpipe.scoring import ScoreOptions
from featpipe.sources import FolderSource, open_source
from featpipe.store import EmbeddingStore, Index, Manifest, Places, StoreWriter, parts
from featpipe.store.places import holds

NOTHING = np.empty((2, 0), dtype=np.uint64)


@pytest.fixture(autouse=True)
def _all_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the share of a worker from this process."""
    monkeypatch.setattr("featpipe._machine._share", [])


@pytest.fixture
def workshop(photos: Path, tiny_backbone: Path, tmp_path: Path) -> Workshop:
    return Workshop(photos, tiny_backbone, tmp_path / "store")


class Workshop:
    """One block of all the photographs, and a store that awaits its part."""

    def __init__(self, photos: Path, model: Path, store: Path) -> None:
        self.source, self.backbone, self.store = FolderSource(photos), load_backbone(model), store
        manifest = Manifest(self.backbone.card.to_json(), "float32", self.source.location)
        with StoreWriter.opened(store, manifest) as writer:
            [self.number] = writer.promise(1)
            shape, mark = writer.shape, writer.manifest.next_part
        self.recipe = replace(
            Recipe.of(self.source, self.backbone, "cpu", "fp32", 4),
            destination=Destination(store, shape, mark),
        )
        self.witness = Witness()

    def table(self):
        listed = make_plan(self.source, Index.empty(), Places()).to_open()
        [block] = in_blocks(listed, [len(listed)], [self.number])
        return block

    def work(self, known=NOTHING, **changes):
        recipe = pickle.loads(pickle.dumps(replace(self.recipe, **changes)))
        return BlockWorker(recipe, known, self.witness)(self.table())


def test_sizes() -> None:
    """Every image is in a block, none is larger than a part, the last ones are small."""
    for total in (0, 1, 15, 16, 17, 1000, 5000, 100_000):
        for workers in (1, 2, 7, 64):
            for step in (1, 32, 40):
                sizes = block_sizes(total, workers, step)
                assert sum(sizes) == total
                assert all(0 < size < LARGEST + step for size in sizes)
                assert all(size % step == 0 for size in sizes[:-1])
                assert sizes == sorted(sizes, reverse=True)


def test_block_becomes_a_part(workshop: Workshop) -> None:
    """Vectors are the local engine's; equal files are computed once, a broken one is a row."""
    root = workshop.source.root
    (root / "living" / "again.jpg").write_bytes((root / "living" / "cat.jpg").read_bytes())
    for name in ("broken.jpg", "broken too.jpg"):
        (root / "things" / name).write_bytes(b"no image")
    result = workshop.work()
    other = run_embedding(
        workshop.source, workshop.backbone, output=workshop.store.with_name("other")
    ).store
    assert result.column("position").to_pylist() == list(range(13))
    for name in ("key", "width", "height", "status", "reason"):
        assert result.column(name).to_pylist() == other.index.table.column(name).to_pylist()
    assert set(result.column("part").to_pylist()) == {0, None}
    rows = np.array([row for row in result.column("row").to_pylist() if row is not None])
    vectors = parts.map_vectors(workshop.store, 0, workshop.recipe.destination.shape)
    assert vectors.shape == (10, 27)
    assert np.array_equal(vectors[rows], other.X)


def test_known_contents(workshop: Workshop) -> None:
    """What the store holds already is opened, and not computed."""
    first = workshop.work()
    places = Places([(0, b"".join(parts.read_keys(workshop.store, 0)))])
    known = places.known()
    assert all(holds(known, key) for key in first.column("key").to_pylist())
    assert not holds(known, bytes(16))
    assert not holds(NOTHING, bytes(16))
    workshop.number = 1
    result = workshop.work(known)
    assert result.column("status").to_pylist() == ["ok"] * 10
    assert result.column("part").null_count == result.column("row").null_count == 10
    assert parts.list_parts(workshop.store) == [0]


def test_finished_part_is_kept(workshop: Workshop) -> None:
    """A worker that died after it had written its part: the part stays as it is, and counts."""
    first = workshop.work()
    path = parts.vectors_path(workshop.store, 0)
    before = path.stat()
    assert workshop.work().equals(first)
    assert path.stat().st_ino == before.st_ino
    # An image that has changed meanwhile is in no part: the next run takes it up.
    cat = workshop.source.root / "living" / "cat.jpg"
    cat.write_bytes(cat.read_bytes() + b" ")
    result = workshop.work()
    assert [s for s in result.column("status").to_pylist() if s != "ok"] == ["unreadable"]
    assert path.stat().st_ino == before.st_ino


def test_torn_part_is_written_again(workshop: Workshop) -> None:
    """Half a part, of a worker that died over it, is none."""
    first = workshop.work()
    path = parts.vectors_path(workshop.store, 0)
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    assert workshop.work().equals(first)
    assert path.read_bytes() == whole


def test_deadly_image(workshop: Workshop) -> None:
    """Two deaths at one image, and it is a row; one death may be chance."""
    for _ in range(2):
        workshop.witness.begin(0)
        workshop.witness.opening(0, 3)
    result = workshop.work()
    reasons = result.column("reason").to_pylist()
    assert reasons == [DEADLY.reason if at == 3 else None for at in range(10)]
    assert len(parts.read_keys(workshop.store, 0)) == 9
    witness = Witness()
    witness.begin(0)
    witness.opening(0, 3)
    assert witness.begin(0) == Before(tries=1)
    witness.opening(0, 3)
    witness.end(0)
    assert witness.begin(0) == Before(tries=2, unexplained=1)


def test_workers_that_die_at_no_image(workshop: Workshop) -> None:
    """A machine on which every worker dies ends the run; it is not tried for ever."""
    for _ in range(7):
        workshop.witness.begin(0)
    with pytest.raises(
        DeviceError, match=r"^7 workers have died, one after the other, at no image"
    ):
        raise_problem(workshop.work())


def test_vectors_come_back(workshop: Workshop) -> None:
    """Without a store the vectors come with the outcomes, cut into batches again."""
    (workshop.source.root / "living" / "broken.jpg").write_bytes(b"no image")
    refs = list(workshop.source)
    batches = list(in_batches(workshop.work(destination=None), refs, 4))
    assert [len(batch.refs) for batch in batches] == [4, 4, 3]
    assert [ref.path for batch in batches for ref in batch.refs] == [ref.path for ref in refs]
    assert batches[0].rows == (0, None, 1, 2)
    assert batches[0].failures[1] is not None
    assert batches[0].failures[1].status == "undecodable"
    other = run_embedding(
        workshop.source, workshop.backbone, output=workshop.store.with_name("other")
    ).store
    assert np.array_equal(np.concatenate([batch.vectors for batch in batches]), other.X)
    assert parts.list_parts(workshop.store) == []


def test_worker_elsewhere_sees_another_store(workshop: Workshop) -> None:
    """A folder of the same name, on a machine that does not share it, takes no part."""
    Manifest(workshop.backbone.card.to_json(), "float32", "x").write(workshop.store)
    with pytest.raises(
        StoreError, match=r"^the machine .* does not see the store .*/store: put it"
    ):
        raise_problem(workshop.work())
    assert parts.list_parts(workshop.store) == []


def test_backbone_elsewhere(workshop: Workshop, tmp_path: Path) -> None:
    """A worker takes the same backbone, by path or by name, or says which one it has found."""
    (tmp_path / "here").mkdir()
    os.rename(workshop.backbone.path, tmp_path / "here" / "tiny.onnx")
    try:
        with pytest.raises(BackboneError, match=r"^the machine .*: there is no backbone 'tiny'"):
            raise_problem(workshop.work())
        build_tiny_backbone(workshop.backbone.path, scale=1.0)
        with pytest.raises(
            FingerprintError, match=r"^the machine .*: .*tiny\.onnx is tiny \(.*, not"
        ):
            raise_problem(workshop.work())
    finally:
        os.replace(tmp_path / "here" / "tiny.onnx", workshop.backbone.path)
    assert raise_problem(workshop.work()) is None


def test_errors_travel() -> None:
    """An error of ours comes back as what it was; what is none of ours as the root of the tree."""
    for kind in (WriteError, DeviceError):
        with pytest.raises(kind, match=r"^no space$"):
            raise_problem(problem_table(kind("no space")))
    odd = problem_table(DeviceError("x")).set_column(5, "status", [["Path"]])
    with pytest.raises(FeatpipeError, match=r"^x$"):
        raise_problem(odd)


def test_first_worker_tells_what_it_has_opened(workshop: Workshop) -> None:
    """The driver records the engine of the workers: on one machine, that of the local engine."""
    started = started_here(workshop.recipe)
    store = run_embedding(
        workshop.source,
        workshop.backbone,
        output=workshop.store.with_name("other"),
        options=EmbedOptions(device="cpu"),
    ).store
    assert [dict(started.engine)] == [dict(engine) for engine in store.manifest.engines]
    assert (started.provider, started.precision, started.batch_size) == ("cpu", "fp32", 8)


def test_promised_numbers_are_given_away_once(workshop: Workshop) -> None:
    """A part of a worker that outlives its run meets no part of the next run."""
    manifest = Manifest.read(workshop.store)
    assert manifest.next_part == 1
    with StoreWriter.opened(workshop.store, replace(manifest, next_part=0)) as writer:
        assert list(writer.promise(3)) == [1, 2, 3]
    report = run_embedding(workshop.source, workshop.backbone, output=workshop.store)
    assert parts.list_parts(workshop.store) == [4]
    assert report.store.manifest.next_part == 4
    assert len(EmbeddingStore.open(workshop.store)) == 10


def test_reader_of_a_source(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It reads the same bytes from any folder, and does not carry the listing along."""
    table = tmp_path / "labels.csv"
    table.write_text("path,label\nliving/cat.jpg,cat\n")
    monkeypatch.chdir(photos)
    for source in (
        open_source("living"),
        open_source(["living/cat.jpg"] * 1000),
        open_source(".", table),
    ):
        ref = next(ref for ref in source if ref.path.endswith("cat.jpg"))
        packed = pickle.dumps(source.reader())
        assert len(packed) < 1000
        monkeypatch.chdir(tmp_path)
        reader = pickle.loads(packed)
        assert reader.read(ref) == (photos / "living" / "cat.jpg").read_bytes()
        assert list(reader) == []
        monkeypatch.chdir(photos)


def test_without_ray(
    run_cli: Callable[..., Result], photos: Path, tiny_backbone: Path, tmp_path: Path, monkeypatch
) -> None:
    """One line that says how to get it, and no store."""
    monkeypatch.setitem(sys.modules, "ray", None)
    store = tmp_path / "store"
    found = run_cli("embed", photos, "--model", tiny_backbone, "-o", store, "--engine", "ray")
    assert found == Result(6, "", "Error: --engine ray needs Ray: pip install 'featpipe[ray]'\n")
    assert not store.exists()


def test_address_of_a_client(
    run_cli: Callable[..., Result], photos: Path, tiny_backbone: Path, tmp_path: Path
) -> None:
    """Ray Data does not run through Ray's client; that is said before Ray is imported."""
    found = run_cli(
        *("embed", photos, "--model", tiny_backbone, "-o", tmp_path / "store"),
        *("--engine", "ray", "--address", "ray://10.0.0.1:10001"),
    )
    assert found == Result(
        6,
        "",
        "Error: Ray Data cannot be used through ray://10.0.0.1:10001: run the command on a machine "
        "of the cluster with --address auto, or give HOST:PORT\n",
    )


@pytest.mark.parametrize("address", ["local", "nonsense", "127.0.0.1:99999", "127.0.0.1:", ""])
def test_address_that_is_none(
    run_cli: Callable[..., Result], photos: Path, tiny_backbone: Path, tmp_path: Path, address: str
) -> None:
    """It is refused at once; above all, no other cluster is started in its place."""
    found = run_cli(
        *("embed", photos, "--model", tiny_backbone, "-o", tmp_path / "store"),
        *("--engine", "ray", "--address", address),
    )
    assert found == Result(
        6,
        "",
        f"Error: {address or 'an empty text'} is no address of a Ray cluster: give --address auto, "
        "or HOST:PORT\n",
    )
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("options", [EmbedOptions, ScoreOptions])
def test_options(options: type) -> None:
    """An engine that there is, and an address for the one that has one."""
    with pytest.raises(ValueError, match=r"^engine must be local or ray, not 'spark'$"):
        options(engine="spark")
    with pytest.raises(
        ValueError, match=r"^address is that of a Ray cluster: give engine='ray', too$"
    ):
        options(address="auto")


@pytest.mark.parametrize("command", ["embed", "score"])
def test_address_alone(run_cli: Callable[..., Result], photos: Path, command: str) -> None:
    """``--address`` without ``--engine ray`` is a mistake, and said to be one."""
    found = run_cli(command, photos, "--address", "auto")
    assert found.code == 2
    assert found.err.endswith("Error: --address is that of a Ray cluster: give --engine ray, too\n")
