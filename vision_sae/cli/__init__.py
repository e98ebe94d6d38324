"""The command ``vision-sae``: one module for each part of the work."""

from vision_sae.cli import applications, bundles, dictionaries, labels  # registers their commands
from vision_sae.cli.command import app

__all__ = ["app", "applications", "bundles", "dictionaries", "labels"]
