"""Collect and prepare on real Ray, against the truth of the embedded world's website."""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from components.contracts.errors import DataError, StoreFullError
from components.contracts.recipe import Recipe
from components.contracts.records import DROPPED_SCHEMA, LEDGER_SCHEMA, SAMPLE_SCHEMA
from components.data.collecting import collect
from components.data.inspecting import funnel, inspect_dataset
from components.data.lists import read_list
from components.data.preparing import prepare, split_of
from components.data.shards import read_tar
from components.data.site import Site
from components.data.site_world import NO_FAULTS, WorldSite, build_world_site
from components.data.wording import clean_caption
from components.data.world import WorldSpec
from components.runtime.cluster import ray_session
from components.runtime.pieces import run_pieces
from components.runtime.stage import Context
from components.runtime.storage import Artifact, Outcome, Store

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[3]
PICTURES = 400


def context(home: Path, prepare: dict[str, Any] | None = None, **run: Any) -> Context:
    return Context.of(
        Recipe.model_validate(
            {
                "name": "data",
                "collect": {"timeout_s": 2.0, "max_attempts": 3, "shard_size": 64},
                "prepare": {"min_rows": 50, **(prepare or {})},
                "run": {"root": str(home), "object_store_mb": 200, "collect_tasks": 4, "collect_threads": 16, **run},
            }
        )
    )


def urls_of(rows: list[dict[str, Any]]) -> pa.Table:
    return pa.table({"url": [r["url"] for r in rows], "caption": [r["caption"] for r in rows]})


@pytest.fixture(scope="module", autouse=True)
def ray() -> Iterator[None]:
    with ray_session(Recipe(name="data", run={"object_store_mb": 200}).run):
        yield


@pytest.fixture(scope="module")
def world() -> WorldSite:
    return build_world_site(WorldSpec(), PICTURES, drip_seconds=8.0)


@pytest.fixture(scope="module")
def site(world: WorldSite) -> Iterator[Site]:
    with Site(world) as running:
        yield running


def collected(site: Site, world: WorldSite, ctx: Context) -> Artifact:
    site.reset()
    return collect(ctx, urls_of(world.list_rows(site.base_url)), (f"127.0.0.1:{site.port}",))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def collection(site: Site, world: WorldSite, home: Path) -> Artifact:
    return collected(site, world, context(home))


@pytest.fixture(scope="module")
def dataset(collection: Artifact, home: Path) -> Artifact:
    return prepare(context(home), [collection])


def test_the_ledger_is_the_truth_row_by_row(collection: Artifact, world: WorldSite, site: Site) -> None:
    ledger = pq.read_table(collection.path("ledger.parquet"))
    truth = world.truth(site.base_url)
    assert ledger.schema.equals(LEDGER_SCHEMA)
    assert ledger["row"].to_pylist() == list(range(len(truth)))
    rows = ledger.to_pylist()
    expected = [(t["url"], t["caption"], t["reason"] if t["outcome"] == "collect_failed" else None) for t in truth]
    assert [(r["url"], r["caption"], r["reason"]) for r in rows] == expected
    assert collection.manifest.dropped == Counter(reason for *_, reason in expected if reason)
    success = sum(reason is None for *_, reason in expected)
    assert collection.manifest.counts == {"urls": len(truth), "success": success, "failed": len(truth) - success}
    for row, known in zip(rows, truth, strict=True):
        if row["status"] == "success":
            assert row["sha256"] and row["bytes"] > 0 and row["shard"] and row["key"] and row["width"] > 0
            assert row["attempts"] == (len(world.pages[_path(row)].fail_first) + 1 if known["kind"] == "flaky" else 1)
        else:
            assert row["detail"] and not row["sha256"] and not row["shard"]
        assert (row["opt_out"] is not None) == (row["reason"] in ("opt_out", "robots_disallowed")), row


def _path(row: dict[str, Any]) -> str:
    return "/" + row["url"].split("/", 3)[3]


def test_shards_hold_what_the_ledger_says(collection: Artifact) -> None:
    ledger = {r["key"]: r for r in pq.read_table(collection.path("ledger.parquet")).to_pylist() if r["key"]}
    samples = [s for path in collection.paths("shards/") if path.suffix == ".tar" for s in read_tar(path.read_bytes())]
    assert [s.key for s in samples] == sorted(ledger)
    for sample in samples:
        row = ledger[sample.key]
        assert (sample.meta["url"], sample.meta["caption"]) == (row["url"], row["caption"])
        assert (sample.meta["sha256"], sample.meta["row"]) == (row["sha256"], row["row"])


