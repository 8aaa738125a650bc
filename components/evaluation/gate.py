"""The gate: a pure decision whether a model may become the champion.

What a user sees is *fidelity* where the exact grader could measure it, else *R-precision*: both are shares of
prompts, one 0 or 1 a prompt, so champion and challenger can be paired on the same prompt and seed.

1. **Limits.** The primary set (``known``, or the first) must reach ``min_fidelity`` and ``min_r_precision``, and
   every metric in ``limits`` must lie in its window, on the primary set or, as ``set/metric``, on another. They hold
   for every model; otherwise small permitted losses could add up, release by release. A window has two sides: too good
   a result (pictures nearer to the held-out ones than real pictures are, a share of memorised ones) is a sign that
   the test leaked into training, and fails too. A metric that a limit names and nobody measured fails.
2. **Non-inferiority**, for a challenger, on each set but ``trained``, which is there for limits alone: the one-sided
   lower bound of the paired difference must lie above ``-max_regression``. With the bound above 0 the set is called
   improved.
3. **Improvement**, for a challenger and each metric in ``must_improve``: the lower bound lies above 0 on at least
   one set.
4. **Fréchet distance**, for a challenger, on the primary set: at most ``max_frechet_ratio`` times the
   champion's.

All must hold, so testing several rules makes the gate stricter, never looser, and needs no correction. Two things do
need one, and get Bonferroni's: looking again after more pictures were drawn, up to ``max_turns`` times (each look is
at confidence ``1 - (1 - confidence) / max_turns``), and asking for an improvement on *any* of several sets (divided by
their number as well). So a model that is truly worse than the margin passes the second rule, and one that is truly no
better passes the third, with a probability of ``1 - confidence`` at most, over all looks together.

Power, the chance that an equally good model passes the second rule at the first look, by simulation with 512 pairs at
confidence 0.95 and one turn: with 5% discordant pairs (prompts on which just one of the two is right) 0.92 at a margin
of 0.03 and above 0.99 at 0.05; with 10% discordant pairs 0.7 and 0.97; with 18% 0.5 and 0.85. When a bound fails but
the difference itself does not, the comparison is *inconclusive*: more pictures are drawn, and what is inconclusive
after the last turn fails. The reason says how many prompts would tell.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from components.contracts.errors import GateRefused
from components.contracts.recipe import Release
from components.evaluation.assess import Assessment, SetResult
from components.evaluation.intervals import Estimate, Values, paired_difference, pairs_needed
from components.evaluation.prompts import TRAINED, primary
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
    rule: Literal["keep", "gain"] = "keep"

    @property
    def passed(self) -> bool:
        """True for improved, and for not inferior where that is enough."""
        return self.outcome == "improved" or (self.outcome == "not inferior" and self.rule == "keep")


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
    def undecided(self) -> bool:
        """True if it failed, but more pictures might show that every rule holds."""
        missed = [c for c in self.comparisons if not c.passed]
        return len(missed) == len(self.failures) > 0 and all(c.outcome == "inconclusive" for c in missed)

    @property
    def verdict(self) -> Literal["pass", "fail", "inconclusive"]:
        """The decision as a word."""
        return "pass" if self.passed else "inconclusive" if self.undecided else "fail"

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
    for metric, (least, greatest) in policy.limits.items():
        if least is None and greatest is None:
            continue
        sentence, holds = _within(challenger, metric, least, greatest)
        (passed if holds else failed).append(sentence)
    if champion is None:
        passed.append("first model: there is no champion to compare with")
    else:
        refuse_across_protocols(challenger, champion)
        pairs = {name: (one, champion.sets[name]) for name, one in challenger.sets.items() if name != TRAINED}
        comparisons = [_compare_shares(name, one, two, policy) for name, (one, two) in pairs.items()]
        comparisons += [_compare_gain(metric, pairs, policy) for metric in policy.must_improve]
        comparisons.append(_compare_frechet(primary, *pairs[primary], policy))
        for comparison in comparisons:
            (passed if comparison.passed else failed).append(_sentence(comparison))
    return Verdict(failed, passed, comparisons)


def primary_set(assessment: Assessment) -> str:
    """The set that floors and the Fréchet rule read."""
    return primary(assessment.sets)


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


def _within(challenger: Assessment, metric: str, least: float | None, greatest: float | None) -> tuple[str, bool]:
    """A sentence on a metric of ``limits``, and whether it holds."""
    name, _, metric = metric.rpartition("/")
    name = name or primary_set(challenger)
    number = challenger.sets[name].metrics.get(metric) if name in challenger.sets else None
    if number is None:
        return f"{metric} has a limit and was not measured on {name} prompts", False
    what = f"{metric} on {name} prompts is {_range(number)}"
    if least is not None and number.value < least:
        return f"{what}, below the limit {least:g}", False
    if greatest is not None and number.value > greatest:
        return f"{what}, above the limit {greatest:g}", False
    window = " to ".join("any" if side is None else f"{side:g}" for side in (least, greatest))
    return f"{what}, within {window}", True


def _confidence(policy: Release, ways: int = 1) -> float:
    """Of one look, at one of several ways to pass."""
    return 1 - (1 - policy.confidence) / (policy.max_turns * ways)


def _paired(metric: str, challenger: SetResult, champion: SetResult) -> tuple[Values, Values]:
    """The shares of both on the pictures where both were measured."""
    one = challenger.correct if metric == "fidelity" else challenger.retrieved
    two = champion.correct if metric == "fidelity" else champion.retrieved
    both = ~(np.isnan(one) | np.isnan(two))
    return one[both], two[both]


def _compare_gain(metric: str, pairs: Mapping[str, tuple[SetResult, SetResult]], policy: Release) -> Comparison:
    """The set on which ``metric`` gained most surely, held against no gain at all."""
    found = []
    for name, (challenger, champion) in pairs.items():
        one, two = _paired(metric, challenger, champion)
        if one.size:
            gain = paired_difference(one, two, _confidence(policy, len(pairs)))
            found.append((gain.low, name, gain, float(two.mean()), float(one.mean())))
    if not found:
        raise GateRefused(
            f"release.must_improve names {metric}, which was not measured on both models",
            expected="a metric of the assessment",
            remedy="take it out of release.must_improve, or assess with prompts that it can be measured on",
        )
    _, name, gain, before, after = max(found, key=lambda each: each[0])
    ever = any(g.value > 0 for _, _, g, _, _ in found)
    outcome: Outcome = "improved" if gain.low > 0 else "inconclusive" if ever else "worse"
    return Comparison(name, metric, before, after, gain, 0.0, outcome, rule="gain")


def _compare_shares(name: str, challenger: SetResult, champion: SetResult, policy: Release) -> Comparison:
    metric = "fidelity" if "fidelity" in challenger.metrics else "r_precision"
    one, two = _paired(metric, challenger, champion)
    if not one.size:
        raise GateRefused(
            f"Nothing was measured on the {name} prompts that could be compared",
            expected="fidelity or R-precision",
            remedy="give the prompt set at least two prompts that mean different things, then assess again",
        )
    confidence = _confidence(policy)
    gain = paired_difference(one, two, confidence)
    if gain.low > 0:
        outcome: Outcome = "improved"
    elif gain.low > -policy.max_regression:
        outcome = "not inferior"
    else:
        outcome = "worse" if gain.value < -policy.max_regression else "inconclusive"
    needed = 0
    if outcome == "inconclusive" and policy.max_regression > 0:
        needed = pairs_needed(float((one != two).mean()), policy.max_regression, confidence)
    before, after = float(two.mean()), float(one.mean())
    return Comparison(name, metric, before, after, gain, policy.max_regression, outcome, needed)


def _compare_frechet(name: str, challenger: SetResult, champion: SetResult, policy: Release) -> Comparison:
    one, two = challenger.metrics["frechet"].value, champion.metrics["frechet"].value
    ratio = one / two if two > 0 else 1.0 if one == 0 else float(np.finfo(np.float64).max)
    limit = policy.max_frechet_ratio
    outcome: Outcome = "worse" if ratio > limit else "improved" if ratio < 1 else "not inferior"
    estimate = Estimate(ratio, ratio, ratio, challenger.metrics["frechet"].n)
    return Comparison(name, "frechet", two, one, estimate, limit, outcome)


def _sentence(c: Comparison) -> str:
    if c.metric == "frechet":
        sign = "at most" if c.passed else "above"
        return (
            f"Fréchet distance on {c.set} prompts is {c.challenger:.4g} against the champion's "
            f"{c.champion:.4g}: {c.difference.value:.2f} times, {sign} the allowed {c.margin:g} times"
        )
    gain = c.difference
    head = (
        f"{c.metric} on {c.set} prompts is {c.challenger:.3f} against the champion's {c.champion:.3f} "
        f"(paired difference {gain.value:+.3f}, one-sided bounds {gain.low:+.3f} to "
        f"{gain.high:+.3f}, n {gain.n})"
    )
    if c.rule == "gain":
        said = {"improved": "improved, as it must", "inconclusive": "a gain, which it must have, is not shown"}
        return f"{head}: {said.get(c.outcome, 'no gain, which it must have')}"
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
