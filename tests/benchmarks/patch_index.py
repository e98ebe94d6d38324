"""The patch index on a million patches of real pictures, against calling FAISS directly.

``python -m tests.benchmarks.patch_index --work DIR`` prints JSON. The patches are those of the
demo's ViT on the demo's pictures and crops of them; the queries are patches of other pictures. The
store is made in DIR once, the indexes are made anew. On a GPU, an index whose type FAISS supports
there is built and searched there, by both (not yet run on a GPU).
"""

from __future__ import annotations

import argparse
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import faiss
import numpy as np
import torch
from numpy.typing import NDArray

from tests.benchmarks._device import report
from vision_sae import devices
from vision_sae.activations.harvest import harvest
from vision_sae.activations.store import ActivationStore, sources_of
from vision_sae.bundles import patch_index_gpu
from vision_sae.bundles.patch_index import REFINED, PatchIndex
from vision_sae.bundles.patch_index_builder import (
    NPROBE,
    SHARD_ROWS,
    IndexConfig,
    IndexReport,
    PatchIndexBuilder,
)
from vision_sae.config import HarvestConfig
from vision_sae.demo import CORPUS
from vision_sae.models.loading import load_model
from vision_sae.pictures.folder import image_folder
from vision_sae.vectors import normalised

_VIEWS = 3
_QUERIES, _NEIGHBOURS = 1000, 10
_FLOOR = 0.95
_BATCH = 8192
_TURNS = 9
_TABLE_ROWS = (50_000, 300_000, 1_000_000)
Vectors = NDArray[np.float32]


class Rows:
    """Normalised vectors of a store's only site."""

    def __init__(self, store: ActivationStore, mean: Vectors | None = None) -> None:
        self.store, self.site = store, store.site(None)
        self.mean = store.mean(self.site).numpy() if mean is None else mean

    def batches(self) -> Iterator[Vectors]:
        """All of them, in row order."""
        for vectors in self.store.batches(self.site, _BATCH):
            yield normalised(vectors.numpy(), self.mean)

    def take(self, rows: NDArray[np.int64]) -> Vectors:
        """Those of some rows."""
        return normalised(self.store.take(self.site, rows).numpy(), self.mean)


