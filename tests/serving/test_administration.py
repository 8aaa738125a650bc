"""Erasing users over the API: one's own, others' with the right, and not too often."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from fastapi.testclient import TestClient

from serving.api import build_api
from serving.auth import ADMIN, GENERATE, list_keys, make_key
from serving.logbook import read_logbook

IMAGES = "/v1/images/generations"


@pytest.fixture
def api(service: Callable[..., Any]) -> Any:
    parts = service()
    parts.client = TestClient(build_api(parts.service), raise_server_exceptions=False)
    parts.ask = lambda key, user: parts.client.post(
        IMAGES, json={"prompt": "a star", "user": user}, headers={"Authorization": f"Bearer {key}"}
    )
    parts.erase = lambda key, path: parts.client.delete(
        f"/v1/users/{path}", headers={"Authorization": f"Bearer {key}"} if key else {}
    )

    def users() -> list[str]:
        parts.service.logbook.flush()
        rows = read_logbook(parts.home / "logbook").to_pylist()
        return sorted(row["key_id"] for row in rows if row["status"] == 200)

    parts.users = users
    return parts


def test_a_key_erases_its_own_users_and_an_admin_any(api: Any) -> None:
    other = make_key(api.home / "keys.json", "other")
    admin = make_key(api.home / "keys.json", "admin", rights=(GENERATE, ADMIN))
    first, second, _ = (key.id for key in list_keys(api.home / "keys.json"))
    for key in (api.key, api.key, other):
        assert api.ask(key, "ada/1").status_code == 200
    assert api.users() == sorted([first, first, second])
    assert api.erase(api.key, "eve").json() == {"object": "user.erased", "rows": 0}
    assert api.erase(api.key, "ada/1").json()["rows"] == 2
    assert api.users() == [second]
    refused = api.erase(api.key, f"ada/1?key={second}")
    assert refused.status_code == 403 and refused.json()["error"]["code"] == "insufficient_permissions"
    assert api.users() == [second]
    assert api.erase(admin, f"ada/1?key={second}").json()["rows"] == 1 and api.users() == []


def test_without_a_key_or_a_name(api: Any) -> None:
    assert api.erase("", "ada").json()["error"]["code"] == "missing_api_key"
    assert api.erase(api.key, "").status_code in (400, 404)
    assert api.erase(api.key, "x" * 300).json()["error"]["code"] == "invalid_value"


def test_not_without_end(api: Any) -> None:
    answers = [api.erase(api.key, f"u{i}") for i in range(11)]
    assert [a.status_code for a in answers] == [200] * 10 + [429]
    assert int(answers[-1].headers["retry-after"]) >= 1
    assert api.ask(api.key, "ada").status_code == 200  # pictures are counted apart


def test_limits_of_a_key_over_the_api(service: Callable[..., Any]) -> None:
    from serving.quota import Meter

    parts = service()
    key = make_key(parts.home / "keys.json", "small", rate=3, quota=4)
    object.__setattr__(parts.service, "meter", Meter(parts.home / "quota", rate=0, quota=0))
    client = TestClient(build_api(parts.service), raise_server_exceptions=False)

    def ask(n: int) -> Any:
        return client.post(IMAGES, json={"prompt": "x", "n": n}, headers={"Authorization": f"Bearer {key}"})

    assert ask(3).status_code == 200
    spent = ask(2)
    assert spent.status_code == 429 and spent.json()["error"]["code"] == "insufficient_quota"
    assert int(spent.headers["retry-after"]) <= 86_400
    assert ask(1).status_code == 200
    fast = ask(1)
    assert fast.status_code == 429 and fast.json()["error"]["code"] == "rate_limit_exceeded"
    assert fast.json()["error"]["type"] == "rate_limit_error"
    assert int(fast.headers["retry-after"]) <= 20
