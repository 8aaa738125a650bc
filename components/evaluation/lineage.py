"""Where a model version comes from: from the gate's record back to the URLs, as text and as a page."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.contracts.errors import ArtifactError, GateRefused, InputError
from components.evaluation.registry import Registry
from components.evaluation.vouching import Vouch, vouched
from components.runtime.lineage import ancestors, descendants
from components.runtime.stage import Context
from components.runtime.storage import Artifact

if TYPE_CHECKING:
    from components.runtime.tracking import ModelVersion

_WIDTH, _HEIGHT, _GAP_X, _GAP_Y = 216, 92, 56, 18  # of a box of the drawing and between boxes, in pixels


@dataclass(frozen=True)
class Lineage:
    """A version with all that it was made from.

    ``inputs`` has, by URL of an artifact, its inputs ``(role, artifact)``; the first is the gate's record, or the
    model where there is no record.
    """

    version: ModelVersion
    vouch: Vouch | str  # why the gate does not vouch for it, where it does not
    root: Artifact
    inputs: dict[str, list[tuple[str, Artifact]]]
    runs: dict[str, str] = field(default_factory=dict)  # of MLflow, by URL of the artifact that the run made

    def told(self, artifact: Artifact) -> list[str]:
        """:func:`facts`, and the run that made it."""
        run = self.runs.get(artifact.url)
        return [*facts(artifact), *([f"run {run[:12]}"] if run else [])]

    @property
    def artifacts(self) -> dict[str, Artifact]:
        """All of them by URL."""
        return {self.root.url: self.root} | {a.url: a for found in self.inputs.values() for _, a in found}


def lineage_of(ctx: Context, version: int | None = None) -> Lineage:
    """The lineage of a version, by default of the champion.

    Raises:
        InputError: there is no such version.
        ArtifactError: the store holds neither its record nor its model.
        RegistryError: the registry is down.
    """
    registry = Registry(ctx)
    versions = registry.versions()
    present = registry.champion()
    found = present if version is None else next((v for v in versions if v.version == version), None)
    if found is None:
        numbers = ", ".join(str(v.version) for v in versions) or "none"
        raise InputError(
            f"{ctx.recipe.release.model_name} has no {'champion' if version is None else f'version {version}'}",
            expected=f"one of the registered versions: {numbers}",
            remedy="see `atelier status`, or release a model first",
        )
    model = registry.model_of(found)
    try:
        root = ctx.store.by_digest("release", found.tags.get("record", ""))
    except ArtifactError:
        root = model
    try:
        vouch: Vouch | str = vouched(found, versions, registry.keys, model)
    except GateRefused as refused:
        vouch = refused.problem
    inputs = ancestors(ctx.store.list(), root)
    lineage = Lineage(found, vouch, root, inputs)
    made_by = {a.url: registry.tracker.find_run({"artifact": a.manifest.identity}) for a in lineage.artifacts.values()}
    return Lineage(found, vouch, root, inputs, {url: run for url, run in made_by.items() if run})


def made_from(ctx: Context, name: str) -> list[str]:
    """What was made from an artifact, down to the registered versions: a line each.

    Args:
        name: kind and the beginning of the digest, as `atelier status` shows it: ``dataset:1b1ead7edf36``.

    Raises:
        ArtifactError: the store holds no such artifact, or several. InputError: the name is none.
        RegistryError: the registry is down.
    """
    kind, colon, digest = name.partition(":")
    if not (kind and colon and digest):
        raise InputError(
            f"{name!r} names no artifact",
            expected="kind:digest, such as dataset:1b1ead7edf36",
            remedy="see `atelier status` for what the store holds",
        )
    artifact, everything = ctx.store.by_digest(kind, digest), ctx.store.list()
    found = descendants(everything, [artifact], frozenset(one.manifest.kind for one in everything))
    lines = [f"{artifact.short}  {', '.join(facts(artifact))}".rstrip()]
    versions = Registry(ctx).versions()
    for one in found:
        mine = [v for v in versions if one.digest in (v.tags.get("record"), v.tags.get("model_digest"))]
        named = [f"version {v.version}{' (' + ', '.join(v.aliases) + ')' if v.aliases else ''}" for v in mine]
        lines.append(f"   {one.short}  {', '.join([*named, *facts(one)])}".rstrip())
    return lines if found else [*lines, "   nothing was made from it"]


def facts(artifact: Artifact) -> list[str]:
    """What a person wants to know of an artifact: counts, and for some kinds a figure or two."""
    manifest = artifact.manifest
    found = [f"{count:,} {what.replace('_', ' ')}" for what, count in manifest.counts.items()]
    evidence: dict[str, Any] = manifest.evidence
    if manifest.dropped:
        found.append(f"{sum(manifest.dropped.values()):,} dropped")
    if manifest.kind == "release":
        found.append(f"verdict {evidence.get('verdict')}")
    if "final" in evidence and "loss" in evidence["final"]:
        found.append(f"final loss {evidence['final']['loss']:.4g}")
    if seconds := manifest.circumstance.get("training_seconds"):
        found.append(f"trained {seconds:,.0f} s")
    return found


def as_lines(lineage: Lineage) -> list[str]:
    """A tree, one line an artifact; one that was named before is not opened again."""
    v, lines = lineage.version, []
    said = lineage.vouch if isinstance(lineage.vouch, str) else _said(lineage.vouch)
    lines.append(f"{v.name} version {v.version}{' (' + ', '.join(v.aliases) + ')' if v.aliases else ''}: {said}")
    seen: set[str] = set()

    def tell(role: str, artifact: Artifact, indent: str, last: bool) -> None:
        again = artifact.url in seen
        seen.add(artifact.url)
        more = ", ".join(lineage.told(artifact))
        tail = "  (see above)" if again and lineage.inputs.get(artifact.url) else f"  {more}" if more else ""
        lines.append(f"{indent}{'└─' if last else '├─'} {role}: {artifact.short}{tail}")
        if not again:
            inputs = lineage.inputs.get(artifact.url, [])
            for i, (name, one) in enumerate(inputs):
                tell(name, one, indent + ("   " if last else "│  "), i == len(inputs) - 1)

    tell("record" if lineage.root.manifest.kind == "release" else "model", lineage.root, "", True)
    return lines


def as_html(lineage: Lineage) -> str:
    """A page of its own with the drawing: sources on the left, the record on the right."""
    import jinja2

    artifacts = lineage.artifacts
    layer: dict[str, int] = {}

    def depth(url: str) -> int:
        if url not in layer:
            layer[url] = 1 + max((depth(a.url) for _, a in lineage.inputs.get(url, [])), default=-1)
        return layer[url]

    for url in artifacts:
        depth(url)
    columns: dict[int, list[str]] = {}
    for url in sorted(artifacts, key=lambda u: (layer[u], artifacts[u].manifest.kind, u)):
        columns.setdefault(layer[url], []).append(url)
    tallest = max(map(len, columns.values()))
    height = tallest * (_HEIGHT + _GAP_Y)
    place = {
        url: (x * (_WIDTH + _GAP_X), int((height - len(urls) * (_HEIGHT + _GAP_Y)) / 2) + y * (_HEIGHT + _GAP_Y))
        for x, urls in columns.items()
        for y, url in enumerate(urls)
    }
    paths = [_path(place[a.url], place[url]) for url, inputs in lineage.inputs.items() for _, a in inputs]
    boxes = [(artifacts[url], facts(artifacts[url]), *at) for url, at in place.items()]
    rows = [(a, lineage.told(a)) for a in sorted(artifacts.values(), key=lambda a: layer[a.url])]
    vouch = lineage.vouch
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(Path(__file__).with_name("lineage.html").read_text(encoding="utf-8"))
    return template.render(
        version=lineage.version, said=vouch if isinstance(vouch, str) else _said(vouch),
        holds=not isinstance(vouch, str), width=len(columns) * (_WIDTH + _GAP_X) - _GAP_X, height=height,
        box=(_WIDTH, _HEIGHT), paths=paths, boxes=boxes, rows=rows,
    )  # fmt: skip


def _said(vouch: Vouch) -> str:
    how = f"forced in spite of the verdict {vouch.verdict}: {vouch.forced}" if vouch.forced else "passed the gate"
    return f"{how}; promoted by {vouch.by} at {vouch.at}, signature holds"


def _path(start: tuple[int, int], end: tuple[int, int]) -> str:
    """A curve from the right side of one box to the left side of another, as an SVG path."""
    x1, y1 = start[0] + _WIDTH, start[1] + _HEIGHT // 2
    x2, y2 = end[0], end[1] + _HEIGHT // 2
    bend = max(24, (x2 - x1) // 2)
    return f"M{x1} {y1} C{x1 + bend} {y1} {x2 - bend} {y2} {x2} {y2}"
