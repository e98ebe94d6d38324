"""What a GPU is worth to this library, measured beside the peers and the limits of that GPU.

`tests.benchmarks.devices` prints these figures on a machine that has a GPU. The functions follow
their ``device`` or the setting of the process, so that tests call them on the CPU with tiny sizes.
Not yet run on a GPU.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from tests.benchmarks import attribution, harvest, patch_index, sae_training
from tests.benchmarks._roofline import Roofline
from tests.worlds.demo_bundle import of_demo_pictures
from vision_sae import devices
from vision_sae.activations.harvest import choose
from vision_sae.bundles import patch_index_gpu
from vision_sae.bundles.patch_index_builder import IndexConfig, PatchIndexBuilder
from vision_sae.config import HarvestConfig, TrainConfig
from vision_sae.demo import CORPUS
from vision_sae.demo.run import serving
from vision_sae.dictionaries.protocol import SiteDictionary
from vision_sae.models.loading import load_model
from vision_sae.models.protocol import Model
from vision_sae.pictures.folder import image_folder
from vision_sae.vectors import normalised

BATCH = 32
"""Pictures of a batch of Encode, and clients that ask at once."""


def training(
    dim: int, width: int, k: int, device: str, limits: Roofline
) -> tuple[dict[str, float | None], float]:
    """({training_vs_dense, training_vs_sparsify}, the share of the roofline) of a training step.

    The first two are the peer's seconds of a step on 4,096 rows over ours; the second is null
    where sparsify is not installed.
    """
    ours = sae_training.step_seconds(dim, width, k, device)
    dense = sae_training.dense_step_seconds(dim, width, k, device)
    theirs = _sparsify_seconds(dim, width, k, device)
    ratios = {
        "training_vs_dense": round(dense / ours, 2),
        "training_vs_sparsify": None if theirs is None else round(theirs / ours, 2),
    }
    return ratios, round(limits.step_seconds(dim, width) / ours, 3)


def _sparsify_seconds(dim: int, width: int, k: int, device: str) -> float | None:
    config = TrainConfig(expansion=width // dim, k=k, steps=1000)
    try:
        step, _ = sae_training.SYSTEMS["sparsify"](dim, config, device)
    except ImportError as error:
        print(f"sparsify is not measured: {error}; install the extra bench", file=sys.stderr)
        return None
    return sae_training.median_seconds(lambda rows: step(rows, 1e-3), dim, device)


def harvest_ratio(pictures: int = 1024, turns: int = 3) -> float:
    """Pictures a second of a harvest of the demo's ViT over those of its forward pass alone."""
    config = HarvestConfig(shard_images=256)
    chosen = choose(image_folder(CORPUS / "train"), pictures)
    return float(harvest.compare(load_model(config.model), chosen, config, turns)["ratio"])


def encode_ratio(**sizes: int) -> float:
    """`encode_time_ratio` of a server of the demo's ViT, in a process of its own."""
    pictures = choose(image_folder(CORPUS / "heldout"), 2 * BATCH)
    files = [picture.path.read_bytes() for picture in pictures]
    with TemporaryDirectory() as folder:
        path = of_demo_pictures(Path(folder))
        bundle, model, features = attribution.opened(path, "auto")
        name = f"dictionaries/{bundle.name}"
        with serving([path]) as address:
            return encode_time_ratio(address, name, model, features, files, **sizes)


def encode_time_ratio(
    address: str,
    name: str,
    model: Model,
    features: SiteDictionary,
    files: Sequence[bytes],
    **sizes: int,
) -> float:
    """Time of a picture through gRPC, when 32 clients ask at once, over its time in process.

    In process, pictures are decoded ahead and computed in batches of 32. ``sizes`` are calls and
    rounds of `attribution.in_rounds`, whose median counts.
    """
    offline = attribution.Offline(model, features, files, (min(BATCH, len(files)),))
    served, from_files, _ = attribution.in_rounds(address, name, files, offline, **sizes)
    return round(float(np.median(from_files / served)), 3)


def index_ratio(rows: int = 200_000, dim: int = 384, queries: int = 1000) -> float:
    """Queries a second of the PatchIndex over those of FAISS called directly, on random rows.

    Both are on the device of the process's setting where FAISS supports it, else on the CPU.
    """
    random = np.random.default_rng(0)
    vectors = random.standard_normal((rows, dim), dtype=np.float32)
    vectors = normalised(vectors, vectors.mean(0))
    with TemporaryDirectory() as folder:
        place = Path(folder) / "index"
        builder = PatchIndexBuilder(
            place,
            dim,
            rows,
            vectors.__getitem__,
            np.arange(rows),
            IndexConfig(floor=0.0),  # random rows have no neighbourhoods to be recalled
            device=devices.chosen(),
        )
        builder.add(vectors)
        made = builder.finish()
        rates = patch_index.rates(place, made, vectors[:queries])
    return rates["rate_ratio_to_faiss"]


def searches_there(device: str) -> bool:
    """Whether FAISS can search on a device; tells on stderr where it cannot."""
    if patch_index_gpu.gpu_of(device) is not None:
        return True
    print(f"the index is not measured: faiss-gpu has no {device}", file=sys.stderr)
    return False


def figures(device: str, limits: Roofline) -> dict[str, Any]:
    """The figures of a GPU, training at F = 16 D."""
    ratios, share = training(1024, 16 * 1024, 32, device, limits)
    return {
        **ratios,
        "harvest_ratio": harvest_ratio(),
        "encode_ratio": encode_ratio(),
        "index_ratio": index_ratio() if searches_there(device) else None,
        "roofline": {
            "gemm_tflops": round(limits.flops / 1e12, 1),
            "bandwidth_gb_per_s": round(limits.bandwidth / 1e9, 1),
            "training_share": share,
        },
    }