def test_the_number_of_workers_changes_no_byte(
    collection: Artifact, dataset: Artifact, site: Site, world: WorldSite, tmp_path: Path
) -> None:
    alone = context(tmp_path, collect_tasks=1, collect_threads=24, cpus=1)
    again = collected(site, world, alone)
    assert again.digest == collection.digest
    assert prepare(alone, [again]).digest == dataset.digest
    site.reset()
    assert collected(site, world, alone).digest == collection.digest  # already there
    assert not site.requests()


def survivors(collection: Artifact, truth: list[dict[str, Any]]) -> dict[str, str]:
    """By URL of every original and copy: the URL that must stay. Resolution, then quality, then the smallest id."""
    ledger = {row["url"]: row for row in pq.read_table(collection.path("ledger.parquet")).to_pylist()}
    groups: dict[str, list[str]] = {}
    for known in truth:
        if known["outcome"] == "kept" or (known["reason"] or "").startswith("duplicate"):
            groups.setdefault(known["original_url"] or known["url"], []).append(known["url"])

    def rank(url: str) -> tuple[int, int, str]:
        row = ledger[url]
        name = hashlib.sha256(f"{row['sha256']}{clean_caption(row['caption'])}".encode()).hexdigest()
        return -row["width"] * row["height"], -row["quality"], name

    return {url: min(urls, key=rank) for urls in groups.values() for url in urls}


def test_the_dataset_is_the_truth(dataset: Artifact, collection: Artifact, world: WorldSite, site: Site) -> None:
    truth = world.truth(site.base_url)
    rows = pq.read_table(dataset.path("data/part-00000.parquet"))
    dropped = pq.read_table(dataset.path("dropped.parquet"))
    assert rows.schema.equals(SAMPLE_SCHEMA) and dropped.schema.equals(DROPPED_SCHEMA)
    stays = survivors(collection, truth)
    assert rows["url"].to_pylist() == [t["url"] for t in truth if stays.get(t["url"]) == t["url"]]
    # of an original and its copy one goes, for the reason that is known of the copy
    reasons = {t["original_url"]: t["reason"] for t in truth if t["original_url"]}
    reasons |= {t["url"]: t["reason"] for t in truth if t["outcome"] == "prepare_dropped"}
    gone = [t["url"] for t in truth if t["outcome"] in ("kept", "prepare_dropped") and stays.get(t["url"]) != t["url"]]
    expected = Counter((url, reasons[url]) for url in gone)
    assert Counter(zip(dropped["url"].to_pylist(), dropped["reason"].to_pylist(), strict=True)) == expected
    assert dataset.manifest.dropped == Counter(t["reason"] for t in truth if t["outcome"] == "prepare_dropped")
    assert dataset.manifest.counts["rows"] == rows.num_rows == PICTURES
    for row in dropped.to_pylist():
        if row["reason"].startswith("duplicate"):
            assert row["detail"].endswith(f" {stays[row['url']]}")


def test_rows_are_well_formed(dataset: Artifact) -> None:
    rows = pq.read_table(dataset.path("data/part-00000.parquet")).to_pylist()
    assert len({r["id"] for r in rows}) == len(rows)
    for row in rows:
        assert (row["height"], row["width"], row["bucket"], row["source"]) == (32, 32, "32x32", 0)
        assert len(row["pixels"]) == 32 * 32 * 3
        assert row["split"] == split_of(row["cluster"], 0.05)
        assert row["tokens"][0] == 0 and row["tokens"][-1] == 1 and len(row["tokens"]) <= 32
    assert {r["split"] for r in rows} == {"train", "holdout"}
    files = {"tokenizer/tokenizer.json", "tokenizer/tokenizer_config.json", "validation.json", "dropped.parquet"}
    assert files <= set(dataset.manifest.files)
    assert Path(dataset.manifest.circumstance["data_docs"]).exists()


def test_pixels_show_what_the_caption_says(dataset: Artifact) -> None:
    from components.data.captions import parse
    from components.data.grader import grade

    rows = pq.read_table(dataset.path("data/part-00000.parquet")).slice(0, 100).to_pylist()
    right = 0
    for row in rows:
        scene = parse(row["caption"])
        assert scene is not None
        right += grade(np.frombuffer(row["pixels"], dtype=np.uint8).reshape(32, 32, 3), scene).correct
    assert right >= 97


