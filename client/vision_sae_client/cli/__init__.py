"""The command ``vision-sae-client``: one module per group of commands."""

from vision_sae_client.cli import (  # registers their commands
    features,
    labels,
    pictures,
    service,
    steering,
)
from vision_sae_client.cli.command import app

__all__ = ["app", "features", "labels", "pictures", "service", "steering"]