def anonymous_mb() -> float:
    """Memory of this process that no file backs."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) / 1024
    raise OSError("/proc/self/status does not tell RssAnon")


def built(rows: Rows, folder: Path, shard_rows: int) -> tuple[IndexReport, dict[str, float]]:
    """An index of all rows, and what making it took."""
    shutil.rmtree(folder, ignore_errors=True)
    before, begun = anonymous_mb(), time.perf_counter()
    builder = PatchIndexBuilder(
        folder,
        rows.store.sites[rows.site],
        rows.store.rows,
        rows.take,
        sources_of(rows.store.images),
        IndexConfig(_FLOOR, shard_rows=shard_rows),
        device=devices.chosen(),
    )
    peak = anonymous_mb()
    for vectors in rows.batches():
        builder.add(vectors)
        peak = max(peak, anonymous_mb())
    made = builder.finish()
    size = sum(path.stat().st_size for path in folder.iterdir())
    return made, {
        "build_s": round(time.perf_counter() - begun, 1),
        "build_peak_mb": round(peak - before, 1),
        "bytes_per_vector": round(size / made.rows, 1),
    }


def exact(rows: Rows, queries: Vectors) -> NDArray[np.int64]:
    """The nearest rows of each query, by comparing with all."""
    wanted = torch.from_numpy(queries).to(devices.chosen())
    best, places, start = wanted[:, :0], wanted[:, :0].long(), 0
    for vectors in rows.batches():
        cosines = torch.cat([best, wanted @ torch.from_numpy(vectors).to(wanted).T], 1)
        here = torch.arange(start, start := start + len(vectors), device=wanted.device)
        best, kept = cosines.topk(_NEIGHBOURS, dim=1)
        places = torch.cat([places, here.expand(len(queries), -1)], 1).gather(1, kept)
    return np.asarray(places.cpu().numpy())


def recall(found: NDArray[np.int64], wanted: NDArray[np.int64]) -> float:
    """Share of the wanted rows among those found."""
    shared = [len(set(a) & set(b)) for a, b in zip(found.tolist(), wanted.tolist(), strict=True)]
    return round(float(np.mean(shared)) / int(wanted.shape[1]), 4)


def per_second(find: Callable[[Vectors], object], queries: Vectors) -> float:
    """Queries a second, one at a time, as a server gets them."""
    begun = time.perf_counter()
    for query in queries:
        find(query[None])
    return len(queries) / (time.perf_counter() - begun)


def rates(folder: Path, made: IndexReport, queries: Vectors) -> dict[str, float]:
    """Queries a second of the PatchIndex and of the same search by FAISS itself, in turns: on the
    file mapped as the PatchIndex maps it, and with the finer rows read into memory. Where the
    PatchIndex is searched on a GPU, FAISS searches a copy of its own there."""
    index, device = PatchIndex.load(folder, made.nprobe), devices.chosen()
    (path,) = folder.iterdir()
    opened: dict[str, Any] = {
        "rate_ratio_to_faiss": faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC),
        "rate_ratio_to_faiss_in_memory": faiss.read_index(str(path), faiss.IO_FLAG_MMAP),
    }
    parameters = parameters_of(opened["rate_ratio_to_faiss"], made.nprobe)
    if index.use_gpu(made.type, device):
        cloned = cast(Any, faiss).index_cpu_to_gpu(
            cast(Any, faiss).StandardGpuResources(),
            patch_index_gpu.gpu_of(device),
            opened["rate_ratio_to_faiss"],
        )
        opened = {"rate_ratio_to_faiss": cloned}

    def ours(query: Vectors) -> object:
        return index.search(query, _NEIGHBOURS)

    def theirs(name: str) -> float:
        direct = opened[name]
        return per_second(
            lambda query: direct.search(query, _NEIGHBOURS, params=parameters), queries
        )

    per_second(ours, queries)  # the first time, pages come from the disk
    for name in opened:
        theirs(name)
    turns = [(per_second(ours, queries), {n: theirs(n) for n in opened}) for _ in range(_TURNS)]
    return {
        "rate_per_s": round(float(np.median([mine for mine, _ in turns])), 1),
        **{n: round(float(np.median([mine / of[n] for mine, of in turns])), 3) for n in opened},
    }


def parameters_of(index: Any, nprobe: int) -> Any:
    """How FAISS is told to visit so many lists."""
    if not nprobe:
        return None
    parameters = cast(Any, faiss.SearchParametersIVF)(nprobe=nprobe)
    if isinstance(index, faiss.IndexRefine):
        return cast(Any, faiss.IndexRefineSearchParameters)(
            k_factor=REFINED, base_index_params=parameters
        )
    return parameters


def open_ms(folder: Path, nprobe: int) -> float:
    """Milliseconds to open an index, the median of a few."""
    times = []
    for _ in range(7):
        begun = time.perf_counter()
        PatchIndex.load(folder, nprobe)
        times.append(time.perf_counter() - begun)
    return round(1000 * float(np.median(times)), 1)


def chosen_type(vectors: Vectors, folder: Path) -> str:
    """The type that a build takes for these rows."""
    shutil.rmtree(folder, ignore_errors=True)
    count, dim = vectors.shape
    builder = PatchIndexBuilder(
        folder, dim, count, vectors.__getitem__, np.arange(count), IndexConfig(_FLOOR)
    )
    for start in range(0, count, _BATCH):
        builder.add(vectors[start : start + _BATCH])
    return builder.finish().type


def choices(types: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """For each size of `table`, the type that a build takes, beside the fastest type that reaches
    the floor of the recall."""
    results = {}
    for count in _TABLE_ROWS:
        of_size = [entry for entry in types if entry["rows"] == count]
        (taken,) = (entry for entry in of_size if entry["chosen"])
        rates = [entry["per_s"] for entry in of_size if entry["recall_at_10"] >= _FLOOR]
        results[str(count)] = {
            "chosen": taken["type"],
            "per_s": taken["per_s"],
            "best_candidate_per_s": max(rates, default=None),
        }
    return results


def table(rows: Rows, queries: Vectors, scratch: Path) -> Iterator[dict[str, Any]]:
    """Each type of the chooser at each size, by FAISS itself."""
    for count in _TABLE_ROWS:
        random = np.random.default_rng(count)
        chosen = np.sort(random.permutation(rows.store.rows)[:count])
        vectors = rows.take(chosen)
        lists = 2 ** round(np.log2(np.sqrt(count)))
        nearest: NDArray[np.int64] | None = None
        type_chosen = chosen_type(vectors, scratch.with_suffix(""))
        refined = f"IVF{lists},RaBitQfs,Refine(RR{vectors.shape[1]},SQ8)"
        for kind in ("Flat", f"IVF{lists},SQ8", refined):
            index = faiss.index_factory(vectors.shape[1], kind, faiss.METRIC_INNER_PRODUCT)
            begun = time.perf_counter()
            if not index.is_trained:
                index.train(vectors[random.permutation(count)[: 64 * lists]])
            index.add(vectors)
            seconds = time.perf_counter() - begun
            parameters = parameters_of(index, 0 if kind == "Flat" else NPROBE)
            _, found = index.search(queries, _NEIGHBOURS, params=parameters)
            nearest = found if nearest is None else nearest
            few = queries[:100] if kind == "Flat" else queries

            def find(query: Vectors, index: Any = index, parameters: Any = parameters) -> object:
                return index.search(query, _NEIGHBOURS, params=parameters)

            rate = per_second(find, few)
            faiss.write_index(index, str(scratch))
            yield {
                "rows": count,
                "chosen": kind == type_chosen,
                "type": kind,
                "recall_at_10": recall(found, nearest),
                "per_s": round(rate, 1),
                "bytes_per_vector": round(scratch.stat().st_size / count, 1),
                "build_s": round(seconds, 1),
            }


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Make the store and the indexes, and measure them."""
    work: Path = arguments.work
    config = HarvestConfig(views=_VIEWS)
    model = load_model(config.model)
    rows = Rows(harvest(model, image_folder(CORPUS / "train"), work / "store", config))
    held = harvest(
        model,
        image_folder(CORPUS / "heldout"),
        work / "heldout",
        config.model_copy(update={"views": 1}),
    )
    chosen = np.random.default_rng(0).permutation(held.rows)[:_QUERIES]
    queries = Rows(held, rows.mean).take(np.sort(chosen))
    whole, made = built(rows, work / "index", SHARD_ROWS)
    cut_report, cut = built(rows, work / "index-cut", whole.rows // 4 + 1)
    index = PatchIndex.load(work / "index", whole.nprobe)
    sharded = PatchIndex.load(work / "index-cut", cut_report.nprobe)
    wanted = exact(rows, queries)
    types = list(table(rows, queries, work / "scratch.faiss"))
    return {
        "recall_at_10": recall(index.search(queries, _NEIGHBOURS)[1], wanted),
        "recall_at_10_recorded": round(whole.recall_at_10, 4),
        **rates(work / "index", whole, queries),
        **made,
        "open_ms": open_ms(work / "index", whole.nprobe),
        "rows": whole.rows,
        "dim": rows.store.sites[rows.site],
        "type": whole.type,
        "nprobe": whole.nprobe,
        "in_four_files": {
            "recall_at_10": recall(sharded.search(queries, _NEIGHBOURS)[1], wanted),
            "build_peak_mb": cut["build_peak_mb"],
        },
        "index": choices(types),
        "table": types,
    }


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--work", type=Path, default=Path("runs/patch-index"))
    report(parser, measure, indent=1)


if __name__ == "__main__":
    main()
