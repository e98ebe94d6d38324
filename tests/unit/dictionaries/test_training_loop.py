from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.worlds.tiny import small_section, write_store
from vision_sae.activations.store import ActivationStore
from vision_sae.config import TrainConfig, with_values
from vision_sae.dictionaries.protocol import Dictionary
from vision_sae.dictionaries.training import loop
from vision_sae.dictionaries.training.loop import train, train_together
from vision_sae.dictionaries.training.scaling import input_scaling
from vision_sae.dictionaries.training.sparse import SparseLearner
from vision_sae.dictionaries.training.step import StepReport
from vision_sae.errors import InvalidInputError

PLANTED = TrainConfig(
    expansion=2, k=3, steps=400, batch_size=256, learning_rate=5e-3, dead_after=5000
)
SHORT = PLANTED.model_copy(update={"steps": 20, "checkpoint_steps": 7, "dead_after": 300})
TRAINED_BY_STEPS = ("topk", "batch_topk", "matryoshka", "relu", "jumprelu", "gated", "archetypal")


@pytest.fixture
def planted(tmp_path: Path) -> tuple[ActivationStore, Tensor]:
    """A store of sums of two or three of 20 directions, and the directions."""
    random = np.random.default_rng(0)
    directions = random.normal(size=(20, 24))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    present = random.random((600 * 4, 20)).argsort(axis=1) < random.integers(2, 4, (2400, 1))
    rows = (present * random.uniform(1, 2, present.shape)) @ directions
    store = write_store(tmp_path / "store", [rows.reshape(600, 4, 24)])
    return store, torch.from_numpy(directions).float()


def same(a: Dictionary, b: Dictionary) -> bool:
    return torch.equal(a.decoder, b.decoder) and torch.equal(a.bias, b.bias)


def test_scaling_by_hand(tmp_path: Path) -> None:
    # Two images of four patches: (1, 4) and (3, 4). Mean (2, 4), |mean| = sqrt(20); every row is
    # at distance 1 of it: scale 1, mean to std sqrt(20).
    vectors = np.array([[[1, 4]] * 4, [[3, 4]] * 4], dtype=np.float32)
    store = write_store(tmp_path / "s", [vectors])
    scaling = input_scaling(store, store.site(None))
    assert scaling.mean.tolist() == [2, 4]
    assert scaling.scale == pytest.approx(1)
    assert scaling.mean_to_std == pytest.approx(20**0.5)


def test_scaled_rows_have_zero_mean_and_unit_mean_square_norm(tmp_path: Path) -> None:
    vectors = np.random.default_rng(0).normal(5, 3, (50, 4, 6))
    store = write_store(tmp_path / "s", [vectors[:20], vectors[20:]])
    scaling = input_scaling(store, store.site(None))
    z = scaling.apply(torch.cat(list(store.batches(store.site(None), 1000))))
    torch.testing.assert_close(z.mean(0), torch.zeros(6), rtol=0, atol=1e-5)
    assert float(z.square().sum(1).mean()) == pytest.approx(1, rel=1e-5)


def test_scaling_is_that_of_the_transformed_rows(tmp_path: Path) -> None:
    store = write_store(tmp_path / "s", [np.random.default_rng(0).normal(size=(9, 4, 3))])
    plain = input_scaling(store, store.site(None))
    doubled = input_scaling(store, store.site(None), lambda rows: 2 * rows)
    torch.testing.assert_close(doubled.mean, 2 * plain.mean)
    assert doubled.scale == pytest.approx(plain.scale / 2)


def test_constant_vectors_are_refused(tmp_path: Path) -> None:
    store = write_store(tmp_path / "s", [np.ones((4, 4, 2))])
    with pytest.raises(InvalidInputError, match="nothing to train on"):
        input_scaling(store, store.site(None))


def test_training_finds_planted_atoms(planted: tuple[ActivationStore, Tensor]) -> None:
    store, atoms = planted
    sae = train(store, PLANTED, progress=False)
    matched = (atoms @ sae.decoder.T).max(dim=1).values
    assert float(matched.mean()) > 0.9


