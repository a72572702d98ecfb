"""Archives and Parquet files in a bucket and behind a web address: equal to local ones."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from buckets import Server, server_of_buckets
from conftest import PHOTOS, Result
from test_rows import image, save_dataset, table_of
from test_tar import contents, packed
from webserver import web_server

from featpipe.errors import SourceError
from featpipe.sources import open_source
from featpipe.sources.listings import listing_folder

Run = Callable[..., Result]


@pytest.fixture(scope="module")
def bucket() -> Iterator[Server]:
    """Return a server with the bucket ``bucket``."""
    with server_of_buckets() as server:
        yield server


def put(path: Path, key: str) -> str:
    """Copy a file into the bucket and return its address."""
    import s3fs

    s3fs.S3FileSystem().put_file(str(path), f"bucket/{key}")
    return f"s3://bucket/{key}"


def test_shards_in_a_bucket(bucket: Server, tmp_path: Path) -> None:
    """One request for headers, one for small neighbours; the second listing asks for nothing."""
    for shard in ("train-0", "train-1"):
        members: dict[str, bytes | str] = {}
        for at in range(50):
            members |= {f"{at:03d}.cls": str(at % 2), f"{at:03d}.jpg": f"{shard} {at}" * 200}
        packed(tmp_path / f"{shard}.tar", members)
        put(tmp_path / f"{shard}.tar", f"s/{shard}.tar")
    local = open_source(str(tmp_path / "train-{0..1}.tar"))
    far = open_source("s3://bucket/s/train-{0..1}.tar")
    assert (far.readers > 0, local.readers) == (True, 0)
    bucket.requests.clear()
    refs = list(far)
    assert len([asked for asked in bucket.requests if "bytes=" in asked]) == 2
    assert [(r.path, r.size, r.label, r.split) for r in refs] == [
        (r.path, r.size, r.label, r.split) for r in local
    ]
    bucket.requests.clear()
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(far.read, refs))
    assert found == list(contents(local).values())
    assert len(bucket.requests) < 20
    bucket.requests.clear()
    assert list(open_source(far.location)) == refs
    assert not [asked for asked in bucket.requests if asked.startswith("GET") and "bytes=" in asked]


def test_a_shard_that_changes_in_its_bucket_is_listed_again(bucket: Server, tmp_path: Path) -> None:
    """Its ETag is another one."""
    address = put(packed(tmp_path / "x.tar", {"1.jpg": "1"}), "x.tar")
    [before] = open_source(address)
    put(packed(tmp_path / "x.tar", {"2.jpg": "2"}), "x.tar")
    [after] = open_source(address)
    assert (before.path, after.path) == ("1.jpg", "2.jpg")
    assert before.version != after.version
    assert len(list(listing_folder().iterdir())) == 1


def test_what_is_not_there_is_said(bucket: Server, tmp_path: Path) -> None:
    """One archive that is missing is an error, one of several a row."""
    with pytest.raises(SourceError) as caught:
        list(open_source("s3://bucket/gone.tar"))
    assert str(caught.value) == (
        "cannot read the archive s3://bucket/gone.tar: there is nothing at s3://bucket/gone.tar"
    )
    put(packed(tmp_path / "t-1.tar", {"1.jpg": "1"}), "t-1.tar")
    one, two = open_source("s3://bucket/t-{0..1}.tar")
    assert one.problem == "the archive cannot be opened: there is nothing at s3://bucket/t-0.tar"
    assert two.path == "t-1.tar/1.jpg"


def test_parquet_files_behind_addresses(bucket: Server, tmp_path: Path) -> None:
    """In a bucket and on a web server; a signature in the address stays out of what is kept."""
    images = [image(f"{at}.jpg") for at in range(20)]
    pq.write_table(table_of(images, label=[0, 1] * 10), tmp_path / "t.parquet", row_group_size=7)
    expected = contents(open_source(tmp_path / "t.parquet"))
    assert contents(open_source(put(tmp_path / "t.parquet", "p/t.parquet"))) == expected
    with web_server(tmp_path) as server:
        source = open_source(f"{server.url}/t.parquet?token=secret")
        assert contents(source) == expected
        assert source.location == f"{server.url}/t.parquet"
        assert (source.name, [ref.label for ref in source][:2]) == ("t", ["0", "1"])


def test_archives_on_a_web_server_go_the_whole_way(
    run_cli: Run, tiny_backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`embed` with and without ETags: the second run opens nothing."""
    monkeypatch.setenv("FEATPIPE_MODELS", str(tiny_backbone.parent))
    photos: dict[str, bytes | str] = {
        f"a/{path.name}": path.read_bytes() for path in sorted(PHOTOS.glob("*.jpg"))
    }
    packed(tmp_path / "x.tar", photos)
    for etags in (True, False):
        store = tmp_path / f"store-{etags}"
        with web_server(tmp_path, etags=etags) as server:
            address = f"{server.url}/x.tar"
            done = run_cli("embed", address, "--model", "tiny", "-o", store)
            assert (done.code, "10 images: 10 embedded" in done.err) == (0, True), done.err
            again = run_cli("embed", address, "--model", "tiny", "-o", store)
            assert "10 unchanged and not opened" in again.err


