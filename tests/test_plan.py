"""Planning in columns: the same plan, and the same index, as one object an image would give."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featpipe.embedding import EmbedOptions, run_embedding
from featpipe.embedding.engine import EmbeddedBatch
from featpipe.embedding.ledger import Ledger, Limit
from featpipe.embedding.plan import make_plan
from featpipe.sources import FolderSource, Source
from featpipe.store import EmbeddingStore, Index, Outcome, Places, index_conflicts, label_conflicts
from featpipe.types import Failure, ImageRef

KEYS = [bytes([i]) * 8 + bytes([j]) * 8 for i in (0, 1, 255) for j in (0, 7)]
"""Keys that share halves, so that half of one alone never decides."""

keys = st.sampled_from(KEYS)
names = st.sampled_from(["a", "b/1", "c\udce9", "d\\x41", "e\n", "e\u0301", "\u00e9", "f", "g"])
labels = st.sampled_from([None, "ant", "bee", "\\x"])
refs = st.builds(
    ImageRef,
    path=names,
    size=st.sampled_from([None, 0, 1]),
    mtime_ns=st.sampled_from([1, 2]),
    label=labels,
    group=labels,
    labels=st.dictionaries(st.sampled_from(["eyes", "legs"]), labels, max_size=2),
)
outcomes = (
    st.builds(Outcome, st.just("ok"), keys, st.sampled_from([None, 4]), st.just(5))
    | st.builds(Outcome, st.just("undecodable"), keys, reason=st.sampled_from(["no", "\\x no"]))
    | st.builds(Outcome, st.just("unreadable"), st.none(), reason=st.just("closed"))
)
listings = st.lists(refs, max_size=9, unique_by=lambda r: r.path)


class Listed(Source):
    """A source that lists what it is given."""

    name = location = "listed"

    def __init__(self, listed: list[ImageRef]) -> None:
        super().__init__()
        self._listed = listed

    def __iter__(self) -> Iterator[ImageRef]:
        return iter(self._listed)

    def read(self, ref: ImageRef) -> bytes:
        raise NotImplementedError


def in_parts(held: list[bytes]) -> Places:
    """Return the places of some keys, two a part; the parts' numbers have gaps."""
    return Places((3 * at, b"".join(held[at : at + 2])) for at in range(0, len(held), 2))


def reference(
    listed: list[ImageRef], former: dict[str, tuple[ImageRef, Outcome]], held: Places, rehash: bool
) -> list[Outcome | None]:
    """Return what is known of every image, decided one by one."""
    known: list[Outcome | None] = []
    for ref in listed:
        before, outcome = former.get(ref.path, (None, None))
        same = before is not None and ref.size is not None
        same = same and (before.size, before.mtime_ns) == (ref.size, ref.mtime_ns)
        usable = outcome is not None and (
            outcome.key in held if outcome.status == "ok" else outcome.status == "undecodable"
        )
        known.append(outcome if same and usable and not rehash else None)
    return known


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_plan_and_index_are_those_of_one_object_an_image(data: st.DataObject) -> None:
    """Whatever was known, whatever is listed, wherever it stops: one look an image agrees."""
    before = [(ref, data.draw(outcomes)) for ref in data.draw(listings)]
    listed = [ref for ref, _ in before] if data.draw(st.booleans()) else data.draw(listings)
    once = {o.key: (9, at) for at, (_, o) in enumerate(before) if o.status == "ok"}
    held = in_parts(data.draw(st.permutations(KEYS))[: data.draw(st.integers(0, len(KEYS)))])
    stale = Index.build(before, {**once, **held} if data.draw(st.booleans()) else once)
    rehash, prune = data.draw(st.booleans()), data.draw(st.booleans())

    former = {ref.path: (ref, outcome) for ref, outcome in before}
    known = reference(listed, former, held, rehash)
    plan = make_plan(Listed(listed), stale, held, rehash=rehash)
    missing = [at for at, outcome in enumerate(known) if outcome is None]
    assert plan.missing.tolist() == missing
    assert [ref.path for ref in plan.refs()] == [listed[at].path for at in missing]
    here = {ref.path for ref in listed}
    assert plan.gone().tolist() == [i for i, (r, _) in enumerate(before) if r.path not in here]
    failed = [(ref.path, o) for ref, o in zip(listed, known, strict=True) if o and o.status != "ok"]
    assert list(plan.known_failures()) == [(path, o.reason) for path, o in failed]

    ledger = Ledger(plan, SimpleNamespace(places=held, append=lambda *_: None), Limit(None, ""))
    done = missing[: data.draw(st.integers(0, len(missing)))]
    for at in done:
        key = data.draw(st.sampled_from(list(held))) if len(held) else None
        failure = None if key is not None else Failure("unreadable", "closed")
        known[at] = Outcome("ok", key, 6, 7) if key else Outcome("unreadable", reason="closed")
        shape = (6, 7) if key else None
        ref = (listed[at],)
        ledger.take(EmbeddedBatch(ref, (key,), (shape,), (failure,), (None,), np.empty((0, 3))))
    assert ledger.done == sum(outcome is not None for outcome in known)

    rows = [(ref, o) for ref, o in zip(listed, known, strict=True) if o is not None]
    pending = {ref.path for ref, o in zip(listed, known, strict=True) if o is None}
    kept = [
        (ref, outcome)
        for ref, outcome in before
        if (ref.path in pending or (ref.path not in here and not prune))
        and (outcome.status != "ok" or outcome.key in held)
    ]
    index = ledger.index(prune=prune)
    assert rows_of(index) == rows_of(Index.build([*rows, *kept], held))
    assert index.table.schema.names[:13] == Index.empty().table.schema.names


