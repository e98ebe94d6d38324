"""SIGKILL at chosen instants: what is published stays readable, and work resumes to the same bits.

Each test runs a stage in a process of its own that kills itself with SIGKILL at the instant named.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.worlds import SITE, picture_folder
from vision_sae.activations.store import ActivationStore
from vision_sae.bundles.bundle import Bundle
from vision_sae.errors import NotFoundError
from vision_sae.files import MANIFEST

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
ROOT = Path(__file__).parents[2]
STAGES = f"""
import os, signal, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from tests.worlds import tiny_model
from vision_sae import files
from vision_sae.activations import harvest as harvest_module
from vision_sae.activations.store import ActivationStore
from vision_sae.bundles.build import build
from vision_sae.config import BuildConfig, HarvestConfig, TrainConfig
from vision_sae.dictionaries import training
from vision_sae.dictionaries.pipeline import train_dictionary
from vision_sae.pictures.folder import image_folder

root = Path(sys.argv[1])

def kill_on_call(module, name, number):
    real, calls = getattr(module, name), [0]
    def wrapped(*args, **kwargs):
        calls[0] += 1
        if calls[0] == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **kwargs)
    setattr(module, name, wrapped)

def harvest():
    config = HarvestConfig(sites=("{SITE}",), batch_size=4, shard_images=4)
    return harvest_module.harvest(
        tiny_model(), image_folder(root / "pictures"), root / "store", config, progress=False
    )

def train(seed=0):
    config = TrainConfig(
        expansion=2, k=4, steps=40, batch_size=64, checkpoint_steps=10, dead_after=500, seed=seed
    )
    train_dictionary(
        ActivationStore(root / "store"), root / "dictionary", config, {{}}, progress=False
    )

def make(exemplars):
    config = BuildConfig(exemplars=exemplars)
    build(
        ActivationStore(root / "store"), root / "dictionary", root / "bundle", config,
        progress=False,
    )
"""


def run(root: Path, body: str) -> int:
    """Run ``body`` after `STAGES`; returns the process' exit status."""
    done = subprocess.run(
        [sys.executable, "-c", STAGES + body, str(root)],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode not in (0, -signal.SIGKILL):
        raise AssertionError(done.stderr)
    return done.returncode


def file_table(directory: Path) -> dict[str, object]:
    """The published files with their hashes."""
    table: dict[str, object] = json.loads((directory / MANIFEST).read_text())["files"]
    return table


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store and a dictionary made without any interruption."""
    root = tmp_path_factory.mktemp("undisturbed")
    picture_folder(root / "pictures", 18)
    assert run(root, "harvest(); train()") == 0
    return root


@pytest.fixture
def root(tmp_path: Path, undisturbed: Path) -> Path:
    """A place with the pictures of the undisturbed run."""
    (tmp_path / "pictures").symlink_to(undisturbed / "pictures")
    return tmp_path


@pytest.mark.parametrize("shard", [1, 4])
def test_harvest_resumes_to_the_same_bytes(root: Path, undisturbed: Path, shard: int) -> None:
    killed = f"kill_on_call(harvest_module, '_write', {shard}); harvest()"
    assert run(root, killed) == -signal.SIGKILL
    with pytest.raises(NotFoundError):
        ActivationStore(root / "store")
    assert run(root, "harvest()") == 0
    assert file_table(root / "store") == file_table(undisturbed / "store")


def test_harvest_keeps_whole_shards(root: Path) -> None:
    """Killed at the third write, two shards of four pictures need no second forward pass."""
    assert run(root, "kill_on_call(harvest_module, '_write', 3); harvest()") == -signal.SIGKILL
    counting = """
real, images = harvest_module._compute, []
def compute(model, decoded, config, advance):
    images.append(len(decoded))
    return real(model, decoded, config, advance)
harvest_module._compute = compute
harvest()
assert sum(images) == 18 - 8, images
"""
    assert run(root, counting) == 0


@pytest.mark.parametrize("checkpoint", [1, 3])
def test_training_resumes_to_the_same_bits(root: Path, undisturbed: Path, checkpoint: int) -> None:
    (root / "store").symlink_to(undisturbed / "store")
    killed = f"kill_on_call(training.TopKTrainer, 'save', {checkpoint}); train()"
    assert run(root, killed) == -signal.SIGKILL
    assert not (root / "dictionary" / MANIFEST).exists()
    assert run(root, "train()") == 0
    assert file_table(root / "dictionary") == file_table(undisturbed / "dictionary")


@pytest.mark.parametrize(
    "instant",
    [
        "kill_on_call(files, 'write_json', 1)",
        "kill_on_call(os, 'rename', 1)",
        "kill_on_call(os, 'rename', 2)",
        "kill_on_call(files.shutil, 'rmtree', 3)",
    ],
    ids=["before the manifest", "before moving the old aside", "between the renames", "after both"],
)
def test_a_killed_build_leaves_a_readable_bundle(
    root: Path, undisturbed: Path, instant: str
) -> None:
    (root / "store").symlink_to(undisturbed / "store")
    (root / "dictionary").symlink_to(undisturbed / "dictionary")
    assert run(root, "make(exemplars=5)") == 0
    assert run(root, f"{instant}; make(exemplars=7)") == -signal.SIGKILL
    assert Bundle(root / "bundle").manifest["build"]["exemplars"] in (5, 7)
    assert run(root, "make(exemplars=9)") == 0
    assert Bundle(root / "bundle").manifest["build"]["exemplars"] == 9
