"""The command ``vision-sae``: one module for each part of the work."""

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
