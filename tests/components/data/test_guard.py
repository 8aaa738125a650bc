"""The collector's address rules."""

from __future__ import annotations

import ipaddress
import socket

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components.contracts.records import CollectReason
from components.data.guard import Guard, Refusal, Target, is_public, target_of

PRIVATE_V4 = [
    ipaddress.IPv4Network(n)
    for n in (
        "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12",
        "192.168.0.0/16", "198.18.0.0/15", "224.0.0.0/4", "240.0.0.0/4",
    )
]  # fmt: skip
PRIVATE_V6 = [
    ipaddress.IPv6Network(n) for n in ("::1/128", "fc00::/7", "fe80::/10", "ff00::/8", "2001:db8::/32", "2001::/32")
]


def inside(networks: list[ipaddress.IPv4Network] | list[ipaddress.IPv6Network]) -> st.SearchStrategy[int]:
    return st.one_of([st.integers(int(n.network_address), int(n.broadcast_address)) for n in networks])


def forms_of(v4: int) -> list[ipaddress.IPv6Address]:
    """The IPv6 addresses that lead to an IPv4 address: mapped, compatible, 6to4, NAT64, ISATAP."""
    prefixes = (0xFFFF << 32, 0, 0x0064FF9B << 96, 0x20010DB8_0000_0000_0000_5EFE << 32)
    return [ipaddress.IPv6Address(p | v4) for p in prefixes] + [ipaddress.IPv6Address((0x2002 << 112) | (v4 << 80))]


@settings(max_examples=200, deadline=None)
@given(inside(PRIVATE_V4))
def test_no_private_address_passes_in_any_form(number: int) -> None:
    assert not is_public(ipaddress.IPv4Address(number))
    assert not any(is_public(address) for address in forms_of(number))


@settings(max_examples=100, deadline=None)
@given(inside(PRIVATE_V6))
def test_no_private_ipv6_address_passes(number: int) -> None:
    assert not is_public(ipaddress.IPv6Address(number))


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_what_ipaddress_calls_not_global_never_passes(number: int) -> None:
    address = ipaddress.IPv4Address(number)
    if not address.is_global or address.is_multicast:
        assert not is_public(address)


@pytest.mark.parametrize(
    "text", ["8.8.8.8", "1.1.1.1", "151.101.1.140", "2606:4700::1111", "64:ff9b::808:808", "2002:808:808::1"]
)
def test_public_addresses_pass(text: str) -> None:
    assert is_public(ipaddress.ip_address(text))


@pytest.mark.parametrize("text", ["fe80::1%eth0", "64:ff9b:1::a00:1", "::ffff:127.0.0.1", "fec0::1"])
def test_odd_private_forms_do_not_pass(text: str) -> None:
    assert not is_public(ipaddress.ip_address(text))


@pytest.mark.parametrize(
    "url", ["file:///etc/passwd", "ftp://a/b", "gopher://a", "data:image/png;base64,AA", "", "no url", "http://"]
)
def test_other_schemes_are_refused(url: str) -> None:
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
    "host", ["localhost", "127.0.0.1", "0x7f.1", "2130706433", "127.1", "[::1]", "[::ffff:127.0.0.1]"]
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


def test_a_name_without_an_answer_and_one_that_takes_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    import threading

    def missing(*_: object, **__: object) -> list[object]:
        raise socket.gaierror("no such name")

    monkeypatch.setattr(socket, "getaddrinfo", missing)
    with pytest.raises(Refusal) as refusal:
        Guard().addresses(target_of("http://nowhere.example/"), 5)
    assert refusal.value.reason is CollectReason.CONNECTION
    forever = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *a, **k: forever.wait(20) or [])
    with pytest.raises(Refusal) as refusal:
        Guard().addresses(target_of("http://slow.example/"), 0.1)
    forever.set()
    assert refusal.value.reason is CollectReason.TIMEOUT
