"""The nearest rows against a plain float64 search: ties, copies, blocks, float16, threads."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from threadpoolctl import threadpool_info
from vectors import demo_vectors

from featpipe._threads import Threads, single_threads
from featpipe.neighbours import Rows, search, widen
from featpipe.neighbours.rows import lengths


def directions(X) -> np.ndarray:
    """Return unit vectors in float64; a zero vector stays one."""
    wide = np.asarray(X, dtype=np.float64)
    norms = np.sqrt(np.square(wide).sum(axis=1, keepdims=True))
    return wide / np.where(norms > 0, norms, np.inf)


def plain(X, Q, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return distances and rows of the k nearest, by all pairs in float64."""
    a, b = directions(X), directions(Q)
    distances = np.square(a[None] - b[:, None]).sum(axis=2) / 2
    distances[~b.any(axis=1)] = 1
    distances[:, ~a.any(axis=1)] = 1
    distances[distances < 2**-46] = 0
    order = np.lexsort((np.broadcast_to(np.arange(len(X)), distances.shape), distances))[:, :k]
    return np.take_along_axis(distances, order, 1), order


@settings(deadline=None, max_examples=150)
@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(1, 60),
    q=st.integers(0, 7),
    dimension=st.integers(1, 9),
    k=st.integers(1, 70),
    levels=st.sampled_from([1, 2, 50]),
    dtype=st.sampled_from([np.float16, np.float32, np.float64]),
    step=st.integers(1, 70),
    batch=st.integers(1, 8),
    threads=st.booleans(),
)
def test_the_search_finds_what_float64_finds(
    seed, n, q, dimension, k, levels, dtype, step, batch, threads
) -> None:
    """Few levels make copies, multiples, ties and zero vectors; blocks have any size."""
    rng = np.random.default_rng(seed)
    X = rng.integers(-levels, levels + 1, (n, dimension)).astype(dtype) / dtype(4)
    Q = rng.integers(-levels, levels + 1, (q, dimension)).astype(np.float32)
    with pytest.MonkeyPatch.context() as patch, Threads(2) as pool:
        patch.setattr(Rows, "step", lambda *_: step)
        patch.setattr("featpipe.neighbours.searching.QUERIES", batch)
        patch.setattr("featpipe.neighbours.searching._PAIRS", 3 * dimension)
        patch.setattr("featpipe._machine.usable_cores", lambda: 2)
        distances, positions = search(Rows.measured(X), Q, k, pool if threads else None)
    expected, order = plain(X, Q, k)
    assert distances.shape == positions.shape == (q, min(k, n))
    np.testing.assert_allclose(distances, expected, atol=1e-6)
    np.testing.assert_array_equal(positions, order)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_photographs_have_the_neighbours_that_float64_gives_them(dtype) -> None:
    """Real vectors, in blocks, by two threads: positions and distances of the plain search."""
    X = demo_vectors()[0].astype(dtype)
    Q = X[::3].astype(np.float32) + np.float32(0.01) * X[1::3][: len(X[::3])].astype(np.float32)
    with pytest.MonkeyPatch.context() as patch, Threads(2) as pool:
        patch.setattr(Rows, "step", lambda *_: 64)
        patch.setattr("featpipe._machine.usable_cores", lambda: 2)
        distances, positions = search(Rows.measured(X), Q, 20, pool)
    a, b = directions(X), directions(Q)
    order = np.argsort(-(b @ a.T), axis=1, kind="stable")[:, :20]
    np.testing.assert_array_equal(positions, order)
    found = np.take_along_axis(1 - b @ a.T, order, 1)
    np.testing.assert_allclose(distances, found, atol=1e-6)


def test_of_many_equal_rows_the_lowest_are_taken() -> None:
    """A thousand copies in an odd place of every product: rows 0, 1, 2."""
    rng = np.random.default_rng(0)
    row = rng.normal(size=(1, 37)).astype(np.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Rows, "step", lambda *_: 101)
        for query in (row, 3 * row, row + 1, 0 * row):
            both = np.concatenate([query, rng.normal(size=(8, 37)).astype(np.float32)])
            distances, positions = search(Rows.measured(np.repeat(row, 1000, axis=0)), both, 3)
            assert positions.tolist() == [[0, 1, 2]] * 9
            assert (np.ptp(distances, axis=1) == 0).all()


