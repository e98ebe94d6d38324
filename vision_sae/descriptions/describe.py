"""Labelling every feature of a bundle, and publishing the result into it."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tqdm import tqdm

from vision_sae.activations.store import ActivationStore
from vision_sae.bundles.bundle import (
    DESCRIPTIONS,
    FORMAT,
    Bundle,
    add_descriptions,
    descriptions_file,
)
from vision_sae.config import DescribeConfig
from vision_sae.descriptions.evidence.bundle import BundleEvidence
from vision_sae.descriptions.toolbox import Toolbox, threads_for
from vision_sae.files import sha256_json
from vision_sae.places import check_output
from vision_sae.storage import storing

_LOG = logging.getLogger(__name__)

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

    ``store`` spares the contrastive model a pass over the pictures; see `make_probe`. What was
    labelled before a stop is kept beside the bundle: the next call labels the other features, and
    ends in the same labels as an undisturbed one.
    """
    bundle = Bundle(path)
    check_output(path, FORMAT, field="bundle")
    evidence = BundleEvidence(bundle)
    toolbox = Toolbox(config, path.parent / PROBES, store=store, progress=progress)
    identity, labeller = toolbox.identity(), toolbox.labeller(evidence)
    width = bundle.dictionary.width
    journal = path.with_name(f".{path.name}.{_work(identity, evidence)}.{DESCRIPTIONS}")
    with storing(journal):
        rows, whole = _read_journal(journal)
        with (
            threads_for(config),
            journal.open("ab") as file,
            tqdm(
                total=width,
                initial=len(rows),
                desc="describe",
                unit="feature",
                disable=not progress,
            ) as bar,
        ):
            file.truncate(whole)
            for made in labeller.label(evidence, range(len(rows), width)):
                rows.append(asdict(made))
                file.write(descriptions_file(rows[-1:]))
                file.flush()  # from here on it survives the death of this process
                bar.update()
    labelled = sum(row["text"] is not None for row in rows)
    summary = {
        **config.model_dump(mode="json"),
        "identity": identity,
        "labelled": labelled,
        "abstained": width - labelled,
    }
    described = add_descriptions(bundle, path, rows, {"describe": summary})
    journal.unlink(missing_ok=True)
    return described


def _work(identity: str, evidence: BundleEvidence) -> str:
    """What tells one labelling from others: they never go on from each other's labels."""
    return sha256_json([identity, evidence.identity])[:12]


def _read_journal(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The labels of the first features, as far as an earlier call came, and their bytes in the
    file; a line that is not whole, and what follows it, does not count."""
    rows: list[dict[str, Any]] = []
    length = 0
    lines = path.read_bytes().splitlines(keepends=True) if path.is_file() else []
    for number, line in enumerate(lines):
        try:
            row = json.loads(line)
            whole = row["feature"] == number and "text" in row and line.endswith(b"\n")
        except (ValueError, TypeError, LookupError):
            whole = False
        if not whole:
            _LOG.warning("%s ends in a part of line %d: labelling goes on there", path, number + 1)
            break
        rows.append(row)
        length += len(line)
    return rows, length
