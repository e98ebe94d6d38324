"""The one pass over pictures that collects the evidence of raw neurons."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from vision_sae.activations.decoding import DecodedBatch
from vision_sae.activations.passes import Pass, in_groups, overlapping
from vision_sae.activations.peaks import REMEDY, PeakCollector
from vision_sae.activations.shards import Departure, Rounding
from vision_sae.activations.store import ImageRecord, write_images
from vision_sae.activations.thumbnails import write_thumbnails
from vision_sae.config import NeuronConfig
from vision_sae.devices import recorded
from vision_sae.dictionaries.weights import read_tensor_file
from vision_sae.errors import InvalidInputError
from vision_sae.evidence.neurons import (
    EMBEDDINGS,
    FORMAT,
    IMAGES,
    VERSION,
    Neurons,
    matching_sites,
)
from vision_sae.evidence.protocol import FIRINGS
from vision_sae.files import publishing, replacing, sha256_json
from vision_sae.models.protocol import Model
from vision_sae.pictures.folder import Picture, data_sha256
from vision_sae.pictures.reading import Reading, Skipped
from vision_sae.places import check_output, check_replaceable
from vision_sae.transfers import to_device
from vision_sae.version import CODE_VERSION

_STATE = "state.safetensors"


class _Part(NamedTuple):
    """The result of one batch."""

    batch: DecodedBatch
    low: Mapping[str, NDArray[np.float16]]
    """{site: vectors of the patches (B, P, F)}; empty for a batch without pictures."""
    embedding: Tensor | None
    """(B, E)"""


def _begin(model: Model, sites: Sequence[str], batch: DecodedBatch) -> Callable[[], _Part]:
    """Begin to run the model over a batch; the result waits for what leaves its device."""
    if not batch.decoded:
        return lambda: _Part(batch, {}, None)
    departure = departure_of(model, sites, to_device(batch.pixels, model.device))

    def arrived() -> _Part:
        roundings, (embedding,) = departure.arrive()
        pairs = zip(sites, roundings, strict=True)
        low = {site: rounding.array(site, remedy=REMEDY) for site, rounding in pairs}
        return _Part(batch, low, embedding)

    return arrived


def departure_of(model: Model, sites: Sequence[str], images: Float[Tensor, "B C H W"]) -> Departure:
    """The vectors of the patches of sites, and the embeddings of the pictures, leaving the model's
    device."""
    with torch.inference_mode(), model.capture(list(sites)) as captured:
        output = model.forward(images)
        patches = [captured[site][:, model.grid.special :] for site in sites]
        roundings = [Rounding.of(values, "float16") for values in patches]
    return Departure(roundings, output.embedding)


class _State:
    """The sink of the pass: the collectors of all sites, and the records of the pictures.

    A commit writes the whole state to the checkpoint. The last commit writes nothing, because the
    finished evidence is published at once.
    """

    def __init__(self, model: Model, sites: Sequence[str], pictures: int, checkpoint: Path) -> None:
        """Resume from ``checkpoint`` if an earlier run left one; raises `CorruptArtifactError` when
        the checkpoint is damaged."""
        self._pictures, self._checkpoint = pictures, checkpoint
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
        """Number of processed files, including skipped ones."""
        if checkpoint.is_file():
            self._load()

    def add(self, part: _Part) -> None:
        """Take the result of the next batch."""
        batch = part.batch
        self.done += len(batch.decoded) + len(batch.skipped)
        self.skipped += batch.skipped
        if part.embedding is None:
            return
        for site, collector in self.collectors.items():
            collector.add_rounded(torch.from_numpy(part.low[site]))
        self.records += batch.records
        self.thumbnails += batch.thumbnails
        self.embeddings.append(part.embedding)

    def commit(self, unit: int) -> None:
        """Write a checkpoint atomically."""
        if self.done == self._pictures:
            return
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
        with replacing(self._checkpoint) as temporary:
            save_file(tensors, temporary, {"notes": json.dumps(notes)})

    def _load(self) -> None:
        tensors = read_tensor_file(self._checkpoint)
        with safe_open(self._checkpoint, "pt") as file:
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
    """The inputs that determine the evidence, as a JSON object."""
    return {
        "format": FORMAT,
        "version": VERSION,
        "code_version": CODE_VERSION,
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

    Files that cannot be read are listed in the evidence and entered in ``reading``. Raises
    `InvalidInputError` when no file can be read, or when ``reading`` is strict and a file cannot be
    read.

    Finished evidence with the same inputs is returned as it is; other evidence is replaced only
    with ``overwrite``. An interrupted run resumes from the last checkpoint and gives the same bits.
    """
    if not pictures:
        raise InvalidInputError("there are no pictures to look at", field="images")
    sites = matching_sites(model, config.sites)
    plan = _plan(model, sites, pictures, config)
    identity = sha256_json(plan)
    existing = check_output(directory, FORMAT, field="work")
    account = Reading() if reading is None else reading
    if existing is not None and existing.get("plan") == identity:
        return _accounted(Neurons(directory), account)
    check_replaceable(directory, existing, overwrite=overwrite, field="work")
    checkpoint = directory.with_name(f".{directory.name}.{identity[:16]}.{_STATE}")
    state = _State(model, sites, len(pictures), checkpoint)
    account.check(state.skipped)
    look = overlapping(
        model,
        partial(_begin, model, sites),
        thumbnail=config.thumbnail,
        reading=account,
        apart=False,
    )
    units = in_groups(pictures[state.done :], config.batch_size * config.checkpoint_batches)
    of_neurons = Pass(dict(enumerate(units)), config.batch_size, look, "neurons", done=state.done)
    directory.parent.mkdir(parents=True, exist_ok=True)
    of_neurons.run(state, progress=progress)
    if not state.records:
        raise InvalidInputError(
            f"none of the {len(pictures)} pictures could be read; the first, {state.skipped[0]}",
            field="images",
        )
    computed = recorded(model.device, model.dtype)
    _publish(directory, state, plan | {"plan": identity, "computed": computed}, config)
    checkpoint.unlink(missing_ok=True)
    return _accounted(Neurons(directory), account)


def _accounted(neurons: Neurons, account: Reading) -> Neurons:
    """Enter the read and the skipped files of ``neurons`` in ``account``; returns ``neurons``."""
    account.leave_out(neurons.skipped)
    account.read += int(neurons.manifest["images"])
    return neurons


def _publish(
    directory: Path, state: _State, manifest: dict[str, Any], config: NeuronConfig
) -> None:
    with publishing(directory) as (staging, published_manifest):
        write_images(staging / IMAGES, state.records)
        write_thumbnails(staging, state.thumbnails)
        embeddings = torch.cat(state.embeddings).numpy()
        np.save(staging / EMBEDDINGS, embeddings, allow_pickle=False)
        for site, collector in state.collectors.items():
            (staging / site).mkdir()
            for name, tensor in collector.result(config.mask_quantile)._asdict().items():
                np.save(staging / site / f"{name}.npy", tensor.numpy(), allow_pickle=False)
        skipped = [asdict(skipped) for skipped in state.skipped]
        counts = {"images": len(state.records), "skipped": skipped}
        published_manifest |= manifest | counts
