"""Live quality by the CLIP of a real judge artifact."""

# ruff: noqa: F811  (fixtures of another folder)

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest

from components.contracts.recipe import Assess
from components.evaluation.judge import Judge, make_judge
from components.runtime.stage import Context
from components.runtime.storage import Artifact
from serving.engine import Served
from serving.quality import judge_of
from tests.components.evaluation.conftest import (  # noqa: F401
    clip,
    clip_files,
    ctx,
    dataset,
    dataset_files,
    make,
    tokenizer_folder,
)


def test_pictures_are_scored_by_the_judge_of_the_version(
    ctx: Context,
    clip: Artifact,
    dataset: Artifact,
    painter: Any,
) -> None:
    judge = make_judge(ctx, clip, dataset, {"known": ["a red circle", "a blue star"]}, Assess())
    find = judge_of(ctx.store, lambda version: {"3": judge.digest}[version])
    eye = find(Served("3", painter))
    assert eye is not None and eye.judge == judge.digest
    pixels = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
    extractor = Judge.read(judge).extractor()
    cosines = extractor.look(pixels)[1] @ extractor.read(["a red circle"])[0]
    assert eye.score("a red circle", pixels) == pytest.approx(float(cosines.mean()), abs=1e-6)
    assert -1 <= eye.score("a blue star", pixels[:1]) <= 1


def test_a_judge_that_is_not_there_is_said_and_harms_nothing(
    ctx: Context,
    painter: Any,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING, "ray.serve"):
        assert judge_of(ctx.store, lambda _: "")(Served("1", painter)) is None
        assert judge_of(ctx.store, lambda _: "f" * 64)(Served("2", painter)) is None
    assert "names no judge of version 1" in caplog.text and "judge of version 2 cannot be opened" in caplog.text
