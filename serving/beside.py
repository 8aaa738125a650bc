"""What is done beside answering, while nobody waits: the shadow draws a request too, the judge scores its pictures.

Nothing of it is returned to anybody. What comes out goes to the logbook (rows of the roles ``shadow`` and ``quality``),
to the metrics and, as means, to whoever compares the versions.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from serving.engine import Drawn, Engine, EngineClosed, QueueFull, Served
from serving.logbook import Entry, Logbook, image_stats
from serving.metrics import Metrics
from serving.schemas import Order
from serving.sharing import chance

OWNER = "shadow"  # in the engine's queue, which shares the steps evenly between owners
_KEPT = 32  # requests that wait to be drawn or scored; a further one is left out
_WAIT_S = 30.0  # until nobody waits for the engine; then it is left out
_LOOK_S = 0.05
_log = logging.getLogger("ray.serve")


class Scorer(Protocol):
    """Holds pictures against their prompt."""

    @property
    def judge(self) -> str:
        """Digest of the artifact that it comes from."""
        ...

    def score(self, prompt: str, pixels: NDArray[np.uint8]) -> float:
        """Mean cosine of the prompt's and the pictures' embeddings; pixels uint8 [N, H, W, 3]."""
        ...


@dataclass(frozen=True)
class Piece:
    """A request that was answered: its orders with what was drawn, and how long it took, in seconds."""

    request_id: str
    drawings: tuple[tuple[Order, Drawn], ...]
    seconds: float


@dataclass
class _Sums:
    """Of the requests that a shadow drew too."""

    drawn: int = 0
    failed: int = 0
    seconds: float = 0.0
    champion_seconds: float = 0.0
    differences: list[float] = field(default_factory=lambda: [0.0, 0.0])  # sum, number
    qualities: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])  # shadow's, champion's, number


class Beside:
    """Draws and scores on a thread of its own.

    Args:
        shadow_share, quality_share: of the requests, 0..1; which ones is a matter of the request's id.
        scorer: the judge of the served version, asked once a version; None where there is none.
    """

    def __init__(
        self,
        engine: Engine,
        metrics: Metrics,
        logbook: Logbook,
        *,
        shadow_share: float = 0.0,
        quality_share: float = 0.0,
        scorer: Callable[[Served], Scorer | None] = lambda served: None,
    ) -> None:
        self._engine, self._metrics, self._logbook = engine, metrics, logbook
        self._shadow_share, self._quality_share, self._find_scorer = shadow_share, quality_share, scorer
        self._scorer: tuple[str, Scorer | None] = ("", None)  # digest of the model it was asked for
        self._pieces: deque[tuple[Piece, Served | None, bool]] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._sums: dict[str, _Sums] = {}
        self._thread = threading.Thread(target=self._work, name="beside", daemon=True)
        self._thread.start()

    def offer(self, piece: Piece, shadow: Served | None) -> None:
        """Take a request that was answered; returns at once.

        Args:
            shadow: the version that is to draw it too, for the share of the requests that is; None: none.
        """
        if shadow is not None and chance("shadow", piece.request_id) >= self._shadow_share:
            shadow = None
        scored = chance("quality", piece.request_id) < self._quality_share
        scored |= shadow is not None and self._quality_share > 0  # both of a pair, or neither
        if shadow is None and not scored:
            return
        with self._changed:
            if len(self._pieces) >= _KEPT:
                if shadow is not None:
                    self._metrics.shadow_requests.labels("left out").inc()
                return
            self._pieces.append((piece, shadow, scored))
            self._changed.notify()

    def compared(self, version: str) -> dict[str, Any] | None:
        """Means over what the shadow ``version`` drew too; None while there is nothing."""
        sums = self._sums.get(version)
        if sums is None:
            return None
        pairs, judged = sums.differences[1], sums.qualities[2]
        return {
            "requests": sums.drawn + sums.failed,
            "failed": sums.failed,
            "seconds": sums.seconds / sums.drawn if sums.drawn else None,
            "champion_seconds": sums.champion_seconds / sums.drawn if sums.drawn else None,
            "difference": sums.differences[0] / pairs if pairs else None,
            "quality": sums.qualities[0] / judged if judged else None,
            "champion_quality": sums.qualities[1] / judged if judged else None,
        }

    def close(self) -> None:
        """Stop after the request at hand; those that wait are left out."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(10)

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._pieces or self._closing)
                if self._closing:
                    return
                piece, shadow, scored = self._pieces.popleft()
            try:
                scores = self._score(piece) if scored else None
                if shadow is not None:
                    self._draw_too(piece, shadow, scores)
            except Exception:  # nobody waits for it, and the next request may go well
                _log.exception("Request %s could not be drawn or scored again", piece.request_id)
            del piece, shadow  # so that an old model is not held by this frame while waiting

    def _draw_too(self, piece: Piece, shadow: Served, scores: list[float] | None) -> None:
        if not all(_can_draw(shadow, order) for order, _ in piece.drawings) or not self._quiet():
            self._metrics.shadow_requests.labels("left out").inc()
            return
        started = time.monotonic()
        drawn: list[Drawn] = []
        try:
            for order, _ in piece.drawings:
                drawn.append(self._engine.submit(order, shadow, owner=OWNER).future.result())
        except (QueueFull, EngineClosed):
            self._metrics.shadow_requests.labels("left out").inc()
            return
        except Exception as error:  # of whatever kind: it is what the shadow is tried for
            _log.warning("The shadow, version %s, failed at request %s: %r", shadow.version, piece.request_id, error)
            self._metrics.shadow_requests.labels("failed").inc()
            self._sums.setdefault(shadow.version, _Sums()).failed += 1
            seconds = time.monotonic() - started
            self._logbook.append(self._entry(piece, shadow.version, "shadow", 500, seconds, error="shadow_failed"))
            return
        self._compare(piece, shadow, drawn, time.monotonic() - started, scores)

    def _compare(
        self, piece: Piece, shadow: Served, drawn: list[Drawn], seconds: float, scores: list[float] | None
    ) -> None:
        self._metrics.shadow_requests.labels("drawn").inc()
        self._metrics.shadow_seconds.observe(seconds)
        sums = self._sums.setdefault(shadow.version, _Sums())
        sums.drawn += 1
        sums.seconds += seconds
        sums.champion_seconds += piece.seconds
        scorer = self._scorer[1] if scores is not None else None
        for i, ((order, theirs), mine) in enumerate(zip(piece.drawings, drawn, strict=True)):
            if mine.pixels.shape == theirs.pixels.shape:
                apart = np.abs(mine.pixels.astype(np.int16) - theirs.pixels.astype(np.int16)).mean() / 255
                sums.differences[0] += float(apart)
                sums.differences[1] += 1
            quality = None
            if scorer is not None and scores is not None:
                quality = scorer.score(order.prompt, mine.pixels)
                sums.qualities[0] += quality
                sums.qualities[1] += scores[i]
                sums.qualities[2] += 1
            stats = image_stats(mine.pixels[0])
            row = self._entry(piece, shadow.version, "shadow", 200, seconds, order=order, quality=quality, stats=stats)
            self._logbook.append(row)

    def _score(self, piece: Piece) -> list[float] | None:
        """The judge's scores of what was returned, one an order."""
        served = piece.drawings[0][1].served
        if self._scorer[0] != served.digest:
            self._scorer = (served.digest, self._find_scorer(served))
        scorer = self._scorer[1]
        if scorer is None:
            return None
        scores = []
        for order, drawn in piece.drawings:
            scores.append(scorer.score(order.prompt, drawn.pixels))
            self._metrics.quality.labels(served.version).observe(scores[-1])
            row = self._entry(piece, served.version, "quality", 200, piece.seconds, order=order, quality=scores[-1])
            self._logbook.append(row)
        return scores

    def _entry(
        self,
        piece: Piece,
        version: str,
        role: str,
        status: int,
        seconds: float,
        *,
        order: Order | None = None,
        error: str | None = None,
        quality: float | None = None,
        stats: list[float] | None = None,
    ) -> Entry:
        """A row that says which request it is about, and nothing of the person who asked."""
        return Entry(
            request_id=piece.request_id,
            status=status,
            seconds=seconds,
            seed=order.seeds[0] if order else None,
            steps=order.steps if order else None,
            guidance_scale=order.guidance_scale if order else None,
            style=order.style.name if order and order.style else None,
            model_version=version,
            error=error,
            image_stats=stats,
            role=role,
            quality=quality,
            judge=self._scorer[1].judge[:12] if quality is not None and self._scorer[1] else None,
        )

    def _quiet(self) -> bool:
        """Wait until nobody waits for the engine; False when that takes too long."""
        deadline = time.monotonic() + _WAIT_S
        while self._engine.waiting:
            if self._closing or time.monotonic() > deadline:
                return False
            time.sleep(_LOOK_S)
        return True


def _can_draw(shadow: Served, order: Order) -> bool:
    """Whether another version can draw an order that was checked for the champion."""
    if order.style is not None:  # an adapter fits one version
        return False
    side, grain = shadow.generator.image_size, shadow.generator.granularity
    own = (order.width, order.height) in ((0, 0), (side, side))
    return own or (grain > 0 and order.width % grain == 0 and order.height % grain == 0)
