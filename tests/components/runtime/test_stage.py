"""A stage is done once, continues after a kill, and never by two processes at once."""

from __future__ import annotations

from pathlib import Path

import pytest
from filelock import FileLock

from components.contracts.errors import ArtifactError, RuntimeUnavailable
from components.contracts.recipe import Recipe
from components.runtime.stage import Context, run_stage
from components.runtime.storage import Draft, Outcome


@pytest.fixture
def ctx(tmp_path: Path) -> Context:
    return Context.of(Recipe.model_validate({"name": "t", "run": {"root": str(tmp_path)}}))


def test_done_once(ctx: Context, capsys: pytest.CaptureFixture[str]) -> None:
    calls = []

    def build(draft: Draft) -> Outcome:
        calls.append(draft.identity)
        (draft.dir / "x").write_text("1")
        return Outcome(counts={"rows": 1})

    first = run_stage(ctx, "thing", {}, {"a": 1}, build)
    again = run_stage(ctx, "thing", {}, {"a": 1}, build)
    other = run_stage(ctx, "thing", {"from": first}, {"a": 1}, build)
    assert first == again and len(calls) == 2
    assert other.manifest.inputs == {"from": first.digest} and other.manifest.identity != first.manifest.identity
    assert "already done" in capsys.readouterr().err


def test_failure_leaves_work_to_continue(ctx: Context) -> None:
    def fail(draft: Draft) -> Outcome:
        (draft.state / "half").write_text("1")
        raise ValueError("killed")

    def go_on(draft: Draft) -> Outcome:
        assert (draft.state / "half").read_text() == "1"
        return Outcome()

    with pytest.raises(ValueError, match="killed"):
        run_stage(ctx, "thing", {}, {}, fail)
    assert ctx.store.list() == []
    assert list(run_stage(ctx, "thing", {}, {}, go_on).manifest.files) == []


def test_damaged_input_is_refused(ctx: Context) -> None:
    def build(draft: Draft) -> Outcome:
        (draft.dir / "x").write_text("1")
        return Outcome()

    first = run_stage(ctx, "thing", {}, {}, build)
    first.path("x").write_text("2")
    with pytest.raises(ArtifactError, match="damaged"):
        run_stage(ctx, "next", {"from": first}, {}, build)
    with pytest.raises(ArtifactError, match="damaged"):
        run_stage(ctx, "thing", {}, {}, build)


def test_one_process_at_a_time(ctx: Context) -> None:
    draft = ctx.store.draft("thing", {}, {})
    (ctx.home / "locks").mkdir(parents=True)
    lock = FileLock(ctx.home / "locks" / f"thing-{draft.identity[:16]}.lock")
    with lock, pytest.raises(RuntimeUnavailable, match="Another process"):
        run_stage(ctx, "thing", {}, {}, lambda d: Outcome())
    run_stage(ctx, "thing", {}, {}, lambda d: Outcome())
