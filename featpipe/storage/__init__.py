"""Bytes that lie on this machine or behind an address: one set of functions for both.

A place is named by a local path or by a URL (``s3://``, ``gs://``, ``https://``).
Addresses are read through fsspec, with credentials from the channels of each kind of storage
alone (environment, profiles, instance roles); none of them reaches a record or a message. What
can be tried again is tried again; what then fails is an OSError with one sentence.
"""

from featpipe.storage.addresses import (
    has_folders,
    host_of,
    is_url,
    joined,
    path_of,
    shown,
    without_secrets,
)
from featpipe.storage.faults import StorageError, StorageGoneError, until
from featpipe.storage.reading import Entry, list_folder, look_at, open_file, read_file, read_range
from featpipe.storage.writing import delete_file, write_file

__all__ = [
    "Entry",
    "StorageError",
    "StorageGoneError",
    "delete_file",
    "has_folders",
    "host_of",
    "is_url",
    "joined",
    "list_folder",
    "look_at",
    "open_file",
    "path_of",
    "read_file",
    "read_range",
    "shown",
    "until",
    "without_secrets",
    "write_file",
]
