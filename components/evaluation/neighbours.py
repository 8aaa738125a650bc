"""What pictures are near to: nearest others, manifolds made of neighbours, and copies; float64, exact.

Features are [N, d]. Neighbours are found by comparing all pairs, block by block, so memory stays at one block.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from components.evaluation.intervals import Estimate, wilson

Matrix = npt.NDArray[np.float64]
Hits = npt.NDArray[np.bool_]

#: Share of honest pictures that :func:`memorised` calls copies, by construction.
LEVEL = 0.01


def nearest(queries: npt.ArrayLike, among: npt.ArrayLike) -> tuple[npt.NDArray[np.int64], Matrix]:
    """Row of the nearest of ``among`` and its Euclidean distance, for each query."""
    x, y = rows(queries), rows(among)
    at = np.concatenate([block.argmin(1) for block in squared_distances(x, y)]).astype(np.int64)
    # reckoned again from the difference: a product of large numbers would leave a copy a distance of its own
    return at, np.linalg.norm(x - y[at], axis=1)


def precision_recall(real: npt.ArrayLike, drawn: npt.ArrayLike, neighbours: int = 3) -> tuple[Hits, Hits]:
    """Improved precision and recall (Kynkäänniemi et al. 2019, "Improved Precision and Recall Metric", eqs. 1-3).

    A picture lies on the other set's manifold when it is no farther from one of its members than that member's
    ``neighbours``-th nearest neighbour in its own set.

    Args:
        real, drawn: features ``[N, d]`` and ``[M, d]``, each with more than ``neighbours`` rows.

    Returns:
        For each drawn picture whether it looks like a real one (the mean is precision), ``[M]``, and for each real
        one whether it could have been drawn (the mean is recall), ``[N]``.

    Raises:
        ValueError: too few rows.
    """
    x, y = rows(real), rows(drawn)
    if min(len(x), len(y)) <= neighbours or neighbours < 1:
        raise ValueError(f"expected more than {neighbours} features of each, found {len(x)} and {len(y)}")
    return _covered(y, x, radii(x, neighbours)), _covered(x, y, radii(y, neighbours))


def density_coverage(real: npt.ArrayLike, drawn: npt.ArrayLike, neighbours: int = 5) -> tuple[Matrix, Hits]:
    """Density of each drawn and coverage of each real picture (Naeem et al. 2020, "Reliable Fidelity and Diversity").

    A real picture's ball reaches to its ``neighbours``-th nearest other real picture. Density of a drawn picture is
    the number of balls it lies in, over ``neighbours`` (it may exceed 1, and is about 1 for the same distribution);
    a real picture is covered when its ball holds a drawn picture. The metrics are their means.

    Raises:
        ValueError: there are not more than ``neighbours`` real pictures.
    """
    x, y = rows(real), rows(drawn)
    if len(x) <= neighbours:
        raise ValueError(f"expected more than {neighbours} real pictures, found {len(x)}")
    reach = radii(x, neighbours)
    density = np.concatenate([(block <= reach).sum(1) / neighbours for block in squared_distances(y, x)])
    covered = np.concatenate([block.min(1) for block in squared_distances(x, y)]) <= reach
    return density.astype(np.float64), covered


def memorised(drawn: npt.ArrayLike, held_out: npt.ArrayLike, level: float = LEVEL) -> tuple[Hits, Estimate]:
    """Which drawn pictures lie nearer to a training picture than held-out pictures do, and their share.

    After the data-copying test of Meehan, Chaudhuri and Dasgupta 2020: distances to the nearest training picture are
    compared with those of real pictures that were not trained on. A picture counts as memorised below the ``level``
    quantile of the latter, so a model that learnt the distribution and copies nothing has a share of about ``level``.

    Args:
        drawn, held_out: distances to the nearest training picture, [N] and [M].
    """
    mine, theirs = np.asarray(drawn, np.float64), np.asarray(held_out, np.float64)
    hits = mine < np.quantile(theirs, level)
    return hits, wilson(int(hits.sum()), len(hits))


def radii(members: Matrix, neighbours: int) -> Matrix:
    """Squared distance of each member to its ``neighbours``-th nearest other member, ``[N]``."""
    blocks = squared_distances(members, members)
    return np.concatenate([np.partition(block, neighbours, axis=1)[:, neighbours] for block in blocks])


def squared_distances(one: Matrix, other: Matrix, size: int = 1024) -> Iterator[Matrix]:
    """Squared distances of rows of ``one`` to all of ``other``, ``size`` rows at a time."""
    lengths = (other * other).sum(1)
    for start in range(0, len(one), size):
        part = one[start : start + size]
        yield np.maximum((part * part).sum(1)[:, None] + lengths - 2 * (part @ other.T), 0.0)


def rows(features: npt.ArrayLike) -> Matrix:
    """Features as float64 ``[N, d]``.

    Raises:
        ValueError: they are none, or there is no row.
    """
    x = np.asarray(features, dtype=np.float64)
    if x.ndim != 2 or not len(x):
        raise ValueError(f"expected features [N, d] with N >= 1, found shape {x.shape}")
    return x


def _covered(points: Matrix, members: Matrix, reach: Matrix) -> Hits:
    """Which points lie within the radius of some member."""
    return np.concatenate([(block <= reach).any(axis=1) for block in squared_distances(points, members)])