def rows_of(index: Index) -> list[dict[str, object]]:
    """Return the rows; a label column without a value says nothing."""
    return [{k: v for k, v in row.items() if v is not None} for row in index.table.to_pylist()]


@given(st.lists(st.lists(keys, min_size=1, max_size=4), max_size=4), st.lists(keys, max_size=3))
def test_places_are_a_dictionary(parts: list[list[bytes]], added: list[bytes]) -> None:
    """Keys of parts and keys of this run are found as in a dict filled in the same order."""
    places = Places((2 * n, b"".join(part)) for n, part in enumerate(parts))
    expected = {key: (2 * n, row) for n, part in enumerate(parts) for row, key in enumerate(part)}
    for row, key in enumerate(added):
        places[key] = expected[key] = (99, row)
    assert places == expected
    assert (len(places), bool(places)) == (len(expected), bool(expected))
    assert [key in places for key in KEYS] == [key in expected for key in KEYS]
    assert "key" not in places
    with pytest.raises(KeyError):
        places[b"0123456789abcdef"]


def test_places_answer_for_many_at_once() -> None:
    """A row that does not exist, another part and another key are told from the right place."""
    places = in_parts(KEYS[:3])
    assert len(places) == 3
    asked = np.frombuffer(b"".join(KEYS[i] for i in (0, 1, 2, 2, 0, 1, 2)), np.uint64)
    part = np.array([0, 0, 6, 3, 0, -1, 7], np.int32)
    row = np.array([0, 1, 0, 0, 1, -1, 0], np.int32)
    found = places.are_at(asked.reshape(-1, 2), part, row)
    assert found.tolist() == [True, True, True, False, False, False, False]
    assert not Places().are_at(asked.reshape(-1, 2), part, row).any()


@given(st.lists(st.tuples(outcomes, labels), max_size=9))
def test_conflicts_in_columns_are_those_in_objects(
    images: list[tuple[Outcome, str | None]],
) -> None:
    """The same sentence names the same images, in the same order."""
    rows = [(ImageRef(f"{at}.jpg", label=x), o) for at, (o, x) in enumerate(images)]
    index = Index.build(rows, dict.fromkeys(KEYS, (0, 0)))
    assert index_conflicts(index) == label_conflicts((o.key, r.path, r.label) for r, o in rows)


def test_a_rerun_makes_no_object_a_file(
    photos: Path, tiny_backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An unchanged folder is compared in columns from end to end; one new file is one object."""
    run_embedding(photos, tiny_backbone, output=tmp_path / "s")
    made: list[str] = []
    monkeypatch.setattr(FolderSource, "__iter__", lambda _: pytest.fail("objects were asked for"))
    monkeypatch.setattr(
        "featpipe._columns.ImageRef", lambda path, *a, **k: made.append(path) or ImageRef(path, *a)
    )
    report = run_embedding(photos, tiny_backbone, output=tmp_path / "s")
    assert (report.unchanged, made) == (10, [])
    (photos / "living" / "new.jpg").write_bytes((photos / "living" / "cat.jpg").read_bytes())
    assert run_embedding(photos, tiny_backbone, output=tmp_path / "s").unchanged == 10
    assert made == ["living/new.jpg"]


def test_order_and_labels_follow_the_source_without_a_file_opened(
    photos: Path, tiny_backbone: Path, tmp_path: Path
) -> None:
    """A table that is sorted anew, with another column, gives the index in its order."""
    paths = [p.relative_to(tmp_path).as_posix() for p in sorted(photos.rglob("*.jpg"))]
    table = tmp_path / "t.csv"
    table.write_text("path,label\n" + "".join(f"{path},x\n" for path in paths))
    run_embedding(table, tiny_backbone, output=tmp_path / "s")
    rows = "".join(f"{path},y,{at}\n" for at, path in enumerate(reversed(paths)))
    table.write_text("path,label,number\n" + rows)
    report = run_embedding(table, tiny_backbone, output=tmp_path / "s")
    assert report.opened == 0
    assert report.store.paths == paths[::-1]
    assert list(report.store.labels()) == ["y"] * 10
    assert list(report.store.labels("number")) == [str(at) for at in range(10)]


def test_what_a_rerun_reports_is_what_is_on_disk(
    photos: Path, tiny_backbone: Path, tmp_path: Path
) -> None:
    """The store in the report is not read again, and says the same as one that is."""
    (photos / "living" / "bad.jpg").write_bytes(b"bad")
    for change in (0, 1, 2):
        if change == 2:
            os.utime(photos / "living" / "cat.jpg", ns=(1, 1))
        report = run_embedding(
            photos, tiny_backbone, output=tmp_path / "s", options=EmbedOptions(prune=False)
        )
        read = type(report.store).open(tmp_path / "s")
        assert read.index == report.store.index
        assert read.manifest == report.store.manifest
        assert np.array_equal(read.X, report.store.X)


def test_an_index_that_another_program_wrote_again_is_gone_on_from(
    photos: Path, tiny_backbone: Path, tmp_path: Path
) -> None:
    """Other row groups, columns that may be empty and metadata make it no other index."""
    run_embedding(photos, tiny_backbone, output=tmp_path / "s")
    path = tmp_path / "s" / "index.parquet"
    table = pq.read_table(path)
    schema = pa.schema([field.with_nullable(True) for field in table.schema], {"by": "another"})
    pq.write_table(table.cast(schema), path, row_group_size=3)
    shutil.copy(photos / "living" / "cat.jpg", photos / "living" / "a.jpg")
    report = run_embedding(photos, tiny_backbone, output=tmp_path / "s")
    assert (report.unchanged, report.known, report.store.paths[0]) == (10, 1, "living/a.jpg")
    assert EmbeddingStore.open(tmp_path / "s").index.table.schema.equals(Index.empty().table.schema)
