"""One tree of errors; each message is a sentence for the person at the keyboard.

::

    FeatpipeError                 exit code 1
    ├── SourceError               4   nothing to read there, or not in a form we know
    ├── LabelError                4   labels, classes or splits do not allow what was asked
    ├── BackboneError             5   no such backbone, or its file breaks the contract
    │   └── FingerprintError      5   two things were made by different backbones
    ├── BundleError               5   head and backbone do not agree as one file
    ├── DeviceError               6   the device that was asked for cannot be had, or disagrees
    ├── StoreError                7   a store is damaged, newer than we are, or of another kind
    │   └── LockedError           7   another process is writing there
    ├── HeadError                 7   a head folder is damaged, newer, or not to be trusted
    ├── WriteError                8   no space, no permission, a file-size limit
    └── TooManyFailuresError      3   --strict or --max-failures stopped the run

Exit code 0 means that all is done, 2 that the command line was wrong, 3 that the work is
finished but some images failed (each is marked in the output), 9 that `featpipe drift` has
found drift, 130 that the user interrupted it, 141 that whoever read the output had gone
(``| head``). The same table stands in the README; a test compares the two.
"""

from __future__ import annotations

from typing import ClassVar

EXIT_OK = 0
EXIT_USAGE = 2
EXIT_SOME_FAILED = 3
EXIT_DRIFT = 9
EXIT_INTERRUPTED = 130
EXIT_PIPE = 141


class FeatpipeError(Exception):
    """Anything featpipe has to say to its user; the message is complete as it is."""

    exit_code: ClassVar[int] = 1


class SourceError(FeatpipeError):
    """The source is missing, empty, or of a form that featpipe does not read."""

    exit_code = 4


class LabelError(FeatpipeError):
    """The labels, classes or splits do not allow what was asked."""

    exit_code = 4


class BackboneError(FeatpipeError):
    """A backbone is unknown, or its file breaks the contract."""

    exit_code = 5


class FingerprintError(BackboneError):
    """Two things that must come from one backbone come from two; both are named."""


class DeviceError(FeatpipeError):
    """The device or precision cannot be had here, or its vectors disagree with the CPU's."""

    exit_code = 6


class StoreError(FeatpipeError):
    """A store is damaged, written by a newer featpipe, or not a store at all."""

    exit_code = 7


class LockedError(StoreError):
    """Another process is writing to the same place."""


class HeadError(FeatpipeError):
    """A head folder is damaged, written by a newer featpipe, or holds what is not trusted."""

    exit_code = 7


class BundleError(FeatpipeError):
    """A head and its backbone cannot be put into one ONNX file, or do not agree there."""

    exit_code = 5


class WriteError(FeatpipeError):
    """The operating system refused to write: no space, no permission, a limit."""

    exit_code = 8


class TooManyFailuresError(FeatpipeError):
    """More images failed than ``--strict`` or ``--max-failures`` allow."""

    exit_code = 3
