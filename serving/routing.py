"""Which version answers a request: the champion, for a few keys the challenger, or the one before a failing champion.

* **Canary.** A share of the API keys is answered by the challenger. A key is always on the same side.
* **Shadow.** A share of the champion's requests is drawn a second time by another version and shown to nobody, see
  :mod:`serving.beside`.
* **Probation.** The first requests of a new champion are counted. When more of them have failed than the watch would
  allow over all of them, the version before it, which is kept loaded until then, takes over at once. A challenger that
  fails as often gets no more requests.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from components.evaluation.registry import CHALLENGER, CHAMPION, SHADOW
from serving.beside import Beside, Piece
from serving.engine import Drawn, Engine, NoModel, Served
from serving.metrics import Metrics
from serving.schemas import Order
from serving.sharing import chance

if TYPE_CHECKING:
    from serving.follower import Follower

CANARY = "canary"
_log = logging.getLogger("ray.serve")


class UnknownVersion(LookupError):
    """A version was asked for by name that is not loaded; the message is for people."""


@dataclass
class _Watched:
    """The first requests of a version. ``before`` takes over when too many fail; None for a challenger."""

    served: Served
    before: Served | None
    requests: int = 0
    failures: int = 0


class Router:
    """Binds requests to versions. May be called from several threads.

    Args:
        canary_share: of the keys, 0..1.
        probation: how many requests of a new version are watched; 0: none.
        max_error_rate: a version is given up when more than this share of ``probation`` has failed.
        beside: draws and scores besides; None: nothing is.
        dropped: told of a champion that was given up: its version, the one that took over, and why.
    """

    def __init__(
        self,
        engine: Engine,
        metrics: Metrics,
        *,
        canary_share: float = 0.0,
        shadow_share: float = 0.0,
        probation: int = 0,
        max_error_rate: float = 0.05,
        beside: Beside | None = None,
        dropped: Callable[[str, str, str], None] = lambda version, before, why: None,
    ) -> None:
        self._engine, self._metrics, self._beside = engine, metrics, beside
        self.shares = {CHALLENGER: canary_share, SHADOW: shadow_share}
        self._probation, self._max_error_rate = probation, max_error_rate
        self.dropped = dropped
        self._lock = threading.Lock()
        self._trials: dict[str, Served] = {}
        self._watched: dict[str, _Watched] = {}  # by version

    def route(self, key_id: str | None = None, version: str | None = None) -> Served:
        """The version that answers a request of the key with that public id.

        Args:
            key_id: None where no key is asked for: then there is no canary.
            version: "champion", "challenger" or the number of one of them; None lets the shares decide.

        Raises:
            NoModel: none is loaded yet.
            UnknownVersion: ``version`` is none that is loaded and may be shown.
        """
        champion, challenger = self._engine.served, self._trials.get(CHALLENGER)
        if version is not None:
            named = {CHAMPION: champion, CHALLENGER: challenger}
            named |= {served.version: served for served in (challenger, champion) if served}
            if (found := named.get(version)) is None:
                loaded = ", ".join(sorted(name for name, served in named.items() if served)) or "none"
                raise UnknownVersion(f"The version {version[:40]!r} cannot be asked for. Known: {loaded}.")
            return found
        if champion is None:
            raise NoModel
        if challenger and key_id and chance("canary", key_id) < self.shares[CHALLENGER]:
            return challenger
        return champion

    def role(self, served: Served) -> str | None:
        """What a request that ``served`` answers is called in the logbook: None for the champion's."""
        challenger, champion = self._trials.get(CHALLENGER), self._engine.served
        if challenger is None or served.version != challenger.version:
            return None
        return None if champion and champion.version == served.version else CANARY

    def finished(
        self,
        served: Served,
        status: int,
        *,
        request_id: str,
        drawings: Sequence[tuple[Order, Drawn]] = (),
        seconds: float = 0.0,
    ) -> None:
        """Take the outcome of a request that ``served`` was to answer; returns at once.

        Args:
            status: HTTP status answered. 500 is the version's failure; others of 400 and above say nothing of it.
            drawings: what was drawn, of a request that was answered.
        """
        role = self.role(served)
        if role == CANARY:
            self._metrics.canary_requests.labels(str(status)).inc()
        if status in (200, 500):
            self._count(served, status == 500)
        if self._beside and status == 200 and drawings:
            shadow = (self._trials.get(SHADOW) or self._trials.get(CHALLENGER)) if role is None else None
            self._beside.offer(Piece(request_id, tuple(drawings), seconds), shadow)

    def swap(self, served: Served) -> None:
        """Make ``served`` the champion; the older one stays loaded until its first requests went well.

        A version that is gone back to is not watched: the one that it replaces is no better.
        """
        before = self._engine.served
        with self._lock:
            self._watched.clear()
            if self._probation and before is not None and _newer(served.version, before.version):
                self._watched[served.version] = _Watched(served, before)
        self._engine.swap(served)

    def trial(self, alias: str, served: Served | None) -> None:
        """Try ``served`` beside the champion as ``alias``; None: no more."""
        if served is not None:
            self._engine.prepare(served)
        with self._lock:
            known = dict(self._trials)
            known.pop(alias, None)
            if served is not None:
                known[alias] = served
                if self._probation and alias == CHALLENGER:
                    self._watched[served.version] = _Watched(served, None)
            self._trials = known  # as a whole: readers take no lock
        self._metrics.trying({name: tried.version for name, tried in known.items()})

    def loaded(self) -> dict[str, Served]:
        """The versions that are in memory, by alias, the champion first."""
        champion = self._engine.served
        return ({CHAMPION: champion} if champion else {}) | self._trials

    def compared(self, version: str) -> dict[str, Any] | None:
        """What the shadow ``version`` drew beside the champion; None while there is nothing."""
        return self._beside.compared(version) if self._beside else None

    def close(self) -> None:
        """Draw and score nothing more besides."""
        if self._beside:
            self._beside.close()

    def _count(self, served: Served, failed: bool) -> None:
        with self._lock:
            watched = self._watched.get(served.version)
            if watched is None:
                return
            watched.requests += 1
            watched.failures += failed
            bad = watched.failures > self._max_error_rate * self._probation
            if bad or watched.requests >= self._probation:
                del self._watched[served.version]  # lets go of the version before it
        if bad:
            # on a thread of its own: a request waits for nothing, and it is as many as there are versions
            threading.Thread(target=self._give_up, args=(watched,), name="giving up", daemon=True).start()

    def _give_up(self, watched: _Watched) -> None:
        version = watched.served.version
        why = f"{watched.failures} of its first {watched.requests} requests failed"
        self._metrics.dropped_models.inc()
        if watched.before is None:
            _log.error("Version %s gets no more requests as challenger: %s", version, why)
            with self._lock:
                self._trials = {a: s for a, s in self._trials.items() if s.version != version}
            self._metrics.trying({name: tried.version for name, tried in self._trials.items()})
            return
        champion = self._engine.served
        if champion is None or champion.version != version:  # replaced meanwhile
            return
        self._engine.swap(watched.before)
        _log.error("Champion %s is given up, version %s serves again: %s", version, watched.before.version, why)
        self.dropped(version, watched.before.version, why)


def _newer(version: str, than: str) -> bool:
    return version.isdigit() and than.isdigit() and int(version) > int(than)


def models(router: Router, follower: Follower) -> list[dict[str, Any]]:
    """The champion and what is tried beside it, with the gate's verdict and reasons, for people who compare them."""
    told = []
    for alias, served in router.loaded().items():
        tags = follower.tags(served.version)
        forced = tags.get("forced", "")
        told.append(
            {
                "version": served.version,
                "role": alias,
                "verdict": "forced" if forced else tags.get("verdict"),
                "reasons": [*([forced] if forced else []), *tags.get("reasons", "").splitlines()],
                "failures": tags.get("failures", "").splitlines(),
                "served": alias != SHADOW,
                "share": router.shares.get(alias) or None,
                "compared": router.compared(served.version),
            }
        )
    return told
