"""The collect stage on real Ray: every row's fate, retries, takedowns, kills, full disks, two at once."""

from __future__ import annotations

import contextlib
import hashlib
import io
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from components.contracts.errors import DataError, RecipeError, RuntimeUnavailable, StoreFullError
from components.contracts.recipe import Collect, Recipe
from components.contracts.records import FETCHES_SCHEMA, LEDGER_SCHEMA
from components.data.collecting import collect
from components.data.shard_tasks import _fetch_piece
from components.data.shards import read_tar
from components.data.takedown import Blocklist, rule
from components.data.wanted import Wanted
from components.runtime.stage import Context
from components.runtime.storage import Artifact
from tests.components.data.pages import NEVER, Answer, Pages, jpeg, served
from tests.ports import unused_port

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("local_ray")]
ROOT = Path(__file__).parents[3]
JPEGS = [jpeg(n) for n in range(40)]


def context(home: Path, run: dict[str, Any] | None = None, **limits: Any) -> Context:
    fast = {"timeout_s": 2.0, "max_attempts": 1, "shard_size": 10, "per_host": 64, "image_size": 64}
    small = {"root": str(home), "object_store_mb": 200, "collect_tasks": 2, "collect_threads": 8}
    return Context.of(Recipe.model_validate({"name": "t", "collect": fast | limits, "run": small | (run or {})}))


def listed(pages: Pages, number: int = 40) -> pa.Table:
    return pa.table({"url": [pages.url(f"/{n}.jpg") for n in range(number)],
                     "caption": [f"picture {n}" for n in range(number)]})  # fmt: skip


def number(path: str) -> int:
    return int(path[1:-4])


def plain(path: str, _times: int) -> Answer | None:
    return JPEGS[number(path) % len(JPEGS)] if path.endswith(".jpg") else None


def ledger_of(collection: Artifact) -> list[dict[str, Any]]:
    return pq.read_table(collection.path("ledger.parquet"), schema=LEDGER_SCHEMA).to_pylist()


def samples_of(collection: Artifact) -> dict[str, bytes]:
    tars = [path for path in collection.paths("shards/") if path.suffix == ".tar"]
    return {sample.key: sample.picture for path in tars for sample in read_tar(path)}


@pytest.fixture
def pages() -> Iterator[Pages]:
    with served(plain) as running:
        yield running


def test_every_row_has_its_line_in_the_ledger_and_its_fetch_beside_it(pages: Pages, tmp_path: Path) -> None:
    def answer(path: str, times: int) -> Answer | None:
        row = number(path) if path.endswith(".jpg") else -1
        special: dict[int, Answer | None] = {3: None, 7: b"<html>no picture</html>", 12: (500, b""), 25: NEVER}
        return special[row] if row in special else plain(path, times)

    pages.answer = answer
    table = listed(pages).append_column("extra", pa.array(range(40)))  # a list may have more than it needs
    table = pa.concat_tables([table, table.slice(0, 1).set_column(0, "url", pa.array(["file:///etc/passwd"])),
                              table.slice(0, 1).set_column(0, "url", pa.array([None], pa.string()))])  # fmt: skip
    collection = collect(context(tmp_path), table, (pages.host,))
    rows = ledger_of(collection)
    reasons = {r["row"]: r["reason"] for r in rows if r["status"] == "failed"}
    assert reasons == {3: "http_404", 7: "not_an_image", 12: "http_error", 25: "timeout", 40: "refused_scheme",
                       41: "refused_scheme"}  # fmt: skip
    assert [r["row"] for r in rows] == list(range(42))
    assert collection.manifest.counts == {"urls": 42, "success": 36, "failed": 6}
    assert collection.manifest.dropped == Counter(reasons.values())
    assert {r["quality"] for r in rows if r["status"] == "success"} == {90}
    samples = samples_of(collection)
    assert sorted(samples) == [r["key"] for r in rows if r["key"]]
    with tarfile.open(collection.path("shards/00001.tar")) as tar:
        meta = tar.extractfile("000000011.json")
        assert meta is not None and b'"quality": 90' in meta.read()
    fetches = pq.read_table(collection.path("circumstance/fetches.parquet"))
    assert fetches.schema.equals(FETCHES_SCHEMA)
    noted = fetches.to_pylist()
    assert [f["row"] for f in noted] == list(range(42))
    for fetch, row in zip(noted, rows, strict=True):
        if row["status"] == "success":
            assert (
                fetch["asked_at"] is not None and fetch["address"] == "127.0.0.1" and fetch["final_url"] == row["url"]
            )
        assert row["reason"] != "refused_scheme" or (fetch["address"], fetch["robots"]) == (None, "not asked")
    assert set(collection.manifest.files) == {
        "ledger.parquet", "circumstance/fetches.parquet",
        *(f"shards/{n:05d}.{ending}" for n in range(5) for ending in ("tar", "parquet")),
    }  # fmt: skip


