"""A stage: from config and input artifacts to one output artifact, done at most once."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.contracts.errors import RuntimeUnavailable
from components.contracts.recipe import Recipe
from components.runtime.cluster import ray_session
from components.runtime.progress import say
from components.runtime.revision import exclusive
from components.runtime.storage import Artifact, Draft, Outcome, Store, full_store_explained

if TYPE_CHECKING:
    from components.runtime.recording import Recorder


@dataclass
class Context:
    """What every stage is given beside its inputs."""

    recipe: Recipe
    store: Store
    home: Path  # folder of this recipe's run: store, registry, reports
    seconds: dict[str, float] = field(default_factory=dict)  # wall time by stage label, of this process
    recorder: Recorder | None = None  # shows the stages in MLflow, see components.runtime.recording.recorded
    _stack: contextlib.ExitStack | None = None  # holds Ray, between `with ctx:` and its end

    @classmethod
    def of(cls, recipe: Recipe) -> Context:
        """The context of a recipe: ``{run.root}/{name}`` and the store in it."""
        home = Path(recipe.run.root).absolute() / recipe.name
        return cls(recipe, Store(recipe.run.store or str(home / "store")), home)

    def __enter__(self) -> Context:
        self._stack = contextlib.ExitStack()
        return self

    def __exit__(self, *_: object) -> None:
        stack, self._stack = self._stack, None
        if stack:
            stack.close()

    def start_ray(self) -> None:
        """Start or join Ray once, for as long as the ``with`` block of this context lasts; else nothing.

        Called when there is work: a run whose stages are all done never starts Ray.
        """
        if self._stack is not None and "ray" not in self.seconds:
            with self.timed("ray"):
                self._stack.enter_context(ray_session(self.recipe.run))

    @property
    def registry_uri(self) -> str:
        """MLflow URI of tracking and registry."""
        return self.recipe.run.registry or f"sqlite:///{self.home / 'mlflow.db'}"

    @contextlib.contextmanager
    def timed(self, label: str) -> Iterator[None]:
        """Add the wall time of the block, in seconds, to ``seconds[label]``."""
        started = time.monotonic()
        try:
            yield
        finally:
            self.seconds[label] = self.seconds.get(label, 0.0) + time.monotonic() - started


def run_stage(
    ctx: Context,
    kind: str,
    inputs: Mapping[str, Artifact],
    config: Mapping[str, Any],
    build: Callable[[Draft], Outcome],
    label: str | None = None,
    reads: Mapping[str, str] | None = None,
    check: Callable[[], None] | None = None,
) -> Artifact:
    """The artifact of ``kind`` for these inputs and this config; ``build`` fills it when it is not there yet.

    Idempotent: a finished artifact is verified and returned. A killed run left its folder without a manifest:
    ``build`` is called on it again and may continue from ``draft.state``.

    Args:
        kind: of the artifact. inputs: by role. config: what else decides the identity.
        label: of the stage, for people; else its kind.
        reads: by role, what the names of the files begin with that ``build`` reads of that input; the others are
            not verified. Without an entry everything is.
        check: called when there is work to do, before Ray is started; raises when the work cannot succeed.

    Raises:
        ArtifactError: an input or the finished artifact is damaged.
        StoreFullError: no room is left.
        RuntimeUnavailable: another process is making the same artifact.
    """
    label = label or kind
    draft = ctx.store.draft(kind, inputs, config)
    if done := ctx.store.find(kind, draft.identity):
        done.verify()
        say(f"{label}: already done ({done.short})")
        if ctx.recorder:
            ctx.recorder.done(done, label, inputs)
        return done
    for role, artifact in inputs.items():
        artifact.verify((reads or {}).get(role, ""))
    if check:
        check()
    ctx.start_ray()
    say(f"{label}: started")
    started = time.monotonic()
    with _lock(ctx.home, draft), ctx.timed(label), full_store_explained(draft.url), exclusive(draft.url, wait_s=0):
        try:
            outcome = build(draft)
            outcome.circumstance.setdefault("seconds", round(time.monotonic() - started, 2))
            artifact = draft.commit(outcome)
        except BaseException as error:
            if ctx.recorder:
                ctx.recorder.failed(kind, draft.identity, label, error)
            raise
    if ctx.recorder:
        ctx.recorder.done(artifact, label, inputs)
    counts = ", ".join(f"{v} {k}" for k, v in artifact.manifest.counts.items())
    say(f"{label}: done in {time.monotonic() - started:.1f} s ({artifact.short}{', ' + counts if counts else ''})")
    return artifact


@contextlib.contextmanager
def _lock(home: Path, draft: Draft) -> Iterator[None]:
    """Only one process on this machine fills a draft; the lock dies with its process."""
    from filelock import FileLock, Timeout

    folder = home / "locks"
    with full_store_explained(str(folder)):
        folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / f"{draft.kind}-{draft.identity[:16]}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise RuntimeUnavailable(
            f"Another process is already making this {draft.kind}",
            remedy="wait for it to end, then run the same command again",
        ) from error
    try:
        yield
    finally:
        lock.release()
