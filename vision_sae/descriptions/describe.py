"""Describing every feature of a bundle, and publishing the result into it."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from tqdm import tqdm

from vision_sae.bundles.bundle import Bundle, add_descriptions
from vision_sae.config import DescribeConfig
from vision_sae.descriptions.caption_pmi import CaptionPmi
from vision_sae.descriptions.evidence.bundle import BundleEvidence
from vision_sae.descriptions.protocol import Describer

_DESCRIBERS: dict[str, type[CaptionPmi]] = {CaptionPmi.name: CaptionPmi}


def describer(config: DescribeConfig) -> Describer:
    """The describer that ``config`` names."""
    return _DESCRIBERS[config.describer](config)


def is_described(bundle: Bundle, config: DescribeConfig) -> bool:
    """Whether the bundle holds descriptions by just this describer and configuration."""
    made = bundle.manifest.get("describe", {})
    wanted = {**config.model_dump(mode="json"), "version": describer(config).version}
    return all(made.get(key) == value for key, value in wanted.items())


def describe_bundle(path: Path, config: DescribeConfig, *, progress: bool = True) -> Bundle:
    """Describe every feature and publish the bundle at ``path`` anew with the descriptions."""
    bundle, chosen = Bundle(path), describer(config)
    width = bundle.dictionary.width
    rows = [
        asdict(description)
        for description in tqdm(
            chosen.describe(BundleEvidence(bundle), range(width)),
            total=width,
            desc="describe",
            unit="feature",
            disable=not progress,
        )
    ]
    labelled = sum(row["text"] is not None for row in rows)
    summary = {
        **config.model_dump(mode="json"),
        "version": chosen.version,
        "labelled": labelled,
        "abstained": width - labelled,
    }
    return add_descriptions(bundle, path, rows, {"describe": summary})
