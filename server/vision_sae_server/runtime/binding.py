"""Binds the ports of a server, before any model is loaded."""

from __future__ import annotations

import grpc.aio
from prometheus_client import start_http_server

from vision_sae.config import ServeConfig
from vision_sae.errors import InvalidInputError
from vision_sae.hosts import address_of, bare, check_port, is_loopback
from vision_sae_server.runtime.interceptor import Gate


def check_bind(host: str, *, allow_insecure: bool) -> None:
    """Raise `InvalidInputError` for an address that other machines can reach, unless allowed: the
    server does not authenticate callers."""
    if not host:
        raise InvalidInputError(
            "the host is empty; name an address to bind: 127.0.0.1 or ::1 for this machine alone",
            field="host",
        )
    if not is_loopback(host) and not allow_insecure:
        raise InvalidInputError(
            f"{host} can be reached from other machines and this server does not authenticate "
            "callers; bind 127.0.0.1 or ::1, or pass --allow-insecure-bind behind a proxy that "
            "does",
            field="host",
        )


def bind(config: ServeConfig) -> tuple[grpc.aio.Server, int]:
    """(a gRPC server that is bound to a port, without services and not started; the port).

    Callers that connect early wait for the start. Raises `InvalidInputError` for a port or a host
    that cannot be bound.
    """
    check_port(config.host, config.port)
    server = grpc.aio.server(
        interceptors=(Gate(config),),
        options=(
            ("grpc.so_reuseport", 0),  # a second server on this port must fail, not share
            ("grpc.max_receive_message_length", config.max_message_bytes),
            ("grpc.max_send_message_length", config.max_message_bytes),
        ),
    )
    where = address_of(config.host, config.port)
    try:
        return server, int(server.add_insecure_port(where))
    except RuntimeError as error:
        raise InvalidInputError(
            f"cannot bind {where}; choose another --host or --port", field="port"
        ) from error


def serve_metrics(config: ServeConfig) -> str:
    """Start the Prometheus endpoint; returns its URL. Raises `InvalidInputError` like `bind`."""
    port = config.metrics_port or 0
    check_port(config.host, port, option="metrics-port")
    try:
        server, _ = start_http_server(port, addr=bare(config.host))
    except OSError as error:
        raise InvalidInputError(
            f"cannot bind {address_of(config.host, port)} ({error.strerror}); choose another "
            "--metrics-port",
            field="metrics_port",
        ) from error
    return f"http://{address_of(config.host, server.server_port)}/metrics"
