"""Evidence of raw neurons: every unit of some sites of a model, in one pass over pictures."""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

import vision_sae
from vision_sae.activations.decoding import Decoded, Outcome, batches_ahead, decode_batches
from vision_sae.activations.peaks import PeakCollector
from vision_sae.activations.store import ImageRecord, read_images, write_images
from vision_sae.activations.thumbnails import Thumbnails, write_thumbnails
from vision_sae.artifacts import NEURONS
from vision_sae.config import NeuronConfig
from vision_sae.descriptions.evidence.arrays import ArrayEvidence
from vision_sae.descriptions.evidence.protocol import FIRINGS
from vision_sae.dictionaries.weights import read_tensor_file
from vision_sae.errors import InvalidInputError, NotFoundError
from vision_sae.files import (
    published,
    publishing,
    replacing,
    sha256_json,
    verify_files,
)
from vision_sae.models.grid import PatchGrid, Preprocessing
from vision_sae.models.protocol import Model
from vision_sae.pictures.folder import Picture, data_sha256
from vision_sae.pictures.reading import Reading, Skipped
from vision_sae.places import check_output, check_replaceable
from vision_sae.resources import site_resource

FORMAT, VERSION = NEURONS.format, NEURONS.version

_IMAGES = "images.jsonl"
_EMBEDDINGS = "embeddings.npy"
_PARTS = ("peaks", "images", "maps", "thresholds")
_STATE = "state.safetensors"


def matching_sites(model: Model, patterns: Sequence[str]) -> list[str]:
    """The sites of ``model`` that match any of the patterns (``blocks.*.mlp``), in order.

    Raises `NotFoundError` for a pattern that matches nothing.
    """
    for pattern in patterns:
        if not fnmatch.filter(model.sites, pattern):
            raise NotFoundError(
                f"no site of {model.name} matches {pattern!r}; sites are named "
                f"{', '.join(list(model.sites)[:4])}, ...",
                field="sites",
            )
    return [s for s in model.sites if any(fnmatch.fnmatchcase(s, p) for p in patterns)]


class _Pass:
    """The state of the one pass: collectors of all sites, and what is known of the pictures."""

    def __init__(self, model: Model, sites: Sequence[str], pictures: int) -> None:
        self.collectors = {
            site: PeakCollector(
                model.sites[site].dim, model.grid.patches, keep=FIRINGS, pictures=pictures
            )
            for site in sites
        }
        self.records: list[ImageRecord] = []
        self.thumbnails: list[bytes] = []
        self.embeddings: list[Tensor] = []
        self.skipped: list[Skipped] = []
        self.done = 0
        """Files looked at, skipped ones among them."""

    def add(self, model: Model, outcomes: Sequence[Outcome]) -> None:
        """Run the model over a batch."""
        self.done += len(outcomes)
        self.skipped += [outcome for outcome in outcomes if isinstance(outcome, Skipped)]
        decoded = [outcome for outcome in outcomes if isinstance(outcome, Decoded)]
        if not decoded:
            return
        with torch.inference_mode(), model.capture(list(self.collectors)) as captured:
            output = model.forward(torch.stack([d.pixels for d in decoded]))
        for site, collector in self.collectors.items():
            collector.add(site, captured[site][:, model.grid.special :])
        self.records += [d.record for d in decoded]
        self.thumbnails += [d.thumbnail for d in decoded]
        self.embeddings.append(output.embedding.cpu())

    def save(self, path: Path) -> None:
        """Write a checkpoint: whole, or not at all."""
        tensors = {
            f"{site}/{name}": tensor
            for site, collector in self.collectors.items()
            for name, tensor in collector.tensors().items()
        }
        if self.embeddings:
            tensors["embeddings"] = torch.cat(self.embeddings)
        records = [record._asdict() for record in self.records]
        sizes = [len(thumbnail) for thumbnail in self.thumbnails]
        blob = np.frombuffer(b"".join(self.thumbnails), dtype=np.uint8).copy()
        tensors["thumbnails"] = torch.from_numpy(blob)
        skipped = [asdict(skipped) for skipped in self.skipped]
        notes = {"done": self.done, "records": records, "sizes": sizes, "skipped": skipped}
        with replacing(path) as temporary:
            save_file(tensors, temporary, {"notes": json.dumps(notes)})

    def load(self, path: Path) -> None:
        """Go on from a checkpoint; raises `CorruptArtifactError` for one that is damaged."""
        tensors = read_tensor_file(path)
        with safe_open(path, "pt") as file:
            notes = json.loads(file.metadata()["notes"])
        for site, collector in self.collectors.items():
            for name, tensor in collector.tensors().items():
                tensor.copy_(tensors[f"{site}/{name}"])
            collector.seen = len(notes["records"])
        self.done = notes["done"]
        self.skipped = [Skipped(**row) for row in notes.get("skipped", [])]
        self.records = [ImageRecord(**(r | {"tags": tuple(r["tags"])})) for r in notes["records"]]
        blob, ends = tensors["thumbnails"].numpy().tobytes(), np.cumsum([0, *notes["sizes"]])
        self.thumbnails = [blob[a:b] for a, b in pairwise(ends)]
        if "embeddings" in tensors:
            self.embeddings = [tensors["embeddings"]]


