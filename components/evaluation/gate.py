"""The gate: a pure decision whether a model may become the champion.

What a user sees is *fidelity* where the exact grader could measure it, else *R-precision*: both are shares of
prompts, one 0 or 1 a prompt, so champion and challenger can be paired on the same prompt and seed.

1. **Floors.** The primary set (``known``, or the first) must reach ``min_fidelity`` and ``min_r_precision``.
   They hold for every model; otherwise small permitted losses could add up, release by release.
2. **Non-inferiority**, for a challenger, on each set: the one-sided lower bound (at ``confidence``) of the
   paired difference must lie above ``-max_regression``. So a model that is truly worse than the margin passes
   with a probability of about ``1 - confidence`` at most. With the bound above 0 the set is called improved.
3. **Fréchet distance**, for a challenger, on the primary set: at most ``max_frechet_ratio`` times the
   champion's.

All must hold, so testing several sets makes the gate stricter, never looser, and needs no correction.

Power, the chance that an equally good model passes the second rule, by simulation at confidence 0.95 and 512
pairs: with 5% discordant pairs (prompts on which just one of the two is right) 0.92 at a margin of 0.03 and
above 0.99 at 0.05; with 10% discordant pairs 0.7 and 0.97; with 18% 0.5 and 0.85. A model that is worse by
exactly the margin passes in 5% of cases, as stated. When the bound fails but the difference itself does not,
the result is inconclusive, which fails, and the reason says how many prompts would tell.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from components.contracts.errors import GateRefused
from components.contracts.recipe import Release
from components.evaluation.assess import Assessment, SetResult
from components.evaluation.intervals import Estimate, paired_difference, pairs_needed
from components.evaluation.prompts import KNOWN
from components.evaluation.protocol import difference

Outcome = Literal["improved", "not inferior", "inconclusive", "worse"]


@dataclass(frozen=True)
class Comparison:
    """Challenger against champion on one metric of one set.

    For a share, ``difference`` is challenger minus champion over pairs; for the Fréchet distance it is the
    ratio challenger to champion, without an interval.
    """

    set: str
    metric: str
    champion: float
    challenger: float
    difference: Estimate
    margin: float
    outcome: Outcome
    needed: int = 0  # pairs at which an equally good model would pass 9 times in 10, when inconclusive

    @property
    def passed(self) -> bool:
        """True for improved and not inferior."""
        return self.outcome in ("improved", "not inferior")


@dataclass(frozen=True)
class Verdict:
    """The decision: one sentence for each rule that failed and each that held, and the comparisons behind."""

    failures: list[str]
    held: list[str]
    comparisons: list[Comparison]

    @property
    def passed(self) -> bool:
        """True if no rule failed."""
        return not self.failures

    @property
    def verdict(self) -> Literal["pass", "fail"]:
        """The decision as a word, for records and tags."""
        return "pass" if self.passed else "fail"

    @property
    def reasons(self) -> list[str]:
        """All sentences, failures first."""
        return self.failures + self.held

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "verdict": self.verdict,
            "reasons": self.reasons,
            "failures": self.failures,
            "comparisons": [
                asdict(c) | {"difference": c.difference.as_json(), "passed": c.passed} for c in self.comparisons
            ],
        }


def decide(challenger: Assessment, champion: Assessment | None, policy: Release) -> Verdict:
    """Whether ``challenger`` may become the champion; see the module for the rules.

    Raises:
        GateRefused: the two were measured under different protocols; the message names the difference.
    """
    failed: list[str] = []
    passed: list[str] = []
    comparisons: list[Comparison] = []
    primary = primary_set(challenger)
    for metric, floor in (("fidelity", policy.min_fidelity), ("r_precision", policy.min_r_precision)):
        number = challenger.sets[primary].metrics.get(metric)
        if number is None:
            if floor > 0:
                passed.append(f"{metric} is not measured on {primary} prompts: its floor {floor:g} does not apply")
        elif number.value < floor:
            failed.append(f"{metric} on {primary} prompts is {_range(number)}, below the floor {floor:g}")
        elif floor > 0:
            passed.append(f"{metric} on {primary} prompts is {_range(number)}, not below the floor {floor:g}")
    if champion is None:
        passed.append("first model: there is no champion to compare with")
    else:
        refuse_across_protocols(challenger, champion)
        pairs = {name: (one, champion.sets[name]) for name, one in challenger.sets.items()}
        comparisons = [_compare_shares(name, one, two, policy) for name, (one, two) in pairs.items()]
        comparisons.append(_compare_frechet(primary, *pairs[primary], policy))
        for comparison in comparisons:
            (passed if comparison.passed else failed).append(_sentence(comparison, policy))
    return Verdict(failed, passed, comparisons)


def primary_set(assessment: Assessment) -> str:
    """The set that floors and the Fréchet rule read."""
    return KNOWN if KNOWN in assessment.sets else next(iter(assessment.sets))


def refuse_across_protocols(challenger: Assessment, champion: Assessment) -> None:
    """Do nothing if the numbers of the two may be compared.

    Raises:
        GateRefused: their stamps, prompts or seeds differ; the message names the difference.
    """
    found = difference(challenger.stamp, champion.stamp)
    if not found and (
        list(challenger.sets) != list(champion.sets)
        or any(
            (one.prompts, one.seeds) != (champion.sets[name].prompts, champion.sets[name].seeds)
            for name, one in challenger.sets.items()
        )
    ):
        found = ["prompts and seeds: not the same rows"]
    if found:
        raise GateRefused(
            f"Challenger and champion were measured under different protocols: {'; '.join(found)}",
            expected="equal stamps",
            remedy="assess the champion again under the challenger's judge, then release again",
        )


def _compare_shares(name: str, challenger: SetResult, champion: SetResult, policy: Release) -> Comparison:
    metric = "fidelity" if "fidelity" in challenger.metrics else "r_precision"
    one = challenger.correct if metric == "fidelity" else challenger.retrieved
    two = champion.correct if metric == "fidelity" else champion.retrieved
    both = ~(np.isnan(one) | np.isnan(two))
    if not both.any():
        raise GateRefused(
            f"Nothing was measured on the {name} prompts that could be compared",
            expected="fidelity or R-precision",
            remedy="give the prompt set at least two prompts that mean different things, then assess again",
        )
    gain = paired_difference(one[both], two[both], policy.confidence)
    if gain.low > 0:
        outcome: Outcome = "improved"
    elif gain.low > -policy.max_regression:
        outcome = "not inferior"
    else:
        outcome = "worse" if gain.value < -policy.max_regression else "inconclusive"
    needed = 0
    if outcome == "inconclusive" and policy.max_regression > 0:
        discordant = float((one[both] != two[both]).mean())
        needed = pairs_needed(discordant, policy.max_regression, policy.confidence)
    before, after = float(two[both].mean()), float(one[both].mean())
    return Comparison(name, metric, before, after, gain, policy.max_regression, outcome, needed)


def _compare_frechet(name: str, challenger: SetResult, champion: SetResult, policy: Release) -> Comparison:
    one, two = challenger.metrics["frechet"].value, champion.metrics["frechet"].value
    ratio = one / two if two > 0 else 1.0 if one == 0 else float(np.finfo(np.float64).max)
    limit = policy.max_frechet_ratio
    outcome: Outcome = "worse" if ratio > limit else "improved" if ratio < 1 else "not inferior"
    estimate = Estimate(ratio, ratio, ratio, challenger.metrics["frechet"].n)
    return Comparison(name, "frechet", two, one, estimate, limit, outcome)


def _sentence(c: Comparison, policy: Release) -> str:
    if c.metric == "frechet":
        sign = "at most" if c.passed else "above"
        return (
            f"Fréchet distance on {c.set} prompts is {c.challenger:.4g} against the champion's "
            f"{c.champion:.4g}: {c.difference.value:.2f} times, {sign} the allowed {c.margin:g} times"
        )
    gain = c.difference
    head = (
        f"{c.metric} on {c.set} prompts is {c.challenger:.3f} against the champion's {c.champion:.3f} "
        f"(paired difference {gain.value:+.3f}, {policy.confidence:.0%} bounds {gain.low:+.3f} to "
        f"{gain.high:+.3f}, n {gain.n})"
    )
    if c.outcome == "improved":
        return f"{head}: improved"
    if c.outcome == "not inferior":
        return f"{head}: not worse than the margin of {c.margin:g}"
    if c.outcome == "worse":
        return f"{head}: worse than the margin of {c.margin:g}"
    advice = f"; {c.needed} prompts would pass an equally good model 9 times in 10" if c.needed > gain.n else ""
    return f"{head}: a loss beyond the margin of {c.margin:g} is not ruled out{advice}"


def _range(number: Estimate) -> str:
    return f"{number.value:.3f} ({number.low:.3f} to {number.high:.3f}, n {number.n})"
