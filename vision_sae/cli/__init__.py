"""The command ``vision-sae``, with one module for each group of commands."""

from vision_sae.cli import (  # registers their commands
    applications,
    bundles,
    dictionaries,
    doctor,
    evaluate,
    label_files,
    labels,
    released,
    review,
)
from vision_sae.cli.command import app

__all__ = [
    "app",
    "applications",
    "bundles",
    "dictionaries",
    "doctor",
    "evaluate",
    "label_files",
    "labels",
    "released",
    "review",
]
