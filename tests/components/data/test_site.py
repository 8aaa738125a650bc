"""The loopback website: what it serves is what its truth says."""

from __future__ import annotations

import http.client
import io
import json
import socket
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image, UnidentifiedImageError

from components.contracts.errors import InputError, RuntimeUnavailable
from components.contracts.recipe import Prepare
from components.contracts.records import CollectReason, DropReason
from components.data import hashing
from components.data.grader import grade
from components.data.near import near_labels
from components.data.site import Site, main
from components.data.site_copies import COPY_WITHIN, ORIGINALS_APART
from components.data.site_faults import FAULT_RATES, NO_FAULTS
from components.data.site_pages import Page, SiteRow
from components.data.site_parquet import ParquetSite
from components.data.site_world import WorldSite, build_world_site
from components.data.world import KINDS, WorldSpec, parse

ROOT = Path(__file__).resolve().parents[3]
FAULTY = {name: max(rate, 0.012) for name, rate in FAULT_RATES.items()} | {"too_many_bytes": 0.003}


@pytest.fixture(scope="module")
def world() -> WorldSite:
    return build_world_site(WorldSpec(), 400, seed=4, fault_rates=FAULTY, drip_seconds=4.0)


def named(site: WorldSite, kind: str) -> list[SiteRow]:
    rows = [row for row in site.rows if row.kind == kind]
    assert rows, f"no row of kind {kind}"
    return rows


def final(site: WorldSite, target: str) -> Page:
    """The page behind a possible redirect."""
    page = site.pages[target]
    return site.pages[dict(page.headers)["Location"]] if "Location" in dict(page.headers) else page


def kept_files(site: WorldSite) -> set[bytes]:
    return {final(site, row.target).body for row in site.rows if row.outcome == "kept"}


def picture(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data)).convert("RGB")


def get(site: Site, target: str, timeout: float = 5.0) -> tuple[int, http.client.HTTPMessage, bytes]:
    connection = http.client.HTTPConnection(site.host, site.port, timeout=timeout)
    try:
        connection.request("GET", target)
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read()
    finally:
        connection.close()


def test_equal_arguments_give_equal_bytes_and_another_seed_does_not(world: WorldSite) -> None:
    again = build_world_site(WorldSpec(), 400, seed=4, fault_rates=FAULTY, drip_seconds=4.0)
    assert again.rows == world.rows and again.pages == world.pages
    other = build_world_site(WorldSpec(), 400, seed=5, fault_rates=FAULTY, drip_seconds=4.0)
    assert not kept_files(other) & kept_files(world)


def test_the_truth_speaks_the_contracts_words_and_counts_every_fault(world: WorldSite) -> None:
    truth = world.truth("http://127.0.0.1:1")
    assert len({row["url"] for row in truth}) == len(truth) == len(world.rows)
    reasons = {
        "kept": {None},
        "collect_failed": {str(r) for r in CollectReason},
        "prepare_dropped": {str(r) for r in DropReason},
    }
    for row in truth:
        assert row["reason"] in reasons[row["outcome"]]
        assert (row["original_url"] is not None) == str(row["reason"]).startswith("duplicate")
    counts = Counter(row["reason"] for row in truth)
    assert counts[None] == 400
    for reason in FAULT_RATES.keys() - {"flaky", "slow", "redirected", "harmless_header"}:
        word = {"too_slow": "timeout", "hang_up": "connection", "redirect_loop": "too_many_redirects"}.get(
            reason, reason
        )
        assert counts[word] == max(1, round(FAULTY[reason] * 400)), reason
    place = {row["url"]: number for number, row in enumerate(truth)}
    for row in truth:
        if row["original_url"]:
            original = truth[place[row["original_url"]]]
            assert original["outcome"] == "kept" and place[row["original_url"]] < place[row["url"]]


