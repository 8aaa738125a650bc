"""Prometheus metrics of one replica, in a registry of their own."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60, 120)


class Metrics:
    """What is counted. Units are in the names, as Prometheus asks."""

    def __init__(self) -> None:
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
        self.batch = Histogram(
            "atelier_batch_images",
            "Pictures drawn together.",
            buckets=(1, 2, 4, 8, 16, 32, 64),
            registry=registry,
        )
        self.waiting = Gauge("atelier_queue_requests", "Requests waiting to be drawn.", registry=registry)
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
            "Champions that could not be loaded, or that the gate does not vouch for.",
            registry=registry,
        )
        self.logbook_errors = Counter("atelier_logbook_errors", "Logbook writes that failed.", registry=registry)

    def serving(self, version: str) -> None:
        """Note that ``version`` is the one served now."""
        self.model.clear()
        self.model.labels(version).set(1)

    def text(self) -> bytes:
        """The exposition format."""
        return generate_latest(self.registry)
