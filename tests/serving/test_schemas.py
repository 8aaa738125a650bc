"""Requests: what is accepted, what is refused and how, and what orders are made of them."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components.contracts.recipe import Serve
from serving.limits import Limits
from serving.schemas import MAX_SEED, ApiError, Order

LIMITS = Limits(
    Serve(
        max_prompt_chars=40, max_images=4, max_steps=30, sizes=("64x32", "33x32", "32x32"), max_work=4 * 30 * 32 * 32,
        templates={"ink": {"prompt": "ink drawing of {prompt}, black", "negative": "colour"}},
    ),
    "atelier",
)  # fmt: skip
DIFFUSION: Any = SimpleNamespace(
    image_size=32, granularity=8, samplers=("dpm++", "euler"), uses_steps=True, uses_seed=True
)
CNN: Any = SimpleNamespace(image_size=32, granularity=0, samplers=(), uses_steps=False, uses_seed=False)


def orders(generator: Any = DIFFUSION, **fields: Any) -> tuple[Order, ...]:
    return LIMITS.orders(LIMITS.parse(json.dumps({"prompt": "a star", **fields}).encode()), generator)


def order(generator: Any = DIFFUSION, **fields: Any) -> Order:
    (made,) = orders(generator, **fields)
    return made


def test_defaults_come_from_the_recipe_and_the_model() -> None:
    made = order()
    assert (made.steps, made.guidance_scale, len(made.seeds)) == (16, 2.0, 1)
    assert (made.width, made.height, made.sampler) == (32, 32, None)


def test_seeds_count_up_and_never_leave_the_range() -> None:
    assert order(seed=7, n=3).seeds == (7, 8, 9)
    assert order(seed=MAX_SEED, n=2).seeds == (MAX_SEED, 0)


def test_each_prompt_of_a_list_is_an_order() -> None:
    first, second = orders(prompt=["a star", "a heart"], n=2, seed=5)
    assert (first.prompt, first.seeds, second.prompt, second.seeds) == ("a star", (5, 6), "a heart", (7, 8))
    with pytest.raises(ApiError, match="2 for each of 3 prompts; one request draws at most 4"):
        orders(prompt=["a", "b", "c"], n=2)


def test_sizes_and_samplers_are_those_the_model_has() -> None:
    assert LIMITS.sizes(DIFFUSION) == [(32, 32), (64, 32)]  # 33 is no multiple of 8
    assert LIMITS.sizes(CNN) == [(32, 32)]
    made = order(size="64x32", num_inference_steps=10, sampler="euler")
    assert (made.width, made.height, made.sampler) == (64, 32, "euler")
    with pytest.raises(ApiError, match="'32x32', '64x32'"):
        order(size="33x32")
    with pytest.raises(ApiError, match="'dpm\\+\\+', 'euler'"):
        order(sampler="ddim")


def test_what_a_family_has_no_use_for_is_named() -> None:
    made = order(CNN, seed=1, num_inference_steps=7, negative_prompt="blur", sampler="x", stream=True, partial_images=2)
    assert (made.steps, made.guidance_scale, made.negative_prompt, made.sampler) == (1, 1.0, None, None)
    assert made.ignored == ("num_inference_steps", "negative_prompt", "sampler", "partial_images", "seed")
    assert order(seed=1, num_inference_steps=7).ignored == ()


def test_a_template_goes_around_the_prompt_and_code_in_it_does_not_run() -> None:
    made = order(style="ink", prompt="{prompt} {0.__class__}", negative_prompt="red")
    assert made.prompt == "ink drawing of {prompt} {0.__class__}, black" and made.negative_prompt == "colour, red"
    assert order(style="ink").negative_prompt == "colour" and made.style is None


def test_work_is_pictures_times_steps_times_pixels() -> None:
    assert order(n=4, num_inference_steps=30)
    assert order(n=2, num_inference_steps=30, size="64x32")
    with pytest.raises(ApiError, match="3 x 30 x 2048 = 184320") as refused:
        order(n=3, num_inference_steps=30, size="64x32")
    assert refused.value.code == "too_much_work" and refused.value.status == 400


@pytest.mark.parametrize(
    ("fields", "status", "code", "param"),
    [
        ({"prompt": ""}, 400, "invalid_value", "prompt"),
        ({"prompt": " \n"}, 400, "invalid_value", "prompt"),
        ({"prompt": "x" * 41}, 400, "invalid_value", "prompt"),
        ({"prompt": []}, 400, "invalid_value", "prompt"),
        ({"prompt": ["a", ""]}, 400, "invalid_value", "prompt"),
        ({"prompt": ["a", " "]}, 400, "invalid_value", "prompt"),
        ({"prompt": ["a"] * 5}, 400, "invalid_value", "n"),
        ({"prompt": 3}, 400, "invalid_value", "prompt"),
        ({"negative_prompt": "x" * 41}, 400, "invalid_value", "negative_prompt"),
        ({"n": 5}, 400, "invalid_value", "n"),
        ({"n": 0}, 400, "invalid_value", "n"),
        ({"n": "2"}, 400, "invalid_value", "n"),
        ({"n": True}, 400, "invalid_value", "n"),
        ({"size": "1024x1024"}, 400, "invalid_value", "size"),
        ({"size": 32}, 400, "invalid_value", "size"),
        ({"response_format": "gif"}, 400, "invalid_value", "response_format"),
        ({"response_format": "url", "stream": True}, 400, "invalid_value", "response_format"),
        ({"output_format": "gif"}, 400, "invalid_value", "output_format"),
        ({"output_compression": 50}, 400, "invalid_value", "output_compression"),
        ({"output_format": "webp", "output_compression": 101}, 400, "invalid_value", "output_compression"),
        ({"partial_images": 2}, 400, "invalid_value", "partial_images"),
        ({"partial_images": 4, "stream": True}, 400, "invalid_value", "partial_images"),
        ({"progress": True}, 400, "invalid_value", "progress"),
        ({"num_inference_steps": 31}, 400, "invalid_value", "num_inference_steps"),
        ({"guidance_scale": 0.5}, 400, "invalid_value", "guidance_scale"),
        ({"guidance_scale": 1e9}, 400, "invalid_value", "guidance_scale"),
        ({"sampler": "ddim"}, 400, "invalid_value", "sampler"),
        ({"seed": -1}, 400, "invalid_value", "seed"),
        ({"seed": 2**60}, 400, "invalid_value", "seed"),
        ({"model": "dall-e-3"}, 404, "model_not_found", "model"),
        ({"stream": 1}, 400, "invalid_value", "stream"),
        ({"promt": "x"}, 400, "unknown_parameter", "promt"),
    ],
)
def test_refused_with_the_field_named(fields: dict[str, Any], status: int, code: str, param: str) -> None:
    with pytest.raises(ApiError) as refused:
        orders(**fields)
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
    made = order(
        size="32x32", quality="auto", background="opaque", output_format="jpeg", output_compression=80, user="u",
        safety_identifier="s", model="atelier", style="natural", stream=True, partial_images=3, moderation="auto",
    )  # fmt: skip
    assert made.prompt == "a star" and made.style is None and made.ignored == ()
    assert LIMITS.parse(b'{"prompt": "a", "user": "u", "safety_identifier": "s"}').end_user == "s"


def test_the_longest_prompts_fit_the_body_cap() -> None:
    text = "\U0001f600" * 40  # escaped, each takes twelve bytes
    asked = {"prompt": [text] * 4, "negative_prompt": text}
    assert len(json.dumps(asked)) < LIMITS.max_body
    assert orders(**asked)[3].prompt == text


def test_details_stand_in_the_body_and_cannot_replace_openais_fields() -> None:
    error = ApiError(403, "no", "No.", param="x", details={"categories": {"hate": 0.9}, "message": "other"})
    assert error.body.model_dump() == {
        "message": "No.", "type": "permission_error", "param": "x", "code": "no", "categories": {"hate": 0.9},
    }  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=200) | st.recursive(st.none() | st.booleans() | st.floats() | st.text(), st.lists).map(
    lambda v: json.dumps({"prompt": v}).encode()))  # fmt: skip
def test_any_body_is_an_order_or_an_api_error(body: bytes) -> None:
    try:
        LIMITS.orders(LIMITS.parse(body), DIFFUSION)
    except ApiError as refused:
        assert 400 <= refused.status < 500 and refused.message
