"""Hosts and ports of both families of addresses."""

from __future__ import annotations

import socket

import pytest

from vision_sae.errors import InvalidInputError
from vision_sae.hosts import address_of, check_address, check_port, is_loopback


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("127.0.0.1", "127.0.0.1:7"),
        ("localhost", "localhost:7"),
        ("::1", "[::1]:7"),
        ("[::1]", "[::1]:7"),
        ("::", "[::]:7"),
        ("fe80::1%eth0", "[fe80::1%eth0]:7"),
    ],
)
def test_an_ipv6_host_stands_in_brackets(host: str, address: str) -> None:
    assert address_of(host, 7) == address


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True),
        ("127.8.9.10", True),
        ("::1", True),
        ("[::1]", True),
        ("0:0:0:0:0:0:0:1", True),
        ("::ffff:127.0.0.1", True),
        ("localhost", True),
        ("LocalHost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("::ffff:10.0.0.1", False),
        ("10.0.0.1", False),
        ("localhost.example.org", False),
        ("127.example.org", False),
        ("", False),
    ],
)
def test_loopback_is_known_in_both_families(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1:1", "a-host:65535", "[::1]:50051", "dns:///host:1", "dns:a:1", "unix:/run/s.sock"],
)
def test_addresses_that_can_be_asked(address: str) -> None:
    assert check_address(address) == address


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("::1:50051", r"two ways.*\[::1\]:50051"),
        ("::1", "two ways"),
        ("fe80::1", "two ways"),
        ("[::1]", "HOST:PORT"),
        ("localhost", "HOST:PORT"),
        ("", "HOST:PORT"),
        (":50051", "HOST:PORT"),
        ("localhost:", "no port"),
        ("localhost:http", "no port"),
        ("localhost:0", "no port"),
        ("localhost:65536", "no port"),
        ("localhost:²", "no port"),
    ],
)
def test_other_addresses_are_refused_with_the_right_spelling(address: str, says: str) -> None:
    with pytest.raises(InvalidInputError, match=says) as caught:
        check_address(address)
    assert caught.value.field == "address"


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "[::1]", "localhost"])
def test_a_port_in_use_is_told_with_the_option_that_names_it(host: str) -> None:
    family = socket.AF_INET6 if "::" in host else socket.AF_INET
    try:
        taken = socket.create_server(("::1" if "::" in host else "127.0.0.1", 0), family=family)
    except OSError as error:
        pytest.skip(f"this machine cannot bind {host}: {error}")
    port = taken.getsockname()[1]
    with taken, pytest.raises(InvalidInputError, match=r"in use.*--web-port") as caught:
        check_port(host, port, option="web-port")
    assert caught.value.field == "web_port"
    check_port(host, port)  # it is free again


@pytest.mark.parametrize("host", ["203.0.113.7", "no such host", "a" * 300, "2001:db8::7"])
def test_a_host_that_is_not_of_this_machine_is_told(host: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        check_port(host, 0)
    assert caught.value.field == "host"
