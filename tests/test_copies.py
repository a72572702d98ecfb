"""Which of images that are copies of one another go, whatever their graph is."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from featpipe._files import content_key
from featpipe.quality.cleaning import Kind, Problem
from featpipe.quality.copies import JUDGE, KEPT, Copies, Copy, Parting, part

GONE = "are gone"
ALL: tuple[Kind, ...] = ("duplicate", "near-duplicate", "two-labels")


@dataclass(frozen=True)
class World:
    """Images of a few contents and labels, pairs of contents, and what is in the way."""

    contents: list[int]
    labels: list[str | None]
    near: set[tuple[int, int]]
    gone: set[str]
    leaving: set[str]
    kinds: set[Kind]
    order: list[str]

    def paths(self) -> list[str]:
        return [str(number) for number in range(len(self.contents))]

    def label(self, path: str) -> str | None:
        return self.labels[int(path)]

    def likeness(self, one: str, other: str) -> str | None:
        """Return in which way two images are direct copies of one another."""
        a, b = self.contents[int(one)], self.contents[int(other)]
        if a == b:
            return "duplicate"
        return "near-duplicate" if (min(a, b), max(a, b)) in self.near else None

    def differ(self, one: str, other: str) -> bool:
        labels = {self.label(one), self.label(other)} - {None}
        return len(labels) == 2

    def problems(self) -> list[Problem]:
        """Return what `clean` lists: of equal files the first stands for all."""
        first: dict[int, str] = {}
        for path, content in zip(self.paths(), self.contents, strict=True):
            first.setdefault(content, path)
        pairs = [
            (first[self.contents[int(path)]], path)
            for path in self.paths()
            if first[self.contents[int(path)]] != path
        ]
        pairs += [(first[a], first[b]) for a, b in sorted(self.near) if a in first and b in first]
        listed = []
        for one, other in pairs:
            kind = self.likeness(one, other)
            listed.append(Problem(kind, other, self.label(other), one, 0.9, "alike"))
            if self.differ(one, other):
                listed.append(Problem("two-labels", other, self.label(other), one, None, ""))
        return listed

    def part(self) -> Parting:
        keys = {
            path: content_key(bytes([c]))
            for path, c in zip(self.paths(), self.contents, strict=True)
        }
        labels = dict(zip(self.paths(), self.labels, strict=True))
        copies = Copies(self.problems(), self.kinds, keys, labels)
        order = [path for path in self.order if path in copies.images]
        return part(copies, order, self.leaving, lambda path: GONE if path in self.gone else None)


@st.composite
def worlds(draw: st.DrawFn) -> World:
    n = draw(st.integers(1, 12))
    contents = draw(st.lists(st.integers(0, 7), min_size=n, max_size=n))
    pairs = st.tuples(st.integers(0, 7), st.integers(0, 7))
    paths = [str(number) for number in range(n)]
    return World(
        contents,
        draw(st.lists(st.sampled_from([None, "a", "a", "b"]), min_size=n, max_size=n)),
        {(min(p), max(p)) for p in draw(st.lists(pairs, max_size=14)) if p[0] != p[1]},
        draw(st.sets(st.sampled_from(paths), max_size=2)),
        draw(st.sets(st.sampled_from(paths), max_size=2)),
        draw(st.sets(st.sampled_from(ALL), min_size=1)),
        draw(st.permutations(paths)),
    )


@given(worlds())
def test_beside_each_that_goes_a_direct_copy_stays(world: World) -> None:
    """It is there, is named, is a copy in a way that was asked for, and comes earlier."""
    parting = world.part()
    for path, problem in parting.going.items():
        assert problem.path == path
        other = problem.other
        assert other is not None
        assert other not in parting.going.keys() | world.leaving | world.gone
        assert world.order.index(other) < world.order.index(path)
        assert problem.kind in world.kinds
        if problem.kind == "two-labels":
            assert world.differ(path, other)
            assert problem.detail == f"{world.label(path)} here, {world.label(other)} there"
        else:
            assert problem.kind == world.likeness(path, other)


@given(worlds())
def test_no_label_is_forgotten_unless_it_is_asked_for(world: World) -> None:
    """An image whose direct copy has another label goes only beside an equal file of its own."""
    parting = world.part()
    if "two-labels" in world.kinds:
        return
    for path, problem in parting.going.items():
        listed = {one.path for one in world.problems()} | {p.other for p in world.problems()}
        others = [p for p in listed if p and p != path and world.likeness(path, p)]
        if any(world.differ(path, other) for other in others):
            assert problem.kind == "duplicate"
            assert world.label(str(problem.other)) == world.label(path)


@given(worlds())
def test_what_stays_beside_a_copy_of_its_own_says_why(world: World) -> None:
    """All that may go goes, so that the rest has no pair left; and nobody is both."""
    parting = world.part()
    assert not parting.going.keys() & parting.spared.keys()
    assert not (parting.going.keys() | parting.spared.keys()) & world.leaving
    assert set(parting.spared.values()) <= {JUDGE, KEPT, GONE}
    listed = {one.path for one in world.problems()} | {p.other for p in world.problems()}
    staying = listed - parting.going.keys() - world.leaving - world.gone
    for one in staying:
        for other in staying:
            is_later = world.order.index(str(other)) > world.order.index(str(one))
            if is_later and world.likeness(str(one), str(other)) in world.kinds:
                assert parting.spared[str(other)] == JUDGE


def test_a_chain_is_cut_so_that_each_piece_has_a_copy_left() -> None:
    """Of a ~ b ~ c ~ d, where no others are alike: b and d go, and c says why it stays."""
    chain = World([0, 1, 2, 3], ["x"] * 4, {(0, 1), (1, 2), (2, 3)}, set(), set(), set(ALL), [])
    parting = World(**{**vars(chain), "order": chain.paths()}).part()
    assert {path: one.other for path, one in parting.going.items()} == {"1": "0", "3": "2"}
    assert parting.spared == {"2": KEPT}


def test_what_is_a_copy_of_a_file_is_one_of_its_equals() -> None:
    """The pair names the first of two equal files; where that is gone, the other one counts."""
    world = World([0, 0, 1], ["x"] * 3, {(0, 1)}, {"0"}, set(), set(ALL), ["0", "1", "2"])
    parting = world.part()
    assert {path: one.other for path, one in parting.going.items()} == {"2": "1"}
    assert parting.spared == {"1": KEPT}


def test_no_copies_are_asked_for() -> None:
    """Then no file is read for them."""
    pair = Problem("near-duplicate", "b", None, "a", 0.9, "alike")
    copies = Copies([pair], ["blank"], {"a": b"1", "b": b"2"}, {})
    assert copies.images == {}
    assert Copies([pair], ["near-duplicate"], {"a": b"1", "b": None}, {}).images == {}
    both = Copies([pair], ["near-duplicate"], {"a": b"1", "b": b"2"}, {"a": "x"})
    assert both.images == {"a": Copy("a", b"1", "x"), "b": Copy("b", b"2", None)}
