"""A folder in a bucket: listed page by page, read many images at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from featpipe import storage
from featpipe._files import printable
from featpipe.errors import SourceError
from featpipe.sources.base import MAX_FILE_BYTES, REMOTE_READERS, TOO_LARGE, Source
from featpipe.sources.places import (
    IMAGE_SUFFIXES,
    NOT_OURS,
    OWN_RECORDS,
    Place,
    find_splits,
    note_left_out,
    suffix_of,
)
from featpipe.types import ImageRef

_DEEPEST = 100


class BucketSource(Source):
    """Every image below an address, as `FolderSource` lists those below a folder.

    The listing tells size, time and ETag of every object; none is asked for on its own. A
    storage that does not answer any more ends the run: the other images would fail as well.

    Raises
    ------
    SourceError
        When the address cannot be listed, while listing it.
    """

    def __init__(self, url: str) -> None:
        super().__init__()
        if not storage.host_of(url):
            raise SourceError(f"{printable(storage.shown(url))} names no bucket: give its name")
        self.url = url.rstrip("/")
        self.location = storage.shown(self.url)
        self.name = self.location.rpartition("/")[2] or "bucket"

    @property
    def readers(self) -> int:
        """Many: the storage answers each late, and many as soon as one."""
        return REMOTE_READERS

    def __iter__(self) -> Iterator[ImageRef]:
        self.notes.clear()
        left_out: Counter[str] = Counter()
        entries = self._list("")
        folders = [entry.name for entry in entries if entry.is_folder]
        yield from self._walk(entries, "", Place(find_splits(folders, self.notes)), left_out)
        note_left_out(left_out, self.notes)

    def read(self, ref: ImageRef) -> bytes:
        """Return the bytes of one object; raise OSError where that cannot be done."""
        return storage.read_file(storage.joined(self.url, ref.path))

    def _list(self, path: str) -> list[storage.Entry]:
        try:
            entries = storage.list_folder(storage.joined(self.url, path))
        except OSError as exc:
            raise SourceError(
                f"cannot list {printable(self.location)}: {exc.strerror or exc}"
            ) from exc
        return [entry for entry in entries if not entry.name.startswith(".")]

    def _walk(
        self, entries: list[storage.Entry], prefix: str, place: Place, left_out: Counter[str]
    ) -> Iterator[ImageRef]:
        for entry in entries:
            path, suffix = prefix + entry.name, suffix_of(entry.name)
            if entry.is_folder:
                yield from self._enter(path, place.below(entry.name), left_out)
            elif suffix in IMAGE_SUFFIXES:
                problem = TOO_LARGE if (entry.size or 0) > MAX_FILE_BYTES else None
                yield ImageRef(
                    path,
                    entry.size,
                    entry.mtime_ns,
                    place.label,
                    place.split,
                    problem=problem,
                    version=entry.version,
                )
            else:
                left_out[suffix or "without suffix"] += 1

    def _enter(self, path: str, place: Place, left_out: Counter[str]) -> Iterator[ImageRef]:
        if path.rpartition("/")[2].lower() in NOT_OURS:
            return
        if path.count("/") >= _DEEPEST:
            problem = f"the folder lies more than {_DEEPEST} folders deep and is not listed"
            yield ImageRef(path, problem=problem)
            return
        entries = self._list(path)
        if not any(entry.name in OWN_RECORDS for entry in entries):
            yield from self._walk(entries, path + "/", place, left_out)
