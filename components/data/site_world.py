"""The embedded world as a website, with the faults of the web and the truth of every URL.

``build_world_site`` makes everything in memory, deterministically: the same arguments give the same bytes.
A later edition of the site (another spec and seed, another prefix) has other URLs and other pictures.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from components.contracts.errors import InputError
from components.data.captions import phrasings
from components.data.scenes import Scene
from components.data.site_copies import (
    Bytes,
    Crowd,
    Indices,
    decode,
    encode,
    near_copies,
    thumbnail,
)
from components.data.site_faults import FAULT_RATES, NO_FAULTS, Draft, failures, flaws, special_pictures
from components.data.site_pages import Page, SiteRow, absolute, write_rows
from components.data.world import WorldSpec, all_singles, render, sample_scene

__all__ = ["FAULT_RATES", "NO_FAULTS", "WorldSite", "build_world_site"]

_ROUNDS = 80  # draws of a picture, at most
_OTHER_SCENE = 6  # draws after which a picture takes another scene
_STALLED = 12  # rounds without a picture finding its place, after which there is no room


@dataclass(frozen=True)
class WorldSite:
    """A finished website: pages by path, rows of the URL list in order, paths closed to robots."""

    prefix: str
    pages: Mapping[str, Page]
    rows: tuple[SiteRow, ...]
    closed: tuple[str, ...] = ()
    scenes: Mapping[str, Scene] | None = None  # what the picture of a row's target shows, where it has one

    def page(self, path: str) -> Page | None:
        return self.pages.get(path)

    def disallowed(self) -> Sequence[str]:
        return self.closed

    def list_rows(self, base_url: str) -> list[dict[str, Any]]:
        """The URL list: ``url`` and ``caption``."""
        return [{"url": absolute(row.target, base_url), "caption": row.caption} for row in self.rows]

    def truth(self, base_url: str) -> list[dict[str, Any]]:
        """Row by row: ``url, caption, outcome, reason, original_url, kind``."""
        return [
            {
                "url": absolute(row.target, base_url),
                "caption": row.caption,
                "outcome": row.outcome,
                "reason": row.reason,
                "original_url": None if row.original is None else absolute(row.original, base_url),
                "kind": row.kind,
            }
            for row in self.rows
        ]

    def write_list(self, path: str | Path, base_url: str) -> Path:
        """Write the URL list as parquet, csv or jsonl, by suffix."""
        return write_rows(path, self.list_rows(base_url))

    def write_truth(self, path: str | Path, base_url: str) -> Path:
        return write_rows(path, self.truth(base_url))


def build_world_site(
    spec: WorldSpec,
    n: int,
    seed: int = 0,
    *,
    prefix: str = "a",
    size: int = 48,
    feature: tuple[str, ...] = (),
    fault_rates: Mapping[str, float] | None = None,
    drip_seconds: float = 30.0,
) -> WorldSite:
    """A website of ``n`` distinct pictures that must all reach the dataset, and its faults on top.

    Args:
        spec: the words of the world that this site shows; its ``image_size`` plays no part here.
        n: distinct originals.
        seed: of everything; two builds with equal arguments are equal in every byte.
        prefix: first part of every path; sites with different prefixes can share a server.
        size: side of the pictures as served, in pixels.
        feature: when not empty, every picture shows at least one of these words.
        fault_rates: rows of each fault as a share of ``n`` (at least one where above 0), over
            ``FAULT_RATES``; ``{}`` takes these as they are. Pass :data:`NO_FAULTS` for a faultless site.
        drip_seconds: how long the answers take that are too slow; longer than the collector waits.

    Raises ``InputError`` for an unknown fault, for a feature that the spec does not show, and where the
    world has too few scenes to keep ``n`` pictures apart.
    """
    rates = {**FAULT_RATES, **(fault_rates or {})}
    unknown = sorted(set(rates) - set(FAULT_RATES))
    if unknown:
        raise InputError(
            f"The world's website knows no fault named {', '.join(unknown)}",
            expected=f"some of {', '.join(FAULT_RATES)}",
            remedy="correct fault_rates",
        )
    counts = {name: max(1, round(rate * n)) if rate > 0 else 0 for name, rate in rates.items()}
    rng = np.random.default_rng([0x517E, seed])
    scenes = _scenes(spec, feature, rng)
    singular = special_pictures(counts, size, rng)  # blank pictures: no other may resemble them
    wanted = n + sum(counts[name] for name in ("caption_empty", "caption_too_long", "too_small"))
    sides = [size] * (wanted - counts["too_small"]) + [8] * counts["too_small"]
    drafts, crowd = _distinct(scenes, sides, singular, seed)
    drafts = [replace(draft, caption=_said(draft, rng)) for draft in drafts]
    originals, rest = drafts[:n], drafts[n:]
    flawed = flaws(rest, singular, counts)
    flawed += failures(originals, counts, rng, _fresh(scenes, size, rng), drip_seconds)
    copies = _copies(originals, crowd, counts, seed)
    return _laid_out(prefix, originals, flawed, copies, rng)


def _scenes(spec: WorldSpec, feature: tuple[str, ...], rng: np.random.Generator) -> Iterator[Scene]:
    """Endless scenes: singles in shuffled rounds, so that each comes as often as any other."""

    def shows(scene: Scene) -> bool:
        words = {w for i in scene.items for w in (i.shape, i.colour, i.size, i.place)} | {scene.background}
        return not feature or bool(words & set(feature))

    singles = [scene for scene in all_singles(spec) if shows(scene)]
    if not singles:
        raise InputError(
            f"No picture of this world shows {' or '.join(feature)}",
            expected="a feature among the words of the world",
            remedy="take the word out of leave_out, or name another feature",
        )

    def endless() -> Iterator[Scene]:
        while True:
            for index in rng.permutation(len(singles)):
                kind = spec.kinds[int(rng.integers(len(spec.kinds)))]
                if kind == "single":
                    yield singles[index]
                    continue
                several = replace(spec, kinds=(kind,))
                while not shows(scene := sample_scene(rng, several)):
                    pass
                yield scene

    return endless()


def _draw(scene: Scene, side: int, seed: int) -> tuple[Page, Bytes]:
    quality = (None, 90, 90, 85)[seed % 4]
    # a tiny picture is a small version of a whole one, not a drawing of its own
    image = render(scene, max(side, 32), seed, supersample=3)
    if side < image.width:
        image = image.resize((side, side), Image.Resampling.BOX)
    data = encode(image, quality)
    return _page(data, quality), thumbnail(decode(data))


def _page(data: bytes, quality: int | None) -> Page:
    return Page(data, "image/png" if quality is None else "image/jpeg")


def _distinct(
    scenes: Iterator[Scene], sides: Sequence[int], singular: Sequence[Page], seed: int
) -> tuple[list[Draft], Crowd]:
    """One picture a side, all of them apart from each other and from the singular ones."""
    count = len(sides)
    crowd = Crowd(count + len(singular))
    for i, page in enumerate(singular):
        crowd.put(count + i, thumbnail(decode(page.body)))
    chosen = [next(scenes) for _ in sides]
    pages: list[Page] = [Page()] * count
    settled: Indices = np.arange(count, count + len(singular))
    fresh: Indices = np.arange(count)
    stalled = 0
    for attempt in range(_ROUNDS):
        for i in fresh:
            if attempt and attempt % _OTHER_SCENE == 0:
                chosen[i] = next(scenes)
            number = int(np.random.SeedSequence([seed, int(i), attempt]).generate_state(1)[0])
            pages[i], thumb = _draw(chosen[i], sides[i], number)
            crowd.put(i, thumb)
        again = np.array(crowd.too_near(fresh, settled), dtype=np.intp)
        settled = np.concatenate([settled, np.setdiff1d(fresh, again)])
        stalled = stalled + 1 if len(again) > 0.99 * len(fresh) else 0
        fresh = again
        if stalled >= _STALLED:
            break
        if not len(fresh):
            drafts = [Draft("", page, scene=scene) for scene, page in zip(chosen, pages, strict=True)]
            return drafts, crowd
    raise InputError(
        f"{len(fresh)} of {count} pictures of the world could not be kept apart from the others",
        expected="a world with enough scenes for so many pictures",
        remedy="ask for fewer pictures, or leave fewer words out of the world",
    )


def _fresh(scenes: Iterator[Scene], size: int, rng: np.random.Generator) -> Iterator[Draft]:
    """Pictures for pages that never become samples; they need not be distinct."""
    while True:
        scene = next(scenes)
        page, _ = _draw(scene, size, int(rng.integers(2**31)))
        yield Draft(phrasings(scene)[0], page, scene=scene)


def _copies(originals: list[Draft], crowd: Crowd, counts: dict[str, int], seed: int) -> list[Draft]:
    """Exact and near-duplicates, each of another original as far as there are enough."""
    rng = np.random.default_rng([0xC0B1, seed])
    order = [int(i) for i in rng.permutation(len(originals))]
    copies = []
    exact = counts["duplicate_exact"]
    for number in range(exact):
        of = originals[order[number % len(order)]]
        copies.append(of.dropped("duplicate_exact", "exact_copy", _said(of, rng), original=of))
    order = order[exact % len(order) :] + order[: exact % len(order)]
    for copy in near_copies([d.page.body for d in originals], order, crowd, counts["duplicate_near"]):
        of = originals[copy.of]
        page = _page(copy.data, copy.kind.quality)
        copies.append(of.dropped("duplicate_near", copy.kind.name, _said(of, rng), page=page, original=of))
    return copies


def _said(draft: Draft, rng: np.random.Generator) -> str:
    """One phrasing of the draft's scene."""
    words = phrasings(draft.scene) if draft.scene else [draft.caption]
    return words[int(rng.integers(len(words)))]


