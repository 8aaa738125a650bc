"""What Evidently says of real prompt streams: how often it cries wolf, and when it must not stay silent."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

from components.contracts.recipe import Watch
from components.data.world import WorldSpec, phrasings, sample_scene
from monitoring.decide import ReleaseInfo, decide
from monitoring.drift import DriftResult, measure_drift
from monitoring.features import CaptionIndex

NEW = ("purple", "orange", "star")
OLD = WorldSpec().without(*NEW)
LIMITS = Watch()


def draw(rng: np.random.Generator, spec: WorldSpec, number: int, need: tuple[str, ...] = ()) -> list[str]:
    found: list[str] = []
    while len(found) < number:
        texts = phrasings(sample_scene(rng, spec))
        text = texts[int(rng.integers(len(texts)))]
        if not need or any(word in text for word in need):
            found.append(text)
    return found


def as_users_say(rng: np.random.Generator, number: int) -> list[str]:
    """Known concepts, said shorter and with manners: no reason to train again."""
    found = []
    for _ in range(number):
        scene = sample_scene(rng, OLD)
        item = scene.items[0]
        shape = f"{item.colour} {item.shape}"
        polite = f"please draw me a {item.size} {shape}!"
        choices = (f"A {shape}", polite, f"{shape} on {scene.background}", shape.upper())
        found.append(choices[int(rng.integers(len(choices)))])
    return found


def verdict(drift: DriftResult) -> str:
    return decide(drift, drift.prompts, 0.0, ReleaseInfo("1"), LIMITS).action


@pytest.fixture(scope="module")
def captions() -> list[str]:
    return draw(np.random.default_rng(0), OLD, 3000)


@pytest.fixture(scope="module")
def index(captions: list[str]) -> CaptionIndex:
    return CaptionIndex(tuple(captions))


def test_no_false_alarm_in_twenty_draws(index: CaptionIndex, captions: list[str]) -> None:
    rng = np.random.default_rng(1)
    sizes = [50, 100, 150, 300] * 5
    found = [measure_drift(index, captions, draw(rng, OLD, size)) for size in sizes]
    assert [verdict(drift) for drift in found] == ["keep"] * 20
    assert sum(column.drifted for drift in found for column in drift.columns.values() if column.scored) <= 1


def test_another_phrasing_is_seen_but_no_reason_to_retrain(index: CaptionIndex, captions: list[str]) -> None:
    for seed in range(5):
        drift = measure_drift(index, captions, as_users_say(np.random.default_rng(seed), 150))
        assert verdict(drift) == "keep"
        assert drift.columns["words"].drifted and not drift.columns["words"].scored


@pytest.mark.parametrize(("size", "share"), [(50, 0.4), (100, 0.4), (300, 0.4), (150, 0.25), (100, 1.0)])
def test_unseen_concepts_are_always_found(index: CaptionIndex, captions: list[str], size: int, share: float) -> None:
    new = int(size * share)
    for seed in range(3):
        rng = np.random.default_rng(seed)
        drift = measure_drift(index, captions, draw(rng, OLD, size - new) + draw(rng, WorldSpec(), new, NEW))
        assert verdict(drift) == "retrain"
        assert drift.share_drifted >= 0.75
        assert drift.unknown_word_share == pytest.approx(new / size, abs=1e-6)
        assert set(drift.unknown_words) <= {*NEW, "stars"}


def test_captions_with_a_long_tail_do_not_look_new() -> None:
    """Words that occur once are usual in real captions; new ones like them are usual among prompts."""
    rng = np.random.default_rng(4)
    words = np.array([f"w{i}" for i in range(20_000)])
    zipf = 1 / np.arange(1, len(words) + 1)
    texts = [" ".join(rng.choice(words, int(rng.integers(3, 9)), p=zipf / zipf.sum())) for _ in range(2900)]
    drift = measure_drift(CaptionIndex(tuple(texts[400:])), texts[400:], texts[:400])
    assert drift.usual_unknown_word_share > 0.3
    assert abs(drift.unknown_word_share - drift.usual_unknown_word_share) < 0.1
    assert verdict(drift) == "keep"


def test_evidently_is_loaded_late_and_silenced() -> None:
    code = (
        "import sys, os; os.environ.pop('DO_NOT_TRACK', None); import monitoring.watch, monitoring.schedule;"
        "assert not {'evidently', 'pandas', 'matplotlib', 'scipy'} & set(sys.modules);"
        "from monitoring.drift import measure_drift; from monitoring.features import CaptionIndex as C;"
        "measure_drift(C(('a b', 'c d')), ['a b', 'c d'], ['e f', 'a b']);"
        "from evidently.telemetry import event_logger; assert os.environ['DO_NOT_TRACK'] == 'true';"
        "assert not event_logger.is_enabled()"
    )
    env = {key: value for key, value in os.environ.items() if key != "DO_NOT_TRACK"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600, env=env)
    assert done.returncode == 0, done.stderr
