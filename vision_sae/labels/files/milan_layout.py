"""Recognition of folders in MILAN's layout (`vision_sae.labels.files.milan`), without torch."""

from __future__ import annotations

from pathlib import Path

IMAGES, MASKS = "images.npy", "masks.npy"


def is_root(path: Path) -> bool:
    """Whether a folder below ``path`` is a layer: pictures with masks."""
    return any((images.parent / MASKS).is_file() for images in path.glob(f"*/{IMAGES}"))
