"""Ask a vision_sae server: sync and async client, command line, overlays, web page. No torch."""

from vision_sae_client.aio import AsyncClient
from vision_sae_client.client import Client
from vision_sae_client.errors import ClientError

__all__ = ["AsyncClient", "Client", "ClientError"]
