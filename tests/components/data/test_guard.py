"""The collector's address rules."""

from __future__ import annotations

import ipaddress
import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components.contracts.errors import RecipeError
from components.contracts.records import CollectReason
from components.data import guard as module
from components.data.guard import Guard, Refusal, Target, is_private_literal, is_public, target_of

# Written down from the IANA registries anew, as numbers, so that guard and test do not share a mistake.
PRIVATE_V4 = [  # first address, bits of the prefix
    (0x00000000, 8), (0x0A000000, 8), (0x64400000, 10), (0x7F000000, 8), (0xA9FE0000, 16), (0xAC100000, 12),
    (0xC0000000, 24), (0xC0000200, 24), (0xC0A80000, 16), (0xC6120000, 15), (0xC6336400, 24), (0xCB007100, 24),
    (0xE0000000, 4), (0xF0000000, 4),
]  # fmt: skip
PRIVATE_V6 = [
    ipaddress.IPv6Network(n)
    for n in (
        "::/128", "::1/128", "fc00::/7", "fe80::/10", "fec0::/10", "ff00::/8", "2001:db8::/32", "2001::/32",
        "64:ff9b:1::/48", "100::/64", "5f00::/16", "::ffff:0:0:0/96", "4000::/3", "8000::/1",
    )
]  # fmt: skip


def private_v4(number: int) -> bool:
    return any(number >> (32 - bits) == first >> (32 - bits) for first, bits in PRIVATE_V4)


def inside(networks: list[ipaddress.IPv6Network]) -> st.SearchStrategy[int]:
    return st.one_of([st.integers(int(n.network_address), int(n.broadcast_address)) for n in networks])


PRIVATE_NUMBERS = st.one_of([st.integers(first, first + (1 << (32 - bits)) - 1) for first, bits in PRIVATE_V4])


def forms_of(v4: int, prefix: int, low: int) -> dict[str, ipaddress.IPv6Address]:
    """The IPv6 addresses that lead to an IPv4 address. ``prefix``: 64 bits of a public network; ``low``: 64 more."""
    numbers = {
        "mapped": (0xFFFF << 32) | v4,
        "compatible": v4,
        "translated": (0xFFFF << 48) | v4,
        "nat64": (0x0064FF9B << 96) | v4,
        "local nat64": (0x0064FF9B0001 << 80) | v4,
        "6to4": (0x2002 << 112) | (v4 << 80) | low,
        "6to4 tunnelling isatap": (0x2002_0808_0808 << 80) | (0x5EFE << 32) | v4,
        "teredo client": (0x20010000 << 96) | (0x08080808 << 64) | (v4 ^ 0xFFFFFFFF),
        "teredo server": (0x20010000 << 96) | (v4 << 64) | (0x08080808 ^ 0xFFFFFFFF),
        "isatap": (prefix << 64) | (0x00005EFE << 32) | v4,
        "isatap, universal": (prefix << 64) | (0x02005EFE << 32) | v4,
    }
    return {name: ipaddress.IPv6Address(number) for name, number in numbers.items()}


PUBLIC_PREFIX = st.integers(0x2A00_0000_0000_0000, 0x2BFF_FFFF_FFFF_FFFF)


@settings(max_examples=300, deadline=None)
@given(PRIVATE_NUMBERS, PUBLIC_PREFIX, st.integers(0, 2**64 - 1))
def test_no_private_address_passes_in_any_form(number: int, prefix: int, low: int) -> None:
    assert not is_public(ipaddress.IPv4Address(number))
    assert not [name for name, address in forms_of(number, prefix, low).items() if is_public(address)]


