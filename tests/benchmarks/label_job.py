"""Every MLP neuron of the demo's ViT labelled in one job, and in one that is killed ten times.

``python -m tests.benchmarks.label_job`` prints JSON: the time of the whole and of its labelling,
the rate, the share that is labelled, and whether the killed job stored the same, each unit once.
The jobs run in processes of their own, whose memory on a GPU is not measured.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import sqlalchemy as sa

from tests.benchmarks._device import report
from vision_sae.demo import CORPUS
from vision_sae.descriptions.protocol import Description
from vision_sae.labels.database import descriptions
from vision_sae.labels.jobs.job import Job
from vision_sae.labels.jobs.queue import LabelJobs
from vision_sae.labels.store import LabelStore


def command(root: Path, labels: str, arguments: argparse.Namespace) -> list[str]:
    """The public command, on evidence that all runs share."""
    return [
        *(sys.executable, "-m", "vision_sae.cli", "label", "demo:dinov2-s"),
        *("--images", str(CORPUS / "train"), "--limit", str(arguments.images)),
        *("--site", arguments.site, "--work", str(root / "work")),
        *("--labels", str(root / labels), "--describer", arguments.describer),
        *("--workers", str(arguments.workers)),
    ]


class Stored(NamedTuple):
    """What a job left behind."""

    job: Job
    labels: dict[str, Description]
    """By unit."""
    versions: int
    """Descriptions in all, whatever became of them."""


def stored(path: Path) -> Stored:
    """What the newest job of a store left there."""
    store = LabelStore(path)
    with store.database.reading() as connection:
        counted = sa.select(sa.func.count()).select_from(descriptions)
        versions = connection.execute(counted).scalar_one()
    labels = {
        entry.unit.resource: entry.description
        for parent in store.parents()
        for entry in store.currents(parent).values()
    }
    return Stored(LabelJobs(store).all()[0], labels, versions)


def killed(run: list[str], labels: Path, kills: int, seconds: float, units: int) -> int:
    """Run the command and kill it as often, at random instants of its labelling; then let it end.

    Returns how often it was killed at work."""
    chance, done = random.Random(0), 0
    while done < kills:
        with subprocess.Popen(
            run, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        ) as process:
            while process.poll() is None and not _at_work(labels, units * done // (kills + 1)):
                time.sleep(0.2)
            time.sleep(chance.uniform(0, seconds / kills / 4))
            if process.poll() is not None:
                return done
            os.killpg(process.pid, signal.SIGKILL)  # the command and all of its workers
            done += 1
    subprocess.run(run, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return done


def _at_work(labels: Path, least: int) -> bool:
    """Whether the job has finished more than so many units."""
    if not labels.is_file():
        return False
    store = LabelStore(labels)
    jobs = LabelJobs(store).all()
    store.close()
    return bool(jobs) and jobs[0].done > least


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Run both jobs."""
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        begin = time.perf_counter()
        subprocess.run(command(root, "whole.sqlite", arguments), check=True, stdout=sys.stderr)
        result["seconds"] = round(time.perf_counter() - begin, 1)
        whole = stored(root / "whole.sqlite")
        job = whole.job
        assert job.started is not None
        assert job.ended is not None
        labelling = (job.ended - job.started).total_seconds()
        result |= {
            "units": job.total,
            "labelling_seconds": round(labelling, 1),
            "units_per_s": round(job.total / labelling, 1),
            "share_labelled": round(job.labelled / job.total, 4),
            "failed": job.failed,
        }
        if arguments.kills:
            run = command(root, "killed.sqlite", arguments)
            again = root / "killed.sqlite"
            kills = killed(run, again, arguments.kills, labelling, job.total)
            other = stored(again)
            result["killed"] = {
                "kills": kills,
                "units": other.job.total,
                "done": other.job.done,
                "labelled_once": other.versions == other.job.total == len(other.labels),
                "equal": other.labels == whole.labels,
            }
    return result


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--site", default="blocks.*.mlp")
    parser.add_argument("--describer", default="contrastive")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--workers", type=int, default=2)
    report(parser, measure)


if __name__ == "__main__":
    main()
