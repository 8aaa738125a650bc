"""The judge: an artifact of its own, so that every model is measured by the same eyes on the same prompts.

Files:

* ``extractor/``: weights, config and tokenizer of the CLIP that gives features and embeddings; ``extractors/{name}/``:
  those that the recipe names beside it
* ``prompts.json``, ``categories.json``: the prompt sets, and the category of every prompt or null
* ``pictures.json``: of which held-out picture each prompt is a caption, where pictures have several captions
* ``reference.safetensors``: float64 moments of the held-out pictures' features, ``{set}.count/mean/scatter`` for the
  judge's own CLIP, ``{set}.{extractor}.count/mean/scatter`` for the others
* ``kept.parquet``: what all of them say of held-out and training pictures, see :mod:`components.evaluation.reference`
* ``concepts.safetensors``: embeddings of what no picture should show
* ``protocol.json``: how a model is sampled and measured under this judge
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from components.contracts.errors import ArtifactError, DataError
from components.contracts.manifest import canonical_json, sha256_text
from components.contracts.recipe import Assess
from components.evaluation.concepts import Concepts
from components.evaluation.extractor import ClipExtractor, Extractor, TextImageExtractor
from components.evaluation.extractors import OWN, Located, copy_clip, locate, open_extractor
from components.evaluation.metrics import Moments
from components.evaluation.prompt_sets import PromptSet
from components.evaluation.prompts import pictures_of, primary, prompts_digest
from components.evaluation.protocol import (
    CODE_VERSION,
    DTYPE,
    FURTHER,
    RESIZE,
    Stamp,
    seed_base,
    seed_of,
    seeds_rule,
)  # fmt: skip
from components.evaluation.reference import HOLDOUT, TRAIN, Kept, look_at_real, read_kept, write_kept
from components.runtime.stage import Context, run_stage
from components.runtime.storage import Artifact, Draft, Outcome

_PICTURES, _CONCEPTS = "pictures.json", "concepts.safetensors"

_STAMPED = (
    "steps", "guidance_scale", "seeds", "batch_size", "r_precision_candidates", "resize", "dtype", "graded", "atoms",
    "diversity", "concepts", "extractors", "code_version",
)  # fmt: skip


@dataclass(frozen=True)
class Judge:
    """A judge artifact, read: prompt sets, protocol and reference moments by set.

    ``reference`` has a set's name for the judge's own CLIP, ``{set}.{extractor}`` for the recipe's.
    """

    artifact: Artifact
    prompts: dict[str, list[str]]
    protocol: dict[str, Any]
    reference: dict[str, Moments]
    pictures: dict[str, list[str | None]] = field(default_factory=dict)  # see prompts.pictures_of
    categories: dict[str, list[str | None]] = field(default_factory=dict)

    @classmethod
    def read(cls, artifact: Artifact) -> Judge:
        """Open a judge artifact; extractors and kept pictures stay on disk until they are asked for."""
        from safetensors.numpy import load_file

        if artifact.manifest.kind != "judge":
            raise ArtifactError(f"{artifact.short} is no judge", remedy="pass the artifact that make_judge returned")
        arrays = load_file(artifact.path("reference.safetensors"))
        protocol = json.loads(artifact.path("protocol.json").read_text())
        prompts = json.loads(artifact.path("prompts.json").read_text())
        return cls(
            artifact,
            {name: prompts[name] for name in protocol["sets"]},  # in the order by which seeds are counted
            protocol,
            {
                name.removesuffix(".count"): Moments(
                    int(count[0]),
                    arrays[f"{name.removesuffix('.count')}.mean"],
                    arrays[f"{name.removesuffix('.count')}.scatter"],
                )
                for name, count in arrays.items()
                if name.endswith(".count")
            },
            json.loads(artifact.path(_PICTURES).read_text()) if _PICTURES in artifact.manifest.files else {},
            json.loads(artifact.path("categories.json").read_text()),
        )

    def seeds(self, name: str, turn: int = 0) -> list[int]:
        """Seeds of the prompts of a set, in order; no two prompts, and no two turns, of the judge share one."""
        before = turn * sum(map(len, self.prompts.values()))
        for other, prompts in self.prompts.items():
            if other == name:
                break
            before += len(prompts)
        return [seed_of(self.protocol["seed_base"], before + i) for i in range(len(self.prompts[name]))]

    def further(self) -> tuple[list[str], list[int]]:
        """Prompts and seeds of the further pictures, by which diversity is seen: of each of the first prompts of the
        primary set, its number of pictures less the one that is drawn anyway."""
        asked = self.protocol["diversity"]
        prompts = [p for p in self.prompts[self.primary][: asked["prompts"]] for _ in range(asked["images"] - 1)]
        return prompts, [seed_of(self.protocol["seed_base"], FURTHER + i) for i in range(len(prompts))]

    @property
    def primary(self) -> str:
        """The set that limits are read from."""
        return primary(self.prompts)

    def extractor(self, device: str = "cpu") -> TextImageExtractor:
        """Load the judge's own CLIP."""
        return ClipExtractor.load(self.artifact.local() / "extractor", self.protocol["extractor"]["digest"], device)

    def extractors(self, device: str = "cpu") -> dict[str, Extractor]:
        """Load those of the recipe."""
        root = self.artifact.local() / "extractors"
        return {
            name: open_extractor(said["kind"], root / name, said["digest"], device)
            for name, said in self.protocol["extractors"].items()
        }

    def kept(self) -> dict[str, Kept]:
        """What is kept of real pictures, by split."""
        return read_kept(self.artifact)

    def concepts(self) -> Concepts | None:
        """What no picture should show; None where the recipe names nothing."""
        from safetensors.numpy import load_file

        said = self.protocol["concepts"]
        if not said["thresholds"]:
            return None
        names = tuple(sorted(said["thresholds"]))
        embeddings = load_file(self.artifact.path(_CONCEPTS))["embeddings"]
        return Concepts(names, embeddings, tuple(said["thresholds"][name] for name in names))

    def stamp(self, sampler: str, drawn_in: str = "fp32") -> Stamp:
        """The stamp of a number measured under this judge.

        Args:
            sampler: by which the model is sampled. drawn_in: what it computed in, "bf16" or "fp32": the same weights
                draw other pictures in either.
        """
        p = self.protocol
        return {
            "judge": self.artifact.digest,
            "extractor": p["extractor"]["digest"],
            "prompts": p["prompts"]["digest"],
            "n": p["prompts"]["n"],
            "reference": {name: self.reference[name].count for name in self.prompts},
            "sampler": sampler,
            "drawn_in": drawn_in,
            **{key: p[key] for key in _STAMPED},
        }


