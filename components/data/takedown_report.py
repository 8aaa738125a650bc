"""What a takedown tells: what went from where, and who has learned from it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from components.data.survey import DATASETS
from components.data.taking_out import Plan
from components.runtime.lineage import descendants, digests
from components.runtime.storage import Artifact

if TYPE_CHECKING:
    from components.runtime.tracking import ModelVersion

MODELS = frozenset(  # kinds with weights
    {"text_encoder", "autoencoder", "denoiser", "cnn", "vae", "gan", "model", "judge_clip", "adapter"}
)
_LEARNING = MODELS | {"latents", "text_states", "prior"}
_SHOWN = 20  # near copies on the terminal
_WORDS_ONLY = ("texts", "prompts", "pages")  # of what was removed: no rows


@dataclass(frozen=True)
class Report:
    """What was taken down and what has learned from it; in plain JSON values, no address and no caption.

    ``rules`` are the keys asked for; ``artifacts`` what was changed, with rows by what they were; ``near`` members
    of the same duplicate clusters that stay (theirs are the only addresses); ``datasets`` those that held samples,
    now or before; ``models`` those with weights trained on them, directly (``on``) or from such weights (``from``).
    """

    at: str
    store: str
    dry_run: bool
    rules: list[str]
    pictures: int
    rows: dict[str, int]
    artifacts: list[dict[str, Any]]
    near: list[dict[str, Any]]
    datasets: list[dict[str, Any]]
    models: list[dict[str, Any]]
    versions: list[dict[str, Any]]
    unfinished: list[str] = field(default_factory=list)
    pages: list[str] = field(default_factory=list)
    unasked: str | None = None  # why the registry could not be asked for versions
    path: str | None = None  # of the report's file

    def as_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def entry(plan: Plan, revised: Artifact | None) -> dict[str, Any]:
    return {
        "kind": plan.artifact.manifest.kind,
        "url": plan.artifact.url,
        "before": plan.artifact.digest,
        "after": revised.digest if revised else None,
        "removed": plan.note["removed"],
    }


def _notes(artifact: Artifact, planned: Mapping[str, dict[str, Any]], roots: set[str]) -> list[dict[str, Any]]:
    """Takedowns of an artifact, done or planned, that had to do with these rules."""
    notes = [*artifact.manifest.revisions, *([planned[artifact.url]] if artifact.url in planned else [])]
    return [note for note in notes if note.get("by") == "takedown" and roots & set(note["rules"])]


def rows_out(artifacts: Sequence[Artifact], planned: Mapping[str, dict[str, Any]], roots: set[str]) -> dict[str, int]:
    """Rows that were taken out because of these rules, now or before, by kind of artifact."""
    total: Counter[str] = Counter()
    for artifact in artifacts:
        for note in _notes(artifact, planned, roots):
            total[artifact.manifest.kind] += sum(n for what, n in note["removed"].items() if what not in _WORDS_ONLY)
    return dict(sorted((+total).items()))


def learned(
    artifacts: Sequence[Artifact], planned: Mapping[str, dict[str, Any]], roots: set[str]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Datasets that held the samples, and what has weights that were trained on them."""
    datasets, trained = [], []
    for dataset in (a for a in artifacts if a.manifest.kind in DATASETS):
        held: Counter[str] = Counter()
        for note in _notes(dataset, planned, roots):
            held.update(note["removed"])
        if held:
            known = {"dataset": dataset.short, "digests": list(digests(dataset)), "made": dataset.manifest.created_at}
            datasets.append(known | {part: held[part] for part in ("train", "holdout", "dropped")})
            if held["train"]:
                trained.append(dataset)
    direct = {digest for dataset in trained for digest in digests(dataset)}
    models = [
        {
            "kind": model.manifest.kind,
            "model": model.short,
            "digests": list(digests(model)),
            "trained": "on" if direct & set(model.manifest.inputs.values()) else "from",
        }
        for model in descendants(artifacts, trained, _LEARNING)
        if model.manifest.kind in MODELS
    ]
    return datasets, models


def versions_of(models: list[dict[str, Any]], registered: Sequence[ModelVersion]) -> list[dict[str, Any]]:
    known = {digest: model["model"] for model in models for digest in model["digests"]}
    return [
        {"name": v.name, "version": v.version, "aliases": list(v.aliases), "model": known[v.tags["model_digest"]]}
        for v in registered
        if v.tags.get("model_digest") in known
    ]


def listed(removed: Mapping[str, int]) -> str:
    """Numbers of rows by what they were, in words."""
    return ", ".join(f"{n} {what}" for what, n in sorted(removed.items())) or "texts only"


def lines(report: Report) -> list[str]:
    """The report for people."""
    would = "would be " if report.dry_run else ""
    rules = _several(len(report.rules), "rule")
    if not report.rows:
        out = [f"{rules}; the store holds nothing of it" + ("" if report.dry_run else ", nor will it")]
    else:
        where = ", ".join(f"{n} of {kind}" for kind, n in report.rows.items())
        before = "" if report.artifacts else ", all of them before"
        out = [f"{rules}, {_several(report.pictures, 'picture')}; rows {would}taken out: {where}{before}"]
    for entry in report.datasets:
        out.append(
            f"{entry['dataset']} held {entry['train']} in training, {entry['holdout']} held out, "
            f"{entry['dropped']} dropped"
        )
    for entry in report.models:
        how = "trained on it" if entry["trained"] == "on" else "trained from weights that were"
        out.append(f"{entry['model']}: {how}; unchanged: retrain or retire it")
    if report.rows and not report.models:
        out.append("no model was trained on it")
    for entry in report.versions:
        alias = f" ({', '.join(entry['aliases'])})" if entry["aliases"] else ""
        out.append(f"version {entry['version']} of {entry['name']}{alias} is {entry['model']}")
    if report.models:
        out.append("retrain with `atelier run`; `atelier release --rollback` returns to an earlier version")
    if report.near:
        still = f"{_several(len(report.near), 'picture')} of the same duplicate clusters"
        out.append(f"{still} would stay without --near:" if report.dry_run else f"{still} stay, see --near:")
        out += [f"  {row['url']} ({row['tier'] or 'survivor'})" for row in report.near[:_SHOWN]]
        out += [f"  … and {len(report.near) - _SHOWN} more in the report"] if len(report.near) > _SHOWN else []
    out += [f"{would}removed: {name}" for name in (*report.unfinished, *report.pages)]
    if report.datasets:
        out.append("tokenizers stay: their vocabulary was counted over all captions")
    if report.path is not None:
        out.append(f"report: {report.path}")
    return out


def _several(number: int, word: str) -> str:
    return f"{number} {word}" + ("" if number == 1 else "s")