def test_the_order_and_the_number_of_tasks_change_no_byte(pages: Pages, tmp_path: Path) -> None:
    one = collect(context(tmp_path / "a"), listed(pages), (pages.host,))
    alone = {"collect_tasks": 1, "collect_threads": 1, "cpus": 1}
    other = collect(context(tmp_path / "b", alone, per_host=1), listed(pages), (pages.host,))
    assert one.digest == other.digest and one.manifest.identity == other.manifest.identity
    before = pages.asked.total()
    assert collect(context(tmp_path / "a"), listed(pages), (pages.host,)) == one
    assert pages.asked.total() == before


def test_originals_are_kept_as_they_came(pages: Pages, tmp_path: Path) -> None:
    collection = collect(context(tmp_path, encode="original"), listed(pages, 12), (pages.host,))
    assert list(samples_of(collection).values()) == JPEGS[:12]


def test_without_a_contact_nobody_but_allowed_hosts_is_asked(pages: Pages, tmp_path: Path) -> None:
    urls = pa.table({"url": [pages.url("/1.jpg"), "http://example.org/1.jpg"], "caption": ["a", "b"]})
    with pytest.raises(RecipeError, match=r"collect\.contact"):
        collect(context(tmp_path), urls, (pages.host,))
    assert not pages.asked
    assert collect(context(tmp_path), urls.slice(0, 1), (pages.host,)).manifest.counts["success"] == 1


# -- retry


class Troubled:
    """A site with troubles that pass: ``troubles`` by row until ``better``."""

    def __init__(self, **troubles: Answer | None) -> None:
        self.troubles = {int(row[1:]): answer for row, answer in troubles.items()}
        self.better = False

    def __call__(self, path: str, times: int) -> Answer | None:
        row = number(path) if path.endswith(".jpg") else -1
        return self.troubles[row] if row in self.troubles and not self.better else plain(path, times)


def test_a_retry_asks_for_transient_failures_only_and_keeps_all_else(pages: Pages, tmp_path: Path) -> None:
    site = pages.answer = Troubled(r3=(503, b""), r4=None, r5=(403, b""), r21=NEVER, r22=(429, b""))
    ctx, urls = context(tmp_path), listed(pages)
    first = collect(ctx, urls, (pages.host,))
    before = {path.name: path.read_bytes() for path in first.paths("shards/")}
    rows = ledger_of(first)
    assert first.manifest.counts["failed"] == 5

    pages.asked.clear()
    assert collect(ctx, urls, (pages.host,), retry=True) == first  # all as bad as it was
    assert {p for p in pages.asked if p.endswith(".jpg")} == {"/3.jpg", "/21.jpg", "/22.jpg"}
    assert ctx.store.list("collection") == [first]

    site.better = True
    pages.asked.clear()
    second = collect(ctx, urls, (pages.host,), retry=True)
    assert {p for p in pages.asked if p.endswith(".jpg")} == {"/3.jpg", "/21.jpg", "/22.jpg"}
    assert second.manifest.identity == first.manifest.identity and second.digest != first.digest
    assert second.manifest.earlier == (first.digest,)
    assert second.manifest.counts == {"urls": 40, "success": 38, "failed": 2}
    assert second.manifest.dropped == {"http_404": 1, "http_error": 1}
    assert second.manifest.revisions[0]["came"] == 3
    second.verify()
    now = ledger_of(second)
    assert [r["row"] for r in now if r != rows[r["row"]]] == [3, 21, 22]
    assert {row: samples_of(second)[f"{row:09d}"] for row in (3, 21, 22)}.keys() == {3, 21, 22}
    after = {path.name: path.read_bytes() for path in second.paths("shards/")}
    assert {n for n in before if before[n] != after[n]} == {f"0000{n}.{e}" for n in (0, 2) for e in ("tar", "parquet")}
    fetches = pq.read_table(second.path("circumstance/fetches.parquet")).to_pylist()
    assert [f["row"] for f in fetches] == list(range(40))
    assert fetches[3]["asked_at"] > fetches[39]["asked_at"]

    pages.asked.clear()
    assert collect(ctx, urls, (pages.host,), retry=True) == second
    assert collect(ctx, urls, (pages.host,)) == second
    assert not pages.asked
    assert not list((ctx.home / "store").glob("_retry/*"))


