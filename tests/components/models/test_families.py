"""Every family behind one protocol: saved without pickles, loaded by what lies in the folder, drawn alike."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from components.contracts.errors import ArtifactError, InputError
from components.contracts.recipe import Gan, Recipe
from components.models.discriminators import discriminators_for
from components.models.dm_gan import GanNetwork, Memory
from components.models.families import ATELIER_INDEX, ONE_PASS, ImageGenerator, family_of, index_of, load_generator
from components.models.one_pass import Design, make_network
from components.models.reading import Reading, reading_of
from tests.components.models.families import SECTIONS, WORDS, save_family

ONE = {"steps": 1, "guidance_scale": 1.0}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("families")
    for family in ONE_PASS:
        save_family(root / family, family)
    return {family: root / family / "model" for family in ONE_PASS}


@pytest.fixture(scope="module")
def load(folders: dict[str, Path]) -> Callable[[str], ImageGenerator]:
    loaded = {family: load_generator(folder, "cpu") for family, folder in folders.items()}
    return lambda family: loaded[family]


def reading(count: int, tokens: int = 5, seed: int = 0) -> Reading:
    draws = torch.Generator().manual_seed(seed)
    mask = torch.ones(count, tokens, dtype=torch.bool)
    mask[0, 3:] = False
    words = torch.randn(count, tokens, WORDS, generator=draws)
    return Reading(words, mask, torch.randn(count, WORDS, generator=draws))


@pytest.mark.parametrize("family", ONE_PASS)
def test_a_saved_model_is_opened_by_what_lies_in_its_folder(
    family: str, folders: dict[str, Path], load: Callable[[str], ImageGenerator]
) -> None:
    generator = load(family)
    assert family_of(folders[family]) == generator.family == family
    assert not generator.uses_steps and generator.uses_seed == (family != "cnn") and generator.image_size == 16
    pictures = generator.generate(["a red star", "a blue circle"], [1, 2], **ONE)
    assert pictures.shape == (2, 16, 16, 3) and pictures.dtype == np.uint8 and (pictures[0] != pictures[1]).any()
    files = {path.suffix for path in folders[family].rglob("*") if path.is_file()}
    assert files <= {".json", ".safetensors", ".jinja"}, "no pickles"
    assert generator.truncated("word " * 40) and not generator.truncated("a star")


@pytest.mark.parametrize("family", ONE_PASS)
def test_prompt_and_seed_decide_in_any_batch(family: str, load: Callable[[str], ImageGenerator]) -> None:
    generator = load(family)
    prompts, seeds = ["a red star", "a large blue circle", "a red star"], [5, 6, 7]
    together = generator.generate(prompts, seeds, **ONE).astype(int)
    alone = np.concatenate([generator.generate([p], [s], **ONE) for p, s in zip(prompts, seeds, strict=True)])
    assert np.abs(together - alone).max() <= 2
    moved = np.abs(together[0] - together[2]).max()
    assert moved == 0 if family == "cnn" else moved > 2  # the seed matters where there is chance
    steps = generator.generate(prompts, seeds, steps=9, guidance_scale=4.0, negative_prompts=["x"] * 3)
    assert np.array_equal(steps, together), "steps, guidance and negative prompts have no effect"


def test_wrong_use_is_explained(load: Callable[[str], ImageGenerator]) -> None:
    generator = load("gan")
    assert generator.generate([], [], **ONE).shape == (0, 16, 16, 3)
    with pytest.raises(InputError, match="2 prompts, 1 seeds"):
        generator.generate(["a", "b"], [1], **ONE)
    with pytest.raises(InputError, match="steps=0"):
        generator.generate(["a"], [1], steps=0, guidance_scale=1.0)


def test_damage_is_named(folders: dict[str, Path], tmp_path: Path) -> None:
    import shutil

    with pytest.raises(ArtifactError, match=r"cannot be opened as a model.*Expected: a folder with model_index.json"):
        load_generator(tmp_path, "cpu")
    broken = tmp_path / "broken"
    shutil.copytree(folders["gan"], broken)
    weights = broken / "network" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:200])
    with pytest.raises(ArtifactError, match="cannot be opened as a network"):
        load_generator(broken, "cpu")
    for change, message in (({"family": "rnn"}, "names the family 'rnn'"), ({"format": 9}, "has the format 9"),
                            ({"family": "cnn"}, "says cnn and holds a gan")):  # fmt: skip
        index = json.loads((folders["gan"] / ATELIER_INDEX).read_text())
        (broken / ATELIER_INDEX).write_text(json.dumps(index | change))
        weights.write_bytes((folders["gan"] / "network" / "model.safetensors").read_bytes())
        with pytest.raises(ArtifactError, match=message):
            load_generator(broken, "cpu")


def test_the_index_is_found_among_an_artifacts_files() -> None:
    assert index_of(["a/model_index.json", "unet/config.json"]) == "a/model_index.json"
    assert index_of(["atelier_model.json", "deep/er/model_index.json"]) == "atelier_model.json"
    for names in (["config.json"], ["a/model_index.json", "b/atelier_model.json"]):
        with pytest.raises(ArtifactError, match="Expected: a folder with one"):
            index_of(names)


def test_the_sentence_is_the_first_end_tokens_state() -> None:
    words, projection = torch.randn(2, 4, 3), torch.randn(5, 3)
    found = reading_of(words, torch.tensor([[1, 9, 3, 3], [1, 9, 8, 3]]), projection, 3)
    assert found.mask.tolist() == [[True, True, True, False], [True] * 4]
    assert torch.allclose(found.sentence, torch.stack([words[0, 2], words[1, 3]]) @ projection.T)


@pytest.mark.parametrize("family", ["vae", "gan"])
def test_padding_says_nothing(family: str) -> None:
    torch.manual_seed(1)
    network = make_network(Design(SECTIONS[family], 16, WORDS, WORDS)).eval()
    one = reading(3)
    words = one.words.clone()
    words[0, 3:] = 99.0
    noise = torch.randn(3, network.noise_size)
    assert torch.equal(network(one, noise), network(one._replace(words=words), noise))


def test_memory_follows_the_papers_equations() -> None:
    """Writing gate, key addressing, value reading and response gate, place by place and word by word."""
    torch.manual_seed(2)
    memory, channels = Memory(WORDS, 6), 6
    features, given = torch.randn(2, channels, 3, 3), reading(2)
    found = memory(features, given)
    w = {name: value.detach().double() for name, value in memory.state_dict().items()}

    def relu(x: torch.Tensor) -> torch.Tensor:
        return x.clamp(min=0)

    for n in range(2):
        places = features[n].double().flatten(1).T  # [9, C]
        mean = places.mean(0)
        slots = []
        for t in range(int(given.mask[n].sum())):
            word = given.words[n, t].double()
            gate = torch.sigmoid(w["gate_words.weight"][0] @ word + w["gate_picture.weight"][0] @ mean)
            from_word = relu(w["write_words.weight"] @ word + w["write_words.bias"])
            from_picture = relu(w["write_picture.weight"] @ mean + w["write_picture.bias"])
            slots.append(from_word * gate + from_picture * (1 - gate))
        keys = torch.stack([relu(w["key.weight"] @ s + w["key.bias"]) for s in slots])
        values = torch.stack([relu(w["value.weight"] @ s + w["value.bias"]) for s in slots])
        for j, place in enumerate(places):
            read = torch.softmax(keys @ place, 0) @ values
            both = torch.cat([place, read])
            answer = torch.sigmoid(w["response.weight"].flatten() @ both + w["response.bias"][0])
            expected = read * answer + place * (1 - answer)
            assert torch.allclose(found[n].flatten(1)[:, j].double(), expected, atol=1e-5)


def test_the_published_size_draws_64_128_and_256() -> None:
    """Sides and parameters of the 2019 settings; on the meta device, where nothing is computed."""
    config = Gan(stages=3, channels=64, discriminator_channels=32, norm="batch")
    with torch.device("meta"):
        network = GanNetwork(config, 256, 256, 256)
        judges = discriminators_for(config, 256, 256)
        given = Reading(torch.randn(2, 9, 256), torch.ones(2, 9, dtype=torch.bool), torch.randn(2, 256))
        drawing = network.draw(given, torch.randn(2, network.noise_size))
        answers = [j.answers(p, given.sentence) for j, p in zip(judges, drawing.pictures, strict=True)]
    assert [tuple(p.shape) for p in drawing.pictures] == [(2, 3, side, side) for side in (64, 128, 256)]
    assert all(a.alone.shape == a.joint.shape == (2,) for a in answers)
    assert network.first.width == 1024  # 16 times 64 channels at 4 x 4, as published


@pytest.mark.parametrize(("family", "side", "smallest"), [("cnn", 48, 8), ("gan", 8, 16), ("vae", 4, 8)])
def test_sides_that_cannot_be_drawn_are_refused(family: str, side: int, smallest: int) -> None:
    tree = {"name": "x", "prepare": {"image_size": side}, "model": {"family": family},
            "train": {"text_encoder": {"patch": 4}}}  # fmt: skip
    with pytest.raises(ValueError, match=rf"image_size {side} must be a power of two, at least {smallest}"):
        Recipe.model_validate(tree)
