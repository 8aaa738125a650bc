"""What a person is shown of an assessment and of a release: a page beside the store, and the same in MLflow."""

from __future__ import annotations

from pathlib import Path

from components.evaluation.page import ASSESSMENT_PAGE, RELEASE_PAGE, metrics_of, numbers_of, write_page
from components.evaluation.registry import Registry, described_in_markdown
from components.evaluation.release import read_record
from components.runtime.progress import say
from components.runtime.stage import Context
from components.runtime.storage import Artifact


def show_assessment(
    ctx: Context, assessment: Artifact, champion: Artifact | None = None, path: Path | None = None
) -> Path:
    """Write the page about ``assessment``, by default into the recipe's folder, and say where it is.

    Args:
        champion: the champion's assessment by the same judge, to be shown side by side.

    Raises:
        GateRefused: the two were measured under different protocols; the message names the difference.
    """
    page = write_page(ctx, assessment, path or ctx.home / ASSESSMENT_PAGE, champion=champion)
    _record(ctx, assessment, page)
    say(f"assess: see {page}")
    return page


def show_release(ctx: Context, record: Artifact) -> Path:
    """Write the page about a judgement into the recipe's folder, champion and challenger side by side.

    Raises:
        ArtifactError: the store does not hold an assessment that the record names.
        RegistryError: the registry is down.
    """
    content, inputs = read_record(record), record.manifest.inputs
    assessment = ctx.store.by_digest("assessment", inputs["assessment"])
    champion = ctx.store.by_digest("assessment", inputs["champion"]) if "champion" in inputs else None
    version = next((v for v in Registry(ctx).versions() if v.tags.get("record") == record.digest), None)
    page = write_page(ctx, assessment, ctx.home / RELEASE_PAGE, champion=champion, record=content, version=version)
    _record(ctx, assessment, None)
    if ctx.recorder:
        note = described_in_markdown(content["metrics"], content["verdict"], content["reasons"])
        ctx.recorder.show(record, [page], note=note)
        tags = {"verdict": content["verdict"], "version": str(version.version) if version else ""}
        numbers = {f"{name}/{metric}": n["value"] for name, m in content["metrics"].items() for metric, n in m.items()}
        ctx.recorder.conclude(note, tags, numbers)
    say(f"release: see {page}")
    return page


def _record(ctx: Context, assessment: Artifact, page: Path | None) -> None:
    if ctx.recorder:
        files = [assessment.path("metrics.json"), assessment.path("sheet.png"), *([page] if page else [])]
        note = described_in_markdown(numbers_of(assessment)[0])
        ctx.recorder.show(assessment, files, metrics_of(assessment), note)
