"""Adapters in the registry: versions of ``{model_name}-styles``, each under the name that a request asks for it by.

Tags of a version: ``style`` (its name), ``caption`` (what its subject was called in training), ``base`` (digest of
the model that it was trained on and fits), ``base_version`` (of that model in the registry, empty when it was not
registered), ``adapter`` (digest of the artifact), ``subject`` (digest of the pictures) and ``signed``, the first
three digests and names under a signature of :mod:`components.evaluation.signing`: who can write to the registry cannot
make a server load an adapter. The newest version of a name that fits a model is that model's.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from components.contracts.errors import GateRefused, InputError
from components.evaluation.registry import Registry
from components.evaluation.signing import Keys
from components.runtime.progress import say
from components.runtime.stage import Context
from components.runtime.storage import Artifact

if TYPE_CHECKING:
    from components.runtime.tracking import ModelVersion, Tracker

NAME = re.compile(r"[a-z][a-z0-9_-]{0,39}")
_TAKEN = re.compile(r"natural|vivid|none|latest|v\d+")  # OpenAI's styles, and names that MLflow keeps for itself


@dataclass(frozen=True)
class Style:
    """A registered adapter. ``source`` is the URL of its artifact, ``base`` the digest of the model it fits."""

    name: str
    version: int
    caption: str
    base: str
    base_version: str
    digest: str
    source: str
    signed: str = ""

    def statement(self) -> dict[str, str]:
        """What is signed of it."""
        return {"about": "style", "style": self.name, "base": self.base, "adapter": self.digest}


def require_signed(style: Style, keys: Keys) -> None:
    """Do nothing if ``style`` was registered by somebody with one of these keys.

    Raises:
        GateRefused: it was not, or was changed since.
    """
    said = keys.verified(style.signed, f"style {style.name}")
    if {name: said.get(name) for name in style.statement()} != style.statement():
        raise GateRefused(
            f"The signature of the style {style.name} is of another adapter",
            remedy="register it again with `atelier finetune --images`",
        )


def checked_name(name: str) -> str:
    """``name``, if a style may be called so.

    Raises:
        InputError: it may not.
    """
    if NAME.fullmatch(name) and not _TAKEN.fullmatch(name):
        return name
    raise InputError(
        f"A style cannot be called {name!r}",
        expected="a small letter and up to 39 more, digits, '-' or '_'; not natural, vivid, none, latest or v1, v2 …",
        remedy="choose another --name",
    )


def registered(tracker: Tracker, model_name: str) -> list[Style]:
    """All registered adapters of a model, oldest first.

    Raises:
        RegistryError: the registry is down.
    """
    return [_style(version) for version in tracker.versions(f"{model_name}-styles") if "style" in version.tags]


def styles(ctx: Context) -> list[Style]:
    """:func:`registered` of the recipe's model; empty where there is no registry yet."""
    registry = Registry(ctx)
    return registered(registry.tracker, ctx.recipe.release.model_name) if registry.exists else []


def fitting(known: list[Style], base: str) -> dict[str, Style]:
    """By name, the newest of ``known`` that fits the model with the digest ``base``."""
    return {style.name: style for style in known if style.base == base}


def find_style(ctx: Context, name: str, base: str) -> Artifact:
    """The adapter that is called ``name`` and fits the model with the digest ``base``, verified.

    Raises:
        InputError: there is none. GateRefused: it carries no signature of this recipe's.
    """
    known = styles(ctx)
    if style := fitting(known, base).get(name):
        require_signed(style, Keys(ctx.home))
        adapter = ctx.store.by_digest("adapter", style.digest)
        adapter.verify()
        return adapter
    fits = ", ".join(sorted(fitting(known, base))) or "none yet"
    other = next((style for style in reversed(known) if style.name == name), None)
    raise InputError(
        f"The style {name!r} was made for version {other.base_version or other.base[:12]}, which is not the champion"
        if other
        else f"There is no style {name!r}",
        expected=f"a style of the champion: {fits}",
        remedy="train it with `atelier finetune --images`, or see `atelier finetune --list`",
    )


def register(ctx: Context, adapter: Artifact, name: str, caption: str, base_version: str) -> Style:
    """Give an adapter its name in the registry, unless it has it already.

    Args:
        base_version: of the model that it was trained on; empty where that is not registered.

    Raises:
        InputError: it cannot be called so.
        RegistryError: the registry is down.
    """
    checked_name(name)
    registry, model = Registry(ctx), f"{ctx.recipe.release.model_name}-styles"
    base = adapter.manifest.inputs["model"]
    with registry.locked():
        known = fitting(styles(ctx), base).get(name)
        if known and known.digest == adapter.digest:
            say(f"style: {name} is registered already (version {known.version})")
            return known
        tracker = registry.tracker
        fresh = Style(name, 0, caption, base, base_version, adapter.digest, adapter.url)
        tags = {
            "style": name, "caption": caption, "base": base, "base_version": base_version, "adapter": adapter.digest,
            "subject": adapter.manifest.inputs["subject"], "signed": registry.keys.sign(fresh.statement()),
        }  # fmt: skip
        begun = tracker.find_run({"artifact": adapter.manifest.identity})
        with tracker.run(f"style {name}", tags={"artifact": adapter.manifest.identity}, resume=begun) as run:
            run.set_tags({"style": name})
        fits = f"version {base_version}" if base_version else "a model that is not registered"
        described = f"**{name}**: {caption}\n\nLoRA for {fits} ({base[:12]})"
        made = tracker.register(model, adapter.url, run.id, tags, described)
        tracker.set_alias(model, name, made.version)
    say(f"style: {name} registered as version {made.version} of {model}, for {fits}")
    return _style(made)


def _style(version: ModelVersion) -> Style:
    tags = version.tags
    return Style(
        name=tags["style"],
        version=version.version,
        caption=tags.get("caption", ""),
        base=tags.get("base", ""),
        base_version=tags.get("base_version", ""),
        digest=tags.get("adapter", ""),
        source=version.source,
        signed=tags.get("signed", ""),
    )
