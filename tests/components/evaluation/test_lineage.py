"""From a version back to its sources, as text and as a page."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from components.contracts.errors import InputError
from components.evaluation.lineage import as_html, as_lines, lineage_of, made_from
from components.evaluation.registry import Registry
from components.evaluation.release import release
from components.runtime.stage import Context
from components.runtime.storage import Artifact


def test_the_champion_from_its_record_to_what_it_was_made_of(
    ctx: Context, judged: Callable[..., tuple[Artifact, Artifact]]
) -> None:
    with pytest.raises(InputError, match="has no champion"):
        lineage_of(ctx)
    model, assessment = judged("m1", 450)
    record = release(ctx, model, assessment)
    found = lineage_of(ctx)
    lines = as_lines(found)
    assert lines[0].startswith("atelier version 1 (champion): passed the gate; promoted by ")
    assert [line.split(": ")[0].split()[-1] for line in lines[1:]] == [
        "record",
        "assessment",
        "judge",
        "model",
        "model",
    ]
    assert record.digest[:12] in lines[1] and "verdict pass" in lines[1] and model.digest[:12] in lines[4]
    assert f"run {found.runs[record.url][:12]}" in lines[1]
    page = as_html(found)
    for artifact in (record, assessment, model):
        assert artifact.digest in page
    assert page.count("<rect") == 4 and page.count("<path") == 4 and "signature holds" in page
    down = made_from(ctx, assessment.short)
    assert down[0].startswith(assessment.short) and down[1].startswith(f"   {record.short}  version 1 (champion), ")
    assert [line.split()[0] for line in made_from(ctx, model.short)] == [a.short for a in (model, assessment, record)]
    assert made_from(ctx, record.short)[1] == "   nothing was made from it"
    with pytest.raises(InputError, match="'dataset' names no artifact"):
        made_from(ctx, "dataset")
    with pytest.raises(InputError, match=r"has no version 7.*registered versions: 1"):
        lineage_of(ctx, 7)
    Registry(ctx).tracker.tag_version("atelier", 1, {"gate": "<b>forged</b>"})
    forged = lineage_of(ctx, 1)
    assert "carries no signature" in as_lines(forged)[0] and 'class="refused"' in as_html(forged)
