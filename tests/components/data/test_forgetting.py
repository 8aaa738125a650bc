"""Takedown over a whole store: nothing of a sample is left, everything else is as it was."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import sys
import uuid
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from filelock import FileLock

import tests.components.data.takedown_store as made
from components.contracts.errors import ArtifactError, RegistryError, RuntimeUnavailable
from components.contracts.recipe import Recipe
from components.data.collecting import collect
from components.data.forgetting import forget
from components.data.preparing import prepare
from components.data.shards import Sample, read_tar, tar_bytes
from components.data.takedown import Blocklist, not_while_taking_down, rule, taking_down
from components.data.takedown_report import lines
from components.runtime.stage import Context
from components.runtime.storage import Artifact, write_bytes
from components.runtime.tracking import ModelVersion
from tests.components.data.pages import jpeg, served


@pytest.fixture(params=["file", "memory"])
def ctx(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Context:
    monkeypatch.setenv("ATELIER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return made.context(tmp_path, f"memory://{uuid.uuid4().hex}" if request.param == "memory" else None)


def traces(number: int, *urls: str) -> list[bytes]:
    """What would betray a sample in any file."""
    said = [word for url in urls for word in (url, made.caption(url), f"latents of {made.identity(url, number)}")]
    return [w.encode() for w in (*said, made.sha(number), f"picture {number}", f"pixels of {number};")]


def test_nothing_is_left_and_all_else_is_as_it_was(ctx: Context) -> None:
    artifacts = made.full(ctx)
    before = made.everything(ctx)
    report = forget(ctx, [rule("url", made.GONE)])
    after = made.everything(ctx, skip=lambda name: name.startswith("takedown/"))
    for name in ("scores", "more"):  # kept under the address that prepare will look at
        of = ctx.store.by_digest("collection", artifacts[name].manifest.inputs["collection"])
        moved = ctx.store.by_digest("scores", artifacts[name].digest)
        assert moved.manifest.inputs == {"collection": of.digest} != artifacts[name].manifest.inputs
        assert moved.manifest.counts["samples"] == of.manifest.counts["success"]
        assert ctx.store.find("scores", artifacts[name].manifest.identity) is None
        old = f"scores/{artifacts[name].manifest.identity[:16]}"
        before = {
            f"scores/{moved.manifest.identity[:16]}{n[len(old) :]}" if n.startswith(old) else n: before[n]
            for n in before
        }

    for name, content in after.items():
        text = repr(content).encode()
        for trace in traces(3, made.GONE, made.COPY):
            assert trace not in text, (name, trace)
    pages = {name for name in before if name.endswith("docs/a.html")}
    assert len(pages) == 1 and set(after) == set(before) - pages
    for name, content in after.items():
        if name.endswith(".parquet"):
            old, gone = before[name], {made.GONE, made.COPY}
            if "ledger" in name or name.startswith("collection"):
                for a, b in zip(content, old, strict=True):
                    assert a == b or (a["row"] == b["row"] and gone & {b.get("url"), b.get("final_url")})
            elif name.endswith("dropped.parquet"):  # its detail named the picture that is gone
                assert [row["url"] for row in content] == ["https://a.test/2.png", made.NEAR]
                assert content[0] == old[0] and content[1]["detail"] == "nearly the same picture as [taken down]"
            else:
                assert [row for row in old if row in content] == content, name

    first = ctx.store.by_digest("collection", artifacts["first"].digest)  # by the digest that it had
    assert first.manifest.counts == {"urls": 9, "success": 6, "failed": 3}
    assert first.manifest.dropped == {"http_404": 2, "taken_down": 1}
    row = pq.read_table(first.path("ledger.parquet")).to_pylist()[3]
    told = {k: v for k, v in row.items() if v not in (None, 0)}
    assert told == {"row": 3, "status": "failed", "reason": "taken_down", "detail": row["detail"]}
    assert pq.read_table(first.path("shards/00000.parquet")).to_pylist()[3] == row
    dataset = ctx.store.by_digest("dataset", artifacts["dataset"].digest)
    assert dataset.manifest.counts == {"samples": 8, "rows": 4, "train": 2, "holdout": 2}
    assert dataset.manifest.dropped == {"blurred": 1, "duplicate_near": 1, "taken_down": 2}
    assert sum(dataset.manifest.dropped.values()) + dataset.manifest.counts["rows"] == 8
    latents = ctx.store.by_digest("latents", artifacts["latents"].digest)
    assert latents.manifest.counts == {"rows": 4}
    for artifact in ctx.store.list():
        artifact.verify()

    assert report.pictures == 1
    assert report.rows == {"collection": 2, "dataset": 2, "judge": 1, "latents": 1, "scores": 2}
    assert [(d["train"], d["holdout"], d["dropped"]) for d in report.datasets] == [(1, 0, 1)]
    assert {m["kind"]: m["trained"] for m in report.models} == {
        "autoencoder": "on",
        "text_encoder": "on",
        "model": "on",
    }
    assert [(n["url"], n["tier"]) for n in report.near] == [(made.NEAR, "near")]
    written = next((ctx.home / "takedowns").glob("*.json")).read_text()
    assert json.loads(written) == report.as_json()
    assert not any(trace.decode() in written.replace(made.NEAR, "") for trace in traces(3, made.GONE, made.COPY)[:3])


def test_tars_keep_the_other_samples_byte_for_byte(ctx: Context) -> None:
    artifacts = made.full(ctx)
    old = artifacts["first"].path("shards/00000.tar").read_bytes()
    untouched = artifacts["first"].path("shards/00001.tar").read_bytes()
    forget(ctx, [rule("sha256", made.sha(3))])
    first = ctx.store.by_digest("collection", artifacts["first"].digest)
    kept = [sample for sample in read_tar(old) if sample.meta["url"] != made.GONE]
    assert first.path("shards/00000.tar").read_bytes() == tar_bytes(kept)
    assert first.path("shards/00001.tar").read_bytes() == untouched


@pytest.mark.parametrize("form", ["url", "sha256", "host", "redirect"])
def test_every_form_of_rule(tmp_path: Path, form: str) -> None:
    ctx = made.context(tmp_path)
    artifacts = made.full(ctx)
    if form == "redirect":  # the address that the picture really came from
        path = "circumstance/fetches.parquet"
        rows = pq.read_table(artifacts["first"].path(path)).to_pylist()
        rows[3]["final_url"] = "https://cdn.test/three"
        out = io.BytesIO()
        schema = pq.read_schema(artifacts["first"].path(path))
        pq.write_table(made.pa.Table.from_pylist(rows, schema=schema), out)
        ctx.store.revise(artifacts["first"], {path: out.getvalue()}, note={})
    key = {
        "url": rule("url", "HTTPS://IMG.example.org:443/%33.png#top"),
        "sha256": rule("sha256", made.sha(3).upper()),
        "host": rule("host", "Example.ORG"),
        "redirect": rule("url", "http://cdn.test/three"),
    }[form]
    forget(ctx, [key])
    kept = {row["url"] for row in pq.read_table(artifacts["dataset"].path("data/part-00000.parquet")).to_pylist()}
    assert kept == {"https://a.test/0.png", "https://a.test/1.png"}
    ledger = pq.read_table(artifacts["first"].path("ledger.parquet"))["url"].to_pylist()
    taken = {3, 5, 6} if form == "host" else {3}
    assert {i for i, url in enumerate(ledger) if url is None} == taken
    assert Blocklist.of(ctx.store.url).blocks(sha256=made.sha(3))
    assert Blocklist.of(ctx.store.url).blocks(url=made.HELD) == (key if form == "host" else None)


def test_captions_of_held_out_pictures_leave_judge_and_assessment(tmp_path: Path) -> None:
    ctx = made.context(tmp_path)
    artifacts = made.full(ctx)
    copies = ctx.home / "mlruns" / "1" / "run" / "sheet.png"
    copies.parent.mkdir(parents=True)
    copies.write_bytes(b"sheet")
    report = forget(ctx, [rule("url", made.HELD)])
    assert json.loads(artifacts["judge"].path("prompts.json").read_text()) == {
        "known": ["a common caption", "[taken down]"]
    }
    for name in ("per_prompt.parquet", "diversity.parquet"):
        rows = pq.read_table(artifacts["assessment"].path(name)).to_pylist()
        assert [row["prompt"] for row in rows] == ["a common caption", "[taken down]"]
        assert rows[0]["image"] == b"drawn 0" and rows[1]["image"].startswith(b"\x89PNG")
    assert artifacts["assessment"].path("sheet.png").read_bytes() != b"sheet" and not copies.exists()
    assert [(d["train"], d["holdout"]) for d in report.datasets] == [(0, 1)]
    assert report.models == []  # none was trained on what was held out


def test_what_extractors_said_of_it_is_forgotten(tmp_path: Path) -> None:
    ctx = made.context(tmp_path)
    artifacts = made.full(ctx)
    cached = ctx.home / "features" / "d" / "a.safetensors"
    cached.parent.mkdir(parents=True)
    cached.write_bytes(b"features by content")
    forget(ctx, [rule("url", made.GONE)])
    left = pq.read_table(artifacts["judge"].path("kept.parquet"))["id"].to_pylist()
    assert left == [made.identity(made.HELD, 5), made.identity("https://a.test/7.png", 7)]
    assert not cached.exists()


def test_a_caption_that_others_say_stays(tmp_path: Path) -> None:
    ctx = made.context(tmp_path)
    artifacts = made.full(ctx)
    judge = artifacts["judge"].digest
    forget(ctx, [rule("url", "https://a.test/1.png")])
    assert ctx.store.list("judge")[0].digest == judge


def test_alternatives_and_near_copies(tmp_path: Path) -> None:
    """Of a survivor that stays, the caption of the copy goes; with ``near`` the whole cluster goes."""
    ctx = made.context(tmp_path)
    artifacts = made.full(ctx)
    report = forget(ctx, [rule("url", made.NEAR)])
    part = pq.read_table(artifacts["dataset"].path("data/part-00000.parquet")).to_pylist()
    assert [(row["url"], row["alternatives"]) for row in part][2] == (made.GONE, [])
    assert {row["url"] for row in report.near} == {made.GONE, made.COPY} - {made.COPY}  # each picture once
    forget(ctx, [rule("url", made.NEAR)], near=True)
    assert pq.read_table(artifacts["dataset"].path("data/part-00000.parquet")).num_rows == 3  # the tie is gone by now

    other = made.context(tmp_path / "other")
    artifacts = made.full(other)
    report = forget(other, [rule("url", made.NEAR)], near=True)
    assert pq.read_table(artifacts["dataset"].path("data/part-00000.parquet")).num_rows == 2
    assert report.pictures == 2 and report.near == []
    assert Blocklist.of(other.store.url).blocks(sha256=made.sha(3))


def test_dry_run_changes_nothing(ctx: Context) -> None:
    made.full(ctx)
    (ctx.home).mkdir(parents=True, exist_ok=True)
    (ctx.home / "dataset.html").write_text("pictures")
    before = made.everything(ctx)
    told = forget(ctx, [rule("url", made.GONE)], dry_run=True)
    assert made.everything(ctx) == before and (ctx.home / "dataset.html").exists()
    assert not (ctx.home / "takedowns").exists() and len(Blocklist.of(ctx.store.url)) == 0
    done = forget(ctx, [rule("url", made.GONE)])
    same = ("rows", "models", "near", "pictures", "pages")
    assert {k: getattr(told, k) for k in same} | {"models": len(told.models)} == {k: getattr(done, k) for k in same} | {
        "models": len(done.models)
    }
    assert not (ctx.home / "dataset.html").exists()


def test_again_changes_nothing_and_says_the_same(ctx: Context) -> None:
    made.full(ctx)
    first = forget(ctx, [rule("url", made.GONE)])
    state = made.everything(ctx)
    again = forget(ctx, [rule("url", made.GONE)])
    assert made.everything(ctx) == state
    assert again.artifacts == [] and first.artifacts != []
    for name in ("rows", "pictures", "datasets", "models"):
        assert getattr(again, name) == getattr(first, name), name


def test_nothing_of_it_in_the_store(ctx: Context) -> None:
    made.full(ctx)
    report = forget(ctx, [rule("url", "https://elsewhere.test/x.png")])
    assert report.rows == {} and report.artifacts == []
    assert Blocklist.of(ctx.store.url).blocks(url="http://elsewhere.test/x.png")
    assert "holds nothing of it" in lines(report)[0]


def test_versions_and_their_descendants(tmp_path: Path) -> None:
    ctx = made.context(tmp_path)
    artifacts = made.full(ctx)
    fresh = made.put(ctx, "dataset", {"tokenizer": artifacts["dataset"]}, {"x": b"other"})
    text = next(a for a in ctx.store.list("text_encoder"))
    child, stranger = made.model(ctx, fresh, start=text), made.put(ctx, "model", {"dataset": fresh}, {"w": b"9"})

    def version(number: int, of: Artifact, *aliases: str) -> ModelVersion:
        return ModelVersion("atelier", number, of.url, "", {"model_digest": of.digest}, aliases)

    known = [version(1, artifacts["model"]), version(2, child, "champion"), version(3, stranger)]
    report = forget(ctx, [rule("url", made.GONE)], versions=lambda: known)
    assert [(v["version"], v["aliases"]) for v in report.versions] == [(1, []), (2, ["champion"])]
    assert {m["model"]: m["trained"] for m in report.models}[child.short] == "from"
    assert stranger.short not in {m["model"] for m in report.models}
    assert any("version 2 of atelier (champion)" in line for line in lines(report))


def test_a_registry_that_is_down_hinders_nothing(tmp_path: Path) -> None:
    ctx = made.context(tmp_path)
    artifacts = made.full(ctx)

    def down() -> list[ModelVersion]:
        raise RegistryError("The registry is down")

    report = forget(ctx, [rule("url", made.GONE)], versions=down)
    assert report.unasked is not None and "down" in report.unasked
    assert pq.read_table(artifacts["dataset"].path("data/part-00000.parquet")).num_rows == 2


def test_a_stage_at_work_is_not_disturbed(tmp_path: Path) -> None:
    ctx = made.context(tmp_path)
    made.full(ctx)
    before = made.everything(ctx)
    (ctx.home / "locks").mkdir(parents=True)
    with FileLock(ctx.home / "locks" / "dataset-x.lock"), pytest.raises(RuntimeUnavailable, match="dataset-x"):
        forget(ctx, [rule("url", made.GONE)])
    assert made.everything(ctx) == before


def test_one_takedown_at_a_time_and_no_stage_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of any run with this store: what lies in its own folder is not all there is."""
    monkeypatch.setattr("components.data.takedown._LOOK_S", 0.0)
    ctx = made.context(tmp_path)
    made.full(ctx)
    before = made.everything(ctx)
    other = Context(Recipe.model_validate({"name": "other"}), ctx.store, tmp_path / "another-run")
    gone, locks = [rule("url", made.GONE)], Path(ctx.store.url) / "locks"
    with taking_down(ctx.store.url):
        with pytest.raises(RuntimeUnavailable, match="Another `atelier forget`"):
            forget(other, gone)
        with pytest.raises(RuntimeUnavailable, match="being taken out"):
            not_while_taking_down(ctx.store.url)
        with pytest.raises(RuntimeUnavailable, match="being taken out"):
            collect(other, pa.table({"url": ["http://1.1.1.1/"], "caption": ["x"]}), ("1.1.1.1:80",))
        assert forget(other, gone, dry_run=True).rows, "what changes nothing may look"
    with FileLock(locks / "dataset-x.lock"), pytest.raises(RuntimeUnavailable, match="dataset-x"):
        forget(other, gone)
    assert made.everything(ctx) == before
    assert forget(other, gone).artifacts, "all are released again"
    not_while_taking_down(ctx.store.url)


