"""Prometheus metrics of one replica, in a registry of their own, and of all replicas together."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60, 120)
_STEP_SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2)
_ROWS = (1, 2, 4, 8, 16, 32, 64)
_QUALITY = (-0.2, -0.1, 0.0, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5, 0.6, 0.8)
_SAMPLE = re.compile(r"^(\w+)(?:\{(.*)\})? (\S+)$")


class Metrics:
    """What is counted. Units are in the names, as Prometheus asks.

    ``others`` gives what the other replicas have published, by name of the replica; see :meth:`text`.
    """

    def __init__(self, replica: str = "", others: Callable[[], Mapping[str, str]] | None = None) -> None:
        self._replica, self._others = replica, others
        self.registry = registry = CollectorRegistry()
        self.requests = Counter(
            "atelier_requests", "Image requests answered, by HTTP status.", ["status"], registry=registry
        )
        self.seconds = Histogram(
            "atelier_request_duration_seconds",
            "Whole time of served requests.",
            buckets=_SECONDS,
            registry=registry,
        )
        self.images = Counter("atelier_images", "Pictures drawn, by model version.", ["version"], registry=registry)
        self.batch = Histogram("atelier_batch_images", "Pictures in one step.", buckets=_ROWS, registry=registry)
        self.step_seconds = Histogram(
            "atelier_step_duration_seconds",
            "One denoising step of all pictures being drawn.",
            buckets=_STEP_SECONDS,
            registry=registry,
        )
        self.queue_seconds = Histogram(
            "atelier_queue_duration_seconds",
            "From a request's coming in to its first step.",
            buckets=_SECONDS,
            registry=registry,
        )
        self.waiting = Gauge("atelier_queue_requests", "Requests waiting to be drawn.", registry=registry)
        self.drawing = Gauge("atelier_drawing_images", "Pictures being drawn.", registry=registry)
        self.blocks = Counter(
            "atelier_moderation_blocks",
            "Prompts and pictures that were refused, by category.",
            ["subject", "category"],
            registry=registry,
        )
        self.logbook_errors = Counter("atelier_logbook_errors", "Logbook writes that failed.", registry=registry)
        self._add_releases(registry)

    def _add_releases(self, registry: CollectorRegistry) -> None:
        """What is told of the registry, and of the versions that are served and tried."""
        self.model = Gauge(
            "atelier_model_info", "1 for the model version that is served.", ["version"], registry=registry
        )
        self.forced = Gauge(
            "atelier_model_forced", "1 when the served model was released in spite of the gate.", registry=registry
        )
        self.registry_up = Gauge(
            "atelier_registry_up", "1 when the last look at the registry worked.", registry=registry
        )
        self.registry_errors = Counter(
            "atelier_registry_errors", "Looks at the registry that failed.", registry=registry
        )
        self.refused_models = Counter(
            "atelier_refused_models",
            "Versions that could not be loaded, or that the gate does not vouch for.",
            registry=registry,
        )
        self.dropped_models = Counter(
            "atelier_dropped_models",
            "New champions that this replica gave up because their first requests failed.",
            registry=registry,
        )
        self.trials = Gauge(
            "atelier_trial_info",
            "1 for a version that is tried beside the champion, by alias.",
            ["alias", "version"],
            registry=registry,
        )
        self.canary_requests = Counter(
            "atelier_canary_requests",
            "Requests that the challenger answered, by HTTP status.",
            ["status"],
            registry=registry,
        )
        self.shadow_requests = Counter(
            "atelier_shadow_requests",
            "Requests that the shadow was to draw too: drawn, failed or left out.",
            ["outcome"],
            registry=registry,
        )
        self.shadow_seconds = Histogram(
            "atelier_shadow_duration_seconds",
            "Time that the shadow took for a request, waiting included.",
            buckets=_SECONDS,
            registry=registry,
        )
        self.quality = Histogram(
            "atelier_picture_quality_ratio",
            "Cosine of prompt and picture by the judge's CLIP, by model version.",
            ["version"],
            buckets=_QUALITY,
            registry=registry,
        )

    def serving(self, version: str) -> None:
        """Note that ``version`` is the one served now."""
        self.model.clear()
        self.model.labels(version).set(1)

    def trying(self, versions: Mapping[str, str]) -> None:
        """Note which versions are tried now, by alias."""
        self.trials.clear()
        for alias, version in versions.items():
            self.trials.labels(alias, version).set(1)

    def own(self) -> str:
        """The exposition format, of this replica alone."""
        return generate_latest(self.registry).decode()

    def text(self) -> bytes:
        """The exposition format; where there are other replicas with theirs, each sample labelled ``replica``.

        So it does not matter which replica a scrape behind one address meets. Those of the others are as old as their
        last publication, a few seconds.
        """
        others = self._others() if self._others else {}
        if not others:
            return self.own().encode()
        return merged({**others, self._replica: self.own()}).encode()


def merged(texts: Mapping[str, str]) -> str:
    """Expositions of several replicas as one, with a label ``replica``; families in the order of the first text."""
    heads: dict[str, list[str]] = {}  # HELP and TYPE of each family
    samples: dict[str, list[str]] = {}
    for replica, text in sorted(texts.items()):
        family = ""
        for line in text.splitlines():
            if line.startswith("# "):
                _, kind, family, _ = line.split(" ", 3)
                lines = heads.setdefault(family, [])
                if kind not in {known.split(" ", 2)[1] for known in lines}:
                    lines.append(line)
            elif found := _SAMPLE.match(line):
                name, labels, value = found.groups()
                label = f'replica="{replica}"' + (f",{labels}" if labels else "")
                samples.setdefault(family, []).append(f"{name}{{{label}}} {value}")
    return "".join("\n".join([*lines, *samples.get(family, [])]) + "\n" for family, lines in heads.items())
