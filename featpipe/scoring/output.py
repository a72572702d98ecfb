"""Where rows go: a file that appears whole, standard output batch by batch, or a list."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import IO

from featpipe._files import atomic_file, fsync_folder, lock, make_folder, printable, write_error
from featpipe.errors import WriteError
from featpipe.scoring.formats import Format, WriteRows, row_writer
from featpipe.scoring.journal import Identity, Journal
from featpipe.scoring.prediction import Prediction
from featpipe.types import ImageRef

STDOUT = "-"
_ROWS_AT_ONCE = 4096


class Target:
    """Takes the rows of a run, batch by batch; this one keeps them in memory.

    Attributes
    ----------
    name : str or None
        What the person called it.
    counts : Counter
        Rows by status that were there before the run.
    sizes : Counter
        Of these, those with a set of labels, by the number of its labels.
    notes : list of str
        What a person should know.
    predictions : list of Prediction
        The rows, where they are kept in memory.
    """

    name: str | None = None

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.sizes: Counter[int] = Counter()
        self.notes: list[str] = []
        self.predictions: list[Prediction] = []

    def resume(self, refs: Iterable[ImageRef], step: int) -> Iterator[ImageRef]:
        """Return the part of a listing that is yet to be done; see `Journal.take_over`."""
        del step
        return iter(refs)

    def take(self, refs: Sequence[ImageRef], rows: Sequence[Prediction]) -> None:
        """Receive the rows of one batch."""
        del refs
        self.predictions.extend(rows)


class _Stdout(Target):
    name = STDOUT

    def __init__(self, write: WriteRows, file: IO[bytes]) -> None:
        super().__init__()
        self._write, self._file = write, file

    def take(self, refs: Sequence[ImageRef], rows: Sequence[Prediction]) -> None:
        del refs
        with _stdout_errors():
            self._write(rows)
            self._file.flush()


class _File(Target):
    def __init__(
        self, path: Path, form: Format, top_k: int, journal: Journal, *, sets: bool
    ) -> None:
        super().__init__()
        self._sets = sets
        self.name = str(path)
        self._path, self._form, self._top_k, self._journal = path, form, top_k, journal
        self.notes = journal.notes

    def resume(self, refs: Iterable[ImageRef], step: int) -> Iterator[ImageRef]:
        rest = self._journal.take_over(refs, step)
        self.counts, self.sizes = Counter(self._journal.counts), Counter(self._journal.sizes)
        return rest

    def take(self, refs: Sequence[ImageRef], rows: Sequence[Prediction]) -> None:
        self._journal.append(refs, rows)

    def finish(self) -> None:
        """Make the output from the journal, after the last batch."""
        rows = self._journal.predictions()
        with (
            atomic_file(self._path) as file,
            row_writer(file, self._form, self._top_k, sets=self._sets) as write,
        ):
            while some := tuple(islice(rows, _ROWS_AT_ONCE)):
                write(some)


@contextmanager
def open_target(
    output: str | None, form: Format, top_k: int, identity: Identity
) -> Iterator[Target]:
    """Open the place for the rows of one run.

    Raises
    ------
    LockedError
        When another process is writing the same file.
    WriteError
        When the operating system refuses to write.
    """
    if output is None:
        yield Target()
    elif output == STDOUT:
        with _stdout_errors():
            file = sys.stdout.buffer
            with row_writer(file, form, top_k, sets=identity.conformal is not None) as write:
                file.flush()
                yield _Stdout(write, file)
    else:
        with _open_file(Path(output), form, top_k, identity) as target:
            yield target


@contextmanager
def _open_file(path: Path, form: Format, top_k: int, identity: Identity) -> Iterator[_File]:
    if path.is_dir():
        raise WriteError(
            f"cannot write {printable(str(path))}: it is a folder; name a file with -o"
        )
    make_folder(path.parent)
    partial = path.with_name(path.name + ".partial")
    with lock(path.with_name(f".{path.name}.lock"), what=str(path), remove=True):
        with Journal.opened(partial, identity) as journal:
            target = _File(path, form, top_k, journal, sets=identity.conformal is not None)
            yield target
            target.finish()
        partial.unlink()
        fsync_folder(path.parent)


@contextmanager
def _stdout_errors() -> Iterator[None]:
    """Tell a full disk behind a redirection from a reader who has gone."""
    try:
        yield
    except BrokenPipeError:
        raise  # the command line ends quietly then
    except OSError as exc:
        raise write_error(Path("standard output"), exc) from exc