def test_unfinished_work_that_holds_it(ctx: Context) -> None:
    """Of killed stages the pieces with the sample go; the others are gone on with."""
    made.full(ctx)
    draft = ctx.store.draft("collection", {}, {"unfinished": True})
    table = made.ledger(made.FIRST)
    for number, start in enumerate((0, made.SHARD)):
        part = table.slice(start, made.SHARD)
        write_bytes(f"{draft.url}/shards/{number:05d}.parquet", _parquet(part))
        write_bytes(f"{draft.url}/shards/{number:05d}.tar", tar_bytes(made.samples(part, made.FIRST)))
    write_bytes(f"{draft.url}/shards/00002.tar", b"half a shard")
    damaged = ctx.store.draft("dataset", {}, {"unfinished": True})
    write_bytes(f"{damaged.url}/half.parquet", b"PAR1")
    report = forget(ctx, [rule("url", made.GONE)])
    left = {n for n in made.everything(ctx) if n.startswith(f"collection/{draft.identity[:16]}")}
    assert {n.rpartition("/")[2] for n in left} == {"00001.parquet", "00001.tar"}
    assert len(report.unfinished) == 4
    assert not any(n.startswith(f"dataset/{damaged.identity[:16]}") for n in made.everything(ctx))


def _parquet(table: Any) -> bytes:
    out = io.BytesIO()
    pq.write_table(table, out)
    return out.getvalue()


