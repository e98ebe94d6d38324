"""Labelling every feature of a bundle, and publishing the result into it."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tqdm import tqdm

from vision_sae.activations.store import ActivationStore
from vision_sae.bundles.layout import DESCRIPTIONS, FORMAT
from vision_sae.bundles.publish import add_descriptions, descriptions_file
from vision_sae.bundles.read import Bundle, read_bundle
from vision_sae.config import DescribeConfig
from vision_sae.descriptions.toolbox import Toolbox, threads_for
from vision_sae.evidence.bundle import BundleEvidence
from vision_sae.files import sha256_json
from vision_sae.places import check_output
from vision_sae.storage import storing

_LOG = logging.getLogger(__name__)

PROBES = "probes"
"""Folder beside a bundle for caches of labelling that other bundles and servers can share."""


def is_described(bundle: Bundle, config: DescribeConfig) -> bool:
    """Whether the bundle holds the descriptions that this configuration would produce."""
    toolbox = Toolbox(config, bundle.path.parent / PROBES)
    recorded: dict[str, Any] = bundle.manifest.get("describe", {})
    return recorded.get("identity") == toolbox.identity()


def describe_bundle(
    path: Path,
    config: DescribeConfig,
    *,
    bundle: Bundle | None = None,
    store: ActivationStore | None = None,
    progress: bool = True,
) -> Bundle:
    """Label every feature and publish the bundle at ``path`` again, with the labels.

    ``bundle`` is the open bundle at ``path``, if any; a bundle passed here is not read and hashed
    again. ``store`` saves the contrastive model's pass over the pictures; see `make_probe`. After
    an interruption, the next call resumes from a journal beside the bundle. Its labels equal those
    of an uninterrupted call.
    """
    bundle = bundle or read_bundle(path)
    check_output(path, FORMAT, field="bundle")
    evidence = BundleEvidence(bundle)
    toolbox = Toolbox(config, path.parent / PROBES, store=store, progress=progress)
    identity, labeller = toolbox.identity(), toolbox.labeller(evidence)
    width = bundle.dictionary.width
    journal = path.with_name(f".{path.name}.{_plan(identity, evidence)}.{DESCRIPTIONS}")
    with storing(journal):
        rows, length = _read_journal(journal)
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
            file.truncate(length)
            for description in labeller.label(evidence, range(len(rows), width)):
                rows.append(asdict(description))
                file.write(descriptions_file(rows[-1:]))
                file.flush()  # the label survives if this process is killed
                bar.update()
    labelled = sum(row["text"] is not None for row in rows)
    summary = {
        **toolbox.settings(),
        "identity": identity,
        "computed": toolbox.computed,
        "labelled": labelled,
        "abstained": width - labelled,
    }
    described = add_descriptions(bundle, path, rows, {"describe": summary})
    journal.unlink(missing_ok=True)
    return described


def _plan(identity: str, evidence: BundleEvidence) -> str:
    """The hash of a labelling's inputs: a labelling resumes only from a journal with its hash."""
    return sha256_json([identity, evidence.identity])[:12]


def _read_journal(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The labels that an earlier call wrote, and their length in bytes.

    The first incomplete line and all later lines are ignored.
    """
    rows: list[dict[str, Any]] = []
    length = 0
    lines = path.read_bytes().splitlines(keepends=True) if path.is_file() else []
    for number, line in enumerate(lines):
        try:
            row = json.loads(line)
            complete = row["feature"] == number and "text" in row and line.endswith(b"\n")
        except (ValueError, TypeError, LookupError):
            complete = False
        if not complete:
            _LOG.warning("line %d of %s is incomplete: labelling resumes there", number + 1, path)
            break
        rows.append(row)
        length += len(line)
    return rows, length
