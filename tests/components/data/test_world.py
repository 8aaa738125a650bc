"""The embedded world: its words, its pictures and the way back from prompts to scenes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components.data.captions import inverse
from components.data.world import (
    BACKGROUNDS,
    COLOURS,
    KINDS,
    PLACES,
    SHAPES,
    SIZES,
    Item,
    Scene,
    WorldSpec,
    all_singles,
    layout,
    parse,
    phrasings,
    render,
    sample_scene,
)

EVERYTHING = WorldSpec(kinds=KINDS)


def test_the_vocabulary_is_as_large_as_promised() -> None:
    assert len(SHAPES) >= 6 and len(COLOURS) >= 8 and len(SIZES) >= 2
    assert len(PLACES) >= 5 and len(BACKGROUNDS) >= 3
    singles = list(all_singles(WorldSpec()))
    assert len(singles) == len(set(singles)) == 6 * 8 * 2 * 5 * 3


def test_colours_are_far_from_each_other_and_from_the_backgrounds() -> None:
    colours = np.array([*COLOURS.values(), *BACKGROUNDS.values()], dtype=float)
    distances = np.linalg.norm(colours[:, None] - colours[None], axis=2)[~np.eye(len(colours), dtype=bool)]
    assert distances.min() > 70


def test_every_phrasing_of_every_single_parses_back() -> None:
    for scene in all_singles(WorldSpec()):
        texts = phrasings(scene)
        assert len(texts) == len(set(texts)) >= 4
        for text in texts:
            assert parse(text) == scene, text


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32))
def test_sampled_scenes_parse_back_and_lie_inside_the_picture(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scene = sample_scene(rng, EVERYTHING)
    assert EVERYTHING.contains(scene)
    for text in phrasings(scene):
        assert parse(text) == scene, text
    spots = layout(scene, rng)
    assert len(spots) == {"single": 1, "pair": 2, "count": scene.count}[scene.kind]
    for x, y, side in spots:
        assert min(x, y) - side / 2 > 0 and max(x, y) + side / 2 < 1
    for i, (x, y, side) in enumerate(spots):
        for other_x, other_y, other_side in spots[:i]:
            gap = max(abs(x - other_x), abs(y - other_y)) - (side + other_side) / 2
            assert gap > 0.03, "objects must not touch"


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32))
def test_a_pair_lies_as_it_is_said(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scene = sample_scene(rng, WorldSpec(kinds=("pair",)))
    (x0, y0, _), (x1, y1, _) = layout(scene, rng)
    assert {"above": y0 < y1, "below": y0 > y1, "left of": x0 < x1, "right of": x0 > x1}[str(scene.relation)]
    other = inverse(scene)
    assert other.items == scene.items[::-1] and inverse(other) == scene


@settings(max_examples=300, deadline=None)
@given(st.one_of(st.text(max_size=60), st.lists(st.sampled_from(
    [*SHAPES, *COLOURS, *SIZES, *PLACES, *BACKGROUNDS, "a", "background", "two", "above", "left of", ",", "on", "stars"]
), max_size=9).map(" ".join)))  # fmt: skip
def test_any_text_parses_or_is_refused_by_value_error(text: str) -> None:
    try:
        scene = parse(text)
    except ValueError as error:
        assert "prompt not of the world" in str(error)
    else:
        assert EVERYTHING.contains(scene)


@pytest.mark.parametrize(
    ("prompt", "scene"),
    [
        ("a red star", Scene("single", (Item("star", "red"),))),
        ("A Big GREEN heart, upper left!", Scene("single", (Item("heart", "green", "large", "top left"),))),
        ("a blue shape on white", Scene("single", (Item(None, "blue"),), "white")),
        ("three green stars", Scene("count", (Item("star", "green"),), count=3)),
        ("2 crosses on a gray background", Scene("count", (Item("cross"),), "grey", count=2)),
        (
            "a red star to the left of a blue square",
            Scene("pair", (Item("star", "red"), Item("square", "blue")), relation="left of"),
        ),
        ("a photo of a pink heart in the middle", Scene("single", (Item("heart", "pink", None, "centre"),))),
    ],
)
def test_partial_prompts_leave_the_rest_unsaid(prompt: str, scene: Scene) -> None:
    assert parse(prompt) == scene
    for text in phrasings(scene):
        assert parse(text) == scene, text


@pytest.mark.parametrize(
    "prompt",
    ["", "a dog", "a white star", "a red blue star", "stars", "two star", "a red star and a blue star",
     "three stars in the centre", "a red star at the top left and the bottom right",
     "a star above a heart below a cross", "red"],
)  # fmt: skip
def test_prompts_of_another_world_are_refused(prompt: str) -> None:
    with pytest.raises(ValueError, match="prompt not of the world"):
        parse(prompt)


@pytest.mark.parametrize("size", [32, 64, 200])
def test_pictures_come_at_any_size_and_are_deterministic(size: int) -> None:
    scene = sample_scene(np.random.default_rng(size), EVERYTHING)
    picture = render(scene, size, seed=5)
    assert picture.size == (size, size) and picture.mode == "RGB"
    assert picture.tobytes() == render(scene, size, seed=5).tobytes()
    assert picture.tobytes() != render(scene, size, seed=6).tobytes()


def test_a_small_shape_spans_at_least_nine_of_32_pixels_and_a_large_one_a_third_more() -> None:
    spans: dict[str, list[int]] = {"small": [], "large": []}
    for shape in SHAPES:
        for size in SIZES:
            scene = Scene("single", (Item(shape, "red", size, "centre"),), "white")
            for seed in range(5):
                pixels = np.asarray(render(scene, 32, seed), dtype=int)
                ink = pixels.max(axis=2) - pixels.min(axis=2) > 60
                spans[size].append(int(ink.any(axis=0).sum()))
    assert min(spans["small"]) >= 9
    assert min(spans["large"]) >= 1.25 * max(spans["small"])


def test_a_part_of_the_world_shows_only_its_words() -> None:
    part = EVERYTHING.without("pink", "cyan", "heart")
    rng = np.random.default_rng(0)
    for _ in range(300):
        scene = sample_scene(rng, part)
        assert all(item.shape != "heart" and item.colour not in ("pink", "cyan") for item in scene.items)
        assert part.contains(scene)
    assert not part.contains(parse("a pink star")) and part.contains(parse("a red star"))
    assert part.image_size == EVERYTHING.image_size


def test_wrong_words_and_unfinished_scenes_say_what_is_wrong() -> None:
    with pytest.raises(ValueError, match="mauve"):
        WorldSpec(colours=("mauve",))
    with pytest.raises(ValueError, match="leave out"):
        WorldSpec().without("mauve")
    with pytest.raises(ValueError, match="shapes"):
        WorldSpec().without(*SHAPES)
    with pytest.raises(ValueError, match="background"):
        render(parse("a small red star in the centre"), 32, 0)