def test_scores_stay_behind_where_more_than_a_takedown_changed_the_collection(ctx: Context) -> None:
    """A collection that was asked for again holds what was never measured: its old scores are not its scores."""
    artifacts = made.full(ctx)
    old = artifacts["first"]
    came = tar_bytes([Sample("000000008", "png", b"it came", {"caption": "", "row": 8})])
    now = ctx.store.revise(old, {"shards/00002.tar": came}, note={"by": "collect --retry transient"})
    assert now.digest != old.digest
    forget(ctx, [rule("url", made.GONE)])
    scores = ctx.store.find("scores", artifacts["scores"].manifest.identity)
    assert scores is not None and scores.manifest.inputs == {"collection": old.digest}
    assert made.sha(3) not in repr(made.everything(ctx, skip=lambda name: "takedown" in name))


def test_what_a_retry_has_fetched_so_far(ctx: Context) -> None:
    made.full(ctx)
    base = f"{ctx.store.url}/_retry/0123456789abcdef/fedcba9876543210"
    for number, start in enumerate((0, made.SHARD)):
        part = made.ledger(made.FIRST).slice(start, made.SHARD)
        write_bytes(f"{base}/shards/{number:05d}.parquet", _parquet(part))
        write_bytes(f"{base}/shards/{number:05d}.tar", tar_bytes(made.samples(part, made.FIRST)))
        write_bytes(f"{base}/circumstance/fetches/{number:05d}.parquet", _parquet(part.select(["row"])))
    forget(ctx, [rule("url", made.GONE)])
    left = {name.rpartition("/")[2] for name in made.everything(ctx) if name.startswith("_retry")}
    assert left == {"00001.parquet", "00001.tar"}