def test_the_page_about_a_dataset_stands_alone(dataset: Artifact, collection: Artifact, tmp_path: Path) -> None:
    scores = Context.of(context(Path(dataset.url).parents[3]).recipe).store.list("scores")[:1]
    page = inspect_dataset(dataset, [collection], scores, tmp_path / "page.html").read_text()
    steps = funnel(dataset, [collection])
    counts = collection.manifest.counts
    assert [s.left for s in steps] == [counts["urls"], counts["success"], PICTURES]
    assert all(a.left - sum(b.lost.values()) == b.left for a, b in pairwise(steps))
    for reason in {**collection.manifest.dropped, **dataset.manifest.dropped}:
        assert reason in page
    assert page.count("data:image/png;base64,") >= 90
    assert not any(part in page for part in ("<script", "<link", 'src="http', "@import"))


def test_a_later_collection_leaves_splits_and_tokenizer_as_they_were(
    dataset: Artifact, collection: Artifact, site: Site, home: Path
) -> None:
    later = build_world_site(WorldSpec(), 60, 9, prefix="later", fault_rates=NO_FAULTS)
    site.add(later)
    repeated = pq.read_table(dataset.path("data/part-00000.parquet")).slice(0, 30).to_pylist()
    rows = [*later.list_rows(site.base_url), *({"url": r["url"], "caption": "seen before"} for r in repeated)]
    second = collect(context(home), urls_of(rows), (f"127.0.0.1:{site.port}",))
    both = prepare(context(home), [collection, second], tokenizer_from=dataset)
    before, after = (pq.read_table(d.path("data/part-00000.parquet")).to_pylist() for d in (dataset, both))
    old, new = ({r["cluster"]: r["split"] for r in rows} for rows in (before, after))
    assert old.items() <= new.items() and len(new) == len(after) == len(old) + 60
    again = {r["cluster"] for r in repeated}  # of equal copies the smaller id stays, old or new
    assert all(r in after for r in before if r["cluster"] not in again)
    assert both.manifest.dropped["duplicate_exact"] == dataset.manifest.dropped["duplicate_exact"] + 30
    for row in after:
        assert (row["caption"] == "seen before") == (row["cluster"] in again and row["source"] == 1)
    for name in ("tokenizer/tokenizer.json", "tokenizer/tokenizer_config.json"):
        assert both.path(name).read_bytes() == dataset.path(name).read_bytes()


def test_the_gate_stops_with_a_readable_message_and_leaves_its_pages(collection: Artifact, tmp_path: Path) -> None:
    strict = context(tmp_path, prepare={"min_rows": 100_000, "max_dropped": 0.01})
    with pytest.raises(DataError) as error:
        prepare(strict, [collection])
    text = str(error.value)
    assert (
        "2 of " in text
        and " expectations: " in text
        and "train" in text
        and "dropped_share" in text
        and "\n" not in text
    )
    assert list((strict.home / "data_docs").rglob("index.html"))
    assert strict.store.list("dataset") == []
    collection.verify()
    for rules, word in (({"min_side": 500}, "too_small"), ({"max_caption_chars": 1}, "caption_too_long")):
        with pytest.raises(DataError, match=f"No sample is left.*{word}"):
            prepare(context(tmp_path, prepare=rules), [collection])


def test_an_empty_collection_is_refused(tmp_path: Path) -> None:
    counts = {"urls": 3, "success": 0, "failed": 3}
    empty = Store(str(tmp_path)).draft("collection", {}, {}).commit(Outcome(counts=counts))
    with pytest.raises(DataError, match="holds no pictures"):
        prepare(context(tmp_path), [empty])
    with pytest.raises(DataError, match="No collection"):
        prepare(context(tmp_path), [])


def test_a_collect_that_got_nothing_says_why_and_asks_again_next_time(
    site: Site, world: WorldSite, tmp_path: Path
) -> None:
    rows = urls_of([r for r in world.truth(site.base_url) if r["outcome"] == "kept"][:5])
    with pytest.raises(DataError, match=r"all 5 URLs failed .5 refused_address.*allow_hosts"):
        collect(context(tmp_path), rows)
    with site_down(tmp_path) as (table, allowed, up):
        with pytest.raises(DataError, match="5 connection"):
            collect(context(tmp_path), table, allowed)
        up()
        assert collect(context(tmp_path), table, allowed).manifest.counts["success"] == 5


