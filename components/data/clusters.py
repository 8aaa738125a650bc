"""Connected components of pairs, found as the pairs come."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]


class Forest:
    """Which of ``n`` items are connected (union-find, after Tarjan 1975, over arrays of pairs at once).

    The root of a component is its smallest item, so that the outcome does not depend on the order of the pairs.
    """

    def __init__(self, n: int) -> None:
        self._parent = np.arange(n, dtype=np.int64)  # never above the item itself: no cycles

    def roots(self, items: Ints) -> Ints:
        """The smallest item connected with each of these."""
        found = self._parent[items]
        while True:
            above = self._parent[found]
            if np.array_equal(above, found):
                break
            found = above
        self._parent[items] = found
        return found

    def link(self, some: Ints, others: Ints) -> None:
        """Connect ``some[k]`` with ``others[k]`` for every k."""
        a, b = self.roots(some), self.roots(others)
        while True:
            apart = a != b
            a, b = a[apart], b[apart]
            if not len(a):
                return
            low, high = np.minimum(a, b), np.maximum(a, b)
            self._parent[high] = low  # of several for one root one is kept, the next round sees the others
            while True:  # halve the chains that this made among the roots, until none is left
                above = self._parent[self._parent[high]]
                if np.array_equal(above, self._parent[high]):
                    break
                self._parent[high] = above
            a, b = self.roots(low), self.roots(high)

    def labels(self) -> Ints:
        """For every item the smallest item connected with it."""
        return self.roots(np.arange(len(self._parent), dtype=np.int64))
