"""A small bundle of the demo's real ViT and real pictures, from harvest to build."""

from __future__ import annotations

from pathlib import Path

from vision_sae.activations.harvest import harvest
from vision_sae.bundles.build import build
from vision_sae.config import BuildConfig, HarvestConfig, TrainConfig
from vision_sae.demo import CORPUS
from vision_sae.dictionaries.pipeline import train_dictionary
from vision_sae.models.loading import load_model
from vision_sae.pictures.folder import image_folder

SITE = "blocks.10.update"


def of_demo_pictures(root: Path) -> Path:
    """The bundle ``root / "tiny"`` of 32 pictures of the demo's corpus, without descriptions."""
    config = HarvestConfig(sites=(SITE,), limit=32, batch_size=8, shard_images=16)
    model = load_model(config.model)
    store = harvest(model, image_folder(CORPUS / "train"), root / "store", config, progress=False)
    training = TrainConfig(
        expansion=2, k=16, steps=60, batch_size=1024, dead_after=20_000, learning_rate=3e-3
    )
    train_dictionary(store, root / "dictionary", training, {}, progress=False)
    build(store, root / "dictionary", root / "tiny", BuildConfig(), progress=False)
    return root / "tiny"