def test_near_copies_of_an_earlier_takedown_are_not_meant(tmp_path: Path) -> None:
    """What is listed, or goes with ``near``, is near to what this command names."""
    ctx = made.context(tmp_path)
    made.full(ctx)
    Blocklist.add(ctx.store.url, {rule("url", made.GONE): ()})  # a command that was killed at once
    report = forget(ctx, [rule("url", made.HELD)], near=True)
    assert report.pictures == 1 and report.near == []
    assert Blocklist.of(ctx.store.url).blocks(sha256=made.sha(4)) is None
    assert Blocklist.of(ctx.store.url).blocks(sha256=made.sha(3))  # yet what that one named is gone as well
    assert made.sha(3) not in repr(made.everything(ctx, skip=lambda name: "takedown" in name))


def test_pages_that_show_it(tmp_path: Path) -> None:
    ctx = made.context(tmp_path)
    made.full(ctx)
    docs = ctx.home / "data_docs" / "x"
    docs.mkdir(parents=True)
    for name, text in {"a.html": f"<td>{made.caption(made.GONE)}</td>", "b.html": "<td>nothing</td>"}.items():
        (docs / name).write_text(text)
    copies = ctx.home / "mlruns" / "1" / "artifacts"
    copies.mkdir(parents=True)
    (copies / "assessment.html").write_text("<img>")
    for name in ("dataset.html", "duplicates.html", "assessment.html", "release.html", "other.html"):
        (ctx.home / name).write_text("<img>")
    forget(ctx, [rule("url", made.GONE)])
    assert {p.name for p in ctx.home.rglob("*.html")} == {"b.html", "other.html"}


