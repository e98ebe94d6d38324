"""The demo generator: a small text-to-image pipeline of SDXL's classes that draws composed scenes.

Its module paths are those of SDXL-Turbo, its numbers are smaller: pictures of 64 x 64 pixels from
latents of 32 x 32, whose encoder is a fixed linear map, blocks of attention at 8 x 8 positions, and
two small text encoders. What a prompt says enters by way of these blocks alone: the pooled text,
which SDXL adds to the time, is nothing here. `train_generator` made its weights; what ships is what
``save_pretrained`` writes, in half precision, and ``StableDiffusionXLPipeline.from_pretrained``
loads.
"""

from __future__ import annotations

import gzip
import itertools
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "weights" / "generator"
SIDE = 64
"""Pixels of its pictures."""
LATENT = 32
STEPS = 4
"""Denoising steps at use."""
_TEXT_DIM = 32
_TEXT_LENGTH = 32
"""Tokens of a prompt."""
_CHANNELS = (32, 48, 64)
_HEADS = (2, 3, 4)
_VAE_CHANNELS = 32
_LUMA, _BLUE, _RED = (0.299, 0.587, 0.114), (-0.169, -0.331, 0.5), (0.5, -0.419, -0.081)
_FLAT = ((0.25, 0.25), (0.25, 0.25))
_PATCH_BASIS = (
    (_LUMA, _FLAT),
    (_BLUE, _FLAT),
    (_RED, _FLAT),
    (_LUMA, ((0.25, -0.25), (0.25, -0.25))),
    (_LUMA, ((0.25, 0.25), (-0.25, -0.25))),
    (_LUMA, ((0.25, -0.25), (-0.25, 0.25))),
)
"""What each channel of the latents is of 2 x 2 pixels: weights of the colours and of the places. As
in JPEG, colour has half the resolution of lightness."""
_START, _END = "<|startoftext|>", "<|endoftext|>"
_SCENE_WORDS = (
    "a an the of at in on with and word background centre top bottom left right small large "
    "circle square triangle star heart cross ring diamond red orange yellow green blue purple "
    "pink brown striped dotted checkered plain white black light dark grey gray beige "
    "picture shape colour"
)


