"""``store.json``: what a store is, and which backbone its vectors come from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from featpipe import __version__
from featpipe._files import json_bytes, json_object, printable
from featpipe.errors import FingerprintError, StoreError
from featpipe.store.folder import Place, cannot_read, folder_of
from featpipe.types import Shard

FORMAT = 1
KIND = "featpipe.store"
FILE_NAME = "store.json"
MERGED = " + "
"""Between the sources of a merged store."""
DTYPES = ("float32", "float16")


@dataclass(frozen=True, slots=True)
class Manifest:
    """The record at the head of a store.

    Attributes
    ----------
    backbone : mapping
        The backbone's card; ``name``, ``fingerprint`` and ``dimension`` are always there.
    dtype : str
        ``float32`` or ``float16``: how the vectors are stored.
    source : str
        Where the images came from.
    engines : tuple of mappings
        Every provider, precision and set of library versions that has written here.
    group : str or None
        The column that the groups come from, where one was chosen.
    shard : Shard or None
        Which piece of the source is here, where it is not all of it.
    whole : int or None
        Images that the whole source listed when that piece was taken, where it was counted.
    next_part : int
        Parts below this number were promised to workers on other machines: nobody else begins
        them, as a worker may outlive the run that it belongs to. 0 where there never were any.
    """

    backbone: Mapping[str, Any]
    dtype: str
    source: str
    engines: tuple[Mapping[str, str], ...] = ()
    group: str | None = None
    shard: Shard | None = None
    whole: int | None = None
    next_part: int = 0

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the backbone."""
        return str(self.backbone["fingerprint"])

    @property
    def dimension(self) -> int:
        """Length of a vector."""
        return int(self.backbone["dimension"])

    @property
    def name(self) -> str:
        """Name of the backbone."""
        return str(self.backbone["name"])

    def with_engine(self, engine: Mapping[str, str]) -> Manifest:
        """Add an engine, unless it has written here before."""
        if dict(engine) in [dict(known) for known in self.engines]:
            return self
        return replace(self, engines=(*self.engines, dict(engine)))

    def write(self, store: Place, *, is_new: bool = False) -> None:
        """Write ``store.json`` atomically.

        Raises
        ------
        FileExistsError
            With ``is_new``, when another writer has made a store in this bucket meanwhile.
        """
        promised = {"next_part": self.next_part} if self.next_part else {}
        record = {
            "kind": KIND,
            "format": FORMAT,
            "featpipe": __version__,
            "dtype": self.dtype,
            "source": self.source,
            "group": self.group,
            "shard": None if self.shard is None else f"{self.shard}",
            "whole": self.whole,
            "engines": [dict(engine) for engine in self.engines],
            **promised,
            "backbone": dict(self.backbone),
        }
        data = json_bytes(record)
        with folder_of(store).written(FILE_NAME, is_new=is_new) as file:
            file.write(data)

    @classmethod
    def find(cls, store: Place) -> Manifest | None:
        """Read ``store.json`` as `read` does; None where there is none."""
        try:
            data = folder_of(store).read(FILE_NAME)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as exc:
            raise cannot_read(folder_of(store).place(FILE_NAME), exc) from exc
        return cls._of(data, store)

    @classmethod
    def read(cls, store: Place) -> Manifest:
        """Read ``store.json``.

        Raises
        ------
        StoreError
            When it is missing, damaged, of another kind, or of a newer format.
        """
        found = cls.find(store)
        if found is None:
            raise StoreError(
                f"{printable(str(store))} is not a store of featpipe: it has no {FILE_NAME}; "
                "make one with: featpipe embed SOURCE"
            )
        return found

    @classmethod
    def _of(cls, data: bytes, store: Place) -> Manifest:
        shown, path = printable(str(store)), printable(str(folder_of(store).place(FILE_NAME)))
        value = json_object(data, path, StoreError)
        if value.get("kind") != KIND:
            raise StoreError(f"{shown} is not a store of featpipe: its {FILE_NAME} is another's")
        _check_format(value.get("format"), shown)
        backbone = value.get("backbone")
        for field, sound in (
            ("backbone", isinstance(backbone, dict)),
            ("backbone.fingerprint", isinstance(_get(backbone, "fingerprint"), str)),
            ("backbone.name", isinstance(_get(backbone, "name"), str)),
            ("backbone.dimension", _is_positive(_get(backbone, "dimension"))),
            ("dtype", value.get("dtype") in DTYPES),
            ("source", isinstance(value.get("source"), str)),
            # Former stores have none.
            ("group", isinstance(value.get("group"), str | None)),
            ("shard", _is_shard(value.get("shard"))),
            ("whole", _is_count(value.get("whole"))),
            ("engines", _is_list_of_objects(value.get("engines"))),
            ("next_part", _is_positive(value.get("next_part", 1))),
        ):
            if not sound:
                raise StoreError(f"{path} is damaged: its field {field!r} is amiss")
        return cls(
            value["backbone"],
            value["dtype"],
            value["source"],
            tuple(value["engines"]),
            value.get("group"),
            None if value.get("shard") is None else Shard.parse(value["shard"]),
            value.get("whole"),
            value.get("next_part", 0),
        )

    def require_backbone(self, card: Mapping[str, Any], shown: str) -> None:
        """Raise `FingerprintError` unless the vectors here are ``card``'s."""
        if self.fingerprint != card["fingerprint"]:
            raise FingerprintError(
                f"{shown} holds vectors of {printable(self.name)} ({self.fingerprint[:12]}), "
                f"not of {printable(str(card['name']))} ({card['fingerprint'][:12]}): "
                "give another store with -o"
            )


def _get(value: Any, field: str) -> Any:
    return value.get(field) if isinstance(value, dict) else None


def _is_positive(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_shard(value: Any) -> bool:
    if value is None:
        return True
    try:
        return isinstance(value, str) and bool(Shard.parse(value))
    except ValueError:
        return False


def _is_count(value: Any) -> bool:
    return value is None or (value == 0 and value is not False) or _is_positive(value)


def _is_list_of_objects(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, dict) for item in value)


def _check_format(found: Any, shown: str) -> None:
    if not _is_positive(found):
        raise StoreError(f"{shown} is damaged: {FILE_NAME} names no format")
    if found > FORMAT:
        raise StoreError(
            f"{shown} has format {found}, written by a newer featpipe; this one "
            f"({__version__}) reads up to {FORMAT}: upgrade featpipe"
        )