@contextlib.contextmanager
def site_down(folder: Path) -> Iterator[tuple[pa.Table, tuple[str, ...], Callable[[], None]]]:
    """A list for a website that is not up yet."""
    pages = build_world_site(WorldSpec(), 5, 3, prefix="down", fault_rates=NO_FAULTS)
    with Site(pages) as first:
        port, rows = first.port, pages.list_rows(first.base_url)
    with contextlib.ExitStack() as stack:
        yield urls_of(rows), (f"127.0.0.1:{port}",), lambda: stack.enter_context(Site(pages, port=port)) and None


def test_an_error_in_a_worker_reaches_the_user_as_itself(tmp_path: Path) -> None:
    def work(piece: dict[str, Any]) -> dict[str, Any]:
        raise StoreFullError(f"No room is left to write shard {piece['n']}", remedy="free some space")

    with pytest.raises(StoreFullError, match=r"No room is left to write shard 7\. Remedy: free some space"):
        list(run_pieces([{"n": 7}], work, context(tmp_path).recipe.run, 2))


COMMAND = """
import sys
from pathlib import Path
from components.data.collecting import collect
from components.data.lists import read_list
from components.data.preparing import prepare
from components.contracts.recipe import Recipe
from components.runtime.cluster import ray_session
from components.runtime.stage import Context

ctx = Context.of(Recipe.model_validate_json(Path(sys.argv[1]).read_text()))
with ray_session(ctx.recipe.run):
    collection = collect(ctx, read_list(sys.argv[2]), (sys.argv[3],))
    if sys.argv[4] == "both":
        print(collection.digest, prepare(ctx, [collection]).digest)
"""


class Command:
    """The two stages in a process of their own, with a Ray of its own."""

    def __init__(self, arguments: list[str], log: Path) -> None:
        self.mark = f"ATELIER_TEST={uuid.uuid4()}"
        name, _, value = self.mark.partition("=")
        env = {**os.environ, name: value}
        env.pop("RAY_ADDRESS", None)
        self.process = subprocess.Popen(
            [sys.executable, "-c", COMMAND, *arguments],
            cwd=ROOT,
            env=env,
            stdout=subprocess.PIPE,
            stderr=log.open("ab"),
            text=True,
        )

    def kill_when(self, reached: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 600
        while not reached():
            assert self.process.poll() is None, "the command ended before it could be killed"
            assert time.monotonic() < deadline, "the command did not come as far as that"
            time.sleep(0.005)
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        while left := self._left():  # its Ray: dies by itself, in its own time; the website must not hear of it again
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.02)

    def _left(self) -> list[int]:
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if self.mark.encode() in (folder / "environ").read_bytes():
                    found.append(int(folder.name))
        return found


@pytest.mark.slow
def test_killed_in_the_middle_of_either_stage_the_same_command_finishes_the_work(
    collection: Artifact, dataset: Artifact, site: Site, world: WorldSite, tmp_path: Path
) -> None:
    ctx = context(tmp_path)
    (tmp_path / "recipe.json").write_text(ctx.recipe.model_dump_json())
    rows = world.write_list(tmp_path / "urls.parquet", site.base_url)
    assert read_list(str(rows)).num_rows == collection.manifest.counts["urls"]
    arguments = [str(tmp_path / "recipe.json"), str(rows), f"127.0.0.1:{site.port}"]
    log = tmp_path / "log.txt"
    shards = -(-collection.manifest.counts["urls"] // 64)
    store = ctx.home / "store"

    def files(pattern: str) -> list[Path]:
        return sorted(store.glob(pattern))

    site.reset()
    Command([*arguments, "both"], log).kill_when(lambda: len(files("collection/*/shards/*.parquet")) >= 2)
    done = files("collection/*/shards/*.parquet")
    assert 2 <= len(done) < shards and not files("collection/*/manifest.json")
    site.reset()
    Command([*arguments, "both"], log).kill_when(lambda: len(files("scores/*/scores/*.parquet")) >= 1)
    asked = site.requests()
    kept = {url for path in done for url in pq.read_table(path)["url"].to_pylist() if site.base_url in url}
    again = [url for url in kept if asked.get(url.removeprefix(site.base_url))]
    assert not again, "finished shards were fetched again"
    assert files("collection/*/manifest.json") and not files("scores/*/manifest.json")
    scored = {path: path.stat().st_mtime_ns for path in files("scores/*/scores/*.parquet")}
    last = Command([*arguments, "both"], log).process
    out, _ = last.communicate(timeout=900)
    assert last.returncode == 0, log.read_text()[-3000:]
    assert out.split() == [collection.digest, dataset.digest]
    assert not files("*/*/_state") and not files("**/.tmp-*")
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in scored.items()), "finished shards were scored again"
