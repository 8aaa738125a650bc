"""Several players in one training: each turn of a step trains the parameters of one of them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

from torch import nn

from components.contracts.errors import TrainingError


def turns_of(module: nn.Module) -> dict[str, nn.Module]:
    """The turns of a step in their order; a module that names none has one, itself, under the name ``""``.

    Raises:
        TrainingError: a parameter is trained in two turns, or is not one of the module's own.
    """
    named = getattr(module, "turns", None)
    turns: Mapping[str, nn.Module] = named() if named else {"": module}
    own, seen = {id(p) for p in module.parameters()}, dict[int, str]()
    for turn, player in turns.items():
        for name, parameter in player.named_parameters():
            if not parameter.requires_grad:
                continue
            if id(parameter) in seen or id(parameter) not in own:
                fault = (
                    f"is trained in turn {seen[id(parameter)]} too" if id(parameter) in seen else "is not the root's"
                )
                raise TrainingError(
                    f"Parameter {name} of turn {turn} {fault}",
                    expected="every trained parameter registered in the root module and in one turn",
                    remedy="keep the other players of a turn unregistered, in a tuple",
                )
            seen[id(parameter)] = turn
    return dict(turns)


def averaged_turns(module: nn.Module) -> tuple[str, ...]:
    """The turns whose weights are averaged: the module's ``averaged``, or all."""
    return tuple(getattr(module, "averaged", None) or turns_of(module))


@contextlib.contextmanager
def frozen(*modules: nn.Module) -> Iterator[None]:
    """No gradients for the parameters of ``modules`` inside the block; gradients still flow through them."""
    held = [p for module in modules for p in module.parameters() if p.requires_grad]
    for parameter in held:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in held:
            parameter.requires_grad_(True)