def test_images_of_an_archive_without_a_version_are_opened_again(tmp_path: Path) -> None:
    """Where a server tells neither ETag nor time, those in headers may be all the same."""
    packed(tmp_path / "x.tar", {"1.jpg": "1"})
    with web_server(tmp_path, etags=False) as server:
        [known] = open_source(f"{server.url}/x.tar")
        server.forgets_times = True
        [ref] = open_source(f"{server.url}/x.tar")
    assert (known.version is None, known.mtime_ns is None) == (False, False)
    assert (ref.path, ref.version, ref.mtime_ns) == ("1.jpg", None, None)


def test_every_source_travels_to_other_processes(
    bucket: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a worker of Ray gets reads the same bytes, whichever folder is current there."""
    photos = {f"{i}.jpg": path.read_bytes() for i, path in enumerate(sorted(PHOTOS.glob("*.jpg")))}
    (tmp_path / "folder").mkdir()
    for name, data in photos.items():
        (tmp_path / "folder" / name).write_bytes(data)
        put(tmp_path / "folder" / name, f"travel/{name}")
    packed(tmp_path / "set.tar", dict(photos))
    put(tmp_path / "set.tar", "travel.tar")
    for at in range(2):
        mine = {name: data for name, data in photos.items() if int(name[0]) % 2 == at}
        packed(tmp_path / f"shard-{at}.tar", dict(mine))
    table = table_of([image(name, data) for name, data in photos.items()])
    pq.write_table(table, tmp_path / "set.parquet")
    save_dataset(tmp_path / "saved", table, {"image": {"_type": "Image"}}, "train")
    rows = [f"folder/{name}" for name in photos]
    (tmp_path / "set.csv").write_text("\n".join(["path", *rows]))
    far = [f"s3://bucket/travel/{name}" for name in photos]
    (tmp_path / "far.csv").write_text("\n".join(["path", *far]))
    monkeypatch.chdir(tmp_path)
    places = ["folder", "set.tar", "shard-{0,1}.tar", "set.parquet", "saved", "set.csv", "far.csv"]
    for place in [*places, "s3://bucket/travel", "s3://bucket/travel.tar", rows]:
        source = open_source(place)
        refs = list(source)
        travelled = pickle.dumps(source.reader())
        monkeypatch.chdir("/")
        there = pickle.loads(travelled)
        found = sorted(there.read(ref) for ref in refs)
        assert found == sorted(photos.values()), place
        assert there.readers == source.readers
        monkeypatch.chdir(tmp_path)
    assert len(travelled) < 2000
