"""The gate's decisions, its refusals, and how often it errs."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components.contracts.errors import GateRefused
from components.contracts.recipe import Release
from components.contracts.recipe_judge import SANITY
from components.evaluation.assess import Assessment, SetResult
from components.evaluation.gate import decide
from components.evaluation.intervals import Estimate, paired_difference, wilson

STAMP = {"judge": "j1", "steps": 16, "guidance_scale": 3.0}


def result(
    correct: npt.ArrayLike, frechet: float = 2.0, graded: bool = True, hits: npt.ArrayLike | None = None
) -> SetResult:
    right = np.asarray(correct, dtype=np.float64)
    n = len(right)
    found = right if hits is None else np.asarray(hits, dtype=np.float64)
    metrics = {"frechet": Estimate(frechet, frechet, frechet, n), "r_precision": wilson(int(found.sum()), n)}
    metrics |= {"memorised": wilson(0, n), "leaked": wilson(0, n), "frechet_vs_real": Estimate(1.5, 1.2, 1.8, n)}
    if graded:
        metrics["fidelity"] = wilson(int(right.sum()), n)
    unknown = np.full(n, np.nan)
    return SetResult(tuple(f"p{i}" for i in range(n)), tuple(range(n)), right if graded else unknown, found, metrics)


def assessment(stamp: dict[str, Any] | None = None, **sets: SetResult) -> Assessment:
    nobody = np.full(1, np.nan)
    trained = SetResult(("t",), (9,), nobody, nobody, {"memorised": wilson(0, 64)})
    return Assessment("m", STAMP if stamp is None else stamp, {**sets, "trained": trained})


def share(right: int, n: int = 512) -> npt.NDArray[np.float64]:
    return (np.arange(n) < right).astype(np.float64)


def test_first_model_passes_its_floors() -> None:
    verdict = decide(assessment(known=result(share(480))), None, Release(min_fidelity=0.9, min_r_precision=0.5))
    assert verdict.passed and verdict.verdict == "pass" and not verdict.comparisons
    assert any("first model" in r for r in verdict.reasons)


def test_floors_fail_by_name() -> None:
    verdict = decide(assessment(known=result(share(400))), None, Release(min_fidelity=0.9, min_r_precision=0.95))
    assert verdict.verdict == "fail"
    assert [r.split()[0] for r in verdict.failures] == ["fidelity", "r_precision"]
    assert "0.781" in verdict.failures[0] and "below the floor 0.9" in verdict.failures[0]


def test_a_floor_without_a_measurement_does_not_apply_but_is_said() -> None:
    verdict = decide(assessment(known=result(share(400), graded=False)), None, Release(min_fidelity=0.9))
    assert verdict.passed and any("does not apply" in r for r in verdict.reasons)


def test_floors_hold_for_challengers_too() -> None:
    same = assessment(known=result(share(440)))
    assert not decide(same, same, Release(min_fidelity=0.9)).passed


def test_equal_models_pass_as_not_inferior_not_as_improved() -> None:
    one = assessment(known=result(share(470)), new=result(share(20)))
    verdict = decide(one, one, Release())
    assert verdict.passed
    assert [c.outcome for c in verdict.comparisons] == ["not inferior"] * 3


def test_improvement_on_new_prompts_is_said() -> None:
    before = assessment(known=result(share(470)), new=result(share(20)))
    after = assessment(known=result(share(468)), new=result(share(440)))
    verdict = decide(after, before, Release())
    assert verdict.passed
    assert {(c.set, c.metric): c.outcome for c in verdict.comparisons}[("new", "fidelity")] == "improved"
    assert any("improved" in r and "+0.82" in r for r in verdict.reasons)


@pytest.mark.parametrize("name", ["known", "new"])
def test_a_loss_on_either_set_fails(name: str) -> None:
    good = {"known": result(share(470)), "new": result(share(400))}
    worse = good | {name: result(share(350))}
    verdict = decide(assessment(**worse), assessment(**good), Release())
    assert not verdict.passed and len(verdict.failures) == 1 and f"on {name} prompts" in verdict.failures[0]


def test_inconclusive_fails_and_says_how_many_prompts_would_tell() -> None:
    rng = np.random.default_rng(1)
    before, after = rng.random(60) < 0.8, rng.random(60) < 0.8
    verdict = decide(assessment(known=result(after)), assessment(known=result(before)), Release())
    assert verdict.comparisons[0].outcome == "inconclusive" and not verdict.passed
    assert f"{verdict.comparisons[0].needed} prompts" in verdict.failures[0]


def test_r_precision_decides_where_nothing_was_graded() -> None:
    before = assessment(known=result(share(9), graded=False, hits=share(300)))
    worse = assessment(known=result(share(9), graded=False, hits=share(200)))
    verdict = decide(worse, before, Release())
    assert not verdict.passed and verdict.comparisons[0].metric == "r_precision"
    assert decide(before, before, Release()).passed


def test_frechet_ratio() -> None:
    before = assessment(known=result(share(470), frechet=2.0))
    at_limit, beyond = (assessment(known=result(share(470), frechet=f)) for f in (3.0, 3.1))
    assert decide(at_limit, before, Release(max_frechet_ratio=1.5)).passed
    verdict = decide(beyond, before, Release(max_frechet_ratio=1.5))
    assert not verdict.passed and "1.55 times, above the allowed 1.5" in verdict.failures[0]
    perfect = assessment(known=result(share(470), frechet=0.0))
    assert decide(perfect, perfect, Release()).passed and not decide(before, perfect, Release()).passed


@pytest.mark.parametrize("key", list(STAMP))
def test_never_across_protocols(key: str) -> None:
    one = assessment(known=result(share(470)))
    other = assessment({**STAMP, key: "another"}, known=result(share(470)))
    with pytest.raises(
        GateRefused, match=f"different protocols: {key}: .*against.*another.*[Aa]ssess the champion again"
    ):
        decide(one, other, Release())


def test_never_on_other_rows_under_one_stamp() -> None:
    one = assessment(known=result(share(470)))
    with pytest.raises(GateRefused, match="prompts and seeds"):
        decide(one, assessment(known=result(share(200, 300))), Release())
    with pytest.raises(GateRefused, match="prompts and seeds"):
        decide(one, assessment(known=result(share(470)), new=result(share(470))), Release())


counts = st.integers(0, 200)


@settings(max_examples=60, deadline=None)
@given(counts, counts, counts, counts, st.floats(0.001, 0.2), st.floats(0.6, 0.99))
def test_verdict_is_true_to_its_rules(a: int, b: int, c: int, d: int, margin: float, confidence: float) -> None:
    one = assessment(known=result(share(a, 200)), new=result(share(c, 200)))
    two = assessment(known=result(share(b, 200)), new=result(share(d, 200)))
    policy = Release(max_regression=margin, confidence=confidence)
    verdict = decide(one, two, policy)
    assert verdict.passed == all(x.passed for x in verdict.comparisons) == (verdict.verdict == "pass")
    assert len(verdict.reasons) == len(verdict.comparisons) + len(SANITY)
    if a <= b - 200 * margin - 1e-9 or c <= d - 200 * margin - 1e-9:
        assert not verdict.passed, "a loss of the margin or more is never passed"
    wider = decide(one, two, Release(max_regression=1.0, confidence=confidence))
    assert wider.passed or not verdict.passed, "a wider margin never fails what a narrower one passes"
    assert decide(one, two, policy) == verdict


@pytest.mark.parametrize(
    ("discordant", "true_difference", "low", "high"),
    [
        (0.05, 0.0, 0.85, 1.0),  # equal quality: promoted most of the time
        (0.10, 0.0, 0.6, 0.8),
        (0.10, 0.02, 0.95, 1.0),  # better: promoted
        (0.05, -0.03, 0.0, 0.09),  # worse by just the margin: the false-promotion rate is about 5%
        (0.18, -0.03, 0.0, 0.09),
        (0.10, -0.06, 0.0, 0.01),
    ],
)
def test_promotion_rates(discordant: float, true_difference: float, low: float, high: float) -> None:
    rng = np.random.default_rng(7)
    p = [(discordant + true_difference) / 2, (discordant - true_difference) / 2, 1 - discordant]
    promoted = 0
    for gained, lost, same in rng.multinomial(512, p, 400):
        one = np.repeat([1.0, 0.0, 1.0], [gained, lost, same])
        two = np.repeat([0.0, 1.0, 1.0], [gained, lost, same])
        promoted += paired_difference(one, two, 0.95).low > -0.03
    assert low <= promoted / 400 <= high


def test_limits_have_two_sides_and_fail_where_nothing_was_measured() -> None:
    one = assessment(known=result(share(470), frechet=2.0))
    inside = decide(one, None, Release(limits={"frechet": (0.5, 3.0), "r_precision": (None, 1.0)}))
    assert (
        inside.passed and any("within 0.5 to 3" in r for r in inside.held) and any("any to 1" in r for r in inside.held)
    )
    assert "above the limit 1.5" in decide(one, None, Release(limits={"frechet": (None, 1.5)})).failures[0]
    leaked = decide(assessment(known=result(share(512), frechet=0.01)), None, Release(limits={"frechet": (0.5, None)}))
    assert leaked.verdict == "fail" and "below the limit 0.5" in leaked.failures[0]
    unknown = decide(one, None, Release(limits={"safe": (0.9, None), "parti/clip_score": (20.0, None)}))
    assert unknown.failures == [
        "safe has a limit and was not measured on known prompts",
        "clip_score has a limit and was not measured on parti prompts",
    ]


@pytest.mark.parametrize("metric", list(SANITY))
def test_a_result_too_good_fails_by_default(metric: str) -> None:
    name, _, key = metric.rpartition("/")
    one = assessment(known=result(share(512)))
    bad = Estimate(0.9, 0.8, 1.0, 512) if SANITY[metric][0] is None else Estimate(0.1, 0.05, 0.2, 512)
    one.sets[name or "known"].metrics[key] = bad
    verdict = decide(one, None, Release())
    assert verdict.verdict == "fail" and len(verdict.failures) == 1 and verdict.failures[0].startswith(key)
    assert decide(one, None, Release(limits={metric: (None, None)})).passed, "a limit is taken off by name"


def test_equal_models_are_not_inferior_and_not_improved() -> None:
    one = assessment(known=result(share(470)), new=result(share(20)))
    asked = decide(one, one, Release(must_improve=("fidelity",)))
    assert asked.verdict == "fail" and "no gain, which it must have" in asked.failures[0]
    assert decide(one, one, Release()).passed


def test_a_gain_on_one_set_is_enough() -> None:
    before = assessment(known=result(share(470)), new=result(share(20)))
    after = assessment(known=result(share(470)), new=result(share(300)))
    verdict = decide(after, before, Release(must_improve=("fidelity",)))
    assert verdict.passed and any("on new prompts" in r and "improved, as it must" in r for r in verdict.reasons)


def test_undecided_only_where_more_pictures_could_tell() -> None:
    # as often right, on other prompts
    one, two = assessment(known=result(np.roll(share(460), 30))), assessment(known=result(share(460)))
    policy = Release(max_regression=0.01)
    assert decide(one, two, policy).undecided and decide(one, two, policy).verdict == "inconclusive"
    floored = decide(one, two, policy.model_copy(update={"min_fidelity": 0.99}))
    assert not floored.undecided and floored.verdict == "fail", "more pictures do not help against a floor"


def _after_all_turns(rng: np.random.Generator, p: list[float], policy: Release, n: int = 512) -> bool:
    """What becomes of one challenger: drawn again as often as the policy allows while it is undecided."""
    ones: list[npt.NDArray[np.float64]] = []
    twos: list[npt.NDArray[np.float64]] = []
    for _ in range(policy.max_turns):
        gained, lost, same = rng.multinomial(n, p)
        ones.append(np.repeat([1.0, 0.0, 1.0], [gained, lost, same]))
        twos.append(np.repeat([0.0, 1.0, 1.0], [gained, lost, same]))
        verdict = decide(
            assessment(known=result(np.concatenate(ones))), assessment(known=result(np.concatenate(twos))), policy
        )
        if not verdict.undecided:
            break
    return verdict.passed


@pytest.mark.slow
@pytest.mark.parametrize(
    ("true_difference", "must_improve", "low", "high"),
    [
        (0.0, True, 0.0, 0.05),  # no better, but must be: promoted by error in 5% of cases at most, over all looks
        (-0.03, False, 0.0, 0.05),  # worse by just the margin: likewise
        (0.0, False, 0.9, 1.0),  # equally good: promoted
        (0.03, True, 0.75, 1.0),  # power for a true gain of three points
    ],
)
def test_errors_over_all_turns_of_200_comparisons(
    true_difference: float, must_improve: bool, low: float, high: float
) -> None:
    policy = Release(must_improve=("fidelity",) if must_improve else ())
    p = [(0.1 + true_difference) / 2, (0.1 - true_difference) / 2, 0.9]
    rng = np.random.default_rng(11)
    promoted = sum(_after_all_turns(rng, p, policy) for _ in range(200)) / 200
    print(f"promoted {promoted:.3f} of 200 at a true difference of {true_difference:+.2f}")
    assert low <= promoted <= high
