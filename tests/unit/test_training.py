from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.worlds import write_store
from vision_sae.activations.store import ActivationStore
from vision_sae.config import TrainConfig
from vision_sae.dictionaries.training import InputScaling, TopKTrainer, input_scaling, train
from vision_sae.errors import InvalidInputError

DIM, WIDTH, K = 8, 24, 3
SCALING = InputScaling(torch.linspace(-1, 1, DIM), 0.7, 1.0)
PARAMETERS = ("w_enc", "b_enc", "w_dec", "b_dec")


def trainer_with(dead: int = 0, **options: object) -> TopKTrainer:
    """A trainer in the middle of its work: no two parameters alike, ``dead`` features silent."""
    config = TrainConfig(k=K, dead_after=100, **options)  # type: ignore[arg-type]
    trainer = TopKTrainer(SCALING, WIDTH, config)
    trainer._encoder_dtype = torch.float32
    torch.manual_seed(1)
    for name in ("w_enc", "b_enc", "b_dec"):
        parameter = getattr(trainer.state, name)
        parameter.add_(0.3 * torch.randn(parameter.shape))
    trainer.state.silent[torch.randperm(WIDTH)[:dead]] = 101
    return trainer


def dense_gradients(trainer: TopKTrainer, vectors: Tensor) -> dict[str, Tensor]:
    """Autograd of the textbook loss, with dense tensors throughout."""
    s = trainer.state
    p = {name: getattr(s, name).clone().requires_grad_() for name in PARAMETERS}
    z = (vectors - trainer.scaling.mean) * trainer.scaling.scale
    pre = (z - p["b_dec"]) @ p["w_enc"].T + p["b_enc"]
    kept = torch.zeros_like(pre).scatter(1, pre.topk(K, dim=1).indices, 1.0)
    x_hat = (pre * kept).relu() @ p["w_dec"] + p["b_dec"]
    loss = (z - x_hat).square().sum(1).mean()

    dead = s.silent > trainer.config.dead_after
    k_aux = DIM // 2
    if dead.any():
        error = (z - x_hat).detach()
        of_dead = pre.masked_fill(~dead, -torch.inf)
        top = of_dead.topk(min(k_aux, int(dead.sum())), dim=1).indices
        kept = torch.zeros_like(pre).scatter(1, top, 1.0)
        aux = (pre * kept).relu() @ p["w_dec"]  # without b_dec
        scale = trainer.config.aux_coefficient * min(1, int(dead.sum()) / k_aux)
        loss = loss + scale * (error - aux).square().sum(1).mean()
    loss.backward()
    return {name: parameter.grad for name, parameter in p.items()}  # type: ignore[misc]


@pytest.mark.parametrize("dead", [0, 2, 4, 15], ids=lambda n: f"{n}_dead")
@pytest.mark.parametrize("name", PARAMETERS)
def test_hand_written_gradients_equal_autograd(
    monkeypatch: pytest.MonkeyPatch, dead: int, name: str
) -> None:
    trainer = trainer_with(dead)
    got: dict[str, Tensor] = {}
    monkeypatch.setattr(trainer, "_update", got.update)
    vectors = torch.randn(32, DIM, generator=torch.Generator().manual_seed(2))
    expected = dense_gradients(trainer, vectors)
    trainer.step(vectors)
    torch.testing.assert_close(got[name], expected[name], rtol=1e-5, atol=1e-5)


def test_aux_coefficient_of_zero_leaves_dead_features_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    got: dict[str, Tensor] = {}
    trainer = trainer_with(15, aux_coefficient=0.0)
    monkeypatch.setattr(trainer, "_update", got.update)
    vectors = torch.randn(1, DIM)
    trainer.step(vectors)
    assert (got["b_enc"] != 0).sum() <= K


