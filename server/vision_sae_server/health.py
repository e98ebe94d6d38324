"""``python -m vision_sae_server.health [ADDRESS]``: exit status 0 when the server is serving.

The address defaults to the environment's ``VISION_SAE_ADDRESS`` or 127.0.0.1:50051.
"""

from __future__ import annotations

import os
import sys

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

_TIMEOUT_SECONDS = 3


def is_serving(address: str) -> bool:
    """Whether the health service at ``address`` (grpc.health.v1) answers SERVING."""
    with grpc.insecure_channel(address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        try:
            answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=_TIMEOUT_SECONDS)
        except grpc.RpcError:
            return False
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


if __name__ == "__main__":
    default = os.environ.get("VISION_SAE_ADDRESS", "127.0.0.1:50051")
    sys.exit(0 if is_serving(sys.argv[1] if len(sys.argv) > 1 else default) else 1)
