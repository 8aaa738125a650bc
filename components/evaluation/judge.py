"""The judge: an artifact of its own, so that every model is measured by the same eyes on the same prompts.

Files:

* ``extractor/``: weights, config and tokenizer of the CLIP that gives features and embeddings
* ``prompts.json``: the prompt sets
* ``pictures.json``: of which held-out picture each prompt is a caption, where pictures have several captions
* ``reference.safetensors``: float64 moments of the held-out pictures' features, ``{set}.count/mean/scatter``
* ``protocol.json``: how a model is sampled and measured under this judge
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from components.contracts.errors import ArtifactError, DataError
from components.contracts.manifest import canonical_json, sha256_text
from components.contracts.recipe import Assess
from components.evaluation.extractor import ClipExtractor, Pictures, TextImageExtractor
from components.evaluation.metrics import Moments
from components.evaluation.prompts import heldout_rows, pictures_of, prompts_digest, split_sources
from components.evaluation.protocol import CODE_VERSION, DTYPE, RESIZE, Stamp, seed_base, seed_of, seeds_rule
from components.runtime.stage import Context, run_stage
from components.runtime.storage import Artifact, Draft, Outcome

#: Held-out pictures that the reference is made of, at most; the first by id, which is a hash.
REFERENCE_LIMIT = 10_000
_PICTURES = "pictures.json"

_STAMPED = (
    "steps", "guidance_scale", "seeds", "batch_size", "r_precision_candidates", "resize", "dtype", "graded",
    "code_version",
)  # fmt: skip


@dataclass(frozen=True)
class Judge:
    """A judge artifact, read: prompt sets, protocol and reference moments by set."""

    artifact: Artifact
    prompts: dict[str, list[str]]
    protocol: dict[str, Any]
    reference: dict[str, Moments]
    pictures: dict[str, list[str | None]] = field(default_factory=dict)  # see prompts.pictures_of

    @classmethod
    def read(cls, artifact: Artifact) -> Judge:
        """Open a judge artifact; the extractor stays on disk until :meth:`extractor` is called."""
        from safetensors.numpy import load_file

        if artifact.manifest.kind != "judge":
            raise ArtifactError(f"{artifact.short} is no judge", remedy="pass the artifact that make_judge returned")
        arrays = load_file(artifact.path("reference.safetensors"))
        return cls(
            artifact,
            json.loads(artifact.path("prompts.json").read_text()),
            json.loads(artifact.path("protocol.json").read_text()),
            {
                name.removesuffix(".count"): Moments(
                    int(count[0]),
                    arrays[name.replace(".count", ".mean")],
                    arrays[name.replace(".count", ".scatter")],
                )
                for name, count in arrays.items()
                if name.endswith(".count")
            },
            json.loads(artifact.path(_PICTURES).read_text()) if _PICTURES in artifact.manifest.files else {},
        )

    def seeds(self, name: str, turn: int = 0) -> list[int]:
        """Seeds of the prompts of a set, in order; no two prompts, and no two turns, of the judge share one."""
        before = turn * sum(map(len, self.prompts.values()))
        for other, prompts in self.prompts.items():
            if other == name:
                break
            before += len(prompts)
        return [seed_of(self.protocol["seed_base"], before + i) for i in range(len(self.prompts[name]))]

    def extractor(self) -> TextImageExtractor:
        """Load the extractor."""
        return ClipExtractor.load(self.artifact.local() / "extractor", self.protocol["extractor"]["digest"])

    def stamp(self, sampler: str) -> Stamp:
        """The stamp of a number measured under this judge on a model that is sampled by ``sampler``."""
        p = self.protocol
        return {
            "judge": self.artifact.digest,
            "extractor": p["extractor"]["digest"],
            "prompts": p["prompts"]["digest"],
            "n": p["prompts"]["n"],
            "reference": {name: moments.count for name, moments in self.reference.items()},
            "sampler": sampler,
            **{key: p[key] for key in _STAMPED},
        }


def make_judge(
    ctx: Context,
    judge_clip: Artifact,
    dataset: Artifact,
    prompt_sets: Mapping[str, list[str]],
    config: Assess | None = None,
) -> Artifact:
    """The judge artifact for these eyes, held-out pictures, prompts and protocol.

    Args:
        judge_clip: artifact with a transformers CLIP model that the judged models never saw.
        dataset: artifact whose held-out pictures are the reference.
        prompt_sets: prompts by name of the set, see :mod:`components.evaluation.prompts`.
        config: the protocol, in place of the recipe's.

    Raises:
        ArtifactError: ``judge_clip`` holds no CLIP model.
        DataError: fewer than two held-out pictures for a set.
    """
    config = config or ctx.recipe.assess
    sets = {name: list(prompts) for name, prompts in prompt_sets.items()}
    if not sets or not all(sets.values()):
        raise DataError("The judge was given an empty prompt set", expected="at least one prompt in every set")
    base = seed_base(ctx.recipe.seed)
    identity = {
        "prompts": prompts_digest(sets),
        "steps": config.steps,
        "guidance_scale": config.guidance_scale,
        "batch_size": config.batch_size,
        "graded": config.world_prompts,
        "r_precision_candidates": config.r_precision_candidates,
        "seed_base": base,
        "code_version": CODE_VERSION,
    }

    def build(draft: Draft) -> Outcome:
        digest = _copy_extractor(judge_clip, draft.dir / "extractor")
        extractor = ClipExtractor.load(draft.dir / "extractor", digest)
        reference = _reference(extractor, dataset, sets)
        _write_reference(draft.dir / "reference.safetensors", reference)
        _write_json(draft.dir / "prompts.json", sets)
        if pictures := pictures_of(dataset, sets):
            _write_json(draft.dir / _PICTURES, pictures)
        rules = {
            **identity,
            "extractor": {
                "kind": "clip", "digest": digest, "side": extractor.side,
                "features": "pooled output of the picture tower", "embeddings": "projections, unit length",
            },
            "prompts": {"digest": identity["prompts"], "n": {name: len(p) for name, p in sets.items()}},
            "reference": {
                "dataset": dataset.digest,
                "split": "holdout",
                "n": {name: moments.count for name, moments in reference.items()},
            },
            "sampler": "the scheduler saved in the model; its name and settings digest are in the stamp",
            "seeds": seeds_rule(base),
            "resize": RESIZE,
            "dtype": DTYPE,
        }  # fmt: skip
        _write_json(draft.dir / "protocol.json", rules)
        counts = {f"{name}_prompts": len(p) for name, p in sets.items()}
        return Outcome(counts=counts | {f"{name}_reference_pictures": m.count for name, m in reference.items()})

    return run_stage(ctx, "judge", {"judge_clip": judge_clip, "dataset": dataset}, identity, build)


def clip_folder(artifact: Artifact) -> str:
    """Folder inside ``artifact`` (``""`` for its root) that holds a CLIP model.

    Raises:
        ArtifactError: no ``config.json`` there is of a CLIP model.
    """
    for name in sorted(n for n in artifact.manifest.files if n.rpartition("/")[2] == "config.json"):
        if json.loads(artifact.path(name).read_text()).get("model_type") == "clip":
            return name.rpartition("/")[0]
    raise ArtifactError(
        f"{artifact.short} holds no CLIP model",
        expected="a config.json with model_type clip beside model.safetensors",
        remedy="pass the artifact of the judge's own CLIP training",
    )


def _copy_extractor(source: Artifact, target: Path) -> str:
    """Copy weights, config, preprocessing and tokenizer; return the digest of what was copied."""
    folder = clip_folder(source)
    prefix = f"{folder}/" if folder else ""
    wanted = {}
    for name in source.manifest.files:
        base = name.rpartition("/")[2]
        if name == prefix + base and (
            base.endswith(".safetensors") or base in ("config.json", "preprocessor_config.json")
        ):
            wanted[base] = name
        elif "tokenizer" in name.split("/")[:-1]:
            wanted[f"tokenizer/{base}"] = name
    for base, name in wanted.items():
        (target / base).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source.path(name), target / base)
    return sha256_text(canonical_json({base: source.manifest.files[name].sha256 for base, name in wanted.items()}))


def _reference(extractor: TextImageExtractor, dataset: Artifact, sets: Mapping[str, Any]) -> dict[str, Moments]:
    """Moments of the held-out pictures' features, for each prompt set whose collections the dataset names."""
    import torch

    rows = sorted(heldout_rows(dataset, ["id", "pixels", "height", "width", "source"]), key=lambda r: str(r["id"]))
    groups = split_sources(r["source"] for r in rows)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the same bytes on machines with another number of cores
    try:
        found = {}
        for name in sets:
            # a set of the user's own, beside known and new, is held against all collections
            sources = groups.get(name, [s for group in groups.values() for s in group])
            pictures = [_picture(r) for r in rows if r["source"] in sources][:REFERENCE_LIMIT]
            if len(pictures) < 2:
                raise DataError(
                    f"{dataset.short} has {len(pictures)} held-out pictures for the prompt set {name!r}",
                    expected="at least two",
                    remedy="raise prepare.holdout or collect more pictures",
                )
            shapes = sorted({p.shape for p in pictures})  # aspect buckets: a batch has pictures of one shape
            batches = [np.stack([p for p in pictures if p.shape == shape]) for shape in shapes]
            found[name] = Moments.of(np.concatenate([extractor.features(batch) for batch in batches]))
        return found
    finally:
        torch.set_num_threads(threads)


def _picture(row: Mapping[str, Any]) -> Pictures:
    return np.frombuffer(row["pixels"], np.uint8).reshape(row["height"], row["width"], 3)


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