def test_a_copy_is_at_no_distance_at_all() -> None:
    """Whatever its length, and through float32: exactly 0, where 1 - cosine leaves a rest."""
    X = demo_vectors()[0][:50]
    units = (X / np.linalg.norm(X, axis=1, keepdims=True)).astype(np.float32)
    for Q in (X, 3 * X, units):
        distances, positions = search(Rows.measured(X), Q, 1)
        assert (distances == 0).all()
        assert positions[:, 0].tolist() == list(range(50))


def test_some_of_the_rows_are_searched_without_a_copy() -> None:
    """Positions count among the chosen; the rows themselves stay where they are."""
    X = demo_vectors()[0]
    chosen = np.arange(0, len(X), 3)
    rows = Rows.measured(X)
    found = search(rows.only(chosen), rows.only(np.arange(5)), 4)
    expected = search(Rows.measured(X[chosen]), X[:5], 4)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_memory_map_is_searched_as_it_lies(tmp_path) -> None:
    """float16 on disk: the same answer as from memory."""
    X = demo_vectors()[0].astype(np.float16)
    np.save(tmp_path / "rows.npy", X)
    mapped = np.load(tmp_path / "rows.npy", mmap_mode="r")
    for one, other in zip(
        search(Rows.measured(mapped), X[:9], 5), search(Rows.measured(X), X[:9], 5), strict=True
    ):
        np.testing.assert_array_equal(one, other)


def test_no_rows_and_no_queries_give_nothing() -> None:
    """Empty in, empty out, of the right shape."""
    none = np.empty((0, 3), dtype=np.float32)
    some = np.ones((2, 3), dtype=np.float32)
    assert search(Rows.measured(none), some, 4)[0].shape == (2, 0)
    assert search(Rows.measured(some), none, 1)[1].shape == (0, 1)


def test_every_float16_is_widened_exactly() -> None:
    """All 63,488 finite ones, normal or not, with their sign."""
    half = np.arange(2**16, dtype=np.uint16).view(np.float16)
    half = half[np.isfinite(half)].reshape(-1, 8)
    wide = widen(half, np.empty(half.shape, dtype=np.float32))
    np.testing.assert_array_equal(wide.view(np.int32), half.astype(np.float32).view(np.int32))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_a_row_that_is_not_finite_is_named(value, dtype, monkeypatch) -> None:
    """By its number, in whichever block it is."""
    X = np.ones((9, 4), dtype=dtype)
    X[7, 2] = value
    monkeypatch.setattr(Rows, "step", lambda *_: 3)
    with pytest.raises(ValueError, match="NaN") as caught:
        Rows.measured(X)
    assert str(caught.value) == "Input X contains NaN or infinity, first in row 7"


def test_lengths_are_right_where_squares_are_not() -> None:
    """1e25 squared is no float32, nor is 1e-25; what is next to nothing has no direction."""
    X = np.array([[3e25, 4e25], [3e-25, 4e-25], [3e-35, 4e-35], [3, 4], [0, 0]], dtype=np.float32)
    np.testing.assert_allclose(lengths(X), [5e25, 5e-25, 0, 5, 0], rtol=1e-6)
    distances, positions = search(Rows.measured(X), np.array([[4, 3]]), 5)
    assert positions.tolist() == [[0, 1, 3, 2, 4]]
    np.testing.assert_allclose(distances, [[0.04, 0.04, 0.04, 1, 1]], atol=1e-6)


def test_blocks_are_bounded_in_every_direction() -> None:
    """Long vectors, many queries: fewer rows at once, and never none."""
    assert Rows.measured(np.ones((2, 4096), dtype=np.float32)).step() == 512
    narrow = Rows.measured(np.ones((2, 1), dtype=np.float32))
    assert narrow.step() == 2**21
    assert narrow.step(1024) == 4096
    assert narrow.step(2**30) == 1


def blas_threads() -> set[int]:
    return {lib["num_threads"] for lib in threadpool_info() if lib["user_api"] == "blas"}


def test_blas_has_one_thread_for_each_of_ours(monkeypatch) -> None:
    """For the time of a search, and as before after it; one task needs no pool."""
    monkeypatch.setattr("featpipe._machine.usable_cores", lambda: 2)
    before = blas_threads()
    with single_threads(5) as pool:
        assert pool is not None
        assert blas_threads() == {1}
        with single_threads(1) as none:
            assert none is None
        assert blas_threads() == {1}
    assert blas_threads() == before
