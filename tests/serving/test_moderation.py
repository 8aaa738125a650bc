"""Verdicts: layers, policy, what a user is told, and prompts of our own that must pass or must not."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from components.contracts.recipe import Recipe
from components.contracts.recipe_moderation import Category, Moderation
from serving.moderation import ALLOWED, Moderator, Verdict

EXAMPLES = json.loads((Path(__file__).parent / "moderation_examples.json").read_text(encoding="utf-8"))
MODERATOR = Moderator(Moderation(), ("Gore", "straße", "secret project"))


def check(text: str) -> Verdict:
    return MODERATOR.check_prompt(text)


@pytest.mark.parametrize("text", EXAMPLES["passes"])
def test_harmless_look_alikes_are_not_refused(text: str) -> None:
    assert Moderator(Moderation()).check_prompt(text).action != "block"


@pytest.mark.parametrize(
    ("category", "text"), [(category, text) for category, texts in EXAMPLES["refused"].items() for text in texts]
)
def test_harm_is_refused_with_its_category(category: str, text: str) -> None:
    verdict = check(text)
    assert verdict.action == "block" and category in verdict.categories and verdict.reason
    assert verdict.layer in ("lexicon", "rules")


def test_plain_prompts_have_the_empty_verdict() -> None:
    assert check("a red star on a grey background") is ALLOWED
    assert ALLOWED.public() == {
        "action": "allow", "layer": "", "categories": [], "scores": {}, "spans": [], "reason": "",
    }  # fmt: skip


def test_spans_are_places_in_the_text_as_given() -> None:
    text = "Please:  how do I  k\u200bi\u200bl\u200bl  my  neighbour?"
    verdict = check(text)
    assert verdict.action == "block"
    assert [text[start:stop] for start, stop in verdict.spans] == ["how do I", "k\u200bi\u200bl\u200bl", "neighbour"]


def test_a_reason_names_only_words_of_the_user() -> None:
    verdict = check("how do I strangle my neighbour")
    assert "strangle" in verdict.reason and "neighbour" in verdict.reason and "violence" in verdict.reason
    assert "kill" not in verdict.reason and "murder" not in verdict.reason
    assert verdict.public()["categories"] == ["violence"] and json.dumps(verdict.public())


def test_self_harm_points_to_help() -> None:
    assert "crisis line" in check("how can I kill myself").reason


@pytest.mark.parametrize(
    "text",
    ["some GORE, please", "ｇｏｒｅ", "g0re", "g o r e", "blood and gore", "STRASSE", "a Straße",
     "the Secret  Project!", "go\u200bre"],
)  # fmt: skip
def test_words_of_the_recipe_are_refused_in_any_disguise(text: str) -> None:
    verdict = check(text)
    assert verdict.action == "block" and verdict.categories["blocked_word"] == 1.0 and verdict.layer == "words"


@pytest.mark.parametrize("text", ["a gorey category", "a secret", "project secret", "strasbourg"])
def test_words_of_the_recipe_are_refused_whole(text: str) -> None:
    assert check(text) is ALLOWED


def test_the_recipe_decides() -> None:
    text, milder = "a nude woman on a sofa", "a severed head, blood"
    assert Moderator(Moderation()).check_prompt(text).action == "block"
    assert Moderator(Moderation(allow=("sexual",))).check_prompt(text) is ALLOWED
    assert Moderator(Moderation(allow=("sexual",))).check_prompt(milder).action == "block"
    assert Moderator(Moderation(block_at=1.0)).check_prompt(text).action == "flag"
    assert Moderator(Moderation(block_at=1.0, flag_at=1.0)).check_prompt(text) is ALLOWED
    assert Moderator(Moderation(prompts=False)).check_prompt(text) is ALLOWED
    assert Moderator(Moderation(prompts=False), ("sofa",)).check_prompt(text).categories == {"blocked_word": 1.0}


def test_fiction_and_depiction_are_noted_and_drawn() -> None:
    for text in ("how do I poison someone in a video game", "how to draw a man strangling his boss"):
        assert check(text).action == "flag", text


def test_the_default_recipe_moderates_and_says_what_is_off() -> None:
    moderator = Moderator.of(Recipe(name="x"))
    assert moderator.health() == {
        "prompts": "on", "classifier": "off", "pictures": "off",
        "pictures_why": "no CLIP is configured: serve.moderation.pictures",
    }  # fmt: skip
    assert moderator.check_prompt("how do I kill a person").action == "block"


def test_every_category_of_the_lexicon_is_one_of_the_recipe() -> None:
    from typing import get_args

    from serving.moderation_lexicon import lexicon

    assert lexicon().categories <= set(get_args(Category))


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=120))
@example("\ud800 how do I kill \udfff a person")
@example("'s s' '' 's's's \u2019s")
@example("***** k*** **** f**k")
@example("1 l | ! 4 @ $ 0")
def test_any_text_has_a_verdict_with_spans_inside_it(text: str) -> None:
    verdict = check(text)
    assert all(0 <= start < stop <= len(text) for start, stop in verdict.spans)
    assert (verdict.action == "allow") == (not verdict.reason)
    assert all(0 <= score <= 1 for score in verdict.categories.values())
    assert check(text) == verdict


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(["how do I kill a person", "a naked woman on a bed"]), st.text(" \t\n", max_size=4), st.booleans()
)
def test_case_and_white_space_change_nothing(text: str, space: str, upper: bool) -> None:
    other = (space or " ").join(text.split())
    assert check(other.upper() if upper else other).action == "block"


@pytest.mark.parametrize(
    "text",
    ["how do i kill " * 70, "a " * 500, "k i l l " * 120, "ask why should not men " * 40, "x" * 1000, "k" * 1000,
     "-".join("kill" for _ in range(200)), "*" * 1000, "ab" * 500, "\u0301" * 1000, "(((((" * 200, "a." * 500,
     "why was is good right isis holocaust " * 27],
)  # fmt: skip
def test_no_prompt_takes_long(text: str) -> None:
    check(text)  # what is computed once a process
    started = time.process_time()
    check(text)
    assert time.process_time() - started < 0.5


def test_threads_get_the_same_verdicts() -> None:
    texts = [text for texts in EXAMPLES["refused"].values() for text in texts] + EXAMPLES["passes"]
    alone = [check(text) for text in texts]
    found: list[list[Verdict]] = []
    threads = [threading.Thread(target=lambda: found.append([check(text) for text in texts])) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [alone] * 4
