"""Tiny worlds that tests share: transformers, picture folders and stores of known vectors."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from timm.models.vision_transformer import VisionTransformer

from vision_sae.activations import store as layout
from vision_sae.activations.store import ActivationStore, ImageRecord
from vision_sae.activations.thumbnails import write_thumbnails
from vision_sae.dictionaries.artifact import save_dictionary
from vision_sae.dictionaries.kinds.topk import TopKSae
from vision_sae.dictionaries.protocol import Dictionary
from vision_sae.files import publishing
from vision_sae.models.grid import PatchGrid, Preprocessing
from vision_sae.models.vit import TimmBackbone, VitModel

SITE = "blocks.1.update"
GRID = PatchGrid(rows=2, cols=2, special=1, patch_height=8, patch_width=8)
PREPROCESSING = Preprocessing(height=16, width=16)


def tiny_vit(**options: Any) -> VisionTransformer:
    """A timm ViT of 3 blocks and 32 dimensions on 32-pixel images, its weights from a seed."""
    torch.manual_seed(0)
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2}
    module = VisionTransformer(**(sizes | {"num_classes": 5} | options))
    with torch.no_grad():  # biases start at zero, which would hide mistakes
        for parameter in module.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape))
    return module.eval()


def tiny_model(**options: Any) -> VitModel:
    """`tiny_vit` behind the Model protocol, in float32."""
    backbone = TimmBackbone(tiny_vit(**options))
    height, width = backbone.module.patch_embed.img_size
    return VitModel("tiny", backbone, Preprocessing(height=height, width=width), dtype="float32")


def noise_image(width: int, height: int, seed: int = 0) -> Image.Image:
    """RGB noise, the same for the same seed."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def picture_folder(folder: Path, count: int) -> Path:
    """``count`` PNG files of different sizes, named 000.png and so on."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        noise_image(40 + i % 3, 34 + i % 5, seed=i).save(folder / f"{i:03}.png")
    return folder


def write_store(
    directory: Path,
    shards: Sequence[NDArray[np.floating[Any]]],
    *,
    captions: Sequence[str] = (),
    sources: Sequence[str] = (),
    site: str = SITE,
    grid: PatchGrid = GRID,
    weights_sha256: str = "w" * 64,
    data_sha256: str = "d" * 64,
    folder: str = "",
) -> ActivationStore:
    """A store whose shards hold these vectors, each array (images, patches, D), of pictures in
    ``folder``."""
    jpeg = io.BytesIO()
    Image.new("RGB", (4, 4)).save(jpeg, "JPEG")
    identity = {
        "name": "tiny",
        "kind": "vit",
        "weights_sha256": weights_sha256,
        "preprocessing": PREPROCESSING.to_json(),
        "grid": grid.to_json(),
    }
    total = sum(map(len, shards))
    captions, sources = captions or [""] * total, sources or [""] * total
    with publishing(directory) as (staging, manifest):
        first = 0
        for number, vectors in enumerate(shards):
            shard = staging / layout.SHARDS / f"{number:05d}"
            shard.mkdir(parents=True)
            np.save(shard / f"{site}.npy", vectors.astype(np.float16))
            rows = range(first, first + len(vectors))
            np.save(shard / layout.EMBEDDING, np.array([[i, 1] for i in rows], dtype=np.float32))
            write_thumbnails(shard, [jpeg.getvalue()] * len(vectors))
            records = [
                ImageRecord(f"{folder}{i}.png", 16, 16, captions[i], (), sources[i])._asdict()
                for i in rows
            ]
            (shard / layout.IMAGES).write_text("".join(json.dumps(r) + "\n" for r in records))
            (shard / layout.SKIPPED).write_text("")
            first += len(vectors)
        manifest |= {
            "format": layout.FORMAT,
            "version": layout.VERSION,
            "code_version": "test",
            "model": identity,
            "grid": grid.to_json(),
            "preprocessing": PREPROCESSING.to_json(),
            "sites": {site: {"kind": "update", "dim": shards[0].shape[2]}},
            "dtype": "float16",
            "embedding_dim": 2,
            "images": total,
            "skipped": 0,
            "shards": [
                {"name": f"{number:05d}", "images": len(s)} for number, s in enumerate(shards)
            ],
            "data_sha256": data_sha256,
        }
    return ActivationStore(directory)


def identity_sae(dim: int, k: int) -> TopKSae:
    """The positive neuron basis: feature i fires with the value of dimension i."""
    return TopKSae(
        w_enc=torch.eye(dim),
        b_enc=torch.zeros(dim),
        w_dec=torch.eye(dim),
        b_dec=torch.zeros(dim),
        k=k,
    )


def random_sae(dim: int, width: int, k: int, *, bias: float = 0.0) -> TopKSae:
    """Random unit directions, each its own encoder; ``bias`` is the spread of ``b_dec``."""
    random = torch.Generator().manual_seed(0)
    rows = torch.nn.functional.normalize(torch.randn(width, dim, generator=random), dim=1)
    return TopKSae(
        w_enc=rows.clone(),
        b_enc=torch.zeros(width),
        w_dec=rows,
        b_dec=bias * torch.randn(dim, generator=random),
        k=k,
    )


def small_section(architecture: str) -> dict[str, Any]:
    """{architecture: settings of its own that suit tiny dictionaries}, where it has any."""
    sections = {"matryoshka": {"prefixes": (0.5, 1)}, "archetypal": {"archetypes": 4}}
    return {name: own for name, own in sections.items() if name == architecture}


def write_dictionary(
    directory: Path, dictionary: Dictionary, store: ActivationStore, **overrides: Any
) -> Path:
    """Publish a dictionary as though it had been trained on ``store``."""
    belongs_to = {
        "format": "vision_sae.dictionary",
        "version": 1,
        "code_version": "test",
        "model": store.manifest["model"],
        "site": next(iter(store.sites)),
        "data_sha256": store.manifest["data_sha256"],
        "training": {},
    }
    save_dictionary(directory, dictionary, belongs_to | overrides, {})
    return directory
