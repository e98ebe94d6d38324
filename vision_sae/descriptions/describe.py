"""Labelling every feature of a bundle, and publishing the result into it."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from tqdm import tqdm

from vision_sae.activations.store import ActivationStore
from vision_sae.bundles.bundle import Bundle, add_descriptions
from vision_sae.config import DescribeConfig
from vision_sae.descriptions.evidence.bundle import BundleEvidence
from vision_sae.descriptions.toolbox import Toolbox, threads_for

PROBES = "probes"
"""Folder beside a bundle where labelling keeps what other bundles and servers can use again."""


def is_described(bundle: Bundle, config: DescribeConfig) -> bool:
    """Whether the bundle holds just the descriptions that this configuration would make of it."""
    toolbox = Toolbox(config, bundle.path.parent / PROBES)
    made: dict[str, Any] = bundle.manifest.get("describe", {})
    return made.get("identity") == toolbox.identity()


def describe_bundle(
    path: Path,
    config: DescribeConfig,
    *,
    store: ActivationStore | None = None,
    progress: bool = True,
) -> Bundle:
    """Label every feature and publish the bundle at ``path`` anew with the labels.

    ``store`` spares the contrastive model a pass over the pictures; see `make_probe`.
    """
    bundle = Bundle(path)
    evidence = BundleEvidence(bundle)
    toolbox = Toolbox(config, path.parent / PROBES, store=store, progress=progress)
    identity, labeller = toolbox.identity(), toolbox.labeller(evidence)
    width = bundle.dictionary.width
    with threads_for(config):
        rows = [
            asdict(description)
            for description in tqdm(
                labeller.label(evidence, range(width)),
                total=width,
                desc="describe",
                unit="feature",
                disable=not progress,
            )
        ]
    labelled = sum(row["text"] is not None for row in rows)
    summary = {
        **config.model_dump(mode="json"),
        "identity": identity,
        "labelled": labelled,
        "abstained": width - labelled,
    }
    return add_descriptions(bundle, path, rows, {"describe": summary})