def _laid_out(
    prefix: str, originals: list[Draft], flawed: list[Draft], copies: list[Draft], rng: np.random.Generator
) -> WorldSite:
    """Rows in a shuffled order with every copy after its original; paths are numbered in that order."""
    drafts = originals + flawed + copies
    place = {id(draft): float(rng.random()) for draft in drafts}
    for draft in copies:
        start = place[id(draft.original)]
        place[id(draft)] = start + (1 - start) * float(rng.uniform(0.001, 1))
    drafts.sort(key=lambda draft: place[id(draft)])
    targets: dict[int, str] = {}
    pages: dict[str, Page] = {}
    scenes: dict[str, Scene] = {}
    rows = []
    for number, draft in enumerate(drafts):
        ending = "png" if draft.page.content_type == "image/png" else "jpg"
        path = f"/{prefix}/{draft.folder}/{number:06d}.{ending}"
        target = draft.elsewhere.format(prefix=prefix, number=number) if draft.elsewhere else path
        targets[id(draft)] = target
        if not draft.elsewhere:
            page, hop = draft.page, f"/{prefix}/at/{number:06d}.{ending}"
            if draft.redirect is not None:  # the page itself lies one hop further
                pages[hop] = page
                where = draft.redirect.format(hop=hop, self=path)
                page = Page(status=302, content_type="text/html", headers=(("Location", where),))
            pages[path] = page
            if draft.scene is not None:
                scenes[path] = draft.scene
        rows.append(
            SiteRow(
                target,
                draft.caption,
                draft.outcome,
                draft.reason,
                targets[id(draft.original)] if draft.original is not None else None,
                draft.kind,
            )
        )
    return WorldSite(prefix, pages, tuple(rows), (f"/{prefix}/private/",), scenes)
