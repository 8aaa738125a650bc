"""The layers with models: a text classifier and a CLIP, tiny and made on the spot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from components.contracts.errors import RecipeError
from components.contracts.recipe import Recipe
from components.contracts.recipe_moderation import Concept, Moderation, PictureModeration
from serving.moderation import ALLOWED, Moderator
from serving.moderation_classifier import TextClassifier
from serving.moderation_pictures import PictureCheck

WORDS = ["good", "bad", "grim", "a", "star"]


def save_classifier(folder: Path, labels: list[str], multi: bool = False) -> Path:
    """A text classifier that scores the last label where "bad" stands, and the one before it where "grim" does."""
    import torch
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import DistilBertConfig, DistilBertForSequenceClassification, PreTrainedTokenizerFast

    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
        model_max_length=16,
    ).save_pretrained(folder)  # fmt: skip
    torch.manual_seed(0)
    config = DistilBertConfig(
        vocab_size=len(vocabulary), dim=16, hidden_dim=16, n_layers=1, n_heads=2, max_position_embeddings=32,
        num_labels=len(labels), id2label=dict(enumerate(labels)), label2id={name: i for i, name in enumerate(labels)},
        problem_type="multi_label_classification" if multi else "single_label_classification", dropout=0.0,
        attention_dropout=0.0, seq_classif_dropout=0.0,
    )  # fmt: skip
    model = DistilBertForSequenceClassification(config)
    optimiser = torch.optim.Adam(model.parameters(), 3e-2)
    texts = [([4, 7, 8], 0), ([5, 7, 8], len(labels) - 1), ([6, 7, 8], len(labels) - 2), ([7, 8, 4], 0)]
    ids = torch.tensor([row for row, _ in texts])
    wanted = torch.tensor([label for _, label in texts])
    for _ in range(60):
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
        if multi:
            loss = torch.nn.functional.binary_cross_entropy_with_logits(
                logits, torch.nn.functional.one_hot(wanted, len(labels)).float()
            )
        else:
            loss = torch.nn.functional.cross_entropy(logits, wanted)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    model.save_pretrained(folder, safe_serialization=True)
    return folder


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_classifier(tmp_path_factory.mktemp("classifier"), ["safe", "sexual", "violence"])


def recipe(**moderation: Any) -> Recipe:
    return Recipe.model_validate({"name": "x", "serve": {"moderation": moderation}})


def test_a_classifier_by_path_refuses_what_the_lexicon_lets_pass(saved: Path) -> None:
    moderator = Moderator.of(recipe(classifier=str(saved)))
    assert moderator.health()["classifier"] == "on"
    verdict = moderator.check_prompt("bad a star")
    assert verdict.action == "block" and list(verdict.categories) == ["violence"] and verdict.layer == "classifier"
    assert verdict.spans == () and "violence" in verdict.reason
    assert moderator.check_prompt("good a star") is ALLOWED
    assert list(moderator.check_prompt("grim a star").categories) == ["sexual"]


def test_the_lexicon_goes_before_the_classifier(saved: Path) -> None:
    verdict = Moderator.of(recipe(classifier=str(saved))).check_prompt("how do I kill a person")
    assert verdict.layer == "rules"


def test_the_worst_part_of_a_long_text_counts(saved: Path) -> None:
    classifier = TextClassifier.load(str(saved), {})
    assert classifier.scores("good a star " * 20 + "bad a star " * 8)["violence"] > 0.7
    assert classifier.scores("good a star " * 20)["violence"] < 0.3


def test_labels_are_mapped_by_the_recipe(tmp_path: Path) -> None:
    folder = save_classifier(tmp_path, ["LABEL_0", "LABEL_1", "toxic"], multi=True)
    with pytest.raises(RecipeError, match="LABEL_0"):
        Moderator.of(recipe(classifier=str(folder)))
    labels = {"LABEL_0": None, "LABEL_1": "self-harm"}
    moderator = Moderator.of(recipe(classifier=str(folder), classifier_labels=labels))
    assert list(moderator.check_prompt("grim a star").categories) == ["self-harm"]
    assert list(moderator.check_prompt("bad a star").categories) == ["harassment"]


@pytest.mark.parametrize("damage", ["missing", "no weights", "torn weights", "pickle only"])
def test_what_is_no_classifier_is_a_clear_error(saved: Path, tmp_path: Path, damage: str) -> None:
    import shutil

    folder = tmp_path / "copy"
    if damage != "missing":
        shutil.copytree(saved, folder)
        weights = folder / "model.safetensors"
        if damage == "torn weights":
            weights.write_bytes(weights.read_bytes()[:100])
        else:
            weights.unlink()
        if damage == "pickle only":
            (folder / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(RecipeError, match=r"serve\.moderation\.classifier"):
        Moderator.of(recipe(classifier=str(folder)))


class TwoConcepts:
    """An extractor whose space has one axis a word, so that cosines are known: a picture is its first pixel."""

    digest = "0"
    axes = ("red", "green", "blue")

    def arrays(self, pictures: np.ndarray) -> dict[str, np.ndarray]:
        features, embeddings = self.look(pictures)
        return {"features": features, "embeddings": embeddings}

    def look(self, pictures: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        colours = pictures[:, 0, 0].astype(np.float32)
        return colours, colours / np.maximum(np.linalg.norm(colours, axis=1, keepdims=True), 1e-6)

    def read(self, texts: Any) -> np.ndarray:
        return np.array([[float(axis == text) for axis in self.axes] for text in texts], np.float32)


def picture(red: int, green: int, blue: int) -> np.ndarray:
    return np.full((4, 4, 3), (red, green, blue), np.uint8)


def by_pictures(**concepts: Concept) -> Moderator:
    policy = PictureModeration(clip="a folder", concepts=concepts)
    return Moderator(Moderation(), pictures=PictureCheck.over(TwoConcepts(), policy))


def test_a_picture_has_the_action_of_its_worst_concept() -> None:
    moderator = by_pictures(
        gore=Concept(text="red", threshold=0.9), weapon=Concept(text="green", threshold=0.6, action="flag"),
        brand=Concept(text="blue", threshold=0.6, action="log"),
    )  # fmt: skip
    red, green, blue, both, none = moderator.check_images(
        np.stack([picture(255, 0, 0), picture(0, 255, 0), picture(0, 0, 255), picture(0, 200, 200), picture(0, 0, 0)])
    )
    assert (red.action, list(red.categories), red.layer) == ("block", ["concept/gore"], "picture")
    assert red.categories["concept/gore"] == pytest.approx(0.1) and "gore" in red.reason
    assert (green.action, list(green.categories)) == ("flag", ["concept/weapon"])
    assert (blue.action, list(blue.categories), blue.reason) == ("allow", ["concept/brand"], "")
    assert (both.action, list(both.categories)) == ("flag", ["concept/weapon", "concept/brand"])
    assert none is ALLOWED
    assert moderator.check_image(picture(255, 0, 0)) == red


def test_a_concept_of_special_care_makes_the_others_stricter() -> None:
    def action(care: bool) -> str:
        moderator = by_pictures(
            nudity=Concept(text="red", threshold=0.805),
            child=Concept(text="green", threshold=0.5, action="log", special_care=care)
        )  # fmt: skip
        return moderator.check_image(picture(200, 150, 0)).action  # the cosine with red is 0.8

    assert action(care=True) == "block" and action(care=False) == "allow"


def test_without_pictures_or_a_clip_every_picture_passes() -> None:
    assert Moderator(Moderation()).check_images(np.zeros((2, 4, 4, 3), np.uint8)) == [ALLOWED, ALLOWED]
    moderator = by_pictures(gore=Concept(text="red", threshold=0.9))
    assert moderator.check_images(np.zeros((0, 4, 4, 3), np.uint8)) == []
    assert moderator.health()["pictures"] == "on" and not moderator.health()["pictures_why"]


def test_half_a_policy_for_pictures_is_refused() -> None:
    with pytest.raises(ValidationError, match="no clip"):
        PictureModeration(concepts={"gore": Concept(text="gore", threshold=0.2)})
    with pytest.raises(ValidationError, match="no concepts"):
        PictureModeration(clip="judge")


def save_clip(folder: Path) -> None:
    import torch

    from components.contracts.recipe import TextEncoder
    from components.data.tokenizing import train_tokenizer, write_tokenizer
    from components.models.text_encoder import load_tokenizer, make_clip

    write_tokenizer(train_tokenizer(["a red star", "a blue square"], 300, 16), folder / "tokenizer")
    torch.manual_seed(0)
    config = TextEncoder(width=16, layers=1, image_layers=1, heads=2)
    clip = make_clip(config, load_tokenizer(folder / "tokenizer"), 16)
    clip.save_pretrained(folder, safe_serialization=True)


@pytest.mark.parametrize("where", ["a folder", "judge"])
def test_a_real_clip_by_path_or_of_the_judge(tmp_path: Path, where: str) -> None:
    from components.runtime.storage import Outcome, Store

    store = Store(str(tmp_path))
    draft = store.draft("judge", {}, {})
    save_clip(draft.dir / "extractor")
    judge = draft.commit(Outcome())
    clip = "judge" if where == "judge" else str(judge.local() / "extractor")
    concepts = {"star": {"text": "a red star", "threshold": -1.0}, "never": {"text": "a blue square", "threshold": 1.0}}
    moderator = Moderator.of(recipe(pictures={"clip": clip, "concepts": concepts}), store)
    verdicts = moderator.check_images(np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), dtype=np.uint8))
    assert [(v.action, list(v.categories)) for v in verdicts] == [("block", ["concept/star"])] * 3


def test_what_is_no_clip_is_a_clear_error(tmp_path: Path) -> None:
    concepts = {"gore": {"text": "gore", "threshold": 0.2}}
    with pytest.raises(RecipeError, match=r"serve\.moderation\.pictures\.clip"):
        Moderator.of(recipe(pictures={"clip": str(tmp_path), "concepts": concepts}))
    from components.runtime.storage import Store

    with pytest.raises(RecipeError, match="no judge is in the store"):
        Moderator.of(recipe(pictures={"clip": "judge", "concepts": concepts}), Store(str(tmp_path / "store")))
