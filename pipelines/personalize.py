"""personalize: a LoRA for a subject or a style, from a folder of pictures; then served by its name."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from components.contracts.errors import InputError
from components.contracts.manifest import MANIFEST_NAME
from components.contracts.recipe import Recipe
from components.data import collecting, preparing, sources
from components.evaluation import release as releasing
from components.evaluation import styles as styling
from components.evaluation.registry import CHAMPION, Registry
from components.runtime.opening import open_artifact
from components.runtime.progress import say
from components.runtime.stage import Context
from components.runtime.storage import Artifact
from components.training.personalize import adopt, denoising_folder, draw_prior, side_of_model, train_adapter

SUBJECT = "subject"  # kind of the dataset of the pictures: nobody's training set but its adapter's
_AS_GIVEN: dict[str, Any] = {  # of the prepare section: the pictures were chosen by hand
    "buckets": (1.0,), "clip": None, "aesthetic": None, "embedding": None, "min_sharpness": 0.0, "min_entropy": 0.0,
    "min_caption_words": 0, "max_repetition": 1.0, "languages": (), "min_clip_similarity": -1.0, "min_aesthetic": None,
    "near_duplicates": False, "alternatives": False, "holdout": 0.0, "min_rows": 1, "max_dropped": 1.0,
    "max_score_drift": 0.0,
}  # fmt: skip


def personalize(
    ctx: Context, images: str, caption: str | None = None, name: str | None = None, model: str = CHAMPION
) -> styling.Style:
    """Train an adapter on the pictures in a folder, and register it under a name.

    Args:
        images: folder or fsspec URL of pictures, with captions beside them or without.
        caption: of those without.
        name: that requests ask for it by; by default the caption's last word.
        model: "champion", the number of a registered version, or a folder: a model artifact or a diffusers model.

    Raises:
        InputError: no pictures, no captions, no such model, or a name that cannot be.
    """
    name = styling.checked_name(name or _name_of(caption or Path(images).name))
    base, version = base_model(ctx, model)
    folder = denoising_folder(base)
    subject = subject_of(ctx, images, caption, side_of_model(folder))
    prior = draw_prior(ctx, base, folder) if ctx.recipe.adapter.prior else None
    adapter = train_adapter(ctx, base, folder, subject, prior)
    return styling.register(ctx, adapter, name, caption or "", version)


def base_model(ctx: Context, model: str) -> tuple[Artifact, str]:
    """The model that ``model`` names, and its version in the registry, "" where it is not registered.

    Raises:
        InputError: there is none.
    """
    if model == CHAMPION:
        version, artifact = releasing.require_champion(ctx)
        return artifact, str(version.version)
    if model.isdigit():
        registry = Registry(ctx)
        versions = {str(v.version): v for v in registry.versions()}
        if model not in versions:
            raise InputError(
                f"{ctx.recipe.release.model_name} has no version {model}",
                expected=f"one of {', '.join(versions)}" if versions else "a released version",
                remedy="see `atelier status`",
            )
        return registry.model_of(versions[model]), model
    folder = Path(model)
    if (folder / MANIFEST_NAME).is_file():
        return open_artifact(str(folder.absolute())), ""
    return adopt(ctx, folder), ""


def subject_of(ctx: Context, images: str, caption: str | None, side: int) -> Artifact:
    """The pictures in a folder, collected and prepared for a model that draws ``side`` x ``side`` pixels.

    Raises:
        InputError: a picture has no caption, and ``caption`` is None.
    """
    own = replace(ctx, recipe=_recipe(ctx.recipe, images, side))
    with sources.opened(own.recipe) as source:
        said = source.urls["caption"]
        bare = pc.equal(pc.utf8_trim_whitespace(pc.fill_null(said, "")), "")
        if (number := int(pc.sum(bare).as_py() or 0)) and not (caption or "").strip():
            raise InputError(
                f"{number} of {source.urls.num_rows} pictures in {images} have no caption",
                expected="text in NAME.txt beside each picture, or --caption for all of them",
                remedy='name the subject, e.g. --caption "a picture of sks"',
            )
        captions = pc.if_else(bare, pa.scalar(caption or "", said.type), said)
        urls = source.urls.set_column(source.urls.schema.get_field_index("caption"), "caption", captions)
        collection = collecting.collect(own, urls, source.allow_hosts, source.files)
    subject = preparing.prepare(own, [collection], kind=SUBJECT)
    failed = collection.manifest.counts.get("failed", 0)
    if left_out := {**subject.manifest.dropped, **({"unreadable": failed} if failed else {})}:
        why = ", ".join(f"{number} {reason}" for reason, number in sorted(left_out.items()))
        say(f"subject: {subject.manifest.counts['train']} of {source.urls.num_rows} pictures; left out: {why}")
    return subject


def _recipe(recipe: Recipe, images: str, side: int) -> Recipe:
    """The recipe with a folder as its source, pictures of the model's size, and no filter of quality."""
    source = {"files": images, "urls": None, "world": None, "parquet": None, "min_collected": 0.0}
    collect = recipe.collect.model_copy(update={**source, "image_size": max(recipe.collect.image_size, side)})
    prepare = recipe.prepare.model_copy(update={**_AS_GIVEN, "image_size": side})
    return recipe.model_copy(update={"collect": collect, "prepare": prepare})


def _name_of(text: str) -> str:
    """A name from the last word of a caption: "sks" of "a picture of sks"."""
    words = re.findall(r"[a-z0-9_-]+", text.lower())
    return words[-1] if words else ""