def test_seed_changes_the_dictionary(planted: tuple[ActivationStore, Tensor]) -> None:
    a, b = (
        train(planted[0], SHORT.model_copy(update={"seed": seed}), progress=False)
        for seed in (0, 1)
    )
    assert not same(a, b)


@pytest.mark.parametrize("architecture", TRAINED_BY_STEPS)
def test_killed_training_resumes_to_the_same_bits(
    planted: tuple[ActivationStore, Tensor],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    architecture: str,
) -> None:
    store, _ = planted
    section = small_section(architecture)
    config = with_values(SHORT, "train", {"architecture": architecture} | section)
    undisturbed = train(store, config, progress=False)
    checkpoint, rate = tmp_path / "c.safetensors", loop.learning_rate

    class Killed(BaseException):
        pass

    def die_at_step_17(config: TrainConfig, step: int) -> float:
        if step == 17:
            raise Killed
        return rate(config, step)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(loop, "learning_rate", die_at_step_17)
        train(store, config, checkpoint=checkpoint, progress=False)
    assert checkpoint.is_file()
    assert same(train(store, config, checkpoint=checkpoint, progress=False), undisturbed)


def test_dictionaries_trained_in_lockstep_are_those_trained_alone(
    planted: tuple[ActivationStore, Tensor],
) -> None:
    changes: list[dict[str, object]] = [
        {},
        {"k": 5},
        {"seed": 1, "expansion": 3},
        {"architecture": "batch_topk", "orthogonality": 0.1},
    ]
    configs = [SHORT.model_copy(update=change) for change in changes]
    together = train_together(planted[0], configs, progress=False).dictionaries
    for config, made in zip(configs, together, strict=True):
        assert same(made, train(planted[0], config, progress=False))


def test_a_lockstep_is_even_again_at_every_checkpoint(
    planted: tuple[ActivationStore, Tensor], tmp_path: Path
) -> None:
    """Within a stretch learners run apart; what is saved is the same step of all."""
    configs = [SHORT.model_copy(update={"k": k, "checkpoint_steps": 7}) for k in (3, 5, 8)]
    checkpoint = tmp_path / "c.safetensors"
    undisturbed = train_together(planted[0], configs, progress=False).dictionaries
    train_together(planted[0], configs, checkpoint=checkpoint, progress=False)
    saved = load_file(checkpoint)
    assert {int(t) for name, t in saved.items() if name.endswith("steps")} == {14}
    resumed = train_together(planted[0], configs, checkpoint=checkpoint, progress=False)
    for one, other in zip(resumed.dictionaries, undisturbed, strict=True):
        assert same(one, other)


@pytest.mark.parametrize("name", ["steps", "batch_size", "shuffle_seed"])
def test_what_one_pass_cannot_serve_is_refused_by_name(
    planted: tuple[ActivationStore, Tensor], name: str
) -> None:
    other = SHORT.model_copy(update={name: 19})
    with pytest.raises(InvalidInputError, match=f"must share {name}") as caught:
        train_together(planted[0], [SHORT, other], progress=False)
    assert caught.value.field == name


def test_the_whole_training_is_counted(planted: tuple[ActivationStore, Tensor]) -> None:
    made = train_together(planted[0], [SHORT], progress=False)
    assert 0 <= made.idle_share <= 1
    assert made.samples_per_second == pytest.approx(20 * 256 / made.seconds)


def test_penalties_reach_the_learner(
    planted: tuple[ActivationStore, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Tensor | None] = []
    step = SparseLearner.step

    def watched(
        self: SparseLearner, z: Tensor, rate: float, *, decoder_gradient: Tensor | None = None
    ) -> StepReport:
        seen.append(decoder_gradient)
        return step(self, z, rate, decoder_gradient=decoder_gradient)

    monkeypatch.setattr(SparseLearner, "step", watched)
    one = SHORT.model_copy(update={"steps": 1})
    train_together(planted[0], [one], progress=False)
    train_together(planted[0], [one.model_copy(update={"orthogonality": 1.0})], progress=False)
    mutual = [one.model_copy(update={"agreement": 1.0, "seed": seed}) for seed in (0, 1)]
    train_together(planted[0], mutual, progress=False)
    assert [g is not None for g in seen] == [False, True, True, True]
    assert all(g.abs().max() > 0 for g in seen if g is not None)
