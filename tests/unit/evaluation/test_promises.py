"""What every architecture promises, on worlds whose atoms are known.

Each promise is kept over three seeds, and stands beside the same training without its mechanism
wherever a promise could be kept by luck.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.planted.absorption import planted_absorption
from tests.planted.dictionaries import PlantedWorld, planted_world
from tests.worlds.tiny import write_store
from vision_sae.activations.store import ActivationStore
from vision_sae.config import EndToEndConfig, TrainConfig, with_values
from vision_sae.dictionaries.downstream import downstream
from vision_sae.dictionaries.ensemble import Bagging, Boosting
from vision_sae.dictionaries.matching import match
from vision_sae.dictionaries.metrics import evaluate, explained_variance
from vision_sae.dictionaries.pipeline import make_dictionary
from vision_sae.dictionaries.protocol import Dictionary
from vision_sae.dictionaries.sae import Sae
from vision_sae.dictionaries.training.distributed import Group
from vision_sae.dictionaries.training.end_to_end import train_end_to_end
from vision_sae.dictionaries.training.loop import new_learner, train, train_together
from vision_sae.dictionaries.training.scaling import input_scaling
from vision_sae.dictionaries.training.step import learning_rate
from vision_sae.models.grid import PatchGrid, Preprocessing
from vision_sae.models.protocol import ModelOutput
from vision_sae.models.vit import VitModel

pytestmark = pytest.mark.slow

SEEDS = (0, 1, 2)
ROWS = 16_384
CONFIG = TrainConfig(
    k=3, expansion=4, steps=600, batch_size=256, learning_rate=1e-2, dead_after=5000
)


def config(**changes: Any) -> TrainConfig:
    return with_values(CONFIG, "train", changes)


def store_of(world: PlantedWorld, directory: Path) -> ActivationStore:
    vectors = world.sample(ROWS).vectors
    return write_store(directory / "store", [vectors.reshape(-1, 4, vectors.shape[1]).numpy()])


def members(store: ActivationStore, settings: TrainConfig) -> list[Dictionary]:
    """A dictionary for each of `SEEDS`, trained on one pass."""
    configs = [settings.model_copy(update={"seed": seed}) for seed in SEEDS]
    return train_together(store, configs, progress=False).dictionaries


def ev(world: PlantedWorld, dictionary: Dictionary) -> float:
    """Explained variance on rows that were not trained on."""
    return evaluate(dictionary, [world.sample(8192, seed=1).vectors]).explained_variance


def loose_atoms(seed: int) -> PlantedWorld:
    """48 atoms in 32 dimensions, three of them on at a time, each by itself."""
    return planted_world(seed, atoms=48, dim=32, active=3.0, children=0, lift=1.0)


def families(seed: int, *, frequency: float) -> PlantedWorld:
    """Eight parents of this frequency, two children of each, and eight atoms without a family.

    The atoms are orthonormal. A child is on in a quarter of its parent's rows, and the others are
    as frequent as a child.
    """
    directions = torch.randn(48, 48, generator=torch.Generator().manual_seed(seed))
    parents = torch.tensor([-1] * 8 + [i // 2 for i in range(16)] + [-1] * 8)
    return PlantedWorld(
        atoms=torch.linalg.qr(directions).Q[:32].contiguous(),
        parents=parents,
        groups=torch.where(parents < 0, torch.arange(32), parents),
        frequencies=torch.tensor([frequency] * 8 + [frequency / 4] * 24, dtype=torch.float64),
        group_rate=0.5,
        lift=1.0,
        noise=0.02,
        seed=seed,
    )


@pytest.fixture(scope="module")
def loose(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[PlantedWorld, ActivationStore]]:
    """`loose_atoms` of every seed."""
    worlds = [loose_atoms(seed) for seed in SEEDS]
    return [(world, store_of(world, tmp_path_factory.mktemp("loose"))) for world in worlds]


@pytest.mark.parametrize(
    ("architecture", "least"), [("topk", 0.95), ("matryoshka", 0.9), ("relu", 0.9)]
)
def test_every_atom_is_found(
    architecture: str, least: float, loose: list[tuple[PlantedWorld, ActivationStore]]
) -> None:
    for seed, (world, store) in zip(SEEDS, loose, strict=True):
        made = train(store, config(architecture=architecture, seed=seed), progress=False)
        found = match(world.atoms, made.decoder)
        assert found.floor < 0.5
        assert found.pairs.mean >= 0.98
        assert float(found.pairs.similarities.min()) >= least


@pytest.mark.parametrize("architecture", ["batch_topk", "jumprelu", "gated"])
def test_nearly_every_atom_is_found(
    architecture: str, loose: list[tuple[PlantedWorld, ActivationStore]]
) -> None:
    # Which rows a feature may fire on is itself learned here: in a short training some features
    # settle between two rare atoms.
    for seed, (world, store) in zip(SEEDS, loose, strict=True):
        made = train(store, config(architecture=architecture, seed=seed), progress=False)
        found = match(world.atoms, made.decoder)
        assert found.floor < 0.5
        assert found.pairs.mean >= 0.94
        assert float((found.pairs.similarities > 0.9).float().mean()) >= 0.8


@pytest.mark.parametrize("architecture", ["topk", "batch_topk", "matryoshka"])
@pytest.mark.parametrize("seed", SEEDS)
def test_aux_k_revives_features_that_are_too_quiet_to_fire(seed: int, architecture: str) -> None:
    # 16 of 64 features are as loud as ever: too few for 48 atoms.
    world = loose_atoms(seed)
    vectors = world.sample(ROWS).vectors
    z = vectors - vectors.mean(0)
    z /= z.square().sum(1).mean().sqrt()

    def trained(coefficient: float) -> tuple[float, float]:
        """(share of dead features, mean cosine to the atoms)"""
        settings = config(
            architecture=architecture, expansion=2, aux_coefficient=coefficient, seed=seed
        )
        learner = new_learner(32, settings, z, group=Group())
        learner.tensors()["w_enc"][16:] *= 0.1
        learner.refresh()
        random = torch.Generator().manual_seed(seed)
        for step in range(settings.steps):
            rows = torch.randint(len(z), (settings.batch_size,), generator=random)
            report = learner.step(z[rows], learning_rate(settings, step))
        return float(report.dead), match(world.atoms, learner.decoder).pairs.mean

    dead, cosine = trained(CONFIG.aux_coefficient)
    dead_without, cosine_without = trained(0.0)
    assert dead < 0.35
    assert dead_without > 0.45
    assert cosine > 0.95
    assert cosine_without < 0.85


def test_orthogonality_lowers_absorption(tmp_path: Path) -> None:
    world = families(0, frequency=0.1)
    store = store_of(world, tmp_path)
    plain, orthogonal = (
        planted_absorption(
            world, members(store, config(expansion=1, steps=800, orthogonality=weight)), rows=8192
        )
        for weight in (0.0, 0.3)
    )
    assert min(plain.gaps) > 0.35  # TopK absorbs: there is something to lower
    assert max(orthogonal.gaps) < 0.6 * min(plain.gaps)


@pytest.mark.parametrize("seed", SEEDS)
def test_every_stage_of_boosting_explains_more(seed: int, tmp_path: Path) -> None:
    world = planted_world(seed)
    store = store_of(world, tmp_path)
    settings = config(k=2, expansion=2, steps=400, ensemble="boosting", members=3, seed=10 * seed)
    made = make_dictionary(store, settings, tmp_path, progress=False)
    assert isinstance(made, Boosting)
    stages = [ev(world, Boosting(made.members[:count])) for count in (1, 2, 3)]
    assert stages[1] > stages[0] + 0.1
    assert stages[2] > stages[1] + 0.03


@pytest.mark.parametrize("seed", SEEDS)
def test_bagging_explains_more_than_its_members_do_on_average(seed: int, tmp_path: Path) -> None:
    world = planted_world(seed)
    store = store_of(world, tmp_path)
    settings = config(k=2, expansion=2, steps=400, ensemble="bagging", members=3, seed=10 * seed)
    made = make_dictionary(store, settings, tmp_path, progress=False)
    assert isinstance(made, Bagging)
    alone = [ev(world, member) for member in made.members]
    assert ev(world, made) > sum(alone) / len(alone) + 0.03


@pytest.mark.parametrize("seed", SEEDS)
def test_mutual_regularisation_makes_seeds_agree(seed: int, tmp_path: Path) -> None:
    # 256 atoms for 32 features: which of them a dictionary takes up depends on its seed.
    world = planted_world(seed, atoms=256, active=3.0, exponent=0.2, children=0, lift=1.0)
    store = store_of(world, tmp_path)
    apart, together = (
        members(store, config(expansion=1, steps=500, agreement=weight)) for weight in (0.0, 0.3)
    )

    def agreement(dictionaries: Sequence[Dictionary]) -> float:
        pairs = [match(a.decoder, b.decoder).pairs.mean for a, b in combinations(dictionaries, 2)]
        return sum(pairs) / len(pairs)

    assert agreement(together) > agreement(apart) + 0.1
    # They do not agree at the cost of what they are for.
    for a, b in zip(apart, together, strict=True):
        assert ev(world, b) > ev(world, a) - 0.03


@pytest.mark.parametrize("seed", SEEDS)
def test_first_prefix_of_matryoshka_holds_the_frequent_parents(seed: int, tmp_path: Path) -> None:
    world = families(seed, frequency=0.2)
    settings = config(
        architecture="matryoshka",
        matryoshka={"prefixes": (1 / 4, 1)},
        expansion=1,
        k=4,
        steps=800,
        seed=seed,
    )
    made = train(store_of(world, tmp_path), settings, progress=False)
    pairs = match(world.atoms, made.decoder).pairs
    inside = pairs.right < made.width // 4
    # Chance would put a quarter of either there.
    assert float(inside[:8].float().mean()) >= 0.75
    assert float(inside[8:].float().mean()) <= 0.25
    assert float(pairs.similarities[:8].mean()) > 0.85


USED = 24


class HalfBlind:
    """Pictures are four site vectors of 48 numbers, and the head sees the first 24 of each."""

    grid = PatchGrid(rows=2, cols=2, special=0, patch_height=4, patch_width=4)
    dim = 48

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.block, self.head = nn.Identity(), nn.Linear(4 * USED, 16)
        with torch.no_grad():
            self.head.weight.mul_(5)  # classes that the vectors decide
        unused = nn.Linear(1, 1)
        self.module: nn.Module = nn.ModuleList([self.block, self.head, unused])
        self._blocks = [(self.block, nn.Identity(), unused)]

    def blocks(self) -> list[tuple[nn.Module, nn.Module, nn.Linear]]:
        return list(self._blocks)

    def forward(self, images: Tensor) -> ModelOutput:
        vectors = self.block(images.reshape(len(images), 4, self.dim))
        embedding = vectors[..., :USED].flatten(1)
        return ModelOutput(embedding, self.head(embedding))


@pytest.mark.parametrize("seed", SEEDS)
def test_end_to_end_ignores_what_the_head_does_not_use(seed: int, tmp_path: Path) -> None:
    # Equal variance in both halves, and places for two active features where four are on.
    halves = [
        planted_world(2 * seed + i, atoms=USED, dim=USED, active=2.0, children=0, lift=1.0)
        for i in range(2)
    ]
    rows, held_out = (
        torch.cat([half.sample(count, seed=draw).vectors for half in halves], dim=1)
        for count, draw in ((8192, 0), (4096, 1))
    )
    site = "blocks.0.resid"
    store = write_store(tmp_path / "store", [rows.reshape(-1, 4, 48).numpy()], site=site)
    model = VitModel("half-blind", HalfBlind(), Preprocessing(8, 8), dtype="float32")
    settings = config(k=2, expansion=2, steps=500, seed=seed)
    start = train(store, settings, progress=False)
    assert isinstance(start, Sae)
    mean = held_out.mean(0)

    def tuned(error_weight: float) -> tuple[float, float, float]:
        """(EV in the used half, EV in the unused half, distance of the outputs)"""
        further = EndToEndConfig(steps=400, images=64, error_weight=error_weight)
        made = train_end_to_end(
            model,
            site,
            list(rows.reshape(-1, 3, 8, 8)),
            start,
            input_scaling(store, site),
            settings.model_copy(update={"end_to_end": further}),
            progress=False,
        )
        x_hat = made.decode(made.encode(held_out))
        used, unused = (
            explained_variance(held_out[:, half], x_hat[:, half], mean[half])
            for half in (slice(USED), slice(USED, None))
        )
        pictures = held_out.reshape(-1, 3, 8, 8).split(256)
        return used, unused, downstream(model, site, made, pictures, mean=mean).with_sae

    used, unused, distance = tuned(0.0)
    # The same steps with a reconstruction error that drowns the outputs' distance.
    plainly_used, plainly_unused, plain_distance = tuned(1000.0)
    assert plainly_unused > 0.5
    assert unused < 0.2
    assert used > plainly_used + 0.05
    assert distance < 0.8 * plain_distance
