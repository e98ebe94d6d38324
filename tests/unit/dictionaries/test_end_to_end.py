from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.worlds.tiny import random_sae, tiny_model
from vision_sae.config import EndToEndConfig, TrainConfig
from vision_sae.dictionaries.downstream import output_distance
from vision_sae.dictionaries.kinds.topk import TopKLearner
from vision_sae.dictionaries.training import end_to_end
from vision_sae.dictionaries.training.end_to_end import end_to_end_step, train_end_to_end
from vision_sae.dictionaries.training.scaling import InputScaling
from vision_sae.dictionaries.training.sparse_cpu import CpuKernels
from vision_sae.errors import InvalidInputError
from vision_sae.models.hooks import at_patches
from vision_sae.models.vit import VitModel

SITE = "blocks.1.update"
CONFIG = TrainConfig(
    k=4, expansion=4, learning_rate=3e-3, warmup=0, decay=0.3,
    end_to_end=EndToEndConfig(steps=40, images=4, error_weight=0.0), checkpoint_steps=15,
)  # fmt: skip


@pytest.fixture(scope="module")
def model() -> VitModel:
    return tiny_model()


@pytest.fixture(scope="module")
def pictures() -> list[Tensor]:
    return list(torch.randn(12, 3, 32, 32, generator=torch.Generator().manual_seed(0)))


@pytest.fixture(scope="module")
def scaling(model: VitModel, pictures: list[Tensor]) -> InputScaling:
    with torch.no_grad(), model.capture([SITE]) as captured:
        model.forward(torch.stack(pictures))
    rows = captured[SITE][:, model.grid.special :].flatten(0, 1)
    mean = rows.mean(0)
    return InputScaling(mean, float((rows - mean).square().sum(1).mean() ** -0.5), 0.0)


def distance(model: VitModel, pictures: list[Tensor], sae: object) -> float:
    """Mean distance of the outputs with the reconstruction spliced in."""
    batch = torch.stack(pictures)

    def reconstruct(vectors: Tensor) -> Tensor:
        return sae.decode(sae.encode(vectors))  # type: ignore[attr-defined]

    with torch.no_grad():
        plain = model.forward(batch)
        with model.replace(SITE, at_patches(model.grid.special, reconstruct)):
            return float(output_distance(plain, model.forward(batch)).mean())


def test_gradient_is_that_of_the_outputs_distance(
    model: VitModel, pictures: list[Tensor], scaling: InputScaling
) -> None:
    learner = TopKLearner(32, CONFIG)
    learner._kernels = CpuKernels(learner.weights, dtype=torch.float32)  # choose exactly
    learner.weights.b_enc.fill_(0.05)
    images, w = torch.stack(pictures[:3]), learner.weights
    parameters = {n: getattr(w, n).clone().requires_grad_() for n in ("w_enc", "b_enc", "b_dec")}
    p = {**parameters, "w_dec": w.w_dec.clone()}

    def reconstruct(vectors: Tensor) -> Tensor:
        z = scaling.apply(vectors)
        pre = (z - p["b_dec"]) @ p["w_enc"].T + p["b_enc"]
        kept = torch.zeros_like(pre).scatter(1, pre.topk(CONFIG.k, dim=1).indices, 1.0)
        return ((pre * kept).relu() @ p["w_dec"] + p["b_dec"]) / scaling.scale + scaling.mean

    with torch.no_grad():
        plain = model.forward(images)
    with model.replace(SITE, at_patches(model.grid.special, reconstruct)):
        output_distance(plain, model.forward(images)).mean().backward()
    end_to_end_step(model, SITE, images, learner, scaling, 1e-3, error_weight=0.0)
    for name, parameter in parameters.items():
        assert parameter.grad is not None
        moment = getattr(learner.weights, f"m_{name}") / 0.1
        # float32 through two passes of the model: compare with the size of the whole gradient
        error = (moment - parameter.grad).norm() / parameter.grad.norm()
        assert error < 1e-2


def test_training_moves_the_outputs_less(
    model: VitModel, pictures: list[Tensor], scaling: InputScaling
) -> None:
    start = TopKLearner(32, CONFIG).dictionary(scaling)
    made = train_end_to_end(model, SITE, pictures, start, scaling, CONFIG, progress=False)
    assert distance(model, pictures, made) < 0.6 * distance(model, pictures, start)


def test_no_hook_stays_on_the_model(
    model: VitModel, pictures: list[Tensor], scaling: InputScaling
) -> None:
    before = model.forward(torch.stack(pictures)).embedding
    learner = TopKLearner(32, CONFIG)
    end_to_end_step(model, SITE, torch.stack(pictures), learner, scaling, 0.0, error_weight=1.0)
    assert torch.equal(model.forward(torch.stack(pictures)).embedding, before)


def test_killed_training_resumes_to_the_same_bits(
    model: VitModel,
    pictures: list[Tensor],
    scaling: InputScaling,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    start = TopKLearner(32, CONFIG).dictionary(scaling)
    undisturbed = train_end_to_end(model, SITE, pictures, start, scaling, CONFIG, progress=False)
    steps, step = 0, end_to_end.end_to_end_step

    class Killed(BaseException):
        pass

    def die_at_step_33(*args: object, **options: object) -> object:
        nonlocal steps
        steps += 1
        if steps == 33:
            raise Killed
        return step(*args, **options)  # type: ignore[arg-type]

    checkpoint = tmp_path / "c.safetensors"
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(end_to_end, "end_to_end_step", die_at_step_33)
        train_end_to_end(
            model, SITE, pictures, start, scaling, CONFIG, checkpoint=checkpoint, progress=False
        )
    resumed = train_end_to_end(
        model, SITE, pictures, start, scaling, CONFIG, checkpoint=checkpoint, progress=False
    )
    for name in ("w_enc", "b_enc", "w_dec", "b_dec"):
        assert torch.equal(getattr(resumed, name), getattr(undisturbed, name))


def test_without_pictures_there_is_nothing_to_train_on(
    model: VitModel, scaling: InputScaling
) -> None:
    with pytest.raises(InvalidInputError, match="no pictures") as caught:
        train_end_to_end(model, SITE, [], random_sae(32, 128, 4), scaling, CONFIG, progress=False)
    assert caught.value.field == "images"


def test_training_that_diverges_names_the_step(
    model: VitModel, pictures: list[Tensor], scaling: InputScaling
) -> None:
    config = CONFIG.model_copy(update={"learning_rate": 1e19})
    start = random_sae(32, 128, 4)
    with pytest.raises(InvalidInputError, match=r"diverged by step \d+") as caught:
        train_end_to_end(model, SITE, pictures, start, scaling, config, progress=False)
    assert caught.value.field == "learning_rate"