def test_copies_of_a_remote_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATELIER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    ctx = made.context(tmp_path, f"memory://{uuid.uuid4().hex}")
    artifacts = made.full(ctx)
    copy = artifacts["dataset"].local()
    model = artifacts["model"].local()
    assert copy.exists()
    forget(ctx, [rule("url", made.GONE)])
    assert not copy.exists() and model.exists()


def test_killed_at_many_points(tmp_path: Path) -> None:
    """SIGKILL at every few changes of the disk: the same command completes it, and nothing else is lost."""
    reference = made.context(tmp_path / "reference")
    made.full(reference)
    wanted = forget(reference, [rule("url", made.GONE)])
    goal = _settled(reference)
    deaths = 0
    fresh = made.context(tmp_path / "fresh")
    made.full(fresh)
    for n in range(1, 2000, 17):
        ctx = made.context(tmp_path / str(n))
        shutil.copytree(fresh.home, ctx.home)
        child = os.fork()
        if child == 0:
            try:
                _die_at(n, ctx)
            finally:
                os._exit(9)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if code == 0:
            break
        assert code == -signal.SIGKILL
        deaths += 1
        for artifact in ctx.store.list():
            artifact.verify()
        report = forget(ctx, [rule("url", made.GONE)])
        assert _settled(ctx) == goal
        assert report.rows == wanted.rows and report.datasets[0]["train"] == 1 and len(report.models) == 3
        assert not list(ctx.home.glob(".takedown-*"))
    else:
        pytest.fail("the takedown never came to its end")
    assert deaths > 10


