"""Components of pairs against the simplest union-find there is."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from components.data.clusters import Forest


def naive(n: int, pairs: list[tuple[int, int]]) -> list[int]:
    """Smallest member of every item's component, by relabelling everything at each pair."""
    labels = list(range(n))
    for a, b in pairs:
        one, other = sorted((labels[a], labels[b]))
        labels = [one if label == other else label for label in labels]
    return labels


@st.composite
def graphs(draw: st.DrawFn) -> tuple[int, list[tuple[int, int]]]:
    n = draw(st.integers(1, 40))
    item = st.integers(0, n - 1)
    return n, draw(st.lists(st.tuples(item, item), max_size=80))


@settings(max_examples=200, deadline=None)
@given(graphs(), st.integers(1, 20), st.randoms(use_true_random=False))
def test_labels_are_the_smallest_members_in_any_order_and_any_blocks(graph, block: int, random) -> None:  # type: ignore[no-untyped-def]
    n, pairs = graph
    shuffled = list(pairs)
    random.shuffle(shuffled)
    forest = Forest(n)
    for start in range(0, len(shuffled), block):
        some = np.array(shuffled[start : start + block], dtype=np.int64)
        if random.random() < 0.5:
            some = some[:, ::-1]
        forest.link(some[:, 0], some[:, 1])
    assert forest.labels().tolist() == naive(n, pairs)


def test_a_chain_of_a_million_is_one_component() -> None:
    n = 1_000_000
    forest = Forest(n)
    items = np.arange(n, dtype=np.int64)
    forest.link(items[1:], items[:-1])
    assert not forest.labels().any()


def test_many_links_of_single_pairs_stay_right() -> None:
    forest = Forest(2000)
    for k in reversed(range(1999)):  # every link hooks the root of all that came before
        forest.link(np.array([k]), np.array([k + 1]))
    assert forest.roots(np.array([1999, 5])).tolist() == [0, 0]
