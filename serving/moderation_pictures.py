"""Pictures held against concepts by CLIP similarity, the method of Stable Diffusion's safety checker.

See :mod:`components.evaluation.concepts` for the method. Thresholds belong to one CLIP: a CLIP trained here on a small
world knows nothing of nudity, whatever its thresholds, so a server for the public names one that does.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from components.contracts.errors import ArtifactError, RecipeError
from components.contracts.recipe_moderation import JUDGE, PictureModeration
from components.evaluation.concepts import Concepts
from components.evaluation.extractor import ClipExtractor, TextImageExtractor
from components.runtime.storage import Store


@dataclass(frozen=True)
class PictureCheck:
    """A CLIP, the concepts that it looks for, and what follows from each: "block", "flag" or "log"."""

    extractor: TextImageExtractor
    concepts: Concepts
    actions: dict[str, str]

    @classmethod
    def of(cls, policy: PictureModeration, store: Store | None) -> PictureCheck:
        """Load the CLIP of the recipe and read its concepts.

        Raises:
            RecipeError: the folder holds no CLIP, or no judge is in the store.
        """
        folder = _folder(str(policy.clip), store)
        try:
            extractor = ClipExtractor.load(folder)
        except ArtifactError as error:
            raise RecipeError(
                f"serve.moderation.pictures.clip: {error.problem}",
                expected="a folder with config.json, model.safetensors and a tokenizer of a transformers CLIP",
                remedy="name such a folder, or leave serve.moderation.pictures out",
            ) from error
        return cls.over(extractor, policy)

    @classmethod
    def over(cls, extractor: TextImageExtractor, policy: PictureModeration) -> PictureCheck:
        """The check with a CLIP that is loaded already."""
        concepts = Concepts.of(
            extractor,
            {name: concept.threshold for name, concept in policy.concepts.items()},
            [name for name, concept in policy.concepts.items() if concept.special_care],
            {name: concept.text for name, concept in policy.concepts.items()},
        )
        return cls(extractor, concepts, {name: concept.action for name, concept in policy.concepts.items()})

    def found(self, pixels: NDArray[np.uint8]) -> list[dict[str, tuple[float, str]]]:
        """For each picture, RGB ``[N, H, W, 3]``, by concept: how far above its threshold, and the action."""
        if not len(pixels):
            return []
        _, embeddings = self.extractor.look(pixels)
        return [
            {name: (above, self.actions[name]) for name, above in row.items()}
            for row in self.concepts.found(embeddings)
        ]


def _folder(clip: str, store: Store | None) -> Path:
    if clip != JUDGE:
        return Path(clip).expanduser()
    judges = store.list("judge") if store else []
    if not judges:
        raise RecipeError(
            "serve.moderation.pictures.clip is 'judge', and no judge is in the store",
            expected="a judge, which `atelier assess` makes",
            remedy="assess a model first, or name the folder of a CLIP",
        )
    return max(judges, key=lambda judge: judge.manifest.created_at).local() / "extractor"