def test_after_a_retry_it_is_as_if_nothing_had_failed(pages: Pages, tmp_path: Path) -> None:
    site = pages.answer = Troubled(r0=(503, b""), r39=(500, b""))
    ctx, urls = context(tmp_path / "a"), listed(pages)
    collect(ctx, urls, (pages.host,))
    site.better = True
    healed = collect(ctx, urls, (pages.host,), retry=True)
    assert healed.digest == collect(context(tmp_path / "b"), urls, (pages.host,)).digest


def test_a_closed_robots_txt_is_asked_again(pages: Pages, tmp_path: Path) -> None:
    closed = True

    def answer(path: str, times: int) -> Answer | None:
        if path == "/robots.txt":
            return (503, b"") if closed else None
        return plain(path, times)

    pages.answer = answer
    with served(plain) as open_pages:
        urls = pa.concat_tables([listed(pages, 3), listed(open_pages, 3)])
        ctx = context(tmp_path)
        first = collect(ctx, urls, (pages.host, open_pages.host))
        assert first.manifest.dropped == {"robots_disallowed": 3}
        closed = False
        assert collect(ctx, urls, (pages.host, open_pages.host), retry=True).manifest.dropped == {}


def test_a_retry_of_what_was_never_collected_collects_it(pages: Pages, tmp_path: Path) -> None:
    assert collect(context(tmp_path), listed(pages, 5), (pages.host,), retry=True).manifest.counts["success"] == 5


# -- takedown


def test_what_was_taken_down_is_not_asked_for_and_not_kept(pages: Pages, tmp_path: Path) -> None:
    ctx = context(tmp_path)
    picture = hashlib.sha256(JPEGS[5]).hexdigest()
    Blocklist.add(ctx.store.url, {rule("url", pages.url("/2.jpg")): (), rule("sha256", picture): ()})
    collection = collect(ctx, listed(pages, 10), (pages.host,))
    gone = {r["row"]: r for r in ledger_of(collection) if r["reason"] == "taken_down"}
    assert sorted(gone) == [2, 5] and collection.manifest.dropped == {"taken_down": 2}
    for row in gone.values():
        assert row["url"] is None and row["caption"] is None and row["sha256"] is None
    assert not pages.asked["/2.jpg"] and pages.asked["/5.jpg"] == 1
    assert len(samples_of(collection)) == 8
    text = b"".join(path.read_bytes() for path in collection.local().rglob("*") if path.is_file())
    assert picture.encode() not in text and JPEGS[5] not in text
    assert collection.manifest.evidence["takedown"]["rules"] == 2


