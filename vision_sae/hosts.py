"""Hosts and ports of IPv4 and IPv6: formatting, parsing and trial binding.

An IPv6 address is written in brackets when a port follows: ``[::1]:50051``.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import re
import socket

from vision_sae.errors import InvalidInputError

_RESOLVERS = re.compile(r"(dns|ipv4|ipv6|unix|unix-abstract|vsock|xds):(?!\d+$)")
"""The beginning of an address in gRPC's own syntax: ``dns:///server:50051``."""

_ADDRESS = re.compile(r"(\[[0-9A-Fa-f:.]+(%[^\]\s]+)?\]|[^:\[\]\s]+):(?P<port>[^\s:]*)")


def bare(host: str) -> str:
    """A host without the brackets of an IPv6 address."""
    return host[1:-1] if host.startswith("[") and host.endswith("]") else host


def address_of(host: str, port: int) -> str:
    """``HOST:PORT``, with brackets around an IPv6 address."""
    host = bare(host)
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach ``host``: 127.0.0.0/8 (also mapped into IPv6), ``::1`` or
    ``localhost``."""
    try:
        address = ipaddress.ip_address(bare(host).partition("%")[0])
    except ValueError:
        return bare(host).lower() == "localhost"
    mapped = getattr(address, "ipv4_mapped", None)
    return bool((mapped or address).is_loopback)


def check_address(address: str, *, field: str = "address") -> str:
    """Return ``address`` if it is HOST:PORT, [IPV6]:PORT, or begins with a resolver of gRPC; raises
    `InvalidInputError` otherwise."""
    if _RESOLVERS.match(address):
        return address
    if address.count(":") > 1 and "[" not in address:
        host, _, port = address.rpartition(":")
        raise InvalidInputError(
            f"the address {address!r} can be read in two ways; write an IPv6 address in brackets: "
            f"[{host}]:{port} or [{address}]:PORT",
            field=field,
        )
    match = _ADDRESS.fullmatch(address)
    if not match:
        raise InvalidInputError(
            f"the address {address!r} is not HOST:PORT, as in 127.0.0.1:50051 or [::1]:50051",
            field=field,
        )
    port = match["port"]
    if not (port.isascii() and port.isdecimal() and 0 < int(port) < 65536):
        raise InvalidInputError(
            f"the address {address!r} ends in no port; ports are 1 to 65535", field=field
        )
    return address


def check_port(host: str, port: int, *, option: str = "port") -> None:
    """Raise `InvalidInputError`, naming ``--option``, unless a server can be bound to the port."""
    where = address_of(host, port)
    try:
        addresses = socket.getaddrinfo(bare(host), port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise InvalidInputError(
            f"the host {host!r} is no address of this machine ({error}); 127.0.0.1 and ::1 are",
            field="host",
        ) from error
    refusals = [_refusal(family, place) for family, _, _, _, place in addresses]
    if errno.EADDRINUSE in refusals:
        raise InvalidInputError(
            f"{where} is in use; is another server there? Choose another --{option}, or 0 for any "
            "that is free",
            field=option.replace("-", "_"),
        )
    if 0 not in refusals:
        raise InvalidInputError(
            f"cannot bind {where}: {os.strerror(refusals[0])}; choose another host, or another "
            f"--{option}",
            field="host",
        )


def _refusal(family: int, place: tuple[object, ...]) -> int:
    """The system's error number when a socket is bound to ``place``; 0 on success."""
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do
            probe.bind(place)
            probe.listen(1)
    except OSError as error:
        return error.errno or errno.EINVAL
    return 0
