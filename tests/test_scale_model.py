"""The model of docs/scale.md: its tables are what it prints, and a simulation agrees with it."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

REPOSITORY = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def scale() -> ModuleType:
    sys.path.insert(0, str(REPOSITORY / "benchmarks"))
    try:
        import scale
    finally:
        sys.path.pop(0)
    return scale


@pytest.fixture(scope="module")
def measured(scale: ModuleType) -> object:
    """Return constants that are easy to reckon with, whatever was measured last."""
    return scale.Measured(
        decode_s=0.003,
        model_s=0.009,
        image_bytes=1e5,
        dimension=1280,
        folder_s=1e-5,
        table_s=5e-6,
        merge_s=1e-4,
        merge_bytes=1000.0,
        run_bytes=1000.0,
        index_bytes=50.0,
        start_s=1.0,
    )


def test_tables_of_the_page_are_what_the_script_prints(scale: ModuleType) -> None:
    """`python benchmarks/scale.py --write` makes it so; no figure is typed by hand."""
    page = scale.PAGE.read_text(encoding="utf-8")
    assert scale.filled(page, json.loads(scale.STORED.read_text())) == page
    with pytest.raises(ValueError, match="the page lacks the marks of the table runs"):
        scale.filled(
            page.replace("scale: runs", "scale: walks"), json.loads(scale.STORED.read_text())
        )


def test_model_agrees_with_the_simulation(scale: ModuleType) -> None:
    """Within 4 %: own pieces or one queue, a slow machine, one that dies; for other speeds, too."""
    for seconds in (0.002, 0.02, 0.2):
        for what, fleet in scale.cases(seconds):
            found = scale.simulate(1_000_000, 128, seconds, fleet, seed=1)
            predicted = scale.finish(1_000_000, 128, seconds, fleet)
            assert predicted == pytest.approx(found, rel=0.04), (what, seconds)


def test_simulation_does_every_image(scale: ModuleType) -> None:
    """One worker takes what its images take; a machine that dies costs time, and no image."""
    fleet = scale.Fleet(1, 1, shared=False)
    assert scale.simulate(10_000, 10, 0.1, fleet) == pytest.approx(1000, rel=0.02)
    dies = scale.Fleet(1, 1, shared=False, failing=0, fails_at=500.0, back_after=100.0)
    later = scale.simulate(10_000, 10, 0.1, dies) - scale.simulate(10_000, 10, 0.1, fleet)
    assert 98 < later < 103
    alone = scale.Fleet(1, 1, shared=True, failing=0, fails_at=500.0)
    with pytest.raises(RuntimeError, match="no machine is left"):
        scale.simulate(10_000, 10, 0.1, alone)


def test_plan_says_what_is_narrow(scale: ModuleType, measured: object) -> None:
    """Cores first; of many machines the requests for loose objects, and their listing."""
    one = scale.plan(measured, scale.CPU, 10**9, 1)
    assert one.bottleneck == "cores"
    assert one.seconds["cores"] == pytest.approx(10**9 * 0.012 / 16)
    many = scale.plan(measured, scale.CPU, 10**9, 256)
    assert many.bottleneck == "listing"
    assert many.seconds["listing"] == 2 * one.seconds["listing"]
    assert many.seconds["requests"] == pytest.approx(10**9 / 88_000)
    tars = scale.plan(measured, scale.CPU, 10**9, 256, "tars")
    assert tars.seconds["cores"] == pytest.approx(one.seconds["cores"] / 256)
    assert tars.seconds["listing"] < many.seconds["listing"] / 10_000
    assert tars.dollars < many.dollars
    assert tars.total == sum(tars.seconds.values()) < many.total


def test_memory_is_that_of_the_largest_process(scale: ModuleType, measured: object) -> None:
    """A run keeps its piece, the merge all of it; one process has nothing to merge."""
    assert scale.plan(measured, scale.CPU, 2**30, 1).gib == 1000
    assert scale.plan(measured, scale.CPU, 2**30, 256).gib == 1000
    light = replace(measured, merge_bytes=1.0)
    assert scale.plan(light, scale.CPU, 2**30, 256).gib == 1000 / 256


def test_rates_name_each_resource(scale: ModuleType, measured: object) -> None:
    """A GPU takes the model off the cores; a thin network or large images become the limit."""
    rates = scale.rates(measured, scale.GPU, 4, "objects")
    assert rates["GPU"] == 4 * scale.GPU.gpu_rate
    assert rates["cores"] == pytest.approx(4 * scale.GPU.cores / measured.decode_s)
    assert set(scale.rates(measured, scale.CPU, 4, "tars")) == {"cores", "network", "requests"}
    large = replace(measured, image_bytes=1e9)
    assert scale.plan(large, scale.CPU, 10**6, 1).bottleneck == "network"
