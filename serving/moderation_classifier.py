"""A text classifier of the Hugging Face kind as the last layer of prompt moderation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from components.contracts.errors import RecipeError
from components.contracts.recipe_moderation import Category

_CATEGORIES = frozenset(get_args(Category))
# labels of classifiers in wide use that are not categories by name; serve.moderation.classifier_labels comes first
_KNOWN = {
    "toxic": "harassment", "toxicity": "harassment", "severe_toxic": "harassment", "severe_toxicity": "harassment",
    "insult": "harassment", "threat": "harassment/threatening", "obscene": "sexual", "sexual_explicit": "sexual",
    "nsfw": "sexual", "identity_hate": "hate", "identity_attack": "hate",
}  # fmt: skip
_NOTHING = frozenset(("ok", "safe", "sfw", "neutral", "non-toxic", "non_toxic", "nontoxic", "benign", "clean"))


@dataclass(frozen=True)
class TextClassifier:
    """An ``AutoModelForSequenceClassification`` with its tokenizer, frozen.

    Scores are the softmax of one-label models and the sigmoid of each label of multi-label ones; where several labels
    belong to one category the highest counts.
    """

    model: Any
    tokenizer: Any
    categories: tuple[str | None, ...]  # by label id
    multi_label: bool
    longest: int  # tokens read at a time

    @classmethod
    def load(cls, folder: str, labels: Mapping[str, str | None]) -> TextClassifier:
        """From a folder as ``save_pretrained`` writes it; nothing is fetched, only safetensors are read.

        Args:
            labels: categories of the model's labels; needed for labels that do not speak for themselves.

        Raises:
            RecipeError: the folder holds no such model, or the category of a label is not known.
        """
        import torch
        from safetensors import SafetensorError
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        where = Path(folder).expanduser()
        if not (where / "config.json").is_file():
            raise _unusable(where, "it has no config.json")
        try:
            model = AutoModelForSequenceClassification.from_pretrained(
                where, local_files_only=True, use_safetensors=True, trust_remote_code=False, dtype=torch.float32
            )
            tokenizer = AutoTokenizer.from_pretrained(where, local_files_only=True, trust_remote_code=False)
        except (OSError, ValueError, KeyError, RuntimeError, TypeError, SafetensorError) as error:
            raise _unusable(where, (str(error).splitlines() or ["it is damaged"])[0]) from error
        names = [str(model.config.id2label[i]) for i in range(model.config.num_labels)]
        categories = tuple(_category(name, labels) for name in names)
        limit = int(getattr(model.config, "max_position_embeddings", 512))
        longest = max(8, min(limit - 2, int(tokenizer.model_max_length), 512))
        multi = model.config.problem_type == "multi_label_classification"
        return cls(model.eval().requires_grad_(False), tokenizer, categories, multi, longest)

    def scores(self, text: str) -> dict[str, float]:
        """Score 0..1 by category; of a text longer than the model reads, the highest of its parts."""
        import torch

        parts = self.tokenizer(
            text, truncation=True, max_length=self.longest, stride=self.longest // 4, padding=True,
            return_overflowing_tokens=True, return_tensors="pt",
        )  # fmt: skip
        known = {name: parts[name] for name in ("input_ids", "attention_mask")}
        with torch.inference_mode():
            logits = self.model(**known).logits.float()
        each = (logits.sigmoid() if self.multi_label else logits.softmax(dim=-1)).amax(dim=0)
        found: dict[str, float] = {}
        for category, score in zip(self.categories, each.tolist(), strict=True):
            if category is not None:
                found[category] = max(found.get(category, 0.0), float(score))
        return found


def _category(label: str, labels: Mapping[str, str | None]) -> str | None:
    if label in labels:
        return labels[label]
    plain = label.strip().lower()
    if plain in _CATEGORIES:
        return plain
    if plain in _KNOWN:
        return _KNOWN[plain]
    if plain in _NOTHING:
        return None
    raise RecipeError(
        f"serve.moderation.classifier has the label {label!r}, and it is not known which category that is",
        expected=f"one of {', '.join(sorted(_CATEGORIES))}, or null",
        remedy=f"say so: serve.moderation.classifier_labels: {{{label}: sexual}}",
    )


def _unusable(folder: Path, why: str) -> RecipeError:
    return RecipeError(
        f"serve.moderation.classifier: {folder} cannot be used: {why}",
        expected="a folder with config.json, model.safetensors and the tokenizer of a transformers text classifier",
        remedy="name such a folder, or leave serve.moderation.classifier out",
    )
