"""Requests: what is accepted, what is refused and how."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components.contracts.recipe import Serve
from serving.schemas import MAX_SEED, ApiError, Limits

LIMITS = Limits(Serve(max_prompt_chars=40, max_images=4, max_steps=30, blocked_words=("Gore",)), "atelier")


def order(**fields: Any) -> Any:
    return LIMITS.order(LIMITS.parse(json.dumps({"prompt": "a star", **fields}).encode()), 32)


def test_defaults_come_from_the_recipe() -> None:
    made = order()
    assert (made.steps, made.guidance_scale, len(made.seeds)) == (16, 2.0, 1)


def test_seeds_count_up_and_never_leave_the_range() -> None:
    assert order(seed=7, n=3).seeds == (7, 8, 9)
    assert order(seed=MAX_SEED, n=2).seeds == (MAX_SEED, 0)


@pytest.mark.parametrize(
    ("fields", "status", "code", "param"),
    [
        ({"prompt": ""}, 400, "invalid_value", "prompt"),
        ({"prompt": " \n"}, 400, "invalid_value", "prompt"),
        ({"prompt": "x" * 41}, 400, "invalid_value", "prompt"),
        ({"prompt": ["a"]}, 400, "invalid_value", "prompt"),
        ({"prompt": 3}, 400, "invalid_value", "prompt"),
        ({"prompt": "some GORE, please"}, 400, "content_policy_violation", "prompt"),
        ({"prompt": "ｇｏｒｅ"}, 400, "content_policy_violation", "prompt"),
        ({"negative_prompt": "x" * 41}, 400, "invalid_value", "negative_prompt"),
        ({"n": 5}, 400, "invalid_value", "n"),
        ({"n": 0}, 400, "invalid_value", "n"),
        ({"n": "2"}, 400, "invalid_value", "n"),
        ({"n": True}, 400, "invalid_value", "n"),
        ({"size": "1024x1024"}, 400, "invalid_value", "size"),
        ({"size": 32}, 400, "invalid_value", "size"),
        ({"response_format": "url"}, 400, "invalid_value", "response_format"),
        ({"num_inference_steps": 31}, 400, "invalid_value", "num_inference_steps"),
        ({"guidance_scale": 0.5}, 400, "invalid_value", "guidance_scale"),
        ({"guidance_scale": 1e9}, 400, "invalid_value", "guidance_scale"),
        ({"seed": -1}, 400, "invalid_value", "seed"),
        ({"seed": 2**60}, 400, "invalid_value", "seed"),
        ({"model": "dall-e-3"}, 404, "model_not_found", "model"),
        ({"stream": True}, 400, "invalid_value", "stream"),
        ({"promt": "x"}, 400, "unknown_parameter", "promt"),
    ],
)
def test_refused_with_the_field_named(fields: dict[str, Any], status: int, code: str, param: str) -> None:
    with pytest.raises(ApiError) as refused:
        order(**fields)
    assert (refused.value.status, refused.value.code, refused.value.param) == (status, code, param)


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"null", b'"a star"', b"\xff\xfe{}", b'{"prompt": "\xc3"}', b'{"prompt": "\\ud800"}',
     b'{"prompt": "a", "guidance_scale": NaN}', b"[" * 20_000, b'{"prompt":' * 5000],
)  # fmt: skip
def test_what_is_not_json_of_ours_is_a_clear_400(body: bytes) -> None:
    with pytest.raises(ApiError) as refused:
        LIMITS.parse(body)
    assert refused.value.status == 400 and "Traceback" not in refused.value.message


def test_openai_parameters_with_one_meaning_are_taken() -> None:
    made = order(size="32x32", quality="auto", background="opaque", output_format="png", user="u", model="atelier")
    assert made.prompt == "a star"


def test_words_are_blocked_whole() -> None:
    assert order(prompt="a gorey category").prompt


def test_the_longest_prompt_fits_the_body_cap() -> None:
    text = "\U0001f600" * 40  # escaped, each takes twelve bytes
    assert len(json.dumps({"prompt": text, "negative_prompt": text})) < LIMITS.max_body
    assert order(prompt=text, negative_prompt=text).prompt == text


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=200) | st.recursive(st.none() | st.booleans() | st.floats() | st.text(), st.lists).map(
    lambda v: json.dumps({"prompt": v}).encode()))  # fmt: skip
def test_any_body_is_an_order_or_an_api_error(body: bytes) -> None:
    try:
        LIMITS.order(LIMITS.parse(body), 32)
    except ApiError as refused:
        assert 400 <= refused.status < 500 and refused.message
