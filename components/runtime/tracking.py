"""MLflow: runs, metrics and the model registry. The only module that imports mlflow.

Works on a SQLite file and on a tracking server alike; ``uri`` says which.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.contracts.errors import RegistryError
from components.runtime.cluster import apply_quiet_environment

_TAG_CHARS = 5000  # MLflow's limit for a tag of a model version
_URL_TAG = "artifact_url"
_METRICS = 1000  # MLflow's limit for one call


@dataclass(frozen=True)
class ModelVersion:
    """A version of a registered model. ``source`` is the URL of the model artifact."""

    name: str
    version: int
    source: str
    run_id: str
    tags: dict[str, str]
    aliases: tuple[str, ...]


@contextlib.contextmanager
def _explained(uri: str) -> Iterator[None]:
    from mlflow.exceptions import MlflowException
    from requests.exceptions import RequestException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, RequestException, SQLAlchemyError, OSError) as error:
        text = (str(error) or type(error).__name__).splitlines()[0][:300]
        down = "Max retries exceeded" in text or isinstance(error, RequestException)
        raise RegistryError(
            f"The MLflow registry at {uri} cannot be reached"
            if down
            else f"The MLflow registry at {uri} did not do as asked: {text}",
            expected="a reachable MLflow tracking server or a writable SQLite file",
            remedy="start the server or correct run.registry, then run the same command again",
        ) from error


class Run:
    """An open MLflow run. All calls are synchronous; values are plain floats and strings."""

    def __init__(self, client: Any, uri: str, run_id: str) -> None:
        self._client, self._uri, self.id = client, uri, run_id

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Log flattened parameters (nested keys joined by dots)."""
        from mlflow.entities import Param

        with _explained(self._uri):
            entries = [Param(k, str(v)[:5000]) for k, v in _flat(params)]
            for start in range(0, len(entries), 100):  # the server's limit for one batch
                self._client.log_batch(self.id, params=entries[start : start + 100])

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        """Log metrics at ``step`` (images seen, for training)."""
        import time

        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        with _explained(self._uri):
            self._client.log_batch(self.id, metrics=[Metric(k, float(v), now, step) for k, v in metrics.items()])

    def log_points(self, points: Iterable[tuple[int, Mapping[str, float]]]) -> None:
        """Log many steps' metrics in as few calls as the server allows: ``(step, metrics)`` of each."""
        import time

        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics = [Metric(k, float(v), now, step) for step, values in points for k, v in values.items()]
        with _explained(self._uri):
            for start in range(0, len(metrics), _METRICS):
                self._client.log_batch(self.id, metrics=metrics[start : start + _METRICS])

    def last_step(self, metric: str) -> int:
        """The highest step that ``metric`` was logged at, -1 when it never was."""
        with _explained(self._uri):
            return max((int(m.step) for m in self._client.get_metric_history(self.id, metric)), default=-1)

    def log_artifact(self, path: Path | str, folder: str | None = None) -> None:
        """Copy a local file into the run's artifacts."""
        with _explained(self._uri):
            self._client.log_artifact(self.id, str(path), folder)

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags of the run."""
        with _explained(self._uri):
            for key, value in tags.items():
                self._client.set_tag(self.id, key, value)


class Tracker:
    """Runs and registered models of one experiment at one MLflow URI.

    Args:
        uri: ``sqlite:///path`` or ``http(s)://server``.
        experiment: name of the experiment; made when it does not exist.
        artifact_root: local folder for run artifacts, used when the experiment is made on a SQLite store.

    Raises:
        RegistryError: the store cannot be reached.
    """

    def __init__(self, uri: str, experiment: str, artifact_root: Path | None = None) -> None:
        apply_quiet_environment()
        import logging
        import os

        # an unreachable server is an answer, not something to wait ten minutes for
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
        import mlflow

        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.ERROR)
        self.uri = uri
        with _explained(uri):
            if uri.startswith("sqlite:///"):
                Path(uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
            self._client = mlflow.MlflowClient(tracking_uri=uri, registry_uri=uri)
            found = self._client.get_experiment_by_name(experiment)
            location = artifact_root.absolute().as_uri() if artifact_root and uri.startswith("sqlite") else None
            self._experiment = (
                found.experiment_id if found else self._client.create_experiment(experiment, artifact_location=location)
            )

    @contextlib.contextmanager
    def run(
        self,
        name: str,
        parent: str | None = None,
        tags: Mapping[str, str] | None = None,
        resume: str | None = None,
    ) -> Iterator[Run]:
        """A run that ends as FINISHED, or as FAILED when the block raises. ``parent`` nests it in the UI.

        With ``resume`` (the id of a run, see :meth:`find_run`) that run is gone on with instead of a new one.
        """
        all_tags = dict(tags or {}) | ({"mlflow.parentRunId": parent} if parent else {})
        with _explained(self.uri):
            run_id = resume or self._client.create_run(self._experiment, run_name=name, tags=all_tags).info.run_id
            if resume:
                self._client.update_run(run_id, status="RUNNING")
        status = "FAILED"
        try:
            yield Run(self._client, self.uri, run_id)
            status = "FINISHED"
        finally:
            with _explained(self.uri):
                self._client.set_terminated(run_id, status)

    def find_run(self, tags: Mapping[str, str]) -> str | None:
        """Id of the newest run of the experiment with all these tags, or None."""
        query = " and ".join(f"tags.`{key}` = '{value}'" for key, value in tags.items())
        with _explained(self.uri):
            found = self._client.search_runs([self._experiment], filter_string=query, max_results=1)
        return str(found[0].info.run_id) if found else None

    def attach(self, run_id: str) -> Run:
        """An existing run, to log more to."""
        return Run(self._client, self.uri, run_id)

    def register(self, model: str, source: str, run_id: str, tags: Mapping[str, str], description: str) -> ModelVersion:
        """Register ``source`` (URL of a model artifact) as the next version of ``model``.

        A tracking server takes no local path outside of a run's own artifacts. There the source that MLflow
        shows is the run, and the path is kept in a tag that :class:`ModelVersion` is read from.
        """
        shown = source
        if not self.uri.startswith("sqlite") and ("://" not in source or source.startswith("file:")):
            shown = f"runs:/{run_id}/release"
        all_tags = {k: v[:_TAG_CHARS] for k, v in tags.items()} | {_URL_TAG: source}
        with _explained(self.uri):
            if not self._client.search_registered_models(filter_string=f"name='{model}'"):
                self._client.create_registered_model(model)
            made = self._client.create_model_version(
                model, source=shown, run_id=run_id, tags=all_tags, description=description
            )
        return self.version(model, int(made.version))

    def version(self, model: str, version: int) -> ModelVersion:
        """One version of ``model``."""
        with _explained(self.uri):
            return _version(self._client.get_model_version(model, str(version)))

    def versions(self, model: str) -> list[ModelVersion]:
        """All versions of ``model``, oldest first; empty when the model does not exist."""
        with _explained(self.uri):
            found = self._client.search_model_versions(f"name='{model}'")
            # aliases are not filled in by the search
            return [self.version(model, v) for v in sorted(int(f.version) for f in found)]

    def alias(self, model: str, alias: str) -> ModelVersion | None:
        """The version that ``alias`` points at, or None."""
        from mlflow.exceptions import MlflowException

        with _explained(self.uri):
            try:
                return _version(self._client.get_model_version_by_alias(model, alias))
            except MlflowException as error:
                if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                    return None
                raise

    def set_alias(self, model: str, alias: str, version: int) -> None:
        """Point ``alias`` at ``version``."""
        with _explained(self.uri):
            self._client.set_registered_model_alias(model, alias, str(version))

    def tag_version(self, model: str, version: int, tags: Mapping[str, str]) -> None:
        """Set tags of a model version."""
        with _explained(self.uri):
            for key, value in tags.items():
                self._client.set_model_version_tag(model, str(version), key, value[:_TAG_CHARS])


def _version(found: Any) -> ModelVersion:
    return ModelVersion(
        name=found.name,
        version=int(found.version),
        source=found.tags.get(_URL_TAG, found.source),
        run_id=found.run_id or "",
        tags=dict(found.tags),
        aliases=tuple(found.aliases),
    )


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