def write_tokenizer(folder: Path) -> None:
    """Write ``vocab.json`` and ``merges.txt``: CLIP's byte-pair encoding, of which only the merges
    are kept that make up the words of scenes; other words are spelt letter by letter."""
    words = set(_SCENE_WORDS.split())
    ranks = {merge: rank for rank, merge in enumerate(_clip_merges())}
    used = {merge for word in words for merge in _merges_of(word, ranks)}
    merges = sorted(used, key=ranks.__getitem__)
    symbols = [chr(code) for code in _byte_symbols()]
    vocabulary = [
        *symbols,
        *(symbol + "</w>" for symbol in symbols),
        *("".join(merge) for merge in merges),
        *(_START, _END),
    ]
    folder.mkdir(parents=True, exist_ok=True)
    numbers = {token: number for number, token in enumerate(vocabulary)}
    (folder / "vocab.json").write_text(json.dumps(numbers, ensure_ascii=False), "utf-8")
    lines = ["#version: 0.2", *(" ".join(merge) for merge in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", "utf-8")


def _clip_merges() -> list[tuple[str, str]]:
    """The merges of CLIP's tokenizer, most frequent first, from the file in open_clip's wheel."""
    import open_clip

    path = Path(open_clip.__file__).parent / "bpe_simple_vocab_16e6.txt.gz"
    lines = gzip.decompress(path.read_bytes()).decode("utf-8").split("\n")
    pairs = (line.split() for line in lines[1 : 49152 - 256 - 2 + 1])
    return [(left, right) for left, right in pairs]


def _byte_symbols() -> Iterable[int]:
    """The characters that stand for the 256 bytes: printable ones for themselves, then others."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return [*printable, *range(256, 256 + 256 - len(printable))]


def _merges_of(word: str, ranks: dict[tuple[str, str], int]) -> list[tuple[str, str]]:
    """The merges that byte-pair encoding makes on the way to a word of ASCII letters."""
    parts, merges = [*word[:-1], word[-1] + "</w>"], []
    while len(parts) > 1:
        pairs = list(itertools.pairwise(parts))
        best = min(pairs, key=lambda pair: ranks.get(pair, len(ranks)))
        if best not in ranks:
            break
        merges.append(best)
        at = pairs.index(best)
        parts[at : at + 2] = ["".join(best)]
    return merges


def set_encoder(vae: Any, shift: Sequence[float], scale: Sequence[float]) -> None:
    """Make the encoder of an ``AutoencoderTiny`` `_PATCH_BASIS`, channel by channel less ``shift``
    and times ``scale``.

    A learned one of this size gives nearly all of its latents' variance to lightness, and a
    generator then learns colours and textures last. Without blocks between them its three
    convolutions are one linear map: pixels; sums of 2 x 2 of them; shift and scale.
    """
    import torch

    pixels, patches, last = (vae.encoder.layers[i] for i in range(3))
    with torch.no_grad():
        for tensor in (pixels.weight, pixels.bias, patches.weight, last.weight, last.bias):
            tensor.zero_()
        for colour in range(3):
            pixels.weight[colour, colour, 1, 1] = 1
        for channel, (colours, places) in enumerate(_PATCH_BASIS):
            taps = torch.einsum("c,yx->cyx", torch.tensor(colours), torch.tensor(places))
            patches.weight[channel, :3, 1:, 1:] = taps
            last.weight[channel, channel, 1, 1] = scale[channel]
            last.bias[channel] = -shift[channel] * scale[channel]


def new_pipeline(tokenizer: Path) -> Any:
    """The pipeline with random weights; ``tokenizer`` is a folder of `write_tokenizer`."""
    import diffusers as untyped
    from transformers import (
        CLIPTextConfig,
        CLIPTextModel,
        CLIPTextModelWithProjection,
        CLIPTokenizer,
    )

    diffusers: Any = untyped
    first, second = (
        CLIPTokenizer(
            str(tokenizer / "vocab.json"),
            str(tokenizer / "merges.txt"),
            model_max_length=_TEXT_LENGTH,
            pad_token=_END,
        )
        for _ in range(2)
    )
    text = CLIPTextConfig(
        vocab_size=len(first),
        hidden_size=_TEXT_DIM,
        intermediate_size=2 * _TEXT_DIM,
        projection_dim=_TEXT_DIM,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=_TEXT_LENGTH,
        bos_token_id=first.bos_token_id,
        eos_token_id=first.eos_token_id,
        pad_token_id=first.pad_token_id,
    )
    unet = diffusers.UNet2DConditionModel(
        sample_size=LATENT,
        in_channels=len(_PATCH_BASIS),
        out_channels=len(_PATCH_BASIS),
        block_out_channels=_CHANNELS,
        layers_per_block=(1, 1, 2),
        down_block_types=("DownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=[1, 1, 1],
        reverse_transformer_layers_per_block=[[1, 1, 0], 1, 1],
        attention_head_dim=_HEADS,  # the number of heads, whatever its name says
        cross_attention_dim=2 * _TEXT_DIM,
        addition_embed_type="text_time",
        addition_time_embed_dim=16,
        projection_class_embeddings_input_dim=_TEXT_DIM + 6 * 16,
        use_linear_projection=True,
        norm_num_groups=8,
    )
    vae = diffusers.AutoencoderTiny(
        encoder_block_out_channels=(_VAE_CHANNELS,) * 2,
        decoder_block_out_channels=(_VAE_CHANNELS,) * 2,
        num_encoder_blocks=(0, 0),
        num_decoder_blocks=(2, 1),
        latent_channels=len(_PATCH_BASIS),
        scaling_factor=1.0,
    )
    second_text = CLIPTextModelWithProjection(text)
    second_text.text_projection.weight.data.zero_()
    set_encoder(vae, [0.0] * len(_PATCH_BASIS), [1.0] * len(_PATCH_BASIS))
    return diffusers.StableDiffusionXLPipeline(
        vae=vae,
        text_encoder=CLIPTextModel(text),
        text_encoder_2=second_text,
        tokenizer=first,
        tokenizer_2=second,
        unet=unet,
        scheduler=diffusers.DDIMScheduler(
            beta_schedule="scaled_linear",
            prediction_type="v_prediction",
            rescale_betas_zero_snr=True,
            timestep_spacing="trailing",
            clip_sample=False,
        ),
        add_watermarker=False,
    )
