"""The pipeline as MLflow shows it: a run for each pass of a recipe, and below it a run for every stage.

A pass is named by the recipe (all of it but ``run:``), so that stages which were run one command at a time, on a
laptop, as Ray jobs or in Kubeflow, come to lie below one parent; a retrain is a pass of its own. What a stage says of
itself stands in its artifact's manifest. So a stage that was done before anybody recorded it, or while the tracking
server was away, is recorded by the next command that comes by, with the times at which it was done.
"""

from __future__ import annotations

import contextlib
import datetime
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from components.contracts.errors import RegistryError
from components.contracts.manifest import canonical_json, sha256_text
from components.contracts.recipe import Recipe
from components.runtime.progress import say
from components.runtime.stage import Context
from components.runtime.storage import Artifact, Store

if TYPE_CHECKING:
    from components.runtime.tracking import Run, Tracker

_DATA = ("collection", "dataset", "subject", "latents")  # kinds that are shown as datasets of the stages that read them
_NOTE = "mlflow.note.content"  # what MLflow shows as a run's description


def recipe_digest(recipe: Recipe) -> str:
    """SHA-256 over all sections of a recipe that decide what is made."""
    return sha256_text(canonical_json(recipe.model_dump(mode="json", exclude={"run"})))


@contextlib.contextmanager
def recorded(ctx: Context, title: str = "run", **about: str) -> Iterator[None]:
    """Record the stages of the block below one run of MLflow; inside another such block, below that one's.

    Args:
        title: "run", or "retrain" for a pass that goes on from a champion. about: what else names the pass.

    Raises:
        RegistryError: MLflow cannot be reached when the block begins. Later that stops nothing.
    """
    if ctx.recorder is not None:
        yield
        return
    from components.runtime.tracking import Tracker

    tracker = Tracker(ctx.registry_uri, ctx.recipe.name, ctx.home / "mlruns")
    recorder = Recorder(tracker, ctx.store, ctx.recipe, title, about)
    ctx.recorder, status = recorder, "FAILED"
    try:
        yield
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        ctx.recorder = None
        recorder.close(status)


class Recorder:
    """The runs of one pass. Only :meth:`parent` raises when MLflow is away; the rest says so and goes on."""

    def __init__(self, tracker: Tracker, store: Store, recipe: Recipe, title: str, about: Mapping[str, str]) -> None:
        self._tracker, self._store, self._recipe = tracker, store, recipe
        self._name = f"{title} {recipe.name}"
        self._tags = {"pipeline": title, "recipe_digest": recipe_digest(recipe)[:16], **about}
        self._begun = tracker.find_run(self._tags)
        self._since = int(time.time() * 1000)
        self._open: Run | None = None
        self._told = False

    def parent(self) -> str:
        """The id of the run that the stages lie below; begun, or gone on with, when it is first asked for.

        Raises:
            RegistryError: MLflow cannot be reached.
        """
        if self._open is None:
            self._open = self._tracker.begin(self._name, None, self._tags, self._begun, self._since)
            if self._begun is None:
                self._open.log_params(self._recipe.model_dump(mode="json", exclude={"run"}))
        return self._open.id

    def done(self, artifact: Artifact, label: str, inputs: Mapping[str, Artifact]) -> None:
        """A stage made ``artifact``, now or earlier; nothing if that is recorded."""
        with self._kept():
            begun = self._tracker.find_run({"artifact": artifact.manifest.identity})
            known = self._tracker.attach(begun).tags() if begun else {}
            if known.get("digest") == artifact.digest:
                return
            with self._tracker.run(
                label, self.parent(), {"artifact": artifact.manifest.identity}, begun, _times(artifact)
            ) as run:
                manifest = artifact.manifest
                if begun is None or "error" in known:
                    run.log_params({"config": manifest.config})
                counted = {**manifest.counts, **{f"dropped/{why}": n for why, n in manifest.dropped.items()}}
                if seconds := manifest.circumstance.get("seconds"):
                    counted["seconds"] = seconds
                run.log_metrics(counted)
                for role, one in inputs.items():
                    if one.manifest.kind in _DATA:
                        run.log_dataset(one.manifest.kind, one.digest, one.url, role, one.manifest.counts)
                run.set_tags({"kind": manifest.kind, "digest": artifact.digest, "artifact_url": artifact.url})

    def failed(self, kind: str, identity: str, label: str, error: BaseException) -> None:
        """A stage ended without its artifact."""
        with self._kept():
            status = "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED"
            tags = {"artifact": identity}
            run = self._tracker.begin(label, self.parent(), tags, self._tracker.find_run(tags))
            run.set_tags({"kind": kind, "error": (str(error) or type(error).__name__)[:1000]})
            self._tracker.end(run, status)

    def show(
        self,
        artifact: Artifact,
        files: Sequence[Path] = (),
        metrics: Mapping[str, float] | None = None,
        note: str = "",
    ) -> None:
        """Show more in the run of a recorded artifact: files, numbers, and a description in Markdown."""
        with self._kept():
            found = self._tracker.find_run({"artifact": artifact.manifest.identity})
            if found is None:
                return  # it was not recorded, and that was said
            run = self._tracker.attach(found)
            for file in files:
                run.log_artifact(file)
            present = run.tags()
            if metrics and present.get("shown") != artifact.digest:
                run.log_metrics(metrics)
                run.set_tags({"shown": artifact.digest})
            if note and present.get(_NOTE) != note:
                run.set_tags({_NOTE: note})

    def conclude(self, note: str, tags: Mapping[str, str], metrics: Mapping[str, float]) -> None:
        """What came out of the whole pass: a description in Markdown, tags and numbers; nothing if it says so."""
        with self._kept():
            wanted = {_NOTE: note, **tags}
            present = self._tracker.attach(self._begun).tags() if self._begun and self._open is None else {}
            if any(present.get(key) != value for key, value in wanted.items()):
                run = self._tracker.attach(self.parent())
                run.log_metrics(metrics)
                run.set_tags(wanted)

    def close(self, status: str) -> None:
        """End the parent, if anything was recorded below it since it was opened."""
        if self._open is not None:
            with self._kept():
                self._tracker.end(self._open, status)

    @contextlib.contextmanager
    def _kept(self) -> Iterator[None]:
        """What was made is whole and can be recorded later: a tracking server that is away stops nothing."""
        try:
            yield
        except RegistryError as error:
            if not self._told:
                say(f"  {error.problem}; the work goes on, and the same command records it when MLflow is back")
            self._told = True


def _times(artifact: Artifact) -> tuple[float, float]:
    """When a stage began and ended, in seconds since 1970."""
    ended = datetime.datetime.fromisoformat(artifact.manifest.created_at).timestamp()
    return ended - float(artifact.manifest.circumstance.get("seconds", 0.0)), ended