def test_a_shard_from_before_a_takedown_is_not_taken_over(pages: Pages, tmp_path: Path) -> None:
    ctx = context(tmp_path, {"collect_tasks": 1})
    config = Wanted(listed(pages), (pages.host,), None).config(ctx.recipe.collect)
    in_the_way = ctx.store.draft("collection", {}, config).dir / "shards" / "00003.parquet" / "x"
    in_the_way.mkdir(parents=True)
    with pytest.raises(Exception, match=r"00003\.parquet"):
        collect(ctx, listed(pages), (pages.host,))
    done = {p.stem for p in in_the_way.parents[1].glob("*.parquet") if p.is_file()}
    assert {"00000", "00001"} <= done
    shutil.rmtree(in_the_way.parent)
    Blocklist.add(ctx.store.url, {rule("url", pages.url("/4.jpg")): ()})
    pages.asked.clear()
    collection = collect(ctx, listed(pages), (pages.host,))
    assert collection.manifest.dropped == {"taken_down": 1}
    assert not pages.asked["/4.jpg"] and pages.asked["/5.jpg"] == 1 and not pages.asked["/15.jpg"]


def test_subsampling_counts_where_it_is_not_what_it_always_was() -> None:
    wanted = Wanted(pa.table({"url": ["http://a.example/1.jpg"], "caption": ["x"]}), (), None)
    usual, other = (wanted.config(Collect(jpeg_subsampling=form)) for form in ("4:4:4", "4:2:0"))
    assert "jpeg_subsampling" not in usual and other == {**usual, "jpeg_subsampling": "4:2:0"}


# -- many, slow, killed, full, two at once


def test_ten_thousand_urls_on_one_host(pages: Pages, tmp_path: Path) -> None:
    many = 10_000
    ctx = context(tmp_path, {"collect_threads": 16}, shard_size=2500, encode="original", timeout_s=10)
    collection = collect(ctx, listed(pages, many), (pages.host,))
    assert collection.manifest.counts == {"urls": many, "success": many, "failed": 0}
    assert max(count for path, count in pages.asked.items() if path.endswith(".jpg")) == 1
    assert pages.asked["/robots.txt"] <= 2, "once a worker"
    assert pages.connections <= 2 * 16, "connections are kept and used again"


def test_a_slow_host_does_not_hold_the_others(pages: Pages, tmp_path: Path) -> None:
    """Forty rows of a host that never ends an answer come first in the list: one thread after the other would be
    stuck there if rows went out in the list's order."""
    done: dict[str, float] = {}

    def fast(path: str, times: int) -> Answer | None:
        done["last"] = time.monotonic()
        return plain(path, times)

    def stuck(path: str, _times: int) -> Answer | None:
        done.setdefault("first", time.monotonic())
        return NEVER if path.endswith(".jpg") else None

    pages.answer = fast
    with served(stuck) as slow:
        urls = pa.concat_tables([listed(slow, 40), listed(pages, 40)])
        ctx = context(tmp_path, {"collect_tasks": 1}, shard_size=80)
        collection = collect(ctx, urls, (pages.host, slow.host))
    assert collection.manifest.dropped == {"timeout": 40}
    assert done["last"] - done["first"] < 1.9, "before the first of the slow host's answers was given up"


def workers_connected_to(port: int) -> list[psutil.Process]:
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if any(c.raddr and c.raddr.port == port for c in process.net_connections("tcp")):
                found.append(process)
    return found


def test_a_worker_killed_in_the_middle_of_a_shard_changes_nothing(pages: Pages, tmp_path: Path) -> None:
    calm = collect(context(tmp_path / "calm"), listed(pages), (pages.host,))
    reached = threading.Event()

    def answer(path: str, times: int) -> Answer | None:
        if path == "/17.jpg" and times == 1:
            reached.set()
            return NEVER
        return plain(path, times)

    killed: list[int] = []

    def kill() -> None:
        assert reached.wait(60)
        for worker in workers_connected_to(pages.port):
            worker.send_signal(signal.SIGKILL)
            assert worker.wait(10) in (-signal.SIGKILL, None)
            killed.append(worker.pid)

    pages.answer = answer
    pages.asked.clear()
    killer = threading.Thread(target=kill)
    killer.start()
    collection = collect(context(tmp_path / "killed", timeout_s=30.0), listed(pages), (pages.host,))
    killer.join(60)
    assert killed and not any(psutil.pid_exists(pid) for pid in killed)
    assert pages.asked["/17.jpg"] == 2, "the shard was fetched again"
    assert ledger_of(collection) == ledger_of(calm)
    assert collection.digest == calm.digest


