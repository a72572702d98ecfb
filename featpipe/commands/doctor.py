"""``featpipe doctor``: what this machine has, and what is amiss."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from featpipe._files import printable
from featpipe.commands._common import debug_option, print_json

if TYPE_CHECKING:
    from featpipe.backbones._driver import Driver, Library
    from featpipe.backbones.cuda import CudaFacts
    from featpipe.doctor import Processor, Report, Speed


@click.command()
@click.option("--quick", is_flag=True, help="Leave out the ten-second check of speed.")
@click.option("--json", "as_json", is_flag=True, help="Write the report as JSON to stdout.")
@debug_option
def doctor(*, quick: bool, as_json: bool) -> int:
    """Say what this machine has, and what is amiss.

    Versions, devices that work in which precision and why not, CUDA and cuDNN, the processor and
    the container's limits, where things are stored, and how fast images become vectors here.
    Exit code 0 means that embedding works.

    \b
    featpipe doctor
    featpipe doctor --quick --json
    """
    from featpipe.backbones import broken_runtime

    try:
        from featpipe.doctor import diagnose
    except (ImportError, AttributeError) as exc:
        raise broken_runtime(exc) from exc
    report = diagnose(quick=quick)
    if as_json:
        print_json(report.to_json())
    else:
        for line in _lines(report):
            click.echo(printable(line))
    return report.exit_code


def _lines(report: Report) -> Iterator[str]:
    yield f"featpipe {report.featpipe}, Python {report.python}, {report.system}"
    yield ", ".join(f"{name} {version}" for name, version in report.packages.items())
    yield from _section("Devices")
    for device in report.devices:
        yield _row(device.name, f"{'works' if device.works else 'no'}: {device.detail}")
    yield from _section("CUDA")
    yield from _cuda_lines(report.cuda)
    yield from _section("Processor")
    yield from _processor_lines(report.processor)
    yield from _section("Places")
    for name, place in report.places.items():
        yield _row(name, place)
    if report.speed is not None:
        yield from _section("Speed")
        yield from _speed_lines(report.speed)
    yield ""
    for warning in report.warnings:
        yield f"Warning: {warning}"
    if report.problem is not None:
        yield f"Embedding does not work here: {report.problem}"
    else:
        yield "Embedding works here."


def _cuda_lines(facts: CudaFacts) -> Iterator[str]:
    built = "without CUDA" if facts.built_for is None else f"for CUDA {facts.built_for}"
    yield _row("onnxruntime", f"{', '.join(facts.wheels) or 'from elsewhere'}, built {built}")
    yield _row("driver", "not found" if facts.driver is None else _driver_words(facts.driver))
    if facts.libraries is not None:
        lacking = [_library_words(library) for library in facts.libraries if not library.found]
        yield _row("libraries", f"not found: {', '.join(lacking)}" if lacking else "found")


def _driver_words(driver: Driver) -> str:
    if driver.error:
        return f"found, does not start (error {driver.error})"
    major, minor = driver.cuda
    return f"found, for CUDA {major}.{minor}, {_count(len(driver.gpus))}"


def _library_words(library: Library) -> str:
    if library.instead is None:
        return f"{library.name} {library.major}"
    return f"{library.name} {library.major} (but {library.instead})"


def _processor_lines(processor: Processor) -> Iterator[str]:
    yield _row("model", processor.model)
    if processor.features:
        has = [f"{name} {'yes' if there else 'no'}" for name, there in processor.features.items()]
        yield _row("features", ", ".join(has))
    limit = "no container limit" if processor.quota is None else f"limit {processor.quota:g}"
    yield _row("cores", f"{processor.usable} of {processor.cores} usable ({limit})")
    limit = (
        "no container limit"
        if processor.memory_limit is None
        else f"limit {_gibibytes(processor.memory_limit)}"
    )
    yield _row("memory", f"{_gibibytes(processor.memory)} ({limit})")


def _speed_lines(speed: Speed) -> Iterator[str]:
    yield _row("decode", f"{speed.decode_per_core:,.0f} images/s a core (JPEG, 768 × 512)")
    unit = "images/s a core" if speed.provider in {"cpu", "openvino"} else "images/s"
    yield _row("backbone", f"{speed.model:,.0f} {unit} ({speed.provider})")
    yield _row("expected", f"{speed.expected:,.0f} images/s with {speed.threads} threads")
    yield _row("measured", f"{speed.measured:,.0f} images/s with {speed.threads} threads")


def _section(title: str) -> Iterator[str]:
    yield ""
    yield title


def _row(name: str, value: str) -> str:
    return f"  {name:<14} {value}"


def _count(gpus: int) -> str:
    return "1 GPU" if gpus == 1 else f"{gpus or 'no'} GPUs"


def _gibibytes(size: int | None) -> str:
    return "unknown" if size is None else f"{size / 2**30:.1f} GiB"
