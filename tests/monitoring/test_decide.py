from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components.contracts.recipe import Watch
from monitoring.decide import ReleaseInfo, decide
from monitoring.drift import ColumnDrift, DriftResult

CALM = DriftResult(
    score=0.02, share_drifted=0.0, unknown_word_share=0.0, usual_unknown_word_share=0.0, unknown_words={},
    columns={"rarest": ColumnDrift(0.05, 0.2, False, True)}, prompts=100, captions=3000,
)  # fmt: skip
MOVED = dataclasses.replace(CALM, share_drifted=0.5, columns={"rarest": ColumnDrift(0.5, 0.2, True, True)})
NEW_WORDS = dataclasses.replace(CALM, unknown_word_share=0.2, unknown_words={"star": 20})
LIMITS, FIRST = Watch(), ReleaseInfo("1", can_roll_back=False)


@pytest.mark.parametrize(
    ("drift", "requests", "errors", "release", "action", "says"),
    [
        (CALM, 100, 0.0, ReleaseInfo("2"), "keep", "0% of the columns"),
        (MOVED, 100, 0.0, ReleaseInfo("2"), "retrain", "(rarest)"),
        (NEW_WORDS, 100, 0.0, ReleaseInfo("2"), "retrain", "(star)"),
        (MOVED, 49, 0.0, ReleaseInfo("2"), "keep", "too few requests"),
        (MOVED, 49, 1.0, ReleaseInfo("2"), "keep", "too few requests"),
        (MOVED, 100, 0.06, ReleaseInfo("2"), "roll_back", "6.0% of the requests to version 2 failed"),
        (MOVED, 100, 0.05, ReleaseInfo("2"), "retrain", "columns drifted"),
        (MOVED, 100, 0.5, FIRST, "keep", "failed"),
        (None, 100, 0.0, ReleaseInfo("2"), "keep", "no prompt"),
    ],
)
def test_decision_and_reason(
    drift: DriftResult | None, requests: int, errors: float, release: ReleaseInfo, action: str, says: str
) -> None:
    decision = decide(drift, requests, errors, release, LIMITS)
    assert decision.action == action
    assert says in decision.reasons[0]


def test_words_that_are_usually_new_are_no_news() -> None:
    usual = dataclasses.replace(NEW_WORDS, usual_unknown_word_share=0.15)
    assert decide(usual, 100, 0.0, ReleaseInfo("2"), LIMITS).action == "keep"


def test_a_limit_of_zero_does_not_fire_on_nothing() -> None:
    assert decide(CALM, 100, 0.0, ReleaseInfo("2"), Watch(unknown_word_share=0.0)).action == "keep"


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 200), st.floats(0, 1), st.floats(0, 1), st.floats(0, 1), st.booleans())
def test_there_is_always_one_action_with_a_reason(
    requests: int, errors: float, share: float, unknown: float, back: bool
) -> None:
    drift = dataclasses.replace(CALM, share_drifted=share, unknown_word_share=unknown)
    decision = decide(drift, requests, errors, ReleaseInfo("3", back), LIMITS)
    assert decision.action in ("keep", "retrain", "roll_back") and decision.reasons
    assert decision.action != "roll_back" or (back and errors > LIMITS.max_error_rate)
    assert decision.action == "keep" or requests >= LIMITS.min_requests
