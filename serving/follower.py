"""Follows the registry: notices a new champion, checks it, loads it beside the old, hands it over.

An alias alone moves nothing: the gate must vouch for the version, see :mod:`components.evaluation.vouching`. The
versions that are tried beside the champion (aliases ``challenger`` and ``shadow``) are followed in the same way.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from components.contracts.errors import AtelierError
from components.evaluation.registry import CHALLENGER, CHAMPION
from components.evaluation.signing import Keys
from components.evaluation.vouching import Vouch, tried, vouched
from components.models.families import ImageGenerator
from components.runtime.storage import Artifact
from components.runtime.tracking import ModelVersion
from serving.engine import Served
from serving.first_load import MOST_DEATHS, FirstLoad
from serving.loading import aside, local_copy, model_folder, warm_up
from serving.looking import Looked, Registry
from serving.metrics import Metrics

_TURN_S = 0.2
_log = logging.getLogger("ray.serve")


@dataclass(frozen=True)
class FollowerState:
    """What the follower knows. All but ``served`` and ``loading`` are for people; None when all is well."""

    served: str | None = None  # version
    loading: str | None = None  # version
    refused: str | None = None  # champion that is not served
    refused_why: str | None = None
    registry_error: str | None = None
    forced: str | None = None  # why the served version was released in spite of the gate's verdict
    dropped_why: str | None = None  # why the champion (``refused``) was given up after its first requests
    challenger: str | None = None  # version that is tried
    challenger_why: str | None = None  # why the version of that alias is not
    shadow: str | None = None
    shadow_why: str | None = None


class Follower:
    """Looks at the aliases of ``model`` every ``every_s`` seconds, on a thread of its own.

    A registry that does not answer, an alias that vanished, or a champion that is damaged, does not load or that
    the gate does not vouch for changes nothing in what is served; it is kept in :attr:`state`, counted and logged.

    Args:
        load: opens a model folder; called off the serving threads.
        switch: takes the loaded champion over.
        keys: what the gate signs with.
        policy: digest of the release policy that a champion must have passed; None takes any.
        retry_s: a version that was refused is tried again after this long, in seconds.
        first: lets one replica at a time be the first to load a champion; None: this one is alone.
        aliases: of the versions to try beside the champion.
        trial: takes such a version over, or None when there is none (any more) under that alias.
    """

    def __init__(
        self,
        uri: str,
        experiment: str,
        model: str,
        *,
        load: Callable[[Path], ImageGenerator],
        switch: Callable[[Served], None],
        metrics: Metrics,
        keys: Keys,
        policy: str | None = None,
        every_s: float = 1.5,
        retry_s: float = 30.0,
        first: FirstLoad | None = None,
        aliases: Sequence[str] = (),
        trial: Callable[[str, Served | None], None] = lambda alias, served: None,
    ) -> None:
        self._registry = Registry(uri, experiment, model, keys, aliases)
        self._load, self._switch, self._metrics = load, switch, metrics
        self._keys, self._policy = keys, policy
        self._every, self._retry = every_s, retry_s
        self._trial, self._first = trial, first
        self._champion: ModelVersion | None = None  # that is served
        self._trials: dict[str, Served] = {}  # that are loaded, by alias
        self._failed: dict[str, tuple[str, float]] = {}  # version that was refused, and when it is tried again
        self._tags: dict[str, dict[str, str]] = {}  # of what is served or tried, by version
        self._later = False  # another replica loads the champion now
        self._stop = threading.Event()
        self._changing = threading.Lock()  # of ``state``, by this thread and by whoever drops a version
        self._thread = threading.Thread(target=self._follow, name="follower", daemon=True)
        self.state = FollowerState()

    def start(self) -> None:
        """Look once now, and load the champion there is; then keep looking on the thread."""
        self.check()
        while self._later and self.state.served is None and not self._stop.wait(_TURN_S):
            self.check()  # another replica is the first to load it
        self._thread.start()

    def close(self) -> None:
        """Stop looking; a model that is being loaded is given up at the next step."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(10)

    def tags(self, version: str) -> dict[str, str]:
        """What the registry says of a version that is served or tried; see :mod:`components.evaluation.registry`."""
        return self._tags.get(version, {})

    def drop(self, version: str, before: str, why: str) -> None:
        """Note that ``version`` was given up for the one ``before`` it; all replicas go by it. Never raises."""
        champion = self._champion
        if champion is None or str(champion.version) != version:
            return
        self._failed[CHAMPION] = (version, time.monotonic() + self._retry)
        try:
            self._registry.drop(champion, why)  # first: a look that sees the new state must see why
        except Exception as error:  # of whatever kind: this replica has changed already
            _log.error("That version %s was given up cannot be noted for the others. %s", version, error)
        self._champion = None
        self._change(served=before, refused=version, refused_why=why, dropped_why=why, forced=None)
        self._metrics.forced.set(0)

    def check(self) -> None:
        """One look at the registry, with all that follows from it. Never raises."""
        try:
            looked = self._registry.look(must_exist=self.state.served is not None)
        except Exception as error:
            self._metrics.registry_up.set(0)
            self._metrics.registry_errors.inc()
            what = f"The registry cannot be read; version {self.state.served} stays"
            self._note("registry_error", str(error), what)
            return
        self._metrics.registry_up.set(1)
        if self.state.registry_error:
            _log.warning("The registry answers again")
        self._change(registry_error=None)
        if looked.champion is not None:  # none yet, or the alias was removed: what is served stays
            self._follow_champion(looked.champion, looked)
        for alias, found in looked.trials.items():
            self._follow_trial(alias, found)

    def _follow_champion(self, champion: ModelVersion, looked: Looked) -> None:
        wanted = looked.before or champion
        version = str(wanted.version)
        if looked.before is not None:
            what = f"Champion {champion.version} was given up and is not served; version {version} is"
            self._note("dropped_why", looked.dropped or "", what)
            self._change(refused=str(champion.version), refused_why=looked.dropped)
        if version == self.state.served:
            self._champion, self._tags[version] = wanted, wanted.tags
            if wanted is champion:
                self._change(refused=None, refused_why=None, dropped_why=None)
        elif self._may_try(CHAMPION, version):
            if wanted is not champion or self._first is None:
                self._take(wanted, looked)
            else:
                self._take_first(champion, looked, self._first)

    def _take_first(self, champion: ModelVersion, looked: Looked, first: FirstLoad) -> None:
        """Load a champion that may kill the process, as it may have killed others."""
        version, promotion = str(champion.version), self._registry.promotion(champion)
        try:
            deaths = first.begin(promotion, serves=self.state.served is not None)
        except Exception as error:  # of whatever kind: it is loaded all the same
            _log.error("It cannot be noted that version %s is loaded. %s", version, error)
            deaths = 0
        self._later = deaths is None
        if deaths is None:
            return  # the next look sees what became of it
        if deaths < 0:
            why = "a replica died while it loaded it; the one in its place tries it once more"
            self._note("refused_why", why, f"Version {version} is not loaded yet; version {self.state.served} stays")
            self._change(refused=version)
            return
        if deaths >= MOST_DEATHS:
            self._give_up(champion, f"{deaths} replicas died while they loaded it", looked)
            return
        self._take(champion, looked)
        try:
            first.end(promotion, done=self.state.served == version)
        except Exception as error:
            _log.error("It cannot be noted that version %s was loaded. %s", version, error)

    def _give_up(self, champion: ModelVersion, why: str, looked: Looked) -> None:
        """Load the version before ``champion`` in its place; where there is none, nothing."""
        version = str(champion.version)
        self._note("refused_why", why, f"Version {version} is not loaded; version {self.state.served} stays")
        self._change(refused=version)
        if looked.dropped is not None:  # noted before, and there is no version before it
            return
        self._metrics.dropped_models.inc()
        try:
            self._registry.drop(champion, why)
        except Exception as error:  # of whatever kind: tried again at the next look
            _log.error("That version %s was given up cannot be noted. %s", version, error)
        else:
            self.check()

    def _take(self, wanted: ModelVersion, looked: Looked) -> None:
        version = str(wanted.version)
        self._change(loading=version)
        try:
            started = time.monotonic()
            known = looked.rest or self._registry.versions()
            served, said = self._open(wanted, lambda a: vouched(wanted, known, self._keys, a, self._policy))
            if self._stop.is_set():
                return
            self._champion, self._tags[version] = wanted, wanted.tags
            self._switch(served)
            self._change(served=version, forced=said.forced or None)
            if looked.before is None:
                self._change(refused=None, refused_why=None, dropped_why=None)
            self._metrics.forced.set(bool(said.forced))
            if said.forced:
                _log.warning(
                    "Version %s did not pass the gate (%s); forced by %s at %s: %s",
                    version, said.verdict, said.by, said.at, said.forced,
                )  # fmt: skip
            took = time.monotonic() - started
            _log.warning("Serving version %s (%s), loaded in %.1f s", version, served.digest[:12], took)
        except Exception as error:
            what = f"Version {version} cannot be served; version {self.state.served} stays"
            self._note("refused_why", self._refused(CHAMPION, version, error), what)
            self._change(refused=version)  # last: whoever sees it finds the reason
        finally:
            self._change(loading=None)

    def _follow_trial(self, alias: str, found: ModelVersion | None) -> None:
        version = str(found.version) if found else None
        tried_now = self._trials.get(alias)
        if found is None or version is None or version == self.state.served:  # nothing to try
            if tried_now is not None:
                del self._trials[alias]
                self._trial(alias, None)
            self._change(**{alias: None, f"{alias}_why": None})
        elif tried_now is not None and tried_now.version == version:
            self._tags[version] = found.tags
            self._change(**{f"{alias}_why": None})
        elif self._may_try(alias, version):
            self._begin_trial(alias, found, version)

    def _begin_trial(self, alias: str, found: ModelVersion, version: str) -> None:
        shown = alias == CHALLENGER
        try:
            served, said = self._open(found, lambda a: tried(found, self._keys, a, self._policy, shown=shown))
            if self._stop.is_set():
                return
            self._trials[alias], self._tags[version] = served, found.tags
            self._trial(alias, served)
            self._change(**{alias: version, f"{alias}_why": None})
            _log.warning("Trying version %s as %s (verdict %s)", version, alias, said.verdict)
        except Exception as error:
            if self._trials.pop(alias, None) is not None:  # not the one that the alias names now
                self._trial(alias, None)
                self._change(**{alias: None})
            self._note(
                f"{alias}_why", self._refused(alias, version, error), f"Version {version} cannot be tried as {alias}"
            )

    def _open(self, found: ModelVersion, vouch: Callable[[Artifact], Vouch]) -> tuple[Served, Vouch]:
        """The model of a version, checked, vouched for and tried once; one that is loaded already is used again."""
        artifact = local_copy(found.source, found.tags.get("model_digest"))
        said = vouch(artifact)
        for loaded in self._trials.values():
            if loaded.digest == artifact.digest:
                return replace(loaded, version=str(found.version)), said
        generator = aside(lambda: self._loaded(model_folder(artifact)))
        return Served(str(found.version), generator, artifact.digest), said

    def _loaded(self, folder: Path) -> ImageGenerator:
        generator = self._load(folder)
        warm_up(generator)
        return generator

    def _may_try(self, alias: str, version: str) -> bool:
        failed, again_at = self._failed.get(alias, ("", 0.0))
        return version != failed or time.monotonic() >= again_at

    def _refused(self, alias: str, version: str, error: Exception) -> str:
        """Count and keep that a version is refused; why, in words."""
        self._metrics.refused_models.inc()
        self._failed[alias] = (version, time.monotonic() + self._retry)
        return str(error) if isinstance(error, AtelierError) else f"{type(error).__name__}: {error}"

    def _note(self, name: str, what: str, consequence: str) -> None:
        if getattr(self.state, name) != what:  # once, not at every look
            _log.error("%s. %s", consequence, what)
        self._change(**{name: what})

    def _change(self, **changes: Any) -> None:
        with self._changing:
            self.state = replace(self.state, **changes)

    def _follow(self) -> None:
        while not self._stop.wait(self._every):
            self.check()
