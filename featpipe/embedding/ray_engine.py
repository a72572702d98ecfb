"""Ray Data as the engine: blocks of images to actors with a session each, parts written there.

The driver lists, plans, numbers the parts and commits the index; Ray schedules, restarts what
has died and gives its blocks to others. This module and `ray_cluster` alone know Ray, and import
it only when it is asked for.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping
from contextlib import ExitStack, closing
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa

from featpipe import __version__
from featpipe._columns import BLOCK_ROWS, LISTED, in_columns, in_objects
from featpipe._files import printable
from featpipe.backbones import Backbone, usable_cores
from featpipe.embedding.block_worker import (
    Before,
    BlockWorker,
    Destination,
    Recipe,
    Started,
    Witness,
    started_here,
)
from featpipe.embedding.blocks import (
    block_sizes,
    in_batches,
    in_blocks,
    problem_table,
    raise_problem,
)
from featpipe.embedding.engine import EmbeddedBatch
from featpipe.embedding.engines import Engine
from featpipe.embedding.ledger import Ledger
from featpipe.embedding.plan import Plan
from featpipe.embedding.ray_cluster import cause, joined
from featpipe.errors import DeviceError, FeatpipeError
from featpipe.sources import Source
from featpipe.store import Place, StoreWriter
from featpipe.store.places import Words
from featpipe.types import ImageRef

_ON_GPUS = {"cuda", "tensorrt"}
_QUEUED = 2
"""Blocks that an actor holds: one that it works on, one that waits."""


class RayEngine(Engine):
    """Actors of a Ray cluster, with one core or a fraction of a GPU each."""

    def __init__(
        self,
        source: Source,
        backbone: Backbone,
        *,
        device: str,
        precision: str,
        batch_size: int | None,
        workers: int | None,
        address: str | None,
    ) -> None:
        self._recipe = Recipe.of(source, backbone, device, precision, batch_size)
        self._cluster = Cluster(address, workers)

    def open(self) -> None:
        """Join the cluster, or start one; let a worker there open a session."""
        if self._cluster.started is None:
            self._cluster.open(self._recipe)

    def close(self) -> None:
        """Leave the cluster; its workers for this run end."""
        self._cluster.close()

    @property
    def why(self) -> str | None:
        """See `Engine.why`."""
        return None if self._cluster.started is None else self._cluster.why

    @property
    def versions(self) -> Mapping[str, str]:
        """See `Engine.versions`."""
        assert self._cluster.started is not None
        return dict(self._cluster.started.engine)

    def fill(self, plan: Plan, ledger: Ledger, writer: StoreWriter) -> Generator[None, None, None]:
        """Let actors write the parts, and the ledger note what became of each block."""
        sizes = block_sizes(len(plan.missing), self._cluster.workers)
        numbers = writer.promise(len(sizes))
        destination = Destination(_everywhere(writer.path), writer.shape, numbers.stop)
        recipe = replace(self._recipe, destination=destination)
        blocks = in_blocks(plan.to_open(), sizes, numbers)
        results = self._cluster.map(recipe, blocks, writer.places.known())
        with closing(results):
            for result in results:
                ledger.take_result(result)
                yield

    @property
    def batch_size(self) -> int:
        """See `Engine.batch_size`."""
        assert self._cluster.started is not None
        return self._recipe.batch_size or self._cluster.started.batch_size

    def stream(self, refs: Iterable[ImageRef], step: int) -> Generator[EmbeddedBatch, None, None]:
        """Have blocks embedded, and yield them in order; the listing is complete before."""
        remaining, tables = iter(refs), [LISTED.empty_table()]
        while some := list(islice(remaining, BLOCK_ROWS)):
            tables.append(in_columns(some).select(LISTED.names))
        listed = pa.concat_tables(tables)
        sizes = block_sizes(len(listed), self._cluster.workers, step)
        blocks = in_blocks(listed, sizes, range(len(sizes)))
        nothing_known = np.empty((2, 0), dtype=np.uint64)
        results = self._cluster.map(self._recipe, blocks, nothing_known, ordered=True)
        with closing(results):
            start = 0
            for result in results:
                images = tuple(in_objects(listed.slice(start, len(result))))
                yield from in_batches(result, images, self.batch_size)
                start += len(result)


class Cluster:
    """A Ray cluster, joined or started, and the actors that work there for one run.

    Parameters
    ----------
    address : str or None
        ``auto`` or ``HOST:PORT``; None starts one on this machine, which nobody else can reach.
        Where this process has joined one already, that is used.
    workers : int or None
        Actors; by default one for every core of this machine, or of the cluster.

    Attributes
    ----------
    started : Started or None
        What the first worker has opened; None before `open`.
    workers : int
    """

    def __init__(self, address: str | None, workers: int | None) -> None:
        self.started: Started | None = None
        self.workers = workers or usable_cores()
        self._address, self._asked = address, workers
        self._gpus = 0.0
        self._stack = ExitStack()

    @property
    def why(self) -> str:
        """One line: the device of the workers, and how many there are."""
        assert self.started is not None
        where = "on this machine" if self._address is None else f"at {printable(self._address)}"
        return f"{self.started.why}; {self.workers} workers of Ray {where}"

    def open(self, recipe: Recipe) -> None:
        """Join or start the cluster, and see whether the recipe works there.

        Raises
        ------
        DeviceError
            When Ray is missing, there is no such cluster, or it lacks cores or GPUs.
        BackboneError, FingerprintError
            When the backbone cannot be had there.
        """
        try:
            self._stack.enter_context(joined(self._address, self.workers))
            self._gpus = self._share_out(recipe.device)
            self.started = self._probe(recipe)
        except BaseException:
            self.close()
            raise
        if self.started.provider not in _ON_GPUS:
            self._gpus = 0.0

    def close(self) -> None:
        """Leave the cluster, and end it where it was started here."""
        self._stack.close()

    def map(
        self, recipe: Recipe, blocks: Iterable[pa.Table], known: Words, *, ordered: bool = False
    ) -> Generator[pa.Table, None, None]:
        """Have blocks done, and yield the tables of what became of them, as they come.

        Raises
        ------
        FeatpipeError
            What a worker has met; or that the cluster is gone.
        """
        import ray  # noqa: PLC0415 - heavy, and not everybody has it
        import ray.data  # noqa: PLC0415

        assert self.started is not None
        settled = replace(recipe, device=self.started.provider, precision=self.started.precision)
        witness = ray.remote(Witness).options(num_cpus=0, max_restarts=-1, max_task_retries=-1)
        arguments = (settled, ray.put(known), witness.remote())
        dataset = ray.data.from_arrow(list(blocks)).map_batches(
            cast("Any", _Actor),
            fn_constructor_args=arguments,
            batch_size=None,
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(
                size=self.workers, max_tasks_in_flight_per_actor=_QUEUED
            ),
            num_cpus=1,
            num_gpus=self._gpus,
        )
        dataset.context.enable_progress_bars = False
        dataset.context.print_on_execution_start = False
        dataset.context.execution_options.preserve_order = ordered
        try:
            for result in dataset.iter_batches(
                batch_size=None, batch_format="pyarrow", prefetch_batches=0
            ):
                raise_problem(result)
                yield result
        except ray.exceptions.RayError as exc:
            raise DeviceError(
                f"Ray gave up: {cause(exc)}; what was finished is kept, and the same command "
                "goes on from there"
            ) from exc

    def _share_out(self, device: str) -> float:
        """Settle the number of workers, and return the share of a GPU that each gets."""
        import ray  # noqa: PLC0415

        has = ray.cluster_resources()
        cpus, gpus = int(has.get("CPU", 0)), int(has.get("GPU", 0))
        if self._asked is None:
            self.workers = max(1, cpus if self._address is not None else min(cpus, self.workers))
        if not cpus:
            raise DeviceError("the Ray cluster has no CPU for a worker: add machines")
        if self.workers > cpus:
            raise DeviceError(
                f"the Ray cluster has {cpus} CPUs, and {self.workers} workers need one each: "
                f"give --workers {cpus}, or add machines"
            )
        kind, _, index = device.partition(":")
        if kind in _ON_GPUS and index:
            raise DeviceError(
                f"with --engine ray the GPUs are given out by Ray: give --device {kind}, not "
                f"{printable(device)}"
            )
        if kind in _ON_GPUS and not gpus:
            raise DeviceError(
                f"--device {kind} cannot be had: the Ray cluster has no GPU; give --device cpu, or "
                "start its machines with ray start --num-gpus"
            )
        if kind not in {"auto", *_ON_GPUS} or not gpus:
            return 0.0
        each = -(-self.workers // gpus)
        # Ray counts in ten-thousandths.
        return 1.0 if each == 1 else 10_000 // each / 10_000

    def _probe(self, recipe: Recipe) -> Started:
        """Let one worker open a session: the others open the same, or fail."""
        import ray  # noqa: PLC0415

        task = ray.remote(_start).options(num_cpus=1, num_gpus=self._gpus, max_retries=0)
        try:
            found = ray.get(task.remote(recipe))
        except ray.exceptions.RayError as exc:
            raise DeviceError(
                f"the workers of Ray cannot start: {cause(exc)}; install the same featpipe[ray] "
                "on every machine"
            ) from exc
        if isinstance(found, pa.Table):
            raise_problem(found)
        started = cast("Started", found)
        if started.featpipe != __version__:
            raise DeviceError(
                f"the workers of Ray have featpipe {started.featpipe}, not {__version__}: install "
                "the same on every machine"
            )
        return started


class _Actor(BlockWorker):
    """A `BlockWorker` that is told where things are by references of Ray."""

    def __init__(self, recipe: Recipe, known: Any, witness: Any) -> None:
        import ray  # noqa: PLC0415

        super().__init__(recipe, cast("Words", ray.get(known)), _Asking(witness))


class _Asking:
    """A `Watch` whose notes are kept by an actor of its own."""

    def __init__(self, witness: Any) -> None:
        self._witness = witness

    def begin(self, block: int) -> Before:
        import ray  # noqa: PLC0415

        return cast("Before", ray.get(self._witness.begin.remote(block)))

    def opening(self, block: int, position: int) -> None:
        import ray  # noqa: PLC0415

        # Waited for: the note must be taken before the image can kill.
        ray.get(self._witness.opening.remote(block, position))

    def end(self, block: int) -> None:
        import ray  # noqa: PLC0415

        ray.get(self._witness.end.remote(block))


def _everywhere(store: Place) -> Place:
    """Return a place as processes in other folders name it."""
    return store.absolute() if isinstance(store, Path) else store


def _start(recipe: Recipe) -> Started | pa.Table:
    try:
        return started_here(recipe)
    except FeatpipeError as exc:
        return problem_table(exc)