def _plan(
    model: Model, sites: Sequence[str], pictures: Sequence[Picture], config: NeuronConfig
) -> dict[str, Any]:
    """What must be the same for two runs to find the same."""
    return {
        "format": FORMAT,
        "version": VERSION,
        "code_version": vision_sae.__version__,
        "model": model.identity(),
        "compute_dtype": str(model.dtype).removeprefix("torch."),
        "sites": list(sites),
        "mask_quantile": config.mask_quantile,
        "batch_size": config.batch_size,
        "thumbnail": config.thumbnail,
        "data_sha256": data_sha256(pictures),
    }


def collect_neurons(
    model: Model,
    pictures: Sequence[Picture],
    directory: Path,
    config: NeuronConfig,
    *,
    reading: Reading | None = None,
    progress: bool = True,
    overwrite: bool = False,
) -> Neurons:
    """Run ``model`` over ``pictures`` once and publish the evidence of all units of its sites.

    Files that are not pictures are listed in it and told to ``reading``; they are fatal, as
    `InvalidInputError`, when all of them are or when ``reading`` is strict.

    Evidence that is there already, of just these, is returned as it is, and other evidence is
    replaced only with ``overwrite``; a run that was interrupted goes on from its last checkpoint
    and finds the same bits.
    """
    if not pictures:
        raise InvalidInputError("there are no pictures to look at", field="images")
    sites = matching_sites(model, config.sites)
    plan = _plan(model, sites, pictures, config)
    identity = sha256_json(plan)
    found = check_output(directory, FORMAT, field="work")
    account = Reading() if reading is None else reading
    if found is not None and found.get("plan") == identity:
        return _told(Neurons(directory), account)
    check_replaceable(directory, found, overwrite=overwrite, field="work")
    state_path = directory.with_name(f".{directory.name}.{identity[:16]}.{_STATE}")
    state = _Pass(model, sites, len(pictures))
    if state_path.is_file():
        state.load(state_path)
    todo = pictures[state.done :]
    batches = [todo[i : i + config.batch_size] for i in range(0, len(todo), config.batch_size)]
    directory.parent.mkdir(parents=True, exist_ok=True)
    with (
        tqdm(
            total=len(pictures),
            initial=state.done,
            desc="neurons",
            unit="img",
            disable=not progress,
        ) as bar,
        ThreadPoolExecutor(torch.get_num_threads()) as pool,
    ):
        ready = decode_batches(pool, model, batches, config.thumbnail, ahead=batches_ahead(model))
        for number, outcomes in enumerate(ready, start=1):
            state.add(model, outcomes)
            account.check(state.skipped)
            bar.update(len(outcomes))
            if number % config.checkpoint_batches == 0:
                state.save(state_path)
    if not state.records:
        raise InvalidInputError(
            f"none of the {len(pictures)} pictures could be read; the first, {state.skipped[0]}",
            field="images",
        )
    _publish(directory, state, plan | {"plan": identity}, config)
    state_path.unlink(missing_ok=True)
    return _told(Neurons(directory), account)


def _told(made: Neurons, account: Reading) -> Neurons:
    account.leave_out(made.skipped)
    account.read += int(made.manifest["images"])
    return made


def _publish(directory: Path, state: _Pass, manifest: dict[str, Any], config: NeuronConfig) -> None:
    with publishing(directory) as (staging, said):
        write_images(staging / _IMAGES, state.records)
        write_thumbnails(staging, state.thumbnails)
        embeddings = torch.cat(state.embeddings).numpy()
        np.save(staging / _EMBEDDINGS, embeddings, allow_pickle=False)
        for site, collector in state.collectors.items():
            (staging / site).mkdir()
            for name, tensor in collector.result(config.mask_quantile)._asdict().items():
                np.save(staging / site / f"{name}.npy", tensor.numpy(), allow_pickle=False)
        skipped = [asdict(skipped) for skipped in state.skipped]
        said |= manifest | {"images": len(state.records), "skipped": skipped}


class Neurons:
    """Published evidence of the units of some sites of one model; see `collect_neurons`."""

    def __init__(self, directory: Path) -> None:
        self.path = published(directory)
        self.manifest = NEURONS.manifest(directory)
        verify_files(self.path, self.manifest["files"])
        self.sites: list[str] = self.manifest["sites"]
        self.skipped = [Skipped(**row) for row in self.manifest.get("skipped", [])]
        """The files that could not be read."""

    def evidence(self, site: str) -> ArrayEvidence:
        """The evidence of one site; its arrays are mapped."""
        if site not in self.sites:
            raise NotFoundError(
                f"{self.path} has no site {site!r}; it has {', '.join(self.sites)}", field="site"
            )
        model = self.manifest["model"]
        peaks, images, maps, thresholds = (
            np.load(self.path / site / f"{part}.npy", mmap_mode="r") for part in _PARTS
        )
        return ArrayEvidence(
            name=site_resource(model["name"], site),
            identity=sha256_json([self.manifest["plan"], site]),
            data_sha256=self.manifest["data_sha256"],
            site=site,
            images=read_images(self.path / _IMAGES),
            grid=PatchGrid(**model["grid"]),
            preprocessing=Preprocessing(**model["preprocessing"]),
            thumbnails=Thumbnails(self.path),
            embeddings=np.load(self.path / _EMBEDDINGS),
            all_peaks=peaks,
            firing_images=images,
            maps=maps,
            thresholds=thresholds,
        )

    def __iter__(self) -> Iterator[ArrayEvidence]:
        """The evidence of every site, in the order of the model."""
        return (self.evidence(site) for site in self.sites)