def test_what_a_worker_writes_after_its_run_was_killed_does_not_count(pages: Pages, tmp_path: Path) -> None:
    """A site that ends with the run refuses the connections of a worker that outlives both for a moment."""
    import ray

    calm = collect(context(tmp_path / "calm"), listed(pages), (pages.host,))
    ctx = context(tmp_path / "orphan")
    folder = f"{ctx.store.url}/collection/{calm.manifest.identity[:16]}"
    gone, size = unused_port(), ctx.recipe.collect.shard_size
    urls = [f"http://127.0.0.1:{gone}/{n}.jpg" for n in range(size)]
    piece = {
        "name": "00000", "rows": list(range(size)), "urls": urls, "captions": [""] * size, "threads": 4, "tasks": 1,
        "allow_hosts": [f"127.0.0.1:{gone}"], "limits": ctx.recipe.collect.model_dump_json(), "files": None,
        "folder": folder, "store": ctx.store.url, "reports": str(tmp_path), "run": "killed",
    }  # fmt: skip
    current = Path(folder) / "circumstance/fetches/run"
    current.parent.mkdir(parents=True)
    current.write_text("later")
    with pytest.raises(RuntimeUnavailable, match="run later took over"):
        ray.get(ray.remote(_fetch_piece).options(num_cpus=0.1).remote(piece))
    assert not list(Path(folder).glob("shards/*")), "a run that came after it is not disturbed"
    current.write_text("killed")
    assert ray.get(ray.remote(_fetch_piece).options(num_cpus=0.1).remote(piece))["rows"] == size
    assert list(Path(folder).glob("shards/00000.tar")), "the worker did write"
    collection = collect(ctx, listed(pages), (pages.host,))
    assert collection.url == folder
    assert collection.digest == calm.digest
    assert not list(Path(folder).glob("**/*.ledger"))


def test_a_full_disk_is_said_and_the_same_command_goes_on(pages: Pages, tmp_path: Path) -> None:
    room = tmp_path / "room"
    room.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=100k", "none", room], capture_output=True).returncode:
        pytest.skip("mounting a small file system is not permitted here")
    try:
        ctx = context(tmp_path / "home", {"store": str(room / "store")}, encode="original")
        with pytest.raises(StoreFullError, match=r"No room is left.*Remedy"):
            collect(ctx, listed(pages), (pages.host,))
        assert ctx.store.list("collection") == []
        assert not list(room.rglob(".tmp-*"))
        shards = {p.stem for p in room.rglob("shards/*.parquet")}
        subprocess.run(["mount", "-o", "remount,size=16m", room], check=True)
        pages.asked.clear()
        collection = collect(ctx, listed(pages), (pages.host,))
        assert not any(
            pages.asked[f"/{row}.jpg"] for name in shards for row in range(int(name) * 10, int(name) * 10 + 10)
        )
        collection.verify()
        assert collection.manifest.counts["success"] == 40
    finally:
        subprocess.run(["umount", room], check=True)


def test_two_collects_on_one_store(pages: Pages, tmp_path: Path) -> None:
    """The same list twice at once: one does it. Another list at the same time: both are done."""
    reached, go_on = threading.Event(), threading.Event()

    def answer(path: str, times: int) -> Answer | None:
        if path == "/11.jpg" and not go_on.is_set():
            reached.set()
            return NEVER
        return plain(path, times)

    pages.answer = answer
    apart = {"store": str(tmp_path / "store"), "collect_tasks": 1}  # each leaves a core to the other
    results: dict[str, Artifact] = {}
    first = context(tmp_path / "first", apart, max_attempts=30)
    thread = threading.Thread(target=lambda: results.update(first=collect(first, listed(pages), (pages.host,))))
    thread.start()
    try:
        assert reached.wait(60)
        second = context(tmp_path / "second", apart, max_attempts=30)
        with pytest.raises(RuntimeUnavailable, match="Another process"):
            collect(second, listed(pages), (pages.host,))
        other = collect(second, listed(pages, 10), (pages.host,))
        assert other.manifest.counts["success"] == 10
    finally:
        go_on.set()
        thread.join(120)
    assert results["first"].manifest.counts["success"] == 40
    assert collect(second, listed(pages), (pages.host,)) == results["first"]
    for artifact in first.store.list("collection"):
        artifact.verify()


