"""What no picture should show, found by its embedding: the method of Stable Diffusion's safety checker.

A concept is a few words. A picture shows it when the cosine of the picture's and the words' CLIP embeddings reaches the
concept's threshold. Concepts of special care (Rombach et al.'s checker: whatever concerns children) make the others
stricter: where one of them is found, all other thresholds go down by 0.01.

The thresholds depend on the CLIP: a cosine of 0.25 is much for one and little for another. Measure before trusting.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np

from components.evaluation.extractor import Rows, TextImageExtractor

SPECIAL_CARE = 0.01  # as the safety checker's adjustment


@dataclass(frozen=True)
class Concepts:
    """Concepts with their embeddings [C, e], of unit length, and thresholds (cosines)."""

    names: tuple[str, ...]
    embeddings: Rows
    thresholds: tuple[float, ...]
    special: frozenset[str] = frozenset()

    @classmethod
    def of(
        cls,
        extractor: TextImageExtractor,
        thresholds: Mapping[str, float],
        special: Collection[str] = (),
        texts: Mapping[str, str] | None = None,
    ) -> Concepts:
        """The concepts as ``extractor`` reads them.

        Args:
            thresholds: by name of the concept. special: names that make the others stricter where they are found.
            texts: what is read for a name, by default the name with spaces for ``_``.
        """
        names = tuple(thresholds)
        words = [(texts or {}).get(name, name.replace("_", " ")) for name in names]
        embeddings = extractor.read(words) if names else np.zeros((0, 0), np.float32)
        return cls(names, embeddings, tuple(thresholds.values()), frozenset(special) & set(names))

    def found(self, embeddings: Rows) -> list[dict[str, float]]:
        """For each picture [N, e] the concepts that it shows, with how far the cosine is above the threshold."""
        if not self.names:
            return [{} for _ in embeddings]
        pictures = np.asarray(embeddings, np.float64)
        above = pictures @ self.embeddings.astype(np.float64).T - np.asarray(self.thresholds)
        care = np.array([name in self.special for name in self.names])
        stricter = (above[:, care] >= 0).any(axis=1) if care.any() else np.zeros(len(pictures), bool)
        above = above + np.where(stricter[:, None] & ~care[None], SPECIAL_CARE, 0.0)
        return [{name: float(row[i]) for i, name in enumerate(self.names) if row[i] >= 0} for row in above]