def test_decoder_rows_keep_unit_norm() -> None:
    trainer = trainer_with()
    for _ in range(5):
        trainer.step(torch.randn(32, DIM))
    norms = trainer.state.w_dec.norm(dim=1)
    torch.testing.assert_close(norms, torch.ones(WIDTH))


def test_gradient_loses_its_part_along_each_decoder_row() -> None:
    trainer = trainer_with()
    rows = trainer.state.w_dec.clone()
    gradients = {name: torch.randn_like(getattr(trainer.state, name)) for name in PARAMETERS}
    trainer._update(gradients)
    torch.testing.assert_close(
        (gradients["w_dec"] * rows).sum(1), torch.zeros(WIDTH), rtol=0, atol=1e-6
    )


def test_initial_encoder_is_the_decoder_of_unit_rows() -> None:
    state = TopKTrainer(SCALING, WIDTH, TrainConfig(k=K)).state
    assert torch.equal(state.w_enc, state.w_dec)
    assert state.w_enc.data_ptr() != state.w_dec.data_ptr()
    torch.testing.assert_close(state.w_dec.norm(dim=1), torch.ones(WIDTH))


def test_learning_rate_by_hand() -> None:
    # 10 steps: 2 of warm-up, 5 of decay. Warm-up: 1/2, 2/2. Decay: (10 - done) / 5 from done = 5.
    config = TrainConfig(k=K, steps=10, warmup=0.2, decay=0.5, learning_rate=1.0)
    trainer, rates = TopKTrainer(SCALING, WIDTH, config), []
    for done in range(10):
        trainer.steps_done = done
        rates.append(trainer._learning_rate())
    assert rates == pytest.approx([0.5, 1, 1, 1, 1, 1, 0.8, 0.6, 0.4, 0.2])


def test_silence_counts_rows_since_a_feature_fired() -> None:
    trainer = trainer_with()
    for _ in range(3):
        trainer.step(torch.randn(1, DIM))
    assert set(trainer.state.silent.tolist()) <= {0, 1, 2, 3}
    assert (trainer.state.silent == 0).sum() <= K
    assert (trainer.state.silent == 3).sum() >= WIDTH - 3 * K


def test_report_of_a_perfect_dictionary() -> None:
    config = TrainConfig(k=DIM, learning_rate=1e-9)
    trainer = TopKTrainer(InputScaling(torch.zeros(DIM), 1.0, 0.0), 2 * DIM, config)
    both = torch.cat([torch.eye(DIM), -torch.eye(DIM)])
    trainer.state.w_enc.copy_(both)
    trainer.state.w_dec.copy_(both)
    report = trainer.step(torch.randn(64, DIM))
    assert report.fvu < 1e-4
    assert report.l0 == DIM


def test_folded_dictionary_on_raw_vectors_equals_the_trainer_on_scaled_ones() -> None:
    trainer, x = trainer_with(), torch.randn(20, DIM)
    sae, scale = trainer.dictionary(), trainer.scaling.scale
    z = (x - trainer.scaling.mean) * scale
    indices, values, _ = trainer._encode(z - trainer.state.b_dec)
    codes = sae.encode(x)
    assert torch.equal(codes.indices[codes.values > 0], indices[values > 0])
    torch.testing.assert_close(codes.values[codes.values > 0], values[values > 0] / scale)
    dense = torch.zeros(20, WIDTH).scatter_(1, indices, values)
    z_hat = dense @ trainer.state.w_dec + trainer.state.b_dec
    torch.testing.assert_close(sae.decode(codes), z_hat / scale + trainer.scaling.mean)


def test_more_active_features_than_features_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="k = 25 .* 24 features") as caught:
        TopKTrainer(SCALING, WIDTH, TrainConfig(k=25))
    assert caught.value.field == "k"


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
    x = torch.cat(list(store.batches(store.site(None), 1000)))
    z = (x - scaling.mean) * scaling.scale
    torch.testing.assert_close(z.mean(0), torch.zeros(6), rtol=0, atol=1e-5)
    assert float(z.square().sum(1).mean()) == pytest.approx(1, rel=1e-5)


