"""MLflow: runs, metrics and the model registry. The only module that imports mlflow.

Works on a SQLite file and on a tracking server alike; ``uri`` says which.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from components.contracts.errors import RegistryError
from components.runtime.cluster import apply_quiet_environment

_TAG_CHARS = 5000  # MLflow's limit for a tag of a model version
_URL_TAG = "artifact_url"
_METRICS = 1000  # MLflow's limit for one call
_KIND = {"mlflow.experimentKind": "custom_model_development"}  # what its UI shows first: runs, not traces
_DIGEST_CHARS = 32  # of a dataset; MLflow takes 36


@dataclass(frozen=True)
class ModelVersion:
    """A version of a registered model. ``source`` is the URL of the model artifact."""

    name: str
    version: int
    source: str
    run_id: str
    tags: dict[str, str]
    aliases: tuple[str, ...]


@dataclass(frozen=True)
class Loadable:
    """What ``mlflow.pyfunc.load_model`` needs to make a model from: code and plain values, but no weights."""

    module: str  # has ``_load_pyfunc(path of the values)``
    data: tuple[str, Mapping[str, Any]]  # name of the file with the values, and they
    code: Path  # folder of the package that ``module`` lies in
    requirements: Sequence[str]  # as pip takes them
    inputs: Mapping[str, str]  # MLflow's type by column; one that ends in "?" may be missing
    outputs: Mapping[str, str]
    example: Mapping[str, Any]  # a row of the inputs
    params: Mapping[str, int | float] = field(default_factory=dict)  # default by name


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

    def log_dataset(
        self, name: str, digest: str, url: str, context: str, profile: Mapping[str, Any] | None = None
    ) -> None:
        """Show data that the run read, in the way of ``mlflow.data``; the data stay where they are.

        Args:
            context: what it was read as, e.g. "dataset". profile: counts and the like.
        """
        from mlflow.entities import Dataset, DatasetInput, InputTag

        kind = url.partition("://")[0] if "://" in url else "local"  # as mlflow.data names its sources
        told = json.dumps(dict(profile), sort_keys=True) if profile else None
        data = Dataset(name, digest[:_DIGEST_CHARS], kind, json.dumps({"uri": url}), profile=told)
        with _explained(self._uri):
            self._client.log_inputs(self.id, [DatasetInput(data, [InputTag("mlflow.data.context", context)])])

    def tags(self) -> dict[str, str]:
        """All tags of the run."""
        with _explained(self._uri):
            return dict(self._client.get_run(self.id).data.tags)

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
                found.experiment_id if found else self._client.create_experiment(experiment, location, _KIND)
            )

    @contextlib.contextmanager
    def run(
        self,
        name: str,
        parent: str | None = None,
        tags: Mapping[str, str] | None = None,
        resume: str | None = None,
        times: tuple[float, float] | None = None,
    ) -> Iterator[Run]:
        """A run that ends as FINISHED, as KILLED when the block is stopped by the user, or as FAILED when it raises
        anything else. ``parent`` nests it in the UI.

        With ``resume`` (the id of a run, see :meth:`find_run`) that run is gone on with instead of a new one.
        ``times`` are begin and end, in seconds since 1970, of what was done before; by default now.
        """
        begun, ended = (None, None) if times is None else (int(times[0] * 1000), int(times[1] * 1000))
        run = self.begin(name, parent, tags, resume, begun)
        status = "FAILED"
        try:
            yield run
            status = "FINISHED"
        except KeyboardInterrupt:
            status = "KILLED"
            raise
        finally:
            self.end(run, status, ended)

    def begin(
        self,
        name: str,
        parent: str | None = None,
        tags: Mapping[str, str] | None = None,
        resume: str | None = None,
        begun: int | None = None,
    ) -> Run:
        """:meth:`run` without its end, see :meth:`end`. ``begun``: milliseconds since 1970."""
        all_tags = dict(tags or {}) | ({"mlflow.parentRunId": parent} if parent else {})
        with _explained(self.uri):
            if resume is None:
                made = self._client.create_run(self._experiment, start_time=begun, run_name=name, tags=all_tags)
                return Run(self._client, self.uri, made.info.run_id)
            self._client.update_run(resume, status="RUNNING")
        run = Run(self._client, self.uri, resume)
        if parent and "mlflow.parentRunId" not in run.tags():  # it was begun alone
            run.set_tags({"mlflow.parentRunId": parent})
        return run

    def end(self, run: Run, status: str = "FINISHED", ended: int | None = None) -> None:
        """End a run of :meth:`begin` as FINISHED, FAILED or KILLED. ``ended``: milliseconds since 1970."""
        with _explained(self.uri):
            self._client.set_terminated(run.id, status, ended)

    def find_run(self, tags: Mapping[str, str]) -> str | None:
        """Id of the newest run of the experiment with all these tags, or None."""
        query = " and ".join(f"tags.`{key}` = '{value}'" for key, value in tags.items())
        with _explained(self.uri):
            found = self._client.search_runs([self._experiment], filter_string=query, max_results=1)
        return str(found[0].info.run_id) if found else None

    def attach(self, run_id: str) -> Run:
        """An existing run, to log more to."""
        return Run(self._client, self.uri, run_id)

    def register(
        self,
        model: str,
        source: str,
        run_id: str,
        tags: Mapping[str, str],
        description: str,
        loadable: Loadable | None = None,
    ) -> ModelVersion:
        """Register ``source`` (URL of a model artifact) as the next version of ``model``.

        With ``loadable`` what MLflow takes for the source is a logged model of the run, so that
        ``mlflow.pyfunc.load_model`` opens the version; :class:`ModelVersion` reads its source from a tag.

        Without it: a tracking server takes no local path outside of a run's own artifacts. There the source that
        MLflow shows is the run.
        """
        shown, logged = source, None
        if loadable is not None:
            logged, shown = self._log_model(model, run_id, loadable)
        elif not self.uri.startswith("sqlite") and ("://" not in source or source.startswith("file:")):
            shown = f"runs:/{run_id}/release"
        all_tags = {k: v[:_TAG_CHARS] for k, v in tags.items()} | {_URL_TAG: source}
        with _explained(self.uri):
            if not self._client.search_registered_models(filter_string=f"name='{model}'"):
                self._client.create_registered_model(model)
            made = self._client.create_model_version(
                model, source=shown, run_id=run_id, tags=all_tags, description=description, model_id=logged
            )
        return self.version(model, int(made.version))

    def _log_model(self, name: str, run_id: str, loadable: Loadable) -> tuple[str, str]:
        """Log a model of the run, without its weights; its id and where MLflow keeps it."""
        import mlflow.pyfunc
        import pandas as pd
        from mlflow.entities import LoggedModelOutput
        from mlflow.models import Model, ModelSignature
        from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema

        def columns(types: Mapping[str, str]) -> Any:
            return Schema([ColSpec(t.rstrip("?"), n, required=not t.endswith("?")) for n, t in types.items()])

        params = ParamSchema([ParamSpec(n, _TYPES[type(v)], v) for n, v in loadable.params.items()])
        signature = ModelSignature(columns(loadable.inputs), columns(loadable.outputs), params)
        file, values = loadable.data
        with _explained(self.uri), tempfile.TemporaryDirectory() as folder:
            made = self._client.create_logged_model(
                self._experiment, name=name, source_run_id=run_id, model_type="text-to-image"
            )
            (Path(folder) / file).write_text(json.dumps(dict(values), indent=2) + "\n", encoding="utf-8")
            mlflow.pyfunc.save_model(
                f"{folder}/model",
                loader_module=loadable.module,
                data_path=f"{folder}/{file}",
                code_paths=[str(loadable.code)],
                mlflow_model=Model(run_id=run_id, model_id=made.model_id),
                signature=signature,
                input_example=pd.DataFrame([dict(loadable.example)]),
                pip_requirements=list(loadable.requirements),
            )
            self._client.log_model_artifacts(made.model_id, f"{folder}/model")
            self._client.finalize_logged_model(made.model_id, "READY")
            self._client.log_outputs(run_id, [LoggedModelOutput(made.model_id, 0)])
        return str(made.model_id), str(made.artifact_location)

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

    def delete_alias(self, model: str, alias: str) -> None:
        """Take ``alias`` away; nothing where there is none."""
        with _explained(self.uri):
            self._client.delete_registered_model_alias(model, alias)

    def tag_version(self, model: str, version: int, tags: Mapping[str, str]) -> None:
        """Set tags of a model version."""
        with _explained(self.uri):
            for key, value in tags.items():
                self._client.set_model_version_tag(model, str(version), key, value[:_TAG_CHARS])


_TYPES = {int: "long", float: "double"}  # MLflow's names


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
        else:  # a tuple is a list once it was JSON, and a parameter never changes
            yield f"{prefix}{key}", list(value) if isinstance(value, tuple) else value
