"""`atelier forget`: samples out of everything in the store, for good, and who has learned from them.

First the list of what is taken down grows (:mod:`components.data.takedown`): by the rules that were asked for, and by
the digests of the pictures found through them. Then every artifact is brought in line with the whole list, so that
the same command, or the next one, completes what a kill left undone. Models stay as they are; the report names them.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import fsspec
from fsspec.implementations.local import LocalFileSystem

from components.contracts.errors import RegistryError, RuntimeUnavailable
from components.data.removing import OnDemand, columns
from components.data.survey import DATA, Survey
from components.data.takedown import LOCK_NAME, Blocklist, taking_down
from components.data.takedown_report import Report, entry, learned, listed, rows_out, versions_of
from components.data.taking_out import Plan, Planner
from components.runtime.progress import say
from components.runtime.revision import readdress, sweep
from components.runtime.stage import Context
from components.runtime.storage import Artifact, Store, cache_root, write_bytes

if TYPE_CHECKING:
    from components.runtime.tracking import ModelVersion

_JUDGED = ("assessment.html", "release.html")  # of which the registry keeps copies
_PAGES = ("dataset.html", "duplicates.html", *_JUDGED)  # show pictures


def forget(
    ctx: Context,
    rules: Sequence[str],
    *,
    near: bool = False,
    dry_run: bool = False,
    versions: Callable[[], Sequence[ModelVersion]] = lambda: (),
) -> Report:
    """Take down what the rules name, everywhere in the store of ``ctx``, and report.

    Args:
        ctx: store and home.
        rules: keys, as :func:`components.data.takedown.rule` makes them.
        near: also the other members of duplicate clusters of what they name.
        dry_run: change nothing, and say what would be.
        versions: the registered models, for the report.

    Raises:
        RuntimeUnavailable: a stage or another takedown is at work, or another process changes an artifact.
        StoreFullError: no room is left; run the same command again when there is.
    """
    with contextlib.nullcontext() if dry_run else _alone(ctx):
        before = Blocklist.of(ctx.store.url)
        # a picture that an earlier command found through its address is reported with what that one removed
        roots = set(rules).union(*(before.rules.get(rule, {}).get("because", ()) for rule in rules))
        asked = Blocklist({**{rule: {"at": ""} for rule in rules}, **before.rules})
        survey = Survey(ctx.store.list(), asked, roots, near)
        if not dry_run:
            found = {f"sha256:{picture}": sorted(because) for picture, because in survey.pictures.items()}
            new: dict[str, Sequence[str]] = {rule: () for rule in rules}
            for rule, because in found.items():
                if rule not in before.rules:
                    new[rule] = [b for b in because if b != rule]
            Blocklist.add(ctx.store.url, new)
        with _workplace(ctx.home) as folder:
            unfinished = [path for url in ctx.store.unfinished() for path in _holding(url, survey)]
            plans = list(Planner(survey, folder).plans())
            pages = _pages(ctx.home, survey, plans)
            revised: dict[str, Artifact] = {}
            if not dry_run:
                _remove_views(unfinished, pages)
                revised = {plan.artifact.url: _carried_out(ctx, plan) for plan in plans}
                _keep_scores(ctx.store)
                _remove_copies(ctx.store)
    now = datetime.datetime.now(datetime.UTC)
    path = ctx.home / "takedowns" / f"{now:%Y%m%dT%H%M%S%fZ}.json"
    artifacts = ctx.store.list()
    planned = {plan.artifact.url: plan.note for plan in plans} if dry_run else {}
    datasets, models = learned(artifacts, planned, roots)
    registered, unasked = _registered(versions)
    report = Report(
        at=now.isoformat(timespec="seconds"),
        store=ctx.store.url,
        dry_run=dry_run,
        rules=sorted(rules),
        pictures=sum(bool(because & roots) for because in survey.pictures.values()),
        rows=rows_out(artifacts, planned, roots),
        artifacts=[entry(plan, revised.get(plan.artifact.url)) for plan in plans],
        near=survey.near,
        datasets=datasets,
        models=models,
        versions=versions_of(models, registered),
        unfinished=unfinished,
        pages=[str(page) for page in pages],
        unasked=unasked,
        path=None if dry_run else str(path),
    )
    if not dry_run:
        write_bytes(str(path), json.dumps(report.as_json(), indent=2).encode())
    return report


def _registered(versions: Callable[[], Sequence[ModelVersion]]) -> tuple[Sequence[ModelVersion], str | None]:
    """The registered versions, or why they are not known: that is no reason to keep what must go."""
    try:
        return versions(), None
    except RegistryError as error:
        return (), str(error)


def _carried_out(ctx: Context, plan: Plan) -> Artifact:
    revised = ctx.store.revise(
        plan.artifact,
        OnDemand(plan.files),
        counts=plan.counts,
        dropped=plan.dropped,
        evidence=plan.evidence,
        note=plan.note,
    )
    say(f"forget: {plan.artifact.short} is now {revised.short} ({listed(plan.note['removed'])})")
    return revised


@contextlib.contextmanager
def _alone(ctx: Context) -> Iterator[None]:
    """Nobody else takes samples out of the store, and no stage of this home or on this store is at work, while the
    block lasts; one that is would keep what is taken down."""
    with taking_down(ctx.store.url), contextlib.ExitStack() as stack:
        for path in sorted((ctx.home / "locks").glob("*.lock")):
            stack.enter_context(_stage_lock(path, 0))
        # those of the store are needed here too, to revise; a stage that begins now sees that samples are taken out
        fs, store = fsspec.core.url_to_fs(ctx.store.url)
        for path in sorted((Path(store) / "locks").glob("*.lock")) if isinstance(fs, LocalFileSystem) else ():
            if path.name != LOCK_NAME:
                with _stage_lock(path, 1):
                    pass
        yield


@contextlib.contextmanager
def _stage_lock(path: Path, wait_s: float) -> Iterator[None]:
    from filelock import FileLock, Timeout

    lock = FileLock(path)
    try:
        lock.acquire(timeout=wait_s)
    except Timeout as error:
        raise RuntimeUnavailable(
            f"A stage is at work ({path.stem})",
            expected="nobody who reads or makes artifacts while samples are taken out of them",
            remedy="wait for it to end or stop it, then run the same command again",
        ) from error
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def _workplace(home: Path) -> Iterator[Path]:
    """A folder for files that are being rewritten; those of killed runs are removed."""
    home.mkdir(parents=True, exist_ok=True)
    for left in home.glob(".takedown-*"):
        shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=".takedown-", dir=home) as folder:
        yield Path(folder)


def _holding(url: str, survey: Survey) -> list[str]:
    """What of unfinished work holds what goes: the pieces, which are made again, or all where that is not enough.

    A piece is the files of one name, such as a shard with its rows. What cannot be read may hold anything.
    """
    fs, path = fsspec.core.url_to_fs(url)
    names = [str(name)[len(path) :] for name in fs.find(path)]
    found: dict[str, None] = {}
    for name in names:
        folder, _, file = name.rpartition("/")
        if file.startswith(".tmp-") or (file.endswith(".tar") and f"{name[:-4]}.parquet" not in names):
            found[url + name] = None  # of a killed writer; nobody reads it
        if not file.endswith(".parquet"):
            continue
        try:
            table = columns(url + name, ["url", "sha256", "id"])
            holds = bool(survey.marks.of(table).any()) or survey.names_ids(table)
        except (OSError, ValueError):  # pyarrow's errors are of these two
            holds = True
        if holds and not folder:
            return [url]
        if holds:
            stem = file.partition(".")[0]
            found |= {url + n: None for n in names if n.rpartition("/")[2].partition(".")[0] == stem}
    return list(found)


def _pages(home: Path, survey: Survey, plans: list[Plan]) -> list[Path]:
    """Pages of the run that show what goes: made anew by the command that made them."""
    found = []
    if any(plan.artifact.manifest.kind in DATA for plan in plans):
        found += [home / name for name in _PAGES if (home / name).exists()]
        found += [page for name in _JUDGED for page in sorted(home.glob(f"mlruns/**/{name}"))]
        found += [folder for folder in [home / "features"] if folder.exists()]  # what extractors said of pictures
    for page in [*home.glob("*.html"), *home.glob("data_docs/**/*.html"), *home.glob("drift/**/*.html")]:
        if page not in found and survey.texts.said_in(page.read_text(encoding="utf-8", errors="replace")):
            found.append(page)
    sheets = {
        plan.artifact.manifest.files["sheet.png"].sha256 for plan in plans if "sheet.png" in plan.files
    }  # of which the registry keeps copies
    for page in home.glob("mlruns/**/sheet.png") if sheets else ():
        if hashlib.sha256(page.read_bytes()).hexdigest() in sheets:
            found.append(page)
    return found


def _remove_views(unfinished: list[str], pages: list[Path]) -> None:
    for url in unfinished:
        fs, path = fsspec.core.url_to_fs(url)
        if fs.exists(path):
            fs.rm(path, recursive=True)
    for page in pages:
        if page.is_dir():
            shutil.rmtree(page)
        else:
            page.unlink(missing_ok=True)


def _keep_scores(store: Store) -> None:
    """Scores of collections that only takedowns have changed since: they need not be measured anew."""
    sweep(store)
    now: dict[str, Artifact] = {}
    for collection in store.list("collection"):
        for note in reversed(collection.manifest.revisions):
            if note.get("by") != "takedown":
                break
            now[note["from"]] = collection
    for scores in store.list("scores"):
        if since := now.get(scores.manifest.inputs.get("collection", "")):
            readdress(store, scores, {"collection": since})


def _remove_copies(store: Store) -> None:
    """Copies on this machine of what revised artifacts of a remote store were."""
    for artifact in store.list():
        for digest in artifact.manifest.earlier:
            shutil.rmtree(cache_root() / digest, ignore_errors=True)