def make_judge(
    ctx: Context,
    judge_clip: Artifact,
    dataset: Artifact,
    prompt_sets: Mapping[str, PromptSet | Sequence[str]],
    config: Assess | None = None,
) -> Artifact:
    """The judge artifact for these eyes, real pictures, prompts and protocol.

    Args:
        judge_clip: artifact with a transformers CLIP model that the judged models never saw.
        dataset: artifact whose held-out pictures are the reference, and whose training pictures drawn ones are held
            against.
        prompt_sets: by name of the set, see :mod:`components.evaluation.prompt_sets`.
        config: the protocol, in place of the recipe's.

    Raises:
        ArtifactError: ``judge_clip`` holds no CLIP model.
        DataError: fewer than two held-out pictures for a set.
        RecipeError: an extractor or the grader that the recipe names is not there.
    """
    config = config or ctx.recipe.assess
    given = {name: PromptSet.of(prompts) for name, prompts in prompt_sets.items()}
    sets = {name: list(each.prompts) for name, each in given.items()}
    categories = {name: list(each.categories) for name, each in given.items()}
    if not sets or not all(sets.values()):
        raise DataError("The judge was given an empty prompt set", expected="at least one prompt in every set")
    others = locate(config.extractors)
    identity = _rules(ctx.recipe.seed, config, sets, categories, others)

    def build(draft: Draft) -> Outcome:
        digest = copy_clip(judge_clip, draft.dir / "extractor")
        for other in others:
            other.copy(draft.dir / "extractors" / other.name)
        own = ClipExtractor.load(draft.dir / "extractor", digest)
        opened = {OWN: ("clip", draft.dir / "extractor", digest)}
        opened |= {o.name: (o.kind, draft.dir / "extractors" / o.name, o.digest) for o in others}
        kept = look_at_real(dataset, list(sets), opened, ctx.home / "features", ctx.recipe.run)
        write_kept(draft.dir, kept)
        reference = _reference(kept[HOLDOUT], list(opened))
        _write_reference(draft.dir / "reference.safetensors", reference)
        _write_json(draft.dir / "prompts.json", sets)
        _write_json(draft.dir / "categories.json", categories)
        if pictures := pictures_of(dataset, sets):
            _write_json(draft.dir / _PICTURES, pictures)
        if config.concepts:
            _write_concepts(draft.dir, config, identity["concepts"]["extractor"], own)
        numbers = {name: reference[name].count for name in sets}
        rules = {
            **identity,
            "sets": list(sets),
            "extractor": {
                "kind": "clip", "digest": digest, "side": own.side,
                "features": "pooled output of the picture tower", "embeddings": "projections, unit length",
            },
            "prompts": {"digest": identity["prompts"], "n": {name: len(p) for name, p in sets.items()}},
            "reference": {"dataset": dataset.digest, "split": HOLDOUT, "n": numbers, "training": len(kept[TRAIN].ids)},
            "sampler": "the scheduler saved in the model; its name and settings digest are in the stamp",
            "seeds": seeds_rule(identity["seed_base"]),
            "resize": RESIZE,
            "dtype": DTYPE,
        }  # fmt: skip
        _write_json(draft.dir / "protocol.json", rules)
        counts = {f"{name}_prompts": len(p) for name, p in sets.items()}
        counts |= {f"{name}_reference_pictures": count for name, count in numbers.items()}
        return Outcome(counts=counts | {"training_pictures": len(kept[TRAIN].ids)})

    return run_stage(ctx, "judge", {"judge_clip": judge_clip, "dataset": dataset}, identity, build)


