"""The parts of one serving process, put together from a recipe. Knows no Ray."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from components.contracts.recipe import Recipe
from components.evaluation.registry import CHALLENGER, SHADOW
from components.evaluation.signing import Keys
from components.evaluation.vouching import policy_digest
from components.models.families import load_generator
from components.runtime.storage import Store
from serving.auth import KeyRing
from serving.beside import Beside
from serving.engine import Engine
from serving.first_load import FirstLoad
from serving.follower import Follower
from serving.generation import Service
from serving.images import ImageStore
from serving.limits import Limits
from serving.logbook import Logbook
from serving.metrics import Metrics
from serving.moderation import Moderator
from serving.privacy import Privacy
from serving.quality import judge_of
from serving.quota import Meter
from serving.replicas import Board
from serving.routing import Router
from serving.running import RunningRequests
from serving.styles import StyleBook
from serving.watermark import Watermark

REQUEST_TIMEOUT_S = 300.0
BOARD = "replicas"  # folder in the run's home


@dataclass(frozen=True)
class Parts:
    """What a serving process is made of."""

    service: Service
    follower: Follower
    router: Router
    metrics: Metrics
    board: Board

    def start(self) -> None:
        """Tell the other replicas; load the champion there is, and follow the registry."""
        self.board.start(lambda: (dict(vars(self.follower.state)), self.metrics.own()))
        self.follower.start()

    def close(self) -> None:
        """Draw what waits, write what is known, and stop every thread."""
        self.follower.close()
        self.router.close()
        self.service.running.close()
        self.service.engine.close()
        self.service.logbook.close()
        self.board.close()


def assemble(recipe: Recipe, home: Path, registry: str, require_key: bool, replica: str) -> Parts:
    """The parts for ``recipe``.

    Args:
        home: folder with the keys file, the logbook and what replicas tell each other.
        registry: MLflow URI.
        replica: name of this process, unique among those that share ``home``.
    """
    limits, name = recipe.serve, recipe.release.model_name
    board = Board(home / BOARD, replica)
    metrics = Metrics(replica, board.others)
    logbook = Logbook(
        home / "logbook", replica, on_error=metrics.logbook_errors.inc,
        privacy=Privacy(home, limits.log_prompts), keep_days=limits.log_days,
    )  # fmt: skip
    engine = Engine(
        max_batch=limits.max_batch, max_queue=limits.max_queue, metrics=metrics, timeout_s=REQUEST_TIMEOUT_S,
        max_wait_s=limits.max_wait_s, sizes=limits.sizes,
    )  # fmt: skip
    store = Store(recipe.run.store or str(home / "store"))
    beside = None
    if limits.shadow_share or limits.quality_share:
        scorer = judge_of(store, lambda version: follower.tags(version).get("judge", ""))
        beside = Beside(
            engine, metrics, logbook,
            shadow_share=limits.shadow_share, quality_share=limits.quality_share, scorer=scorer,
        )  # fmt: skip
    router = Router(
        engine, metrics, canary_share=limits.canary_share, shadow_share=limits.shadow_share,
        probation=limits.probation_requests, max_error_rate=recipe.watch.max_error_rate, beside=beside,
    )  # fmt: skip
    keys = Keys(home)
    follower = Follower(
        registry, recipe.name, name, load=load_generator, switch=router.swap, metrics=metrics, keys=keys,
        policy=policy_digest(recipe.release), first=FirstLoad(home, replica, board.living),
        aliases=trials_of(recipe), trial=router.trial,
    )  # fmt: skip
    router.dropped = follower.drop
    service = Service(
        Limits(limits, name),
        engine,
        follower,
        logbook,
        metrics,
        KeyRing(home / "keys.json") if require_key else None,
        REQUEST_TIMEOUT_S,
        StyleBook(registry, recipe.name, name, keys),
        router=router,
        moderator=Moderator.of(recipe, store),
        meter=Meter(home / "quota", rate=limits.requests_per_minute, quota=limits.pictures_per_day),
        images=ImageStore.of(limits, home),
        running=RunningRequests(home / "requests"),
        watermark=Watermark.of(home) if limits.watermark else None,
    )
    return Parts(service, follower, router, metrics, board)


def trials_of(recipe: Recipe) -> tuple[str, ...]:
    """The aliases whose versions a server of this recipe loads beside the champion."""
    limits = recipe.serve
    challenger = limits.canary_share > 0 or limits.shadow_share > 0 or limits.compare
    return (*((CHALLENGER,) if challenger else ()), *((SHADOW,) if limits.shadow_share > 0 else ()))
