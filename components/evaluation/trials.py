"""Versions that servers try beside the champion: the aliases ``challenger`` and ``shadow``, set, cleared, promoted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from components.contracts.errors import GateRefused
from components.evaluation.registry import CHALLENGER, SHADOW, Registry
from components.runtime.progress import say
from components.runtime.stage import Context

if TYPE_CHECKING:
    from components.runtime.tracking import ModelVersion

Trial = Literal["challenger", "shadow"]


def try_out(ctx: Context, version: int, alias: Trial = "challenger") -> None:
    """Give ``version`` the alias: servers whose recipe asks for it try it.

    Raises:
        GateRefused: it carries no record of this gate; a challenger must also have passed, or once been forced.
        RegistryError: the registry is down.
    """
    registry = Registry(ctx)
    with registry.locked():
        found = next((v for v in registry.versions() if v.version == version), None)
        if found is None or not registry.signed(found):
            raise GateRefused(
                f"Version {version} of {registry.name} carries no record that this gate signed",
                expected="a version that the release stage registered",
                remedy="see `atelier rollout` for the versions there are",
            )
        if alias == CHALLENGER and found.tags.get("verdict") != "pass" and "forced" not in found.tags:
            raise GateRefused(
                f"The verdict on version {version} of {registry.name} is {found.tags.get('verdict')}, "
                "and what a challenger draws is shown to users",
                expected="a version that passed, or was forced",
                remedy=f"make it the shadow instead: atelier rollout --shadow {version}",
            )
        registry.tracker.set_alias(registry.name, alias, version)
    say(f"release: version {version} of {registry.name} is the {alias}")


def end_trials(ctx: Context) -> None:
    """Take the aliases away.

    Raises:
        RegistryError: the registry is down.
    """
    registry = Registry(ctx)
    with registry.locked():
        for alias, found in trials(ctx).items():
            registry.tracker.delete_alias(registry.name, alias)
            say(f"release: version {found.version} of {registry.name} is the {alias} no more")


def trials(ctx: Context) -> dict[str, ModelVersion]:
    """The versions that are tried, by alias.

    Raises:
        RegistryError: the registry is down.
    """
    registry = Registry(ctx)
    if not registry.exists:
        return {}
    found = {alias: registry.tracker.alias(registry.name, alias) for alias in (CHALLENGER, SHADOW)}
    return {alias: version for alias, version in found.items() if version is not None}


def promote_challenger(ctx: Context) -> ModelVersion:
    """Make the challenger, which passed against the present champion, the champion.

    Raises:
        GateRefused: there is no challenger, it did not pass, or it was compared with another champion.
        RegistryError: the registry is down.
    """
    registry = Registry(ctx)
    with registry.locked():
        registry.mend()
        found, present = trials(ctx).get(CHALLENGER), registry.champion()
        if found is None:
            raise GateRefused(
                f"{registry.name} has no challenger", remedy="name one with `atelier rollout --challenger VERSION`"
            )
        if not registry.signed(found) or found.tags.get("verdict") != "pass":
            raise GateRefused(
                f"Version {found.version} of {registry.name} did not pass the gate",
                expected="the verdict pass, signed",
                remedy=f'release it with a reason: atelier release --force --version {found.version} --reason "..."',
            )
        against = present.tags.get("model_digest", "") if present else ""
        if found.tags.get("against", "") != against:
            raise GateRefused(
                f"Version {found.version} of {registry.name} was compared with another champion than the present one",
                remedy="run `atelier release`: it judges the model against the present champion",
            )
        registry.promote(found.version, "was the challenger, and passed the gate")
        registry.tracker.delete_alias(registry.name, CHALLENGER)
    say(f"release: version {found.version} of {registry.name} is the champion")
    return registry.tracker.version(registry.name, found.version)