def _rules(
    seed: int,
    config: Assess,
    sets: dict[str, list[str]],
    categories: dict[str, list[str | None]],
    others: Sequence[Located],
) -> dict[str, Any]:
    """What of the protocol decides the judge's identity."""
    from components.evaluation.atoms import code_digest

    clips = [other.name for other in others if other.kind == "clip"]
    return {
        "prompts": prompts_digest(sets),
        "categories": sha256_text(canonical_json(categories)),
        "steps": config.steps,
        "guidance_scale": config.guidance_scale,
        "batch_size": config.batch_size,
        "graded": config.world_prompts,
        "atoms": config.atoms and {"path": config.atoms, "digest": code_digest(config.atoms)},
        "extractors": {other.name: {"kind": other.kind, "digest": other.digest} for other in others},
        "concepts": {"extractor": (clips or [OWN])[0], "thresholds": config.concepts},
        "diversity": {"prompts": min(config.diversity_prompts, config.prompts), "images": config.diversity_images},
        "r_precision_candidates": config.r_precision_candidates,
        "seed_base": seed_base(seed),
        "code_version": CODE_VERSION,
    }


def _reference(held_out: Kept, extractors: Sequence[str]) -> dict[str, Moments]:
    """Moments of the held-out pictures' features, by set and extractor; see :attr:`Judge.reference`."""
    return {
        name if extractor == OWN else f"{name}.{extractor}": Moments.of(held_out.rows(name, extractor))
        for name in held_out.sets
        for extractor in extractors
    }


def _write_concepts(folder: Path, config: Assess, chosen: str, own: TextImageExtractor) -> None:
    """What a CLIP of the recipe, else the judge's own, makes of the names of the concepts, in order of name."""
    from safetensors.numpy import save

    reader = own if chosen == OWN else ClipExtractor.load(folder / "extractors" / chosen)
    read = Concepts.of(reader, {name: config.concepts[name] for name in sorted(config.concepts)})
    (folder / _CONCEPTS).write_bytes(save({"embeddings": np.ascontiguousarray(read.embeddings)}))


def _write_reference(path: Path, reference: Mapping[str, Moments]) -> None:
    from safetensors.numpy import save

    arrays: dict[str, npt.NDArray[Any]] = {}
    for name, moments in reference.items():
        arrays |= {
            f"{name}.count": np.array([moments.count]),
            f"{name}.mean": moments.mean,
            f"{name}.scatter": moments.scatter,
        }
    path.write_bytes(save(arrays))


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
