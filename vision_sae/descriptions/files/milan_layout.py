"""How a folder in MILAN's layout is told; see `vision_sae.descriptions.files.milan`. No torch."""

from __future__ import annotations

from pathlib import Path

IMAGES, MASKS = "images.npy", "masks.npy"


def is_root(path: Path) -> bool:
    """Whether there is a layer below ``path``: pictures with masks."""
    return any((images.parent / MASKS).is_file() for images in path.glob(f"*/{IMAGES}"))
