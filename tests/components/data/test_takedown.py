"""The takedown list: which addresses are one, what blocks what, and that no writer loses another's rules."""

from __future__ import annotations

import pickle
import subprocess
import sys
import uuid
from pathlib import Path

import fsspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.contracts.errors import ArtifactError, InputError
from components.data.takedown import Blocklist, rule, rule_of
from components.runtime.storage import write_bytes

DIGEST = "0f" * 32


def blocking(*keys: str) -> Blocklist:
    return Blocklist({key: {"at": "2026-01-01"} for key in keys})


@pytest.mark.parametrize(
    "other",
    [
        "https://Example.org/a/b.png",
        "HTTP://example.org/a/b.png",
        "https://example.org:443/a/b.png",
        "http://example.org:80/a/b.png",
        "https://example.org./a/b.png",
        "https://example.org/a/b.png#part",
        "https://someone:secret@example.org/a/b.png",
        "https://example.org/%61/b%2Epng",
        "  https://example.org/a/b.png\n",
    ],
)
def test_one_address_in_many_forms(other: str) -> None:
    key = rule("url", "https://example.org/a/b.png")
    assert blocking(key).blocks(url=other) == key


@pytest.mark.parametrize(
    "other",
    [
        "https://example.org/a/B.png",
        "https://example.org/a/b.png?size=1",
        "https://example.org:8443/a/b.png",
        "https://www.example.org/a/b.png",
        "https://example.org/a%2Fb.png",
        "ftp://example.org/a/b.png",
        "https://example.org/a/b.png/",
        "",
        "b.png",
        "http://[broken/a",
        "http://example.org:99999/a/b.png",
    ],
)
def test_other_addresses(other: str) -> None:
    assert blocking(rule("url", "https://example.org/a/b.png")).blocks(url=other) is None


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("https://bücher.example/ä?q=ö", "https://xn--bcher-kva.example/%C3%A4?q=%c3%b6"),
        ("https://BÜCHER.example/x", "https://bücher.example/x"),
        ("https://example.org", "https://example.org/"),
        ("http://[2001:DB8:0::1]/a", "http://[2001:db8::1]/a"),
        ("file:///data/a.png", "file:///data/a.png"),
        ("https://example.org/a b", "https://example.org/a%20b"),
    ],
)
def test_equal_forms(one: str, other: str) -> None:
    assert rule("url", one) == rule("url", other)


@pytest.mark.parametrize(
    ("host", "url", "blocked"),
    [
        ("example.org", "https://example.org/a", True),
        ("example.org", "https://img.cdn.EXAMPLE.org:8080/a", True),
        ("example.org", "https://notexample.org/a", False),
        ("img.example.org", "https://example.org/a", False),
        ("Bücher.example.", "https://a.xn--bcher-kva.example/", True),
        ("192.0.2.7", "http://192.0.2.7:81/a", True),
        ("0.2.7.example", "http://192.0.2.7/a", False),
        ("2001:db8::1", "http://[2001:DB8::0:1]/a", True),
        ("localhost", "http://localhost:1/a", True),
        ("example.org", "file:///example.org/a", False),
    ],
)
def test_hosts(host: str, url: str, blocked: bool) -> None:
    key = rule("host", host)
    assert blocking(key).blocks(url=url) == (key if blocked else None)


def test_pictures() -> None:
    key = rule("sha256", DIGEST.upper())
    assert blocking(key).blocks(sha256=DIGEST.upper()) == blocking(key).blocks("https://x.test/", DIGEST) == key
    assert blocking(key).blocks(sha256="1" * 64) is None
    assert Blocklist().blocks(url="https://x.test/", sha256=DIGEST) is None


@given(st.text(max_size=40), st.text(max_size=10))
def test_any_text_is_one_address_with_itself(text: str, host: str) -> None:
    """Whatever a list holds: no crash, blocked exactly as itself, and hidden from the eye."""
    listed = blocking(rule("host", "example.org"))
    assert listed.blocks(url=text) in (None, "host:example.org")
    assert listed.blocks(url=f"http://{host}.example.net/") is None
    try:
        key = rule("url", text)
    except InputError:
        return
    assert blocking(key).blocks(url=text) == key
    assert key.startswith("url:") and len(key) == 68


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("sha256", "abc"),
        ("sha256", "g" * 64),
        ("url", ""),
        ("url", "https://"),
        ("url", "http:///path"),
        ("host", "com"),
        ("host", ""),
        ("host", "https://example.org"),
        ("host", "example.org:80"),
        ("host", "example.org/a"),
        ("host", "exa mple.org"),
        ("host", "-.example.org"),
    ],
)
def test_wrong_rules(kind: str, value: str) -> None:
    with pytest.raises(InputError, match="Expected"):
        rule(kind, value)


def test_kind_by_form() -> None:
    assert rule_of(" https://x.test/a ").startswith("url:")
    assert rule_of(DIGEST) == f"sha256:{DIGEST}"
    assert rule_of("x.test") == "host:x.test"


@pytest.mark.parametrize("remote", [False, True])
def test_kept_in_the_store(tmp_path: Path, remote: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATELIER_CACHE", str(tmp_path / "cache"))
    store = f"memory://{uuid.uuid4().hex}" if remote else str(tmp_path / "store")
    assert len(Blocklist.of(store)) == 0
    url, picture = rule("url", "https://secret.test/me.png"), rule("sha256", DIGEST)
    first = Blocklist.add(store, {url: (), picture: [url]})
    assert Blocklist.of(store) == first and first.rules[picture]["because"] == [url]
    again = Blocklist.add(store, {url: (), picture: ["host:x.test"]})
    assert again.rules[url] == first.rules[url]
    assert again.rules[picture] == {**first.rules[picture], "because": ["host:x.test", url]}
    assert again.digest == first.digest and again.evidence() == {"digest": again.digest, "rules": 2}
    assert Blocklist.add(store, {"host:x.test": ()}).digest != first.digest
    assert pickle.loads(pickle.dumps(again)) == again
    fs, path = fsspec.core.url_to_fs(f"{store}/takedown/blocklist.json")
    assert b"secret" not in fs.cat_file(path)  # the list is no directory of what it hides


@pytest.mark.parametrize("text", [b"", b"{}", b"[1]", b'{"rules": {"x:1": {"at": "now"}}}', b'{"rules": {"url:1": 1}}'])
def test_damaged_list(tmp_path: Path, text: bytes) -> None:
    write_bytes(str(tmp_path / "takedown" / "blocklist.json"), text)
    with pytest.raises(ArtifactError, match="takedown list"):
        Blocklist.of(str(tmp_path))


def test_writers_at_once_lose_nothing(tmp_path: Path) -> None:
    code = (
        "import sys; from components.data.takedown import Blocklist\n"
        "for i in range(5): Blocklist.add(sys.argv[1], {f'host:{sys.argv[2]}-{i}.test': ()})"
    )
    writers = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path), str(n)]) for n in range(3)]
    assert [writer.wait(timeout=300) for writer in writers] == [0, 0, 0]
    assert len(Blocklist.of(str(tmp_path))) == 15
