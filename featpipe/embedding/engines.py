"""Engines: where the images of a plan are embedded, and how what became of them gets home.

`Engine` is the seam. Each engine hands the same `Embedder` batches of the same listing, and the
ledger the outcomes; in this process that is done by threads, elsewhere by whatever an engine
brings along.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator, Iterable, Mapping
from contextlib import closing
from typing import TYPE_CHECKING

from featpipe.backbones import Backbone
from featpipe.embedding.engine import EmbeddedBatch, stream
from featpipe.embedding.ledger import Ledger
from featpipe.embedding.plan import Plan
from featpipe.images import decoder_versions
from featpipe.sources import Source
from featpipe.store import StoreWriter
from featpipe.types import ImageRef

if TYPE_CHECKING:
    from featpipe.backbones.session import Session


class Engine(ABC):
    """Embeds what a plan is missing; costs nothing until it is opened."""

    @abstractmethod
    def open(self) -> None:
        """Start the device; what it is, is known then. A second call does nothing.

        Raises
        ------
        BackboneError, DeviceError
            When backbone, device or precision cannot be had.
        """

    def close(self) -> None:  # noqa: B027 - most have nothing to let go of
        """Let go of all that was started."""

    @property
    @abstractmethod
    def why(self) -> str | None:
        """One line for a person, what runs and why; None before it is open."""

    @property
    @abstractmethod
    def versions(self) -> Mapping[str, str]:
        """What a store records of its engine: provider, precision, versions."""

    @property
    @abstractmethod
    def batch_size(self) -> int:
        """Images a call of the backbone: what was asked for, or what the device makes best."""

    @abstractmethod
    def fill(self, plan: Plan, ledger: Ledger, writer: StoreWriter) -> Generator[None, None, None]:
        """Compute what is missing into the ledger; yield whenever some of it is there.

        Closed early, it begins nothing more.
        """

    @abstractmethod
    def stream(self, refs: Iterable[ImageRef], step: int) -> Generator[EmbeddedBatch, None, None]:
        """Embed images in their order, `batch_size` at a time, and give the vectors back.

        Every ``step`` images, a multiple of `batch_size`, end a batch.
        """


class LocalEngine(Engine):
    """Threads of this process on one session; `stream` has the details."""

    def __init__(
        self,
        source: Source,
        backbone: Backbone,
        *,
        device: str,
        precision: str,
        batch_size: int | None,
        workers: int | None,
    ) -> None:
        self._source, self._backbone = source, backbone
        self._device, self._precision = device, precision
        self._batch_size, self._workers = batch_size, workers
        self._opened: Session | None = None

    def open(self) -> None:
        """Open the session."""
        if self._opened is None:
            self._opened = self._backbone.open_session(self._device, self._precision)

    @property
    def why(self) -> str | None:
        """See `Engine.why`."""
        return None if self._opened is None else self._opened.why

    @property
    def versions(self) -> Mapping[str, str]:
        """See `Engine.versions`."""
        session = self._session
        engine = {"provider": session.provider, "precision": session.precision}
        return {**engine, **session.versions, **decoder_versions()}

    def fill(self, plan: Plan, ledger: Ledger, writer: StoreWriter) -> Generator[None, None, None]:
        """Let the ledger append batch by batch."""
        del writer
        batches = stream(
            self._source,
            plan.refs(),
            self._backbone,
            self._session,
            batch_size=self._batch_size,
            workers=self._workers,
            wanted=ledger.claim,
            total=len(plan.missing),
        )
        with closing(batches):
            for batch in batches:
                ledger.take(batch)
                yield
        ledger.settle()

    @property
    def batch_size(self) -> int:
        """See `Engine.batch_size`."""
        return self._batch_size or self._session.batch_size

    def stream(self, refs: Iterable[ImageRef], step: int) -> Generator[EmbeddedBatch, None, None]:
        """See `featpipe.embedding.stream`."""
        del step
        return stream(
            self._source,
            refs,
            self._backbone,
            self._session,
            batch_size=self.batch_size,
            workers=self._workers,
        )

    @property
    def _session(self) -> Session:
        assert self._opened is not None
        return self._opened