@settings(max_examples=500, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_of_ipv4_exactly_the_addresses_outside_the_special_ranges_pass(number: int) -> None:
    relays = number >> 8 == 0xC05863  # 6to4 relays, withdrawn by RFC 7526
    assert is_public(ipaddress.IPv4Address(number)) is not (private_v4(number) or relays)


@settings(max_examples=500, deadline=None)
@given(st.integers(0, 2**128 - 1) | st.integers(0x2000 << 112, (0x4000 << 112) - 1))
def test_what_passes_is_global_by_the_tables_of_ipaddress(number: int) -> None:
    address = ipaddress.IPv6Address(number)
    if is_public(address):
        assert address.is_global or address.sixtofour or address in ipaddress.IPv6Network("64:ff9b::/96")
        assert not (address.is_multicast or (address.is_private and not address.ipv4_mapped) or address.is_link_local)


@settings(max_examples=100, deadline=None)
@given(inside(PRIVATE_V6))
def test_no_private_ipv6_address_passes(number: int) -> None:
    assert not is_public(ipaddress.IPv6Address(number))


@pytest.mark.parametrize(
    "text", ["8.8.8.8", "1.1.1.1", "151.101.1.140", "2606:4700::1111", "64:ff9b::808:808", "2002:808:808::1"]
)
def test_public_addresses_pass(text: str) -> None:
    assert is_public(ipaddress.ip_address(text))


@pytest.mark.parametrize("text", ["fe80::1%eth0", "64:ff9b:1::a00:1", "::ffff:127.0.0.1", "fec0::1"])
def test_odd_private_forms_do_not_pass(text: str) -> None:
    assert not is_public(ipaddress.ip_address(text))


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "ftp://a/b",
        "gopher://a",
        "data:image/png;base64,AA",
        "",
        "no url",
        "http://",
        "http://a b/",
        "http://a\u0000b/",
        "http://[::1",
        "http://[fe80::1%25eth0]/",
        "http://a:99999/",
        "http://%31/",
        "http://.a/",
        "http://a..b/",
        "http://\ud800/",
        "http://a/\ud800",
        f"http://{'a' * 64}.example/",
    ],
)
def test_other_schemes_and_what_is_no_url_are_refused(url: str) -> None:
    with pytest.raises(Refusal) as refusal:
        target_of(url)
    assert refusal.value.reason is CollectReason.REFUSED_SCHEME


@pytest.mark.parametrize(
    ("url", "target"),
    [
        ("HTTP://Example.ORG", Target("http", "example.org", 80, "/")),
        ("https://user:secret@example.org:8443/a b?q=ü#part", Target("https", "example.org", 8443, "/a%20b?q=%C3%BC")),
        ("http://[::1]:9/x%20y", Target("http", "::1", 9, "/x%20y")),
        ("http://bücher.example/", Target("http", "xn--bcher-kva.example", 80, "/")),
        ("http://straße.example./", Target("http", "xn--strae-oqa.example", 80, "/")),
        ("http://１２７。０.０.１/", Target("http", "127.0.0.1", 80, "/")),
        ("http://[0:0::0:1]/?", Target("http", "::1", 80, "/")),
    ],
)
def test_urls_are_taken_apart(url: str, target: Target) -> None:
    assert target_of(url) == target


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=60))
def test_no_text_makes_a_request_line_of_its_own(text: str) -> None:
    try:
        target = target_of(f"http://example.org/{text}")
    except Refusal:
        return
    assert target.path.isascii() and not any(c.isspace() or ord(c) < 32 for c in target.path + target.authority)


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "127.0.0.1",
        "0x7f.1",
        "0177.0.0.1",
        "017700000001",
        "2130706433",
        "0x7F000001",
        "127.1",
        "127.0.1",
        "１２７.0.0.1",
        "127.0.0.1.",
        "0",
        "[::1]",
        "[::]",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "[64:ff9b::7f00:1]",
    ],
)
def test_loopback_is_refused_however_it_is_written(host: str) -> None:
    with pytest.raises(Refusal) as refusal:
        Guard().addresses(target_of(f"http://{host}:8000/"), 5)
    assert refusal.value.reason is CollectReason.REFUSED_ADDRESS


def test_allowed_host_and_port_pass_and_no_other_port() -> None:
    guard = Guard(("127.0.0.1:8000", "[::1]:8000"))
    assert guard.addresses(target_of("http://127.0.0.1:8000/"), 5) == ["127.0.0.1"]
    assert guard.addresses(target_of("http://[::1]:8000/"), 5) == ["::1"]
    with pytest.raises(Refusal):
        guard.addresses(target_of("http://127.0.0.1:8001/"), 5)


