"""Batch labelling: every unit of a bundle or of a model's layers, in one resumable job."""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, Literal

from tqdm import tqdm

from vision_sae.bundles import layout
from vision_sae.bundles.read import read_bundle
from vision_sae.config import DescribeConfig
from vision_sae.descriptions.protocol import Description
from vision_sae.descriptions.toolbox import Toolbox, threads_for
from vision_sae.errors import NotFoundError, VisionSaeError, WorkersEndedError
from vision_sae.evidence import neurons
from vision_sae.evidence.bundle import BundleEvidence
from vision_sae.evidence.protocol import Evidence
from vision_sae.files import MANIFEST, published, read_json, sha256_json
from vision_sae.labels.entries import Unit
from vision_sae.labels.files import milan
from vision_sae.labels.files.milan_evidence import read_evidence
from vision_sae.labels.files.milan_layout import is_root
from vision_sae.labels.jobs.job import Budget, Job, JobTarget
from vision_sae.labels.jobs.queue import LabelJobs
from vision_sae.labels.jobs.worker import Label, run_worker
from vision_sae.labels.store import LabelStore
from vision_sae.models.loading import load_model
from vision_sae.processes import orphaned
from vision_sae.threads import use_one_thread

_SHOWN_EVERY = 1.0
"""Seconds between two reads of the job's progress."""


@dataclass(frozen=True)
class EvidenceFolder:
    """A folder of published evidence; each worker process opens the folder itself."""

    kind: Literal["bundle", "neurons", "milan"]
    path: Path
    clip: str = ""
    """Model that embeds MILAN's pictures; their files do not name a model."""

    @classmethod
    def at(cls, path: Path, clip: str = DescribeConfig().clip) -> EvidenceFolder:
        """The evidence published at ``path``. Raises `NotFoundError` if there is none."""
        if is_root(path):
            return cls("milan", path, clip)
        kinds: dict[str, Literal["bundle", "neurons"]] = {
            layout.FORMAT: "bundle",
            neurons.FORMAT: "neurons",
        }
        manifest = published(path) / MANIFEST
        format_ = read_json(manifest)["format"] if manifest.is_file() else ""
        if format_ not in kinds:
            raise NotFoundError(
                f"{path} is neither a bundle, nor evidence of neurons, nor a folder of exemplars "
                "in MILAN's layout; run `vision-sae build` or `vision-sae label`",
                field="units",
            )
        return cls(kinds[format_], path)

    def open(self) -> dict[str, Evidence]:
        """{name: evidence}, in order."""
        return {evidence.name: evidence for evidence in self._opened()}

    def _opened(self) -> Iterable[Evidence]:
        match self.kind:
            case "bundle":
                return [BundleEvidence(read_bundle(self.path))]
            case "neurons":
                return neurons.Neurons(self.path)
            case "milan":
                model = load_model(self.clip)
                names = milan.layers(self.path)
                return [read_evidence(self.path / name, model) for name in names]


def labelling(evidence: Mapping[str, Evidence], toolbox: Toolbox) -> Label:
    """The function that a worker calls to label units of one of these evidences."""

    def label(parent: str, units: Sequence[int]) -> Iterable[Description]:
        return toolbox.labeller(evidence[parent]).label(evidence[parent], units)

    return label


def job_for(
    jobs: LabelJobs, evidence: Mapping[str, Evidence], toolbox: Toolbox, budget: Budget
) -> Job:
    """The job that labels every unit of ``evidence``: an existing job, or a new one.

    The identity of the work is a hash of the evidence, the describer, its configuration and the
    contents of the files that the configuration names. Running an interrupted command again
    continues the job within the new budget. After a job that ran out of budget, was cancelled, or
    failed at some units, a new job takes the remaining units.
    """
    identities = {name: source.identity for name, source in evidence.items()}
    work = sha256_json([identities, toolbox.identity()])
    target = JobTarget(toolbox.config.describer, identities, config=toolbox.settings())
    units = [Unit(name, i) for name, source in evidence.items() for i in range(source.width)]
    for part in count():
        job = jobs.create(units, target, budget=budget, request_id=f"{work}-{part}")
        if job.open:
            return jobs.allow(job.name, budget)
        if job.state == "succeeded" and not job.failed:
            return job
        done = _finished(jobs, job.name)
        units = [unit for unit in units if unit not in done]
    raise AssertionError  # count() has no end


def _finished(jobs: LabelJobs, name: str) -> set[Unit]:
    """The units that a job has labelled or abstained on."""
    done, seen = set[Unit](), 0
    while page := jobs.finished(name, after=seen):
        seen += len(page)
        done |= {finished.unit for finished in page if finished.failure is None}
    return done


def _work(url: str, job: str, folder: EvidenceFolder, config: DescribeConfig, probes: Path) -> None:
    """The main function of a worker process."""
    use_one_thread()
    try:
        with LabelStore(url) as store:
            label = labelling(folder.open(), Toolbox(config, probes, progress=False))
            run_worker(LabelJobs(store), job, label, stop=orphaned())
    except VisionSaeError as error:
        sys.exit(f"vision-sae: {error}")


def label_all(
    url: str,
    folder: EvidenceFolder,
    config: DescribeConfig,
    probes: Path,
    *,
    workers: int = 1,
    budget: Budget | None = None,
    progress: bool = True,
) -> Job:
    """Label every unit of published evidence into the label store at ``url``.

    Several ``workers`` run as separate processes. More workers may be started elsewhere with the
    same arguments at any time. Returns the last state of the job.
    """
    with LabelStore(url) as store:
        jobs, evidence = LabelJobs(store), folder.open()
        toolbox = Toolbox(config, probes, progress=progress)
        job = job_for(jobs, evidence, toolbox, budget or Budget())
        if job.open:
            for source in evidence.values():  # prepare shared probes once, before the workers start
                toolbox.labeller(source)
        with tqdm(
            total=job.total, initial=job.done, desc="label", unit="unit", disable=not progress
        ) as bar:
            if workers == 1:
                label = _counted(labelling(evidence, toolbox), bar)
                with threads_for(config):
                    run_worker(jobs, job.name, label)
            else:
                _run_processes(workers, (url, job.name, folder, config, probes), jobs, bar)
        return jobs.get(job.name)


def _counted(label: Label, bar: tqdm[Any]) -> Label:
    def counted(parent: str, units: Sequence[int]) -> Iterable[Description]:
        for description in label(parent, units):
            bar.update()
            yield description

    return counted


def _run_processes(
    workers: int,
    arguments: tuple[str, str, EvidenceFolder, DescribeConfig, Path],
    jobs: LabelJobs,
    bar: tqdm[Any],
) -> None:
    """Start the workers and show their progress until all have ended."""
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_work, args=arguments) for _ in range(workers)]
    for process in processes:
        process.start()
    while any(process.is_alive() for process in processes):
        for process in processes:
            process.join(_SHOWN_EVERY / workers)
        bar.update(jobs.get(arguments[1]).done - bar.n)
    codes = [process.exitcode for process in processes if process.exitcode]
    if codes and jobs.get(arguments[1]).open:
        raise WorkersEndedError(
            f"{len(codes)} of {workers} workers ended before their work was done, with exit codes "
            f"{', '.join(map(str, codes))} (-9: killed, perhaps for lack of memory); run the same "
            "command again to continue, perhaps with fewer --workers"
        )
