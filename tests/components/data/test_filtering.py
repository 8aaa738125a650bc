"""Filters: every rule, their order, and what they say."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from components.contracts.errors import RecipeError
from components.contracts.recipe import Prepare
from components.contracts.records import DropReason
from components.data.filtering import RULES, rejections
from components.data.scores import SCORE_SCHEMA, Part, Scores
from components.data.takedown import Blocklist
from components.data.wording import measure

GOOD: dict[str, Any] = {
    "url": "http://a.example/1", "clean": "a red star on snow", "sha256": "0" * 64, "width": 96, "height": 96,
    "kept_width": 48, "kept_height": 48, "quality": 90, "grey_std": 30.0, "sharpness": 200.0, "entropy": 5.0,
    "pixel_sha256": "1" * 64, "phash": 1, "phash_mirror": 2, "thumb": bytes(768), "bucket": "32x32",
    "clip_similarity": 0.3, "aesthetic": 5.0,
}  # fmt: skip
DAMAGED = {name: None for name in list(GOOD)[list(GOOD).index("kept_width") :]}
RULES_HERE = Prepare(
    min_side=16, max_aspect=3, blank_std=2, min_sharpness=50, min_entropy=2, min_caption_words=2, max_caption_chars=60,
    max_repetition=0.5, languages=("en", "de"), personal_data="drop", blocked_words=("gun", "straße"), clip="a model",
    aesthetic="a model", min_clip_similarity=0.2, min_aesthetic=4.5,
)  # fmt: skip


def scores_of(folder: Path, *changes: dict[str, Any]) -> Scores:
    """Scores of one good sample for each change, changed; captions are measured as they are in earnest."""
    rows = []
    for n, change in enumerate(changes):
        row = GOOD | {"row": n, "id": n} | change
        rows.append(row | vars(measure(row["clean"])) | {k: v for k, v in change.items() if k == "language"})
    pq.write_table(pa.Table.from_pylist(rows, schema=SCORE_SCHEMA), folder / "scores.parquet")
    return Scores([Part(0, str(folder / "scores.parquet"), "")])


CASES: list[tuple[dict[str, Any], DropReason | None, str]] = [
    ({}, None, ""),
    # every limit itself stays
    ({"kept_width": 16, "kept_height": 48, "grey_std": 2.0, "sharpness": 50.0, "entropy": 2.0}, None, ""),
    ({"clean": "a red star, a big star, snow " + "x" * 31}, None, ""),
    ({"clean": "snow star snow star", "clip_similarity": 0.2, "aesthetic": 4.5}, None, ""),
    ({"url": "http://b.example/x"}, DropReason.TAKEN_DOWN, "takedown list: host:b.example"),
    ({"sha256": "f" * 64}, DropReason.TAKEN_DOWN, f"sha256:{'f' * 64}"),
    (DAMAGED, DropReason.UNDECODABLE, "cannot be decoded"),
    ({"kept_width": 15}, DropReason.TOO_SMALL, "15x48 pixels, the shorter side must have 16"),
    ({"kept_width": 16, "kept_height": 49}, DropReason.ASPECT_RATIO, "16x49 is 3.06 to 1, at most 3 stays"),
    ({"grey_std": 1.99}, DropReason.BLANK, "grey values is 1.99, at least 2 stays"),
    ({"sharpness": 49.9}, DropReason.BLURRED, "variance of the Laplacian is 49.9, at least 50 stays"),
    ({"entropy": 1.5}, DropReason.LOW_ENTROPY, "entropy of the grey values is 1.5, at least 2 stays"),
    ({"clean": ""}, DropReason.CAPTION_EMPTY, "no caption"),
    ({"clean": "x" * 61}, DropReason.CAPTION_TOO_LONG, "61 characters, at most 60 stay"),
    ({"clean": "star"}, DropReason.CAPTION_TOO_SHORT, "number of the caption's words is 1, at least 2 stays"),
    ({"clean": "sale sale sale"}, DropReason.CAPTION_REPETITIVE, "67% of the words repeat earlier ones, at most 50%"),
    ({"clean": "un chien qui court sur la plage"}, DropReason.CAPTION_LANGUAGE, r"language is fr \(probability"),
    ({"clean": "eine alte Frau mit Regenschirm vor dem Haus"}, None, ""),
    ({"clean": "Porsche 911"}, None, ""),  # of no language rather than of a wrong one
    ({"clean": "a star by jo@example.com"}, DropReason.CAPTION_PERSONAL_DATA, "in the caption: email"),
    ({"clean": "a big GUN on snow"}, DropReason.CAPTION_BLOCKED, "blocked word 'GUN'"),
    ({"clean": "a red gunship"}, None, ""),
    ({"clip_similarity": 0.19}, DropReason.CLIP_SIMILARITY, "picture and caption is 0.19, at least 0.2 stays"),
    ({"clip_similarity": None}, DropReason.CLIP_SIMILARITY, "picture and caption was not measured"),
    ({"aesthetic": 4.49}, DropReason.AESTHETIC, "aesthetic value is 4.49, at least 4.5 stays"),
]


def test_every_rule_takes_what_it_should_and_says_why(tmp_path: Path) -> None:
    blocklist = Blocklist.add(str(tmp_path), {"host:b.example": (), f"sha256:{'f' * 64}": ()})
    scores = scores_of(tmp_path, *(change for change, _, _ in CASES))
    found = rejections(scores, RULES_HERE, blocklist)
    assert found.codes.dtype == np.int8
    assert {reason for _, reason, _ in CASES} == {None, *RULES}
    for i, (change, reason, words) in enumerate(CASES):
        if reason is None:
            assert i in found.kept, (change, found.reason(i), found.detail(i))
        else:
            assert found.codes[i] == 1 + list(RULES).index(reason), change
            assert found.reason(i) == reason
            assert re.search(words, found.detail(i)), found.detail(i)
            assert "\n" not in found.detail(i)
    reasons = [str(reason) for _, reason, _ in CASES if reason]
    assert found.counts() == {reason: reasons.count(reason) for reason in dict.fromkeys(reasons)}
    with pytest.raises(IndexError):
        found.reason(0)


def test_a_sample_goes_by_the_first_rule_that_it_breaks(tmp_path: Path) -> None:
    everything = {"kept_width": 3, "kept_height": 12, "grey_std": 0.0, "clean": "", "aesthetic": 0.0}
    scores = scores_of(tmp_path, everything, everything | {"kept_width": 48}, DAMAGED | {"clean": ""})
    found = rejections(scores, RULES_HERE)
    assert [found.reason(i) for i in range(3)] == [
        DropReason.TOO_SMALL, DropReason.TOO_SMALL, DropReason.UNDECODABLE,
    ]  # fmt: skip


def test_the_defaults_ask_for_little(tmp_path: Path) -> None:
    plain = {"sharpness": 0.0, "entropy": 0.0, "clip_similarity": None, "aesthetic": None}
    captions = ["star", "sale sale sale", "un chien qui court sur la plage", "jo@example.com", "gun"]
    scores = scores_of(tmp_path, *(plain | {"clean": caption} for caption in captions))
    assert rejections(scores, Prepare()).kept.tolist() == list(range(len(captions)))


@pytest.mark.parametrize(
    ("rules", "name"), [({"min_clip_similarity": 0.1}, "clip"), ({"min_aesthetic": 0}, "aesthetic")]
)
def test_a_threshold_on_what_is_not_measured_is_refused(rules: dict[str, Any], name: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=rf"prepare\.min_{name}.*but prepare\.{name} is null.*Remedy: set prepare"):
        rejections(scores_of(tmp_path, {}), Prepare.model_validate(rules))


def test_the_documents_have_the_rules_in_their_order() -> None:
    text = (Path(__file__).parents[3] / "docs" / "data.md").read_text(encoding="utf-8")
    table = text.split("| reason | rule |")[1].split("\n\n")[0]
    said = [name for line in table.splitlines() for name in re.findall(r"`(\w+)`", "".join(line.split("|")[1:2]))]
    assert said == [str(reason) for reason in RULES]


def test_nothing_to_filter() -> None:
    found = rejections(Scores([]), RULES_HERE)
    assert found.kept.tolist() == [] and found.counts() == {}


def test_many_samples_take_linear_time(tmp_path: Path) -> None:
    def seconds(n: int) -> float:
        folder = tmp_path / str(n)
        folder.mkdir()
        same = vars(measure(GOOD["clean"])) | GOOD | {"row": 0, "id": 0}
        columns = [pa.repeat(pa.scalar(same.get(f.name), f.type), n) for f in SCORE_SCHEMA]
        table = pa.table(columns, schema=SCORE_SCHEMA)
        pq.write_table(table, folder / "scores.parquet")
        scores = Scores([Part(0, str(folder / "scores.parquet"), "")])
        started = time.process_time()
        found = rejections(scores, Prepare(min_sharpness=201, blocked_words=("gun",)))
        details = [found.detail(i) for i in range(0, n, 10)]
        spent = time.process_time() - started
        assert len(set(details)) == 1 and found.counts() == {"blurred": n}
        return spent

    seconds(100)
    assert seconds(80_000) < 24 * seconds(10_000) + 0.2  # 64 times where it were quadratic
