"""Faults: what mistakes and broken input of every kind do to commands, rpcs and files.

``python -m tests.benchmarks.faults`` prints JSON. Each figure beside ``tried`` counts what must
not be, and should be 0: tracebacks and refusals that do not name what was wrong (commands),
failures that nobody foresaw and names of Python classes in messages (rpcs), runs that a picture
ended, files lost to an output, and settings of foreign checkpoints that changed what comes out
without a word. Every fault is told on stderr. ``--pictures`` and ``--calls`` say how many are
tried.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.fault import commands, outputs, pictures
from tests.worlds import fuzz, serving
from tests.worlds import wire as wire_world
from tests.worlds.foreign_settings import CHECKPOINTS, MEANINGFUL, right, strange
from tests.worlds.tiny import tiny_model
from vision_sae.activations.harvest import harvest
from vision_sae.config import HarvestConfig
from vision_sae.errors import VisionSaeError
from vision_sae.pictures.folder import image_folder

_FOLDER_SIZE = 500
"""Pictures a run reads: a run that a picture ends costs no more than those behind it."""


def tell(fault: str) -> None:
    """Show a fault, but no more than a line of it."""
    print(" ".join(fault.split())[:400], file=sys.stderr)


def of_commands(root: Path, seconds: int) -> dict[str, int]:
    """Every command with one wrong argument at a time, those of the client at real servers."""
    world = commands.make_world(root / "world")
    outputs.furnish(world)
    result = {"tried": 0, "tracebacks": 0, "unnamed": 0, "statuses": 0, "ended_by_the_clock": 0}
    pictured = wire_world.picture_state(root / "seeing")
    drawing = wire_world.drawing_state(root / "painting")
    with serving.address(pictured) as seeing, serving.address(drawing) as painting:
        for table, options in (
            (commands.WORKING + commands.REFUSED_ONLY, ()),
            (commands.ASKING, ("--address", seeing)),
            (commands.DRAWING, ("--address", painting)),
        ):
            for case in commands.cases(table, options):
                temporary = Path(tempfile.mkdtemp(dir=root))
                _count(case, commands.try_case(case, world, temporary, seconds), result)
                shutil.rmtree(temporary)
    return result


def _count(case: commands.Wrong, seen: commands.Seen, result: dict[str, int]) -> None:
    found = {
        "tracebacks": bool(seen.traceback),
        "unnamed": seen.unnamed(case),
        "statuses": seen.status is not None and seen.status not in commands.STATUSES,
    }
    result["tried"] += 1
    result["ended_by_the_clock"] += seen.status is None
    for name, is_fault in found.items():
        result[name] += is_fault
        if is_fault:
            tell(f"{name}: {case}: {seen.traceback or seen.output[-300:]}")


def of_outputs(root: Path, seconds: int) -> dict[str, int]:
    """Every command that writes, told to write where something stands."""
    world = commands.make_world(root / "world")
    outputs.furnish(world)
    shutil.copytree(world, root / "backup", symlinks=True)
    before, result = outputs.contents(world), {"tried": 0, "lost": 0}
    for case in outputs.outputs():
        temporary = Path(tempfile.mkdtemp(dir=root))
        outputs.try_output(case, world, temporary, seconds)
        result["tried"] += 1
        if gone := outputs.lost(before, outputs.contents(world)):
            result["lost"] += 1
            tell(f"lost {gone}: {case}")
            shutil.rmtree(world)
            shutil.copytree(root / "backup", world, symlinks=True)
        shutil.rmtree(temporary)
    return result


def of_pictures(root: Path, count: int) -> dict[str, int]:
    """Broken pictures, harvested by the folder; each is stored, or listed with a reason."""
    model, config = tiny_model(), HarvestConfig(sites=("blocks.1.update",), thumbnail=16)
    result = {"tried": 0, "runs_ended": 0, "unaccounted": 0, "read": 0}
    for start in range(0, count, _FOLDER_SIZE):
        folder = root / f"pictures-{start}"
        tried = pictures.write_files(folder, min(_FOLDER_SIZE, count - start), seed=start)
        result["tried"] += tried
        try:
            store = harvest(
                model, image_folder(folder), root / f"store-{start}", config, progress=False
            )
        except Exception as error:  # whatever it is, it ended the run
            result["runs_ended"] += 1
            tell(f"run ended: seed {start}: {error!r}")
            continue
        result["read"] += len(store.images)
        result["unaccounted"] += tried - len(set(pictures.accounted(store)))
    return result


def of_rpcs(root: Path, calls: int) -> dict[str, int]:
    """Calls of every rpc: right requests with a field changed, random ones, damaged bytes."""
    result = {"tried": 0, "internal_or_unknown": 0, "class_names": 0, "logged": 0}
    pictured = wire_world.picture_state(root / "seeing")
    drawing = wire_world.drawing_state(root / "painting")
    with fuzz.Log.kept() as log:
        for state, right in (
            (pictured, wire_world.picture_requests()),
            (drawing, wire_world.generation_requests()),
        ):
            with serving.serving(state) as channel:
                wire = fuzz.Wire(channel)
                for method, messages in fuzz.tries(random.Random(0), calls, right):
                    outcome = wire.send(method, messages)
                    result["tried"] += 1
                    result["internal_or_unknown"] += bool(outcome.unforeseen)
                    result["class_names"] += bool(outcome.class_names)
                    for fault in outcome.faults:
                        tell(f"rpc: {fault}")
    result["logged"] = len(log.said)
    return result


def of_checkpoints(root: Path) -> dict[str, int]:
    """Foreign checkpoints, each setting changed to strange values: imported right, or refused."""
    result = {"tried": 0, "refused": 0, "silent_wrong": 0}
    for name, checkpoint in CHECKPOINTS.items():
        for key, value, settings in strange(checkpoint):
            folder = Path(tempfile.mkdtemp(dir=root))
            result["tried"] += 1
            try:
                sound = right(checkpoint.write(folder, settings), checkpoint.expected)
            except VisionSaeError:
                result["refused"] += 1
                continue
            if not sound and (key, value) not in MEANINGFUL:
                result["silent_wrong"] += 1
                tell(f"silently wrong: {name}: {key} {value!r}")
    return result


def main() -> None:
    """Try everything."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--pictures", type=int, default=5000)
    parser.add_argument("--calls", type=int, default=100, help="Of each rpc.")
    parser.add_argument("--seconds", type=int, default=10, help="That a command may go on for.")
    parts = ("commands", "rpcs", "pictures", "outputs", "checkpoints")
    parser.add_argument("--only", choices=parts, action="append")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    work: dict[str, Callable[[Path], dict[str, Any]]] = {
        "commands": lambda root: of_commands(root, given.seconds),
        "rpcs": lambda root: of_rpcs(root, given.calls),
        "pictures": lambda root: of_pictures(root, given.pictures),
        "outputs": lambda root: of_outputs(root, given.seconds),
        "checkpoints": of_checkpoints,
    }
    result = {}
    for name in given.only or parts:
        with tempfile.TemporaryDirectory() as temporary:
            root = Path(temporary)
            (root / "cwd").mkdir()
            os.chdir(root / "cwd")
            result[name] = work[name](root)
        os.chdir("/")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