def test_constant_vectors_are_refused(tmp_path: Path) -> None:
    store = write_store(tmp_path / "s", [np.ones((4, 4, 2))])
    with pytest.raises(InvalidInputError, match="nothing to train on"):
        input_scaling(store, store.site(None))


def planted(directory: Path, atoms: int = 20, dim: int = 24) -> tuple[ActivationStore, Tensor]:
    """A store of sums of two or three of ``atoms`` directions, and the directions."""
    random = np.random.default_rng(0)
    directions = random.normal(size=(atoms, dim))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    present = random.random((600 * 4, atoms)).argsort(axis=1) < random.integers(2, 4, (2400, 1))
    rows = (present * random.uniform(1, 2, present.shape)) @ directions
    store = write_store(directory, [rows.reshape(600, 4, dim)])
    return store, torch.from_numpy(directions).float()


PLANTED = TrainConfig(
    expansion=2, k=3, steps=400, batch_size=256, learning_rate=5e-3, dead_after=5000
)


def test_training_finds_planted_atoms(tmp_path: Path) -> None:
    store, atoms = planted(tmp_path / "s")
    sae = train(store, PLANTED, progress=False)
    matched = (atoms @ sae.decoder.T).max(dim=1).values
    assert float(matched.mean()) > 0.9


def test_training_is_deterministic(tmp_path: Path) -> None:
    store, _ = planted(tmp_path / "s")
    config = PLANTED.model_copy(update={"steps": 5})
    a, b = (train(store, config, progress=False) for _ in range(2))
    assert torch.equal(a.w_enc, b.w_enc)
    assert torch.equal(a.w_dec, b.w_dec)


def test_seed_changes_the_dictionary(tmp_path: Path) -> None:
    store, _ = planted(tmp_path / "s")
    a, b = (
        train(store, PLANTED.model_copy(update={"steps": 1, "seed": seed}), progress=False)
        for seed in (0, 1)
    )
    assert not torch.equal(a.w_dec, b.w_dec)


@pytest.mark.parametrize("aux", [0.0, 1 / 32])
def test_only_aux_k_revives_dead_features(tmp_path: Path, aux: float) -> None:
    store, _ = planted(tmp_path / "s")
    (rows,) = store.batches(store.site(None), 10_000)
    changes = {"k": 1, "aux_coefficient": aux, "dead_after": 1000, "decay": 0.0}
    config = PLANTED.model_copy(update=changes)
    trainer = TopKTrainer(input_scaling(store, store.site(None)), 16, config)
    weak = slice(4, 16)  # the bias of the four others keeps them from ever being the largest
    trainer.state.w_enc[weak] *= 0.01
    trainer.state.b_enc[:4] = 1
    for _ in range(30):
        for batch in rows.split(256):
            trainer.step(batch)
    revived = (trainer.state.silent[weak] < 1000).float().mean()
    assert revived > 0.8 if aux else revived == 0


def test_checkpoint_resumes_to_the_same_bits(tmp_path: Path) -> None:
    store, _ = planted(tmp_path / "s")
    config = PLANTED.model_copy(update={"steps": 20, "checkpoint_steps": 7, "dead_after": 300})
    undisturbed = train(store, config, progress=False)
    checkpoint = tmp_path / "c.safetensors"

    class Killed(BaseException):
        pass

    def die_at_step_17(trainer: TopKTrainer, vectors: Tensor) -> object:
        if trainer.steps_done == 17:
            raise Killed
        return step(trainer, vectors)

    step = TopKTrainer.step
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(TopKTrainer, "step", die_at_step_17)
        train(store, config, checkpoint=checkpoint, progress=False)
    resumed = train(store, config, checkpoint=checkpoint, progress=False)
    for name in PARAMETERS:
        assert torch.equal(getattr(resumed, name), getattr(undisturbed, name))
