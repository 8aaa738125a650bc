"""From what was measured to one decision: keep, retrain or roll back. Pure: no files, no clock, no vendor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from components.contracts.recipe import Watch
from monitoring.drift import DriftResult
from monitoring.live import Live, certain_drop

Action = Literal["keep", "retrain", "roll_back"]


@dataclass(frozen=True)
class ReleaseInfo:
    """The version that was served, and whether an earlier one is there to return to.

    ``dropped`` says why a server gave it up already, ``live`` and ``before`` what the logbook tells of it and of the
    version that was served before it.
    """

    version: str
    can_roll_back: bool = True
    dropped: str | None = None
    live: Live | None = None
    before: Live | None = None


@dataclass(frozen=True)
class Decision:
    """What to do, and why, in sentences for people. There is always at least one reason."""

    action: Action
    reasons: tuple[str, ...]


def decide(
    drift: DriftResult | None, requests: int, error_rate: float, release: ReleaseInfo, limits: Watch
) -> Decision:
    """One decision. What is wrong with the champion comes before drift: it is replaced before a new one is trained.

    Args:
        drift: what Evidently found; None when no prompt could be compared.
        requests: how many requests the served version answered or failed in the window.
        error_rate: share of them that failed through no fault of the client (status 500 and above), 0..1.
    """
    if release.dropped is not None:  # the server had seen enough
        return _back((f"a server gave up version {release.version}: {release.dropped}",), release)
    if requests < limits.min_requests:
        found = f"{requests} of version {release.version}, {limits.min_requests} are needed"
        return Decision("keep", (f"too few requests to judge: {found}",))
    if error_rate > limits.max_error_rate:
        failing = (
            f"{error_rate:.1%} of the requests to version {release.version} failed, "
            f"more than the {limits.max_error_rate:.1%} allowed"
        )
        return _back((failing,), release)
    if worse := _worse(release, limits):
        return _back(tuple(worse), release)
    if drift is None:
        return Decision("keep", ("no prompt could be compared",))
    if reasons := _drifted(drift, limits):
        return Decision("retrain", tuple(reasons))
    return Decision(
        "keep",
        (
            f"{drift.share_drifted:.0%} of the columns drifted, below {limits.threshold:.0%}, and "
            f"{drift.unknown_word_share:.1%} of the prompts hold a word that no training caption has "
            f"(usual: {drift.usual_unknown_word_share:.1%})",
        ),
    )


def _back(reasons: tuple[str, ...], release: ReleaseInfo) -> Decision:
    if release.can_roll_back:
        return Decision("roll_back", reasons)
    return Decision("keep", (*reasons, "there is no earlier version to return to"))


def _worse(release: ReleaseInfo, limits: Watch) -> list[str]:
    """In what the version is worse than the one before it, as far as both were seen enough."""
    now, before = release.live, release.before
    if now is None or before is None:
        return []
    reasons = []
    enough = min(now.served, before.served) >= limits.min_requests
    ratio = now.p95 / before.p95 if enough and now.p95 is not None and before.p95 else None
    if limits.max_latency_ratio is not None and ratio is not None and ratio > limits.max_latency_ratio:
        reasons.append(
            f"the 95th percentile of latency is {now.p95:.2f} s, {ratio:.1f} times the {before.p95:.2f} s of version "
            f"{before.version}, more than the {limits.max_latency_ratio:g} times allowed"
        )
    drop = certain_drop(now, before)
    if drop is not None and drop > limits.max_quality_drop:
        reasons.append(
            f"pictures match their prompts less than those of version {before.version}: {now.quality:.3f} against "
            f"{before.quality:.3f}, at least {drop:.3f} less, more than the {limits.max_quality_drop:g} allowed"
        )
    return reasons


def _drifted(drift: DriftResult, limits: Watch) -> list[str]:
    reasons = []
    if drift.share_drifted >= limits.threshold:
        names = ", ".join(name for name, column in drift.columns.items() if column.scored and column.drifted)
        share = f"{drift.share_drifted:.0%} of the columns drifted ({names})"
        reasons.append(f"{share}, below {limits.threshold:.0%} would be kept")
    # real captions have words that occur once, so new ones like them are expected among prompts too
    beyond = drift.unknown_word_share - drift.usual_unknown_word_share
    if beyond > 0 and beyond >= limits.unknown_word_share:
        words = ", ".join(list(drift.unknown_words)[:5])
        reasons.append(
            f"{drift.unknown_word_share:.1%} of the prompts hold a word that no training caption has "
            f"({words}); usual: {drift.usual_unknown_word_share:.1%}, "
            f"below {limits.unknown_word_share:.1%} more would be kept"
        )
    return reasons