def test_one_private_answer_among_public_ones_refuses_the_name(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (ip, 80)) for ip in ("93.184.216.34", "10.0.0.7")]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *a, **k: answers)
    with pytest.raises(Refusal) as refusal:
        Guard().addresses(target_of("http://two-faced.example/"), 5)
    assert refusal.value.reason is CollectReason.REFUSED_ADDRESS
    assert "10.0.0.7" in refusal.value.detail


def test_the_answer_that_was_checked_is_the_one_that_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter(["93.184.216.34", "127.0.0.1"])  # a name that changes between check and use

    def resolve(*_: object, **__: object) -> list[object]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (next(answers), 80))]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    guard = Guard()
    assert guard.addresses(target_of("http://rebinding.example/"), 5) == ["93.184.216.34"]
    assert guard.addresses(target_of("http://rebinding.example/"), 5) == ["93.184.216.34"]


def test_a_name_that_does_not_exist_is_asked_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def missing(*_: object, **__: object) -> list[object]:
        asked.append(1)
        raise socket.gaierror(socket.EAI_NONAME, "no such name")

    monkeypatch.setattr(socket, "getaddrinfo", missing)
    guard = Guard()
    for _ in range(3):
        with pytest.raises(Refusal) as refusal:
            guard.addresses(target_of("http://nowhere.example/"), 5)
        assert (refusal.value.reason, refusal.value.final) == (CollectReason.CONNECTION, True)
    assert len(asked) == 1


def test_a_resolver_that_failed_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([socket.gaierror(socket.EAI_AGAIN, "try again"), [(2, 1, 6, "", ("93.184.216.34", 80))]])

    def resolve(*_: object, **__: object) -> list[object]:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    guard = Guard()
    with pytest.raises(Refusal) as refusal:
        guard.addresses(target_of("http://shaky.example/"), 5)
    assert (refusal.value.reason, refusal.value.final) == (CollectReason.CONNECTION, False)
    assert guard.addresses(target_of("http://shaky.example/"), 5) == ["93.184.216.34"]


def test_a_slow_name_is_not_waited_for_and_asked_once_by_many_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, go_on = [], threading.Event()

    def resolve(*_: object, **__: object) -> list[object]:
        asked.append(1)
        assert go_on.wait(20)
        return [(2, 1, 6, "", ("93.184.216.34", 80))]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    guard, target = Guard(), target_of("http://slow.example/")
    with pytest.raises(Refusal) as refusal:
        guard.addresses(target, 0.1)
    assert refusal.value.reason is CollectReason.TIMEOUT
    with ThreadPoolExecutor(4) as pool:
        found = [pool.submit(guard.addresses, target, 10) for _ in range(4)]
        go_on.set()
        assert [f.result() for f in found] == [["93.184.216.34"]] * 4
    assert len(asked) == 1


@pytest.mark.parametrize("pair", ["127.0.0.1", "host:", "host:0", "host:x", ":80", "a b:80"])
def test_what_is_no_host_and_port_cannot_be_allowed(pair: str) -> None:
    with pytest.raises(RecipeError, match="allow_hosts"):
        Guard((pair,))


def test_private_addresses_are_known_by_their_form() -> None:
    assert is_private_literal("10.0.0.1") and is_private_literal("0x7f.1") and is_private_literal("::1")
    assert not is_private_literal("8.8.8.8") and not is_private_literal("localhost")


def test_a_refusal_can_be_kept_without_what_its_traceback_holds() -> None:
    def refuse() -> None:
        body = bytearray(10)
        try:
            body[20] = 1
        except IndexError as error:
            raise Refusal(CollectReason.TRUNCATED, "short", 200) from error

    with pytest.raises(Refusal) as refusal:
        refuse()
    refusal.value.received = 10
    bare = refusal.value.bare()
    assert (bare.reason, bare.detail, bare.http_status, bare.received) == (CollectReason.TRUNCATED, "short", 200, 10)
    assert (bare.__traceback__, bare.__cause__, bare.__context__) == (None, None, None)


def test_answers_are_kept_of_a_bounded_number_of_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST_NAMES", 5)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *a, **k: [(2, 1, 6, "", ("93.184.216.34", 80))])
    guard = Guard()
    for number in range(50):
        assert guard.addresses(target_of(f"http://{number}.example/"), 5) == ["93.184.216.34"]
        assert len(guard._checked) <= 5 and len(guard._asked) <= 5
