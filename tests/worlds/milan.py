"""Tiny captioners and language models of which everything can be computed by hand."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
    VisionEncoderDecoderConfig,
    VisionEncoderDecoderModel,
    ViTConfig,
    ViTImageProcessor,
    ViTModel,
)

from vision_sae.activations.store import ImageRecord
from vision_sae.evidence.arrays import ArrayEvidence
from vision_sae.models.grid import PatchGrid, Preprocessing

END = "</s>"
"""Begins, ends and fills up texts."""


def word_tokenizer(words: Sequence[str]) -> PreTrainedTokenizerFast:
    """A token a word; number 0 is `END`."""
    vocabulary = {word: i for i, word in enumerate([END, *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=END))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=END, eos_token=END, pad_token=END
    )


def gpt2_config(vocabulary: int, *, width: int = 16, cross_attention: bool = False) -> GPT2Config:
    return GPT2Config(
        vocab_size=vocabulary,
        n_positions=16,
        n_embd=width,
        n_layer=1,
        n_head=2,
        resid_pdrop=0.0,
        initializer_range=0.2,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
        add_cross_attention=cross_attention,
    )


def processor(side: int) -> ViTImageProcessor:
    return ViTImageProcessor(size={"height": side, "width": side})


def encoder_decoder(
    vocabulary: int, *, side: int = 16, width: int = 16, layers: int = 1
) -> VisionEncoderDecoderModel:
    """A ViT with patches of 8 pixels, and a GPT-2 of one layer that attends to its tokens."""
    vit = ViTConfig(
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=width,
        image_size=side,
        patch_size=8,
        hidden_dropout_prob=0.0,
        initializer_range=0.2,
        attention_probs_dropout_prob=0.0,
    )
    gpt2 = gpt2_config(vocabulary, width=width, cross_attention=True)
    config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(vit, gpt2)
    model = VisionEncoderDecoderModel(
        encoder=ViTModel(vit), decoder=GPT2LMHeadModel(gpt2), config=config
    )
    for settings in (model.config, model.generation_config):
        settings.decoder_start_token_id = settings.eos_token_id = settings.pad_token_id = 0
    return model.eval()


def shake(model: Any, seed: int, scale: float = 0.7) -> Any:
    """Random weights large enough that texts differ much in probability."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape) * scale / max(1, parameter.dim() - 1))
    return model.eval()


def save(directory: Path, model: Any, tokenizer: Any, side: int | None = None) -> str:
    """What ``save_pretrained`` writes; the path."""
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    if side:
        processor(side).save_pretrained(directory)
    return str(directory)


def jpeg(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def evidence_of(
    pictures: Sequence[Image.Image], units: Sequence[Sequence[tuple[int, NDArray[np.bool_]]]]
) -> ArrayEvidence:
    """Units by the pictures in which they fire and where: masks over patches of 8 pixels."""
    side, slots = pictures[0].width, max(map(len, units))
    cells = side // 8
    firing = np.full((len(units), slots), -1)
    maps = np.zeros((len(units), slots, cells * cells), dtype=np.float32)
    peaks = np.zeros((len(units), len(pictures)), dtype=np.float32)
    for unit, firings in enumerate(units):
        for slot, (image, mask) in enumerate(firings):
            firing[unit, slot] = image
            maps[unit, slot] = mask.ravel() * (slots - slot)
            peaks[unit, image] = slots - slot
    return ArrayEvidence(
        name="models/tiny/sites/blocks.0.mlp",
        identity="i" * 64,
        data_sha256="d" * 64,
        site="blocks.0.mlp",
        images=[ImageRecord(f"{i}.png", side, side, "", ()) for i in range(len(pictures))],
        grid=PatchGrid(rows=cells, cols=cells, special=1, patch_height=8, patch_width=8),
        preprocessing=Preprocessing(height=side, width=side),
        thumbnails=[jpeg(picture) for picture in pictures],
        embeddings=np.ones((len(pictures), 2), dtype=np.float32),
        all_peaks=peaks,
        firing_images=firing,
        maps=maps,
        thresholds=np.zeros(len(units)) + 0.5,
    )
