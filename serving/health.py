"""What watches the server asks of it: is it alive, is it ready, what does it serve, how does it do."""

from __future__ import annotations

from fastapi import FastAPI, Response

from serving.admission import no_model
from serving.answers import Health, Ready, Version
from serving.generation import Service
from serving.openapi import errors

PROMETHEUS = "text/plain; version=0.0.4; charset=utf-8"


def add_health(app: FastAPI, service: Service) -> None:
    """Add ``/healthz``, ``/readyz``, ``/version`` and ``/metrics``; none of them asks for a key."""

    @app.get("/healthz")
    async def healthz() -> Health:
        """200 while the process works, however busy; ``degraded``: something needs a look at the log."""
        state, served = service.follower.state, service.engine.served
        quota_error = service.meter.error if service.meter else None
        bad = state.registry_error or state.refused or service.logbook.error or quota_error
        return Health(
            status="degraded" if bad else "ok",
            model=service.limits.model,
            model_version=served.version if served else None,
            loading=state.loading,
            registry="unreachable" if state.registry_error else "ok",
            refused_version=state.refused,
            dropped=state.dropped_why is not None,
            challenger=state.challenger,
            shadow=state.shadow,
            logbook="failing" if service.logbook.error else "ok",
            quota="failing" if quota_error else "ok",
            moderation=service.moderator.health() if service.moderator else None,
        )

    @app.get("/readyz", responses=errors(503))
    async def readyz() -> Ready:
        """200 when a model is loaded, also while the queue is full; else 503."""
        if (served := service.engine.served) is None:
            raise no_model()
        return Ready(model_version=served.version)

    @app.get("/version")
    async def version() -> Version:
        """Which model is served: its version in the registry and the digest of its artifact."""
        served = service.engine.served
        return Version(
            model=service.limits.model,
            model_version=served.version if served else None,
            digest=served.digest if served else None,
        )

    @app.get(
        "/metrics",
        response_class=Response,
        responses={200: {"content": {PROMETHEUS: {"schema": {"type": "string"}}}}},
    )
    async def metrics() -> Response:
        """Prometheus metrics of all replicas."""
        return Response(service.metrics.text(), media_type=PROMETHEUS)
