r"""Score a folder of images every night.

    python batch_score.py /data/incoming heads/parts-logreg /data/predictions \
        --threshold 0.8 --max-failures 1000 --log-file /var/log/batch_score.log

Each night gets a file of its own, named after the day: ``/data/predictions/2026-11-21.csv``.
It appears when it is whole, so whatever reads it never sees half a night.

- A night that is already there is left alone: the script may be started again without harm.
- A night that was interrupted (a reboot, a full disk, a kill) is gone on with by the next
  start, even if midnight has passed since: images that have not changed are not scored twice.
- Two runs never overlap: the second one ends at once, with exit code 7.
- An image that fails is a row with status and reason, and stands in the log.

Exit codes are those of ``featpipe score``: 0 all images have an answer; 3 the night is
finished but some images failed, or it was stopped by ``--max-failures``; 4 nothing to read;
5 the backbone is missing or not the head's; 6 the device cannot be had; 7 another run is
writing, or the head is damaged; 8 no space or no permission; 130 stopped by a signal.

With cron (the mail that cron sends holds what went wrong; --quiet leaves out the rest):

    15 2 * * *  /opt/featpipe/bin/python /opt/batch_score.py /data/incoming ... --quiet

With systemd, which starts it again after a crash and takes 3 for a success:

    [Service]
    Type=oneshot
    ExecStart=/opt/featpipe/bin/python /opt/batch_score.py /data/incoming ...
    SuccessExitStatus=3
    Restart=on-failure
    RestartSec=5min
    RestartPreventExitStatus=3 4 5 7

    [Timer]
    OnCalendar=*-*-* 02:15
    Persistent=true
"""

from __future__ import annotations

import argparse
import datetime as dt
import fcntl
import logging
import logging.handlers
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from featpipe import score
from featpipe.errors import EXIT_INTERRUPTED, EXIT_OK, FeatpipeError, LockedError, WriteError
from featpipe.scoring import ScoreSummary
from featpipe.types import Progress

LOG_BYTES, LOGS_KEPT = 10_000_000, 5
TELL_EVERY_SECONDS = 300.0