RETRY = """
import sys
import pyarrow.parquet as pq
from pathlib import Path
from components.contracts.recipe import Recipe
from components.data.collecting import collect
from components.runtime.stage import Context

with Context.of(Recipe.model_validate_json(Path(sys.argv[1]).read_text())) as ctx:
    collect(ctx, pq.read_table(sys.argv[2]), (sys.argv[3],), retry=True)
"""


def test_a_retry_killed_in_the_middle_loses_nothing(pages: Pages, tmp_path: Path) -> None:
    import ray

    pages.answer = Troubled(r3=(503, b""), r33=(503, b""))
    address = {"ray_address": ray.get_runtime_context().gcs_address}
    ctx, urls = context(tmp_path, {"collect_tasks": 1, **address}, timeout_s=60.0), listed(pages)
    first = collect(ctx, urls, (pages.host,))
    reached = threading.Event()

    def answer(path: str, times: int) -> Answer | None:
        if path == "/33.jpg" and not reached.is_set():
            reached.set()
            return NEVER
        return plain(path, times)

    pages.answer = answer
    (tmp_path / "recipe.json").write_text(ctx.recipe.model_dump_json())
    pq.write_table(urls, tmp_path / "urls.parquet")
    arguments = [sys.executable, "-c", RETRY, str(tmp_path / "recipe.json"), str(tmp_path / "urls.parquet"), pages.host]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(arguments, cwd=ROOT, stderr=log, stdout=log)
    assert reached.wait(60), (tmp_path / "log").read_text()
    deadline = time.monotonic() + 300
    while not list(tmp_path.glob("**/_retry/**/shards/00000.parquet")):
        assert time.monotonic() < deadline, "the first shard was never accepted"
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait(30) == -signal.SIGKILL
    assert ctx.store.list("collection") == [first]
    first.verify()
    pages.answer = plain
    pages.asked.clear()
    second = collect(ctx, urls, (pages.host,), retry=True)
    assert not pages.asked["/3.jpg"], "what had come was asked for again"
    assert second.manifest.counts["success"] == 40
    second.verify()


# -- files


def test_files_are_collected_like_urls(tmp_path: Path) -> None:
    from components.data.folders import read_folder

    folder = tmp_path / "pictures"
    (folder / "sub").mkdir(parents=True)
    for n in range(12):
        (folder / ("sub" if n % 2 else "") / f"{n}.jpg").write_bytes(JPEGS[n])
        (folder / ("sub" if n % 2 else "") / f"{n}.txt").write_text(f"picture {n}")
    (folder / "broken.jpg").write_bytes(JPEGS[0][:500])
    (folder / "broken.txt").write_text("broken")
    with tarfile.open(folder / "set.tar", "w") as tar:
        for name, data in (("a.jpg", JPEGS[20]), ("a.txt", b"in a tar")):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    ctx = context(tmp_path / "home")
    collection = collect(ctx, read_folder(str(folder), "caption"), files=str(folder))
    assert collection.manifest.counts == {"urls": 14, "success": 13, "failed": 1}
    assert collection.manifest.dropped == {"truncated": 1}
    captions = {r["caption"] for r in ledger_of(collection) if r["status"] == "success"}
    assert captions == {f"picture {n}" for n in range(12)} | {"in a tar"}
    assert collect(ctx, read_folder(str(folder), "caption"), files=str(folder)) == collection
    empty = pa.table({"url": ["file:///nowhere.jpg"], "caption": ["x"]})
    with pytest.raises(DataError, match="check the pictures below"):
        collect(ctx, empty, files=str(folder))