def thumb_distances(some: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Mean absolute difference (0..255) of thumbnails, as they are or one mirrored."""
    a, b = some.astype(np.int16), others.astype(np.int16)
    return np.minimum(*(np.abs(a - side).mean(axis=(1, 2, 3)) for side in (b, b[:, :, ::-1])))


@pytest.mark.parametrize(("kinds", "size"), [(("single",), 48), (KINDS, 64)])
def test_originals_stay_apart_copies_stay_near_and_pictures_stay_readable(kinds: tuple[str, ...], size: int) -> None:
    site = build_world_site(WorldSpec(kinds=kinds), 600, seed=11, size=size)  # type: ignore[arg-type]
    rows = [row for row in site.rows if row.outcome != "collect_failed" and row.reason != "duplicate_exact"]
    pictures = [picture(final(site, row.target).body) for row in rows]
    scores = [hashing.measure(image, (32, 32)) for image in pictures]
    thumbs = np.stack([np.frombuffer(s.thumb, np.uint8).reshape(16, 16, 3) for s in scores])
    hashes = [np.array([getattr(s, name) for s in scores], dtype=np.uint64) for name in ("phash", "phash_mirror")]
    where = {row.target: i for i, row in enumerate(rows)}
    copies = [(i, where[row.original]) for i, row in enumerate(rows) if row.original]
    assert len(copies) == 48 and len({row.kind for row in rows if row.original}) == 4
    one, other = np.array(copies).T
    assert thumb_distances(thumbs[one], thumbs[other]).max() <= COPY_WITHIN
    originals = np.array([i for i, row in enumerate(rows) if row.original is None])
    for i in originals:
        others = originals[originals != i]
        assert thumb_distances(thumbs[i], thumbs[others]).min() >= ORIGINALS_APART
    clusters = near_labels(hashes[0], hashes[1], thumbs.__getitem__, bits=3, distance=Prepare().thumb_distance)
    assert {rows[i].target for i in np.flatnonzero(clusters != np.arange(len(rows)))} == {rows[i].target for i in one}
    kept = [i for i, row in enumerate(rows) if row.outcome == "kept"]
    right = [grade(pictures[i], rows[i].caption).correct for i in kept]
    assert np.mean(right) >= 0.995
    if kinds == ("single",):
        small = [np.frombuffer(scores[i].pixels, np.uint8).reshape(32, 32, 3) for i in kept]
        assert np.mean([grade(s, rows[i].caption).correct for s, i in zip(small, kept, strict=True)]) >= 0.995


def test_flaws_are_what_they_are_called(world: WorldSite) -> None:
    pages = world.pages
    for row in named(world, "exact_copy"):
        assert pages[row.target].body == final(world, str(row.original)).body
    for row in named(world, "blank"):
        assert len(picture(pages[row.target].body).getcolors() or []) == 1
    for row in named(world, "tiny"):
        assert max(picture(pages[row.target].body).size) == 8
    assert {row.caption.strip() for row in named(world, "caption_empty")} == {""}
    assert min(len(row.caption) for row in named(world, "caption_too_long")) > 600
    for row in named(world, "file_cut"):
        with pytest.raises(OSError, match="truncated"):
            picture(pages[row.target].body)
    for row in [*named(world, "html"), *named(world, "html_as_image")]:
        with pytest.raises(UnidentifiedImageError):
            picture(pages[row.target].body)
    bomb = Image.open(io.BytesIO(pages[named(world, "bomb")[0].target].body))
    assert bomb.width * bomb.height > 50_000_000


def test_a_later_edition_has_other_urls_and_only_its_feature(world: WorldSite) -> None:
    later = build_world_site(WorldSpec(), 60, seed=9, prefix="b", feature=("pink", "heart"), fault_rates=NO_FAULTS)
    assert len(later.rows) == 60 and {row.outcome for row in later.rows} == {"kept"}
    for row in later.rows:
        item = parse(row.caption).items[0]
        assert item.colour == "pink" or item.shape == "heart"
    assert not {row.target for row in later.rows} & {row.target for row in world.rows}
    part = build_world_site(WorldSpec().without("pink", "heart"), 60, seed=9, fault_rates=NO_FAULTS)
    assert not any("pink" in row.caption or "heart" in row.caption for row in part.rows)
    with Site(world, later) as site:
        assert get(site, later.rows[0].target)[0] == 200 and get(site, world.rows[-1].target)[0] in (200, 302, 404, 500)
        assert len(site.list_rows()) == len(world.rows) + 60
        with pytest.raises(InputError, match="prefix"):
            site.add(later)


def test_unusable_wishes_get_one_clear_message() -> None:
    with pytest.raises(InputError, match="no fault named lightning"):
        build_world_site(WorldSpec(), 10, fault_rates={"lightning": 1.0})
    with pytest.raises(InputError, match="shows pink"):
        build_world_site(WorldSpec().without("pink"), 10, feature=("pink",))
    one = WorldSpec(shapes=("circle",), colours=("red",), sizes=("small",), places=("centre",), backgrounds=("grey",))
    with pytest.raises(InputError, match="kept apart"):
        build_world_site(one, 200, fault_rates=NO_FAULTS)


@pytest.mark.integration
def test_the_server_does_what_the_truth_says(world: WorldSite) -> None:
    with Site(world) as site:
        plain = named(world, "plain")[0]
        status, headers, body = get(site, plain.target)
        assert status == 200 and body == world.pages[plain.target].body
        assert headers["Content-Type"] in ("image/jpeg", "image/png")

        flaky = next(row for row in named(world, "flaky") if len(world.pages[row.target].fail_first) == 2)
        assert [get(site, flaky.target)[0] for _ in range(4)] == [503, 500, 200, 200]
        assert site.requests()[flaky.target] == 4
        site.reset()
        assert get(site, flaky.target)[0] == 503

        assert {get(site, row.target)[0] for row in named(world, "gone")} <= {404, 410}
        assert {get(site, row.target)[0] for row in named(world, "broken") for _ in range(3)} <= {403, 500, 503}
        assert "html" in get(site, named(world, "html")[0].target)[1]["Content-Type"]
        for row in named(world, "opt_out"):
            assert "ai" in get(site, row.target)[1]["X-Robots-Tag"].lower()

        robots = get(site, "/robots.txt")[2].decode()
        assert "Disallow: /a/private/" in robots
        assert all(row.target.startswith("/a/private/") for row in named(world, "private"))

        start = time.monotonic()
        slow = named(world, "slow")[0]
        assert get(site, slow.target)[2] == world.pages[slow.target].body
        assert 0.1 < time.monotonic() - start < 2

        status, headers, _ = get(site, named(world, "redirected")[0].target)
        assert status == 302 and get(site, headers["Location"])[0] == 200
        loop = named(world, "redirect_loop")[0].target
        assert get(site, loop)[1]["Location"] == loop
        for row in [*named(world, "redirect_inside"), *named(world, "address"), *named(world, "scheme")]:
            assert row.target.startswith("http://") or not row.target.startswith("http")

        cut = named(world, "body_cut")[0]
        with pytest.raises(http.client.IncompleteRead):
            get(site, cut.target)
        with pytest.raises((http.client.RemoteDisconnected, ConnectionError)):
            get(site, named(world, "hang_up")[0].target)
        for kind in ("drip", "stall"):
            started = time.monotonic()
            connection = socket.create_connection((site.host, site.port), timeout=1.0)
            connection.sendall(f"GET {named(world, kind)[0].target} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            received = b""
            while time.monotonic() - started < 0.6:
                connection.settimeout(0.2)
                try:
                    received += connection.recv(4096)
                except TimeoutError:
                    continue
            head, _, body = received.partition(b"\r\n\r\n")
            assert (not head) if kind == "stall" else len(body) < len(world.pages[named(world, "drip")[0].target].body)
            connection.close()
        assert len(get(site, named(world, "huge_body")[0].target, timeout=20)[2]) > 20_000_000
        assert get(site, "/nowhere")[0] == get(site, "/a/img/../secret")[0] == 404


@pytest.mark.integration
def test_stopping_frees_the_port_and_cuts_slow_answers(world: WorldSite) -> None:
    site = Site(world)
    with ThreadPoolExecutor(1) as pool:
        pending = pool.submit(get, site, named(world, "drip")[0].target)
        deadline = time.monotonic() + 5
        while not site.requests() and time.monotonic() < deadline:
            time.sleep(0.01)
        started = time.monotonic()
        site.stop()
        assert isinstance(pending.exception(timeout=5), http.client.IncompleteRead)
        assert time.monotonic() - started < 2
    with Site(world, port=site.port) as again:
        assert again.port == site.port
        with pytest.raises(RuntimeUnavailable, match="cannot listen"):
            Site(world, port=site.port)


@pytest.mark.integration
def test_many_threads_count_every_request_and_keep_alive_is_quick(world: WorldSite) -> None:
    targets = [row.target for row in named(world, "plain")]
    path = named(world, "flaky")[0].target
    with Site(world) as site:

        def ask(worker: int) -> int:
            connection = http.client.HTTPConnection(site.host, site.port, timeout=10)
            for number in range(150):
                connection.request("GET", targets[(worker + number * 7) % len(targets)])
                assert len(connection.getresponse().read()) > 100
            connection.request("GET", path)
            status = connection.getresponse().status
            connection.close()
            return status

        start = time.monotonic()
        with ThreadPoolExecutor(8) as pool:
            statuses = Counter(pool.map(ask, range(8)))
        rate = 8 * 151 / (time.monotonic() - start)
        fails = world.pages[path].fail_first
        assert statuses == Counter({200: 8 - len(fails)}) + Counter(fails)
        assert sum(site.requests().values()) == 8 * 151
        assert rate > 150, f"{rate:.0f} answers a second with the clients on the same cores; over 1,000 is usual"


def written(path: Path, count: int, group: int) -> list[bytes]:
    files = []
    for number in range(count):
        file = io.BytesIO()
        Image.new("RGB", (8, 8), (number, 10, 20)).save(file, "PNG" if number % 3 else "JPEG")
        files.append(file.getvalue())
    table = pa.table({"bytes": files, "caption": [f"picture {i}" for i in range(count)], "long": ["x"] * count})
    pq.write_table(table, path, row_group_size=group)
    return files


@pytest.mark.integration
def test_a_parquet_file_is_a_website(tmp_path: Path) -> None:
    files = written(tmp_path / "p.parquet", 50, group=7)
    pages = ParquetSite(tmp_path / "p.parquet")
    with Site(pages) as site:
        rows = pages.list_rows(site.base_url)
        assert [row["caption"] for row in rows] == [f"picture {i}" for i in range(50)]
        assert rows[0]["url"].endswith("/img/0.jpg") and rows[1]["url"].endswith("/img/1.png")
        with ThreadPoolExecutor(4) as pool:
            bodies = list(pool.map(lambda row: get(site, row["url"].removeprefix(site.base_url))[2], rows))
        assert bodies == files
        for wrong in ("/img/50.png", "/img/0.png", "/img/-1.png", "/img/x.png", "/img/"):
            assert get(site, wrong)[0] == 404
    limited = ParquetSite(tmp_path / "p.parquet", caption_column="long", limit=9)
    assert [row["caption"] for row in limited.list_rows("http://h")] == ["x"] * 9
    assert limited.page("/img/9.jpg") is None


def test_a_parquet_file_that_cannot_serve_says_why(tmp_path: Path) -> None:
    written(tmp_path / "p.parquet", 3, group=2)
    (tmp_path / "bad.parquet").write_bytes(b"no parquet")
    with pytest.raises(InputError, match="title"):
        ParquetSite(tmp_path / "p.parquet", caption_column="title")
    for name in ("bad.parquet", "missing.parquet"):
        with pytest.raises(InputError, match="cannot be read"):
            ParquetSite(tmp_path / name)


@pytest.mark.parametrize("ending", ["parquet", "csv", "jsonl"])
def test_lists_are_written_in_three_formats(world: WorldSite, tmp_path: Path, ending: str) -> None:
    import csv

    path = world.write_list(tmp_path / f"list.{ending}", "http://127.0.0.1:5")
    if ending == "parquet":
        rows = pq.read_table(path).to_pylist()
    elif ending == "csv":
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
    else:
        rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert rows == world.list_rows("http://127.0.0.1:5")
    with pytest.raises(InputError, match="xlsx"):
        world.write_list(tmp_path / "list.xlsx", "http://127.0.0.1:5")


@pytest.mark.integration
def test_the_command_serves_and_writes_list_and_truth(tmp_path: Path) -> None:
    urls, truth = tmp_path / "urls.parquet", tmp_path / "truth.parquet"
    command = [sys.executable, "-m", "components.data.site", "--world", "--pictures", "40", "--leave-out", "pink",
               "--urls", str(urls), "--truth", str(truth)]  # fmt: skip
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            about = json.loads(process.stdout.readline())
            rows = pq.read_table(urls).to_pylist()
            assert len(rows) == about["rows"] and not any("pink" in row["caption"] for row in rows)
            facts = pq.read_table(truth).to_pylist()
            assert [fact["url"] for fact in facts] == [row["url"] for row in rows]
            plain = next(fact["url"] for fact in facts if fact["kind"] == "plain")
            port = int(about["base_url"].rsplit(":", 1)[1])
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
            connection.request("GET", plain.removeprefix(about["base_url"]))
            assert connection.getresponse().status == 200
            connection.close()
        finally:
            process.terminate()


def test_the_command_answers_bad_input_with_one_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--parquet", str(tmp_path / "none.parquet")]) == 2
    assert main(["--world", "--leave-out", "mauve"]) == 2
    assert main(["--parquet", str(tmp_path / "none.parquet"), "--truth", "t.csv"]) == 2
    text = capsys.readouterr().err
    assert text.count("error:") == 3 and "Traceback" not in text