log = logging.getLogger("batch_score")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one night and return the exit code."""
    options = parse(arguments)
    signal.signal(signal.SIGTERM, stop)
    try:
        start_log(options.log_file, quiet=options.quiet)
        with only_run(options.output):
            return run_night(options)
    except FeatpipeError as exc:
        log.error("%s", exc)  # noqa: TRY400 - a complete sentence; a traceback would bury it
        return exc.exit_code
    except KeyboardInterrupt:
        log.warning("stopped by a signal; the next start goes on from here")
        return EXIT_INTERRUPTED
    except Exception:
        # Nobody looks at a terminal at night: what is unforeseen belongs in the log, too.
        log.exception("this should not happen")
        return 1


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=str(__doc__).partition("\n")[0],
        epilog="The head of this file has the exit codes, and lines for cron and systemd.",
    )
    parser.add_argument("source", help="folder, or table with a column 'path'")
    parser.add_argument("head", type=Path, help="folder of the head")
    parser.add_argument("output", type=Path, help="folder of the nightly files")
    parser.add_argument("--format", choices=["csv", "jsonl", "parquet"], default="csv")
    parser.add_argument("--model", help="name or .onnx file of the backbone (default: the head's)")
    parser.add_argument(
        "--threshold", type=probability, help="withhold labels below this probability"
    )
    parser.add_argument(
        "--reject", type=probability, help="withhold labels of images stranger than this share"
    )
    parser.add_argument("--top-k", type=count, default=0, help="list the best K classes, too")
    parser.add_argument("--max-failures", type=count, help="give up after more failed images")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N")
    parser.add_argument("--workers", type=int, help="threads (default: one a core)")
    parser.add_argument("--date", type=dt.date.fromisoformat, help="night (default: today)")
    parser.add_argument("--again", action="store_true", help="score a finished night once more")
    parser.add_argument("--log-file", type=Path, help="log there, too; it is rotated")
    parser.add_argument("--quiet", action="store_true", help="on stderr, warnings and errors only")
    return parser.parse_args(arguments)


def probability(text: str) -> float:
    """Read a number between 0 and 1; argparse turns ValueError into a sentence."""
    value = float(text)
    if not 0 <= value <= 1:
        raise ValueError(text)
    return value


def count(text: str) -> int:
    """Read a whole number, 0 or more."""
    value = int(text)
    if value < 0:
        raise ValueError(text)
    return value


def run_night(options: argparse.Namespace) -> int:
    """Score the night that is due, and tell what came of it."""
    night = options.date or dt.datetime.now().astimezone().date()
    output: Path = options.output / f"{night.isoformat()}.{options.format}"
    if output.exists() and not options.again:
        log.info("%s is there already; nothing to do (--again scores it once more)", output)
        return EXIT_OK
    adopt_unfinished(output)
    log.info("scoring %s into %s", options.source, output)
    summary = score(
        options.source,
        options.head,
        output=output,
        model=options.model,
        threshold=options.threshold,
        reject=options.reject,
        top_k=options.top_k,
        max_failures=options.max_failures,
        device=options.device,
        workers=options.workers,
        progress=Teller(),
    )
    tell(summary)
    return summary.exit_code


def adopt_unfinished(output: Path) -> None:
    """Let tonight go on from the newest night that was not finished, and forget older ones.

    Rows are taken over only where path, size and time of change are still the same, and only
    from a run with the same head, backbone and options; featpipe sees to that.
    """
    journal = output.with_name(f"{output.name}.partial")
    left = sorted(output.parent.glob(f"????-??-??{output.suffix}.partial"))
    for older in [path for path in left if path != journal][::-1]:
        if journal.exists():
            older.unlink()
        else:
            log.info("going on from %s, which was interrupted", older.name)
            older.rename(journal)


def tell(summary: ScoreSummary) -> None:
    """Log what a person should know in the morning; the last line is the summary."""
    for note in summary.notes:
        log.info("note: %s", note)
    for row in summary.failures:
        # With repr: a name may hold line breaks, and must not forge a line of the log.
        log.warning("failed: %r: %s", row.path, row.reason)
    log.info("%s", summary.device)
    log.log(logging.WARNING if summary.failed else logging.INFO, "%s", summary)


class Teller:
    """Logs how far the night is, every few minutes."""

    def __init__(self) -> None:
        self.told = time.monotonic()

    def __call__(self, progress: Progress) -> None:
        """Receive what `featpipe.score` says after every batch."""
        if time.monotonic() - self.told > TELL_EVERY_SECONDS:
            self.told = time.monotonic()
            log.info("%d images so far, %d failed", progress.done, progress.failed)


@contextmanager
def only_run(folder: Path) -> Iterator[None]:
    """Hold a lock for the whole run, as nights have different names; it goes with the process."""
    path = folder / ".batch_score.lock"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = path.open("a")
    except OSError as exc:
        raise WriteError(f"cannot write {path}: {exc.strerror}") from exc
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise LockedError(f"another run is writing to {folder}; this one ends") from None
        yield


def start_log(path: Path | None, *, quiet: bool) -> None:
    """Log to stderr and, where a file is named, to that file."""
    console = logging.StreamHandler()
    console.setLevel(logging.WARNING if quiet else logging.INFO)
    handlers: list[logging.Handler] = [console]
    if path is not None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handlers.append(
                logging.handlers.RotatingFileHandler(
                    path, maxBytes=LOG_BYTES, backupCount=LOGS_KEPT, encoding="utf-8"
                )
            )
        except OSError as exc:
            raise WriteError(f"cannot write the log {path}: {exc.strerror}") from exc
    logging.basicConfig(
        level=logging.INFO,
        format=f"%(asctime)s %(levelname)s [{os.getpid()}] %(message)s",
        handlers=handlers,
        force=True,
    )


def stop(number: int, frame: FrameType | None) -> None:
    """Treat SIGTERM, as systemd sends it, like Ctrl-C: what is finished is kept."""
    del number, frame
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
