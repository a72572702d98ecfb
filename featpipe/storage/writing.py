"""Writing behind an address: an object is whole or not there, and may be claimed as new."""

from __future__ import annotations

from contextlib import suppress

from featpipe.storage.addresses import shown
from featpipe.storage.faults import StorageError, tried
from featpipe.storage.reading import filesystem

_WRITABLE = frozenset({"s3", "gs", "gcs"})
_PRECONDITION_FAILED = 412


def write_file(place: str, data: bytes, *, create: bool = False) -> None:
    """Write one object behind an address; who reads it meanwhile has the former one, whole.

    Parameters
    ----------
    place : str
        The address of the object.
    data : bytes
        All of it. More than 100 MB go over in pieces (multipart upload), which make one object
        at the end.
    create : bool
        Refuse to replace an object: of several writers one alone has the name. (A writer whose
        answer was lost on the way may be refused by its own object.)

    Raises
    ------
    OSError
        FileExistsError (with ``create``), FileNotFoundError (there is no such bucket),
        PermissionError, or `StorageError` with a sentence.
    """
    scheme = place.partition("://")[0].lower()
    if scheme not in _WRITABLE:
        raise StorageError(
            f"featpipe does not write to {scheme}:// addresses: it writes to s3:// and gs://"
        )
    system, path = filesystem(place)
    mode = "create" if create else "overwrite"

    def put() -> None:
        try:
            system.pipe_file(path, data, mode=mode)
        except OSError as exc:
            if create and _is_taken(exc):
                raise FileExistsError(str(exc)) from exc
            raise

    tried(put, shown(place))


def delete_file(place: str) -> None:
    """Delete one object behind an address, if it is there; errors as of `write_file`."""
    system, path = filesystem(place)
    with suppress(FileNotFoundError):
        tried(lambda: system.rm_file(path), shown(place))


def _is_taken(error: OSError) -> bool:
    """Tell whether a server refused because the object is there; some say it by number alone."""
    response = getattr(error.__cause__, "response", None)
    if not isinstance(response, dict):
        return False
    return bool(response.get("ResponseMetadata", {}).get("HTTPStatusCode") == _PRECONDITION_FAILED)
