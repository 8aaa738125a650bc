"""Live quality: pictures that were served, held against their prompts by the CLIP of the judge that released them."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from components.runtime.storage import Store
from serving.engine import Served

if TYPE_CHECKING:
    from components.evaluation.extractor import TextImageExtractor

_log = logging.getLogger("ray.serve")


@dataclass(frozen=True)
class JudgesEye:
    """The extractor of the judge artifact with the digest ``judge``."""

    judge: str
    extractor: TextImageExtractor

    def score(self, prompt: str, pixels: NDArray[np.uint8]) -> float:
        """Mean cosine of the prompt's and the pictures' embeddings; pixels uint8 [N, H, W, 3]."""
        _, pictures = self.extractor.look(pixels)
        return float((pictures @ self.extractor.read([prompt])[0]).mean())


def judge_of(store: Store, judge: Callable[[str], str]) -> Callable[[Served], JudgesEye | None]:
    """Gives the eye of the judge that measured a version.

    Args:
        judge: the digest of the judge of a version, empty where it is not known.
    """

    def find(served: Served) -> JudgesEye | None:
        from components.evaluation.judge import Judge

        digest = judge(served.version)
        if not digest:
            _log.warning("The registry names no judge of version %s: its pictures are not scored", served.version)
            return None
        try:
            return JudgesEye(digest, Judge.read(store.by_digest("judge", digest)).extractor())
        except Exception as error:  # of whatever kind: serving goes on without the scores
            _log.error(
                "The judge of version %s cannot be opened, so its pictures are not scored. %s", served.version, error
            )
            return None

    return find
