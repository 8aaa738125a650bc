"""The table of sizes: counted on the models, and the one that the documentation shows."""

from __future__ import annotations

import itertools
from pathlib import Path

import torch

from components.contracts.recipe import Denoiser
from components.models.denoiser import make_denoiser
from components.models.sizes import costs, denoiser_cost, flops_of, parameters_of, table

DOCS = Path(__file__).parents[3] / "docs" / "training.md"


def test_the_documentation_shows_what_is_counted() -> None:
    found = {(cost.network, cost.size): cost for cost in costs()}
    assert table(iter(found.values())) in DOCS.read_text(encoding="utf-8"), "python -m components.models.sizes"
    sizes = ("xs", "s", "b", "l", "xl")
    for network in ("U-Net", "DiT", "autoencoder", "CLIP"):
        growing = [found[network, size].parameters for size in sizes]
        assert all(1.4 * small < large for small, large in itertools.pairwise(growing))
    assert found["DiT", "xl"].parameters > 600e6 and found["U-Net", "xl"].parameters > 800e6


def test_operations_are_those_of_known_layers() -> None:
    layer = torch.nn.Linear(30, 50)
    assert flops_of(lambda: layer(torch.zeros(7, 30))) == 2 * 7 * 30 * 50 and parameters_of(layer) == 31 * 50
    config = Denoiser(family="dit", width=32, depth=2, heads=2)
    cost = denoiser_cost(config, "tiny")
    assert cost.parameters == parameters_of(make_denoiser(config, 4, 32, 768))
    deeper = denoiser_cost(config.model_copy(update={"depth": 4}))
    blocks = (deeper.flops - cost.flops) / 2
    patches, tokens, width = 256, 77, 32
    matrices = 2 * patches * width * width * (4 + 2 + 8) + 2 * 2 * tokens * width * width
    attention = 2 * 2 * patches * (patches + tokens) * width
    assert blocks == matrices + attention
