"""Dictionaries spliced into a tiny ViT of 17 tokens: CLS and 4 x 4 patches."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.worlds.tiny import SITE, identity_sae, tiny_model
from vision_sae.dictionaries.downstream import (
    Downstream,
    downstream,
    output_distance,
)
from vision_sae.dictionaries.kinds.topk import TopKSae
from vision_sae.errors import InvalidInputError
from vision_sae.models.hooks import at_patches
from vision_sae.models.protocol import ModelOutput
from vision_sae.models.vit import VitModel

DIM = 32
IMAGES = torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(0))
MEAN = torch.linspace(-1, 1, DIM)
NOTHING = torch.zeros(1, 1)


def signed_identity() -> TopKSae:
    """Reconstructs every vector exactly: a feature for each direction of each dimension."""
    both = torch.cat([torch.eye(DIM), -torch.eye(DIM)])
    zeros = torch.zeros(2 * DIM)
    return TopKSae(w_enc=both, b_enc=zeros, w_dec=both, b_dec=zeros[:DIM], k=DIM)


def constant(value: Tensor) -> TopKSae:
    """Reconstructs every vector as ``value``."""
    return TopKSae(
        w_enc=torch.eye(DIM), b_enc=torch.zeros(DIM), w_dec=torch.zeros(DIM, DIM), b_dec=value, k=1
    )


def run(dictionary: TopKSae, model: VitModel | None = None, size: int = 5) -> Downstream:
    return downstream(model or tiny_model(), SITE, dictionary, IMAGES.split(size), mean=MEAN)


@pytest.fixture(params=[5, 0], ids=["logits", "embedding"])
def model(request: pytest.FixtureRequest) -> VitModel:
    return tiny_model(num_classes=request.param)


def test_kl_by_hand() -> None:
    # p = (1/2, 1/2), q = (3/4, 1/4): 1/2 ln(2/3) + 1/2 ln 2 = 1/2 ln(4/3).
    plain = ModelOutput(NOTHING, torch.tensor([[7.0, 7.0]]))
    changed = ModelOutput(NOTHING, torch.tensor([[math.log(3), 0.0]]))
    assert float(output_distance(plain, changed)) == pytest.approx(0.5 * math.log(4 / 3))


def test_cosine_distance_by_hand() -> None:
    # (1, 0) against (2, 2): 1 - cos 45 degrees; against (5, 0): 0.
    plain = ModelOutput(torch.tensor([[1.0, 0.0], [1.0, 0.0]]), None)
    changed = ModelOutput(torch.tensor([[2.0, 2.0], [5.0, 0.0]]), None)
    assert output_distance(plain, changed).tolist() == pytest.approx([1 - math.sqrt(0.5), 0])


def test_scores_by_hand() -> None:
    found = Downstream("kl_div", 0.1, 0.4, 0.2, 10)
    assert found.metrics() == {
        "kl_div_score": pytest.approx(0.75),
        "kl_div_mean_ablation_score": pytest.approx(0.5),
        "kl_div_with_sae": 0.1,
        "kl_div_with_ablation": 0.4,
        "kl_div_with_mean_ablation": 0.2,
        "ce_loss_score": pytest.approx(0.75),
    }


def test_special_tokens_stay() -> None:
    vectors = torch.arange(12.0).reshape(2, 3, 2)
    edited = at_patches(1, lambda v: -v)(vectors)
    assert torch.equal(edited[:, 0], vectors[:, 0])
    assert torch.equal(edited[:, 1:], -vectors[:, 1:])
    assert vectors[0, 1, 0] == 2


def test_exact_reconstruction_recovers_everything(model: VitModel) -> None:
    found = run(signed_identity(), model)
    assert (found.with_sae, found.score, found.mean_ablation_score) == (0, 1, 1)


def test_dictionary_keeps_its_precision_inside_a_model_of_lower_precision() -> None:
    tiny = tiny_model()
    model = VitModel("tiny", tiny.backbone, tiny.preprocessing, dtype="bfloat16")
    assert run(signed_identity(), model).score == 1


def test_reconstruction_of_zero_recovers_nothing(model: VitModel) -> None:
    assert run(constant(torch.zeros(DIM)), model).score == 0


def test_reconstruction_of_the_mean_recovers_nothing_of_the_mean_ablation(model: VitModel) -> None:
    found = run(constant(MEAN), model)
    assert found.mean_ablation_score == 0
    assert found.score != 0


def test_worse_than_ablation_is_negative(model: VitModel) -> None:
    assert run(constant(100 * MEAN), model).score < 0


def test_loss_is_that_of_the_outputs_a_model_has() -> None:
    assert run(identity_sae(DIM, 4)).loss == "kl_div"
    assert run(identity_sae(DIM, 4), tiny_model(num_classes=0)).loss == "cosine_distance"


def test_score_is_saebenchs_with_the_models_own_distribution_as_target() -> None:
    model, sae = tiny_model(), identity_sae(DIM, 4)
    edits = [lambda v: v, lambda v: sae.decode(sae.encode(v)), torch.zeros_like]
    losses = []
    with torch.inference_mode():
        target = model.forward(IMAGES).logits.double().softmax(1)
        for edit in edits:
            with model.replace(SITE, at_patches(1, edit)):
                logits = model.forward(IMAGES).logits.double()
                losses.append(float(F.cross_entropy(logits, target)))
    plain, with_sae, ablated = losses
    expected = (ablated - with_sae) / (ablated - plain)
    assert run(sae, model).metrics()["ce_loss_score"] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_batch_size_does_not_matter(size: int) -> None:
    sae = identity_sae(DIM, 4)
    found, whole = run(sae, size=size), run(sae)
    assert found.images == whole.images == 5
    assert found.metrics() == pytest.approx(whole.metrics(), rel=1e-3)


def test_model_is_left_without_hooks() -> None:
    model = tiny_model()
    before = model.forward(IMAGES).logits
    run(constant(MEAN), model)
    assert torch.equal(model.forward(IMAGES).logits, before)


def test_no_pictures_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="no pictures") as caught:
        downstream(tiny_model(), SITE, identity_sae(DIM, 4), [], mean=MEAN)
    assert caught.value.field == "images"


def test_site_that_the_output_does_not_depend_on_is_refused() -> None:
    # The output is made of the CLS token alone, which no patch of the last block reaches.
    with pytest.raises(InvalidInputError, match=r"blocks\.2\.update") as caught:
        downstream(tiny_model(), "blocks.2.update", identity_sae(DIM, 4), [IMAGES], mean=MEAN)
    assert caught.value.field == "site"