def _settled(ctx: Context) -> dict[str, Any]:
    """All but the times."""
    return {
        name: content
        for name, content in made.everything(ctx).items()
        if not name.endswith(("manifest.json", "blocklist.json"))
    }


def _die_at(n: int, ctx: Context) -> None:
    left = n

    def hook(event: str, args: tuple[Any, ...]) -> None:
        nonlocal left
        writes = event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR)
        if (writes or event in ("os.rename", "os.remove", "os.rmdir", "os.mkdir")) and str(ctx.home) in str(args[0]):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    forget(ctx, [rule("url", made.GONE)])
    os._exit(0)


@pytest.mark.integration
@pytest.mark.usefixtures("local_ray")
def test_it_does_not_come_back(tmp_path: Path) -> None:
    """Collected and prepared again, also where the same bytes are served elsewhere; the other rows are as before."""
    bodies = [jpeg(n) for n in range(30)]
    bodies[29] = bodies[4]  # the same picture under another address, from the next list on
    with served(lambda path, _: bodies[int(path[1:-4])] if path.endswith(".jpg") else None) as pages:
        ctx = Context.of(
            Recipe.model_validate(
                {
                    "name": "again",
                    "collect": {"shard_size": 10, "image_size": 64, "timeout_s": 5.0},
                    "prepare": {"min_rows": 5, "near_duplicates": False},
                    "run": {"root": str(tmp_path), "object_store_mb": 200},
                }
            )
        )

        def listed(*rows: int) -> pa.Table:
            urls = [pages.url(f"/{n}.jpg") for n in rows]
            return pa.table({"url": urls, "caption": [f"picture number {n}" for n in rows]})

        first = collect(ctx, listed(*range(25)), (pages.host,))
        dataset = prepare(ctx, [first])
        rows = _rows(dataset)
        gone = pages.url("/4.jpg")
        assert gone in rows
        told = forget(ctx, [rule("url", gone)])
        assert told.rows == {"collection": 1, "dataset": 1, "scores": 1}
        asked = pages.asked.total()

        again = collect(ctx, listed(*range(25)), (pages.host,))
        assert again.manifest.identity == first.manifest.identity and again.digest != first.digest
        scored = ctx.store.list("scores")
        redone = prepare(ctx, [again])
        assert pages.asked.total() == asked  # nothing was fetched again
        assert ctx.store.list("scores") == scored  # nor measured
        assert redone.manifest.identity != dataset.manifest.identity
        assert _rows(redone) == {url: row for url, row in rows.items() if url != gone}
        revised = ctx.store.by_digest("dataset", dataset.digest)  # stays, without it, for what was trained on it
        assert _rows(revised) == _rows(redone) and len(ctx.store.list("dataset")) == 2
        ledger = pq.read_table(again.path("ledger.parquet")).to_pylist()
        assert [row["row"] for row in ledger if row["reason"] == "taken_down"] == [4]

        other = collect(ctx, listed(29, *range(20, 29), 4), (pages.host,))
        assert other.manifest.dropped == {"taken_down": 2}
        assert pages.asked["/29.jpg"] == 1 and pages.asked["/4.jpg"] == 1  # its address is not even asked for
        both = prepare(ctx, [again, other])
        shas = {row["sha256"] for row in _rows(both).values()}
        assert rows[gone]["sha256"] not in shas and len(shas) == 28
        assert forget(ctx, [rule("url", gone)]).artifacts == []  # there is nothing left to do


def _rows(dataset: Artifact) -> dict[str, dict[str, Any]]:
    """The dataset's rows by address, without what the tokenizer made of them: it learned from other captions."""
    parts = [row for path in dataset.paths("data/") for row in pq.read_table(path).to_pylist()]
    return {row["url"]: {k: v for k, v in row.items() if k != "tokens"} for row in parts}


def test_a_damaged_list_stops_everything(tmp_path: Path) -> None:
    ctx = made.context(tmp_path)
    made.full(ctx)
    write_bytes(f"{ctx.store.url}/takedown/blocklist.json", b"{")
    with pytest.raises(ArtifactError, match="takedown list"):
        forget(ctx, [rule("url", made.GONE)])
