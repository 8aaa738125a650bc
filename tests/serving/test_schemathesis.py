"""The API's description is true: generated requests, right and wrong ones, are answered as it says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis.checks import not_a_server_error
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from serving.api import build_api
from serving.auth import make_key
from serving.images import ImageStore

CHECKS = [
    not_a_server_error, status_code_conformance, content_type_conformance, response_headers_conformance,
    response_schema_conformance,
]  # fmt: skip
EXAMPLES = 50  # of each operation and mode


def ask(cases: Any, headers: dict[str, str], seen: set[int]) -> None:
    """Send generated requests of one operation; ``seen`` gets the statuses that they are answered with."""

    @settings(
        max_examples=EXAMPLES, deadline=None, database=None, derandomize=True, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(case=cases)
    def answered(case: Any) -> None:
        seen.add(case.call_and_validate(checks=CHECKS, headers=headers).status_code)

    answered()


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
def test_every_operation_answers_as_described(service: Callable[..., Any], mode: GenerationMode) -> None:
    parts = service(sizes=("16x8",), templates={"ink": {"prompt": "{prompt}, ink"}})
    whole = replace(parts.service, images=ImageStore.of(parts.service.limits.serve, parts.home))
    app = build_api(whole)
    schema = schemathesis.openapi.from_asgi("/openapi.json", app)
    headers = {"Authorization": f"Bearer {make_key(parts.home / 'keys.json', 'boss', rights=('generate', 'admin'))}"}
    statuses: dict[str, set[int]] = {}
    for result in schema.get_all_operations():
        operation = result.ok()
        seen = statuses.setdefault(f"{operation.method.upper()} {operation.path}", set())
        try:
            ask(operation.as_strategy(generation_mode=mode), headers, seen)
        except Unsatisfiable:
            assert mode is GenerationMode.NEGATIVE, "an operation without parameters cannot be asked wrongly"
    drawn = statuses["POST /v1/images/generations"]
    assert 400 in drawn
    if mode is GenerationMode.POSITIVE:
        assert 200 in drawn, "some of them were drawn"
        assert len(statuses) >= 10 and all(statuses.values())


def test_without_a_key_everything_is_refused_as_described(service: Callable[..., Any]) -> None:
    parts = service()
    document = build_api(parts.service).openapi()
    schema = schemathesis.openapi.from_asgi("/openapi.json", build_api(parts.service))
    for result in schema.get_all_operations():
        operation = result.ok()
        locked = "security" in document["paths"][operation.path][operation.method]
        case = operation.Case(path_parameters={"name": "atelier", "request_id": "x", "user": "x"})
        answer = case.call()
        case.validate_response(answer, checks=CHECKS)
        assert (answer.status_code == 401) == locked, operation.path
