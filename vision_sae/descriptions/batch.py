"""Batch labelling: every unit of a bundle or of a model's layers, in one job that survives."""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, Literal

from tqdm import tqdm

from vision_sae.bundles import bundle
from vision_sae.config import DescribeConfig
from vision_sae.descriptions.evidence import neurons
from vision_sae.descriptions.evidence.bundle import BundleEvidence
from vision_sae.descriptions.evidence.protocol import Evidence
from vision_sae.descriptions.files import milan
from vision_sae.descriptions.files.milan_evidence import read_evidence
from vision_sae.descriptions.files.milan_layout import is_root
from vision_sae.descriptions.jobs.job import Budget, Job, Target
from vision_sae.descriptions.jobs.queue import LabelJobs
from vision_sae.descriptions.jobs.worker import Label, run_worker
from vision_sae.descriptions.protocol import Description
from vision_sae.descriptions.store import LabelStore, Unit
from vision_sae.descriptions.toolbox import Toolbox, threads_for
from vision_sae.errors import NotFoundError, VisionSaeError, WorkersEndedError
from vision_sae.files import MANIFEST, published, read_json, sha256_json
from vision_sae.models.registry import load_model
from vision_sae.processes import orphaned
from vision_sae.threads import use_one_thread

_SHOWN_EVERY = 1.0
"""Seconds between looks at the job's progress."""


@dataclass(frozen=True)
class EvidenceFolder:
    """Where evidence is published; each worker opens it for itself."""

    kind: Literal["bundle", "neurons", "milan"]
    path: Path
    clip: str = ""
    """Model by which MILAN's pictures are told apart: their files say nothing of another."""

    @classmethod
    def at(cls, path: Path, clip: str = DescribeConfig().clip) -> EvidenceFolder:
        """What is published there; raises `NotFoundError` when it is no evidence."""
        if is_root(path):
            return cls("milan", path, clip)
        kinds: dict[str, Literal["bundle", "neurons"]] = {
            bundle.FORMAT: "bundle",
            neurons.FORMAT: "neurons",
        }
        manifest = published(path) / MANIFEST
        found = read_json(manifest)["format"] if manifest.is_file() else ""
        if found not in kinds:
            raise NotFoundError(
                f"{path} is neither a bundle, nor evidence of neurons, nor a folder of exemplars "
                "in MILAN's layout; run `vision-sae build` or `vision-sae label`",
                field="units",
            )
        return cls(kinds[found], path)

    def open(self) -> dict[str, Evidence]:
        """{name: evidence}, in order."""
        return {evidence.name: evidence for evidence in self._opened()}

    def _opened(self) -> Iterable[Evidence]:
        match self.kind:
            case "bundle":
                return [BundleEvidence(bundle.Bundle(self.path))]
            case "neurons":
                return neurons.Neurons(self.path)
            case "milan":
                model = load_model(self.clip)
                names = milan.layers(self.path)
                return [read_evidence(self.path / name, model) for name in names]


def labelling(evidence: Mapping[str, Evidence], toolbox: Toolbox) -> Label:
    """What a worker calls: labels of some units of one of these."""

    def label(parent: str, units: Sequence[int]) -> Iterable[Description]:
        return toolbox.labeller(evidence[parent]).label(evidence[parent], units)

    return label


def job_for(
    jobs: LabelJobs, evidence: Mapping[str, Evidence], toolbox: Toolbox, budget: Budget
) -> Job:
    """The job that labels every unit of ``evidence``: the one there is, or a new one.

    Evidence, describer, configuration, and the contents of all it names make it the same work: a
    command that was interrupted goes on when it is given again, within the budget that it then
    has, and after a job that ran out of its budget, was cancelled, or failed at some units,
    another one takes the units that are left.
    """
    config = toolbox.config
    settings = config.model_dump(mode="json")
    identities = {name: found.identity for name, found in evidence.items()}
    work = sha256_json([identities, toolbox.identity()])
    target = Target(config.describer, identities, config=settings)
    units = [Unit(name, i) for name, found in evidence.items() for i in range(found.width)]
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
    """The units that a job has described."""
    done, seen = set[Unit](), 0
    while page := jobs.finished(name, after=seen):
        seen += len(page)
        done |= {finished.unit for finished in page if finished.failure is None}
    return done


def _work(url: str, job: str, folder: EvidenceFolder, config: DescribeConfig, probes: Path) -> None:
    """A worker process."""
    use_one_thread()
    store = LabelStore(url)
    try:
        label = labelling(folder.open(), Toolbox(config, probes, progress=False))
        run_worker(LabelJobs(store), job, label, stop=orphaned())
    except VisionSaeError as error:
        sys.exit(f"vision-sae: {error}")
    finally:
        store.close()


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

    Several ``workers`` are processes of their own; others may be started elsewhere, with the same
    arguments, at any time. Gives the job as it ended.
    """
    store = LabelStore(url)
    jobs, evidence = LabelJobs(store), folder.open()
    toolbox = Toolbox(config, probes, progress=progress)
    job = job_for(jobs, evidence, toolbox, budget or Budget())
    if job.open:
        for found in evidence.values():  # what all need is made once, before they start
            toolbox.labeller(found)
    with tqdm(
        total=job.total, initial=job.done, desc="label", unit="unit", disable=not progress
    ) as bar:
        if workers == 1:
            label = _counted(labelling(evidence, toolbox), bar)
            with threads_for(config):
                run_worker(jobs, job.name, label)
        else:
            _run_processes(workers, (url, job.name, folder, config, probes), jobs, bar)
    job = jobs.get(job.name)
    store.close()
    return job


def _counted(label: Label, bar: tqdm[Any]) -> Label:
    def counted(parent: str, units: Sequence[int]) -> Iterable[Description]:
        for made in label(parent, units):
            bar.update()
            yield made

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
            f"{', '.join(map(str, codes))} (-9: killed, perhaps for want of memory); the same "
            "command goes on, with fewer --workers perhaps"
        )
