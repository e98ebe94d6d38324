"""The ledger: its sums, and what captum makes of the same model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from captum.attr import IntegratedGradients
from torch import Tensor

from tests.worlds.tiny import noise_image, random_sae, tiny_model
from vision_sae.attribution import ledger as books
from vision_sae.attribution import targets
from vision_sae.attribution.ledger import attribute, ledger
from vision_sae.attribution.methods.exact_ablation import exact_ablation
from vision_sae.attribution.observation import Observation
from vision_sae.attribution.targets import Target
from vision_sae.dictionaries.protocol import Codes, SiteDictionary, to_dense
from vision_sae.models.loading import load_model
from vision_sae.models.vit import VitModel

SITE, DIM, WIDTH, K = "blocks.1.update", 32, 48, 6
LOGIT = targets.contrast(targets.class_logit(3), targets.class_logit(1))


@pytest.fixture(scope="module")
def model() -> VitModel:
    return tiny_model()


@pytest.fixture(scope="module")
def found() -> SiteDictionary:
    return SiteDictionary(random_sae(DIM, WIDTH, K, bias=0.1), SITE)


@pytest.fixture(scope="module")
def image(model: VitModel) -> Tensor:
    return model.preprocess(noise_image(40, 36))


def vectors_of(model: VitModel, image: Tensor) -> Tensor:
    with torch.no_grad(), model.capture([SITE]) as captured:
        model.forward(image[None])
    return captured[SITE][0, 1:]


def target_with(model: VitModel, image: Tensor, patches: Tensor) -> Tensor:
    """The target, written down again: the block's update at the patches set to ``patches``."""

    def edit(vectors: Tensor) -> Tensor:
        return torch.cat([vectors[:, :1], patches[None]], dim=1)

    with model.replace(SITE, edit):
        logits = model.forward(image[None]).logits
    assert logits is not None
    return logits[0, 3] - logits[0, 1]


def test_integrated_gradients_are_captums(
    model: VitModel, found: SiteDictionary, image: Tensor
) -> None:
    dictionary, update = found.dictionary, vectors_of(model, image)
    codes = to_dense(dictionary.encode(update), WIDTH)
    error = update - (codes @ dictionary.decoder + dictionary.bias)

    def forward(codes: Tensor, error: Tensor) -> Tensor:
        decoded = codes @ dictionary.decoder + dictionary.bias
        return torch.stack(
            [target_with(model, image, d + e) for d, e in zip(decoded, error, strict=True)]
        )

    of_codes, of_error = IntegratedGradients(forward).attribute(
        (codes[None], error[None]), method="gausslegendre", n_steps=8, internal_batch_size=1
    )
    made = attribute(model, found, image, LOGIT, nodes=8)
    torch.testing.assert_close(made.per_feature.float(), of_codes[0].sum(0), atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(made.error.float(), of_error[0].sum(1), atol=1e-6, rtol=1e-4)
    whole = float(target_with(model, image, update))
    assert made.target_value == pytest.approx(whole, abs=1e-6)
    assert made.baseline_value == pytest.approx(
        float(target_with(model, image, dictionary.bias.expand_as(update))), abs=1e-6
    )
    assert abs(made.completeness_gap) < 1e-4 * abs(whole - made.baseline_value)


def test_one_node_is_activation_times_gradient(
    model: VitModel, found: SiteDictionary, image: Tensor
) -> None:
    update = vectors_of(model, image).requires_grad_()
    (gradient,) = torch.autograd.grad(target_with(model, image, update), update)
    codes = to_dense(found.dictionary.encode(update.detach()), WIDTH)
    expected = (codes * (gradient @ found.dictionary.decoder.T)).sum(0)
    made = attribute(model, found, image, LOGIT)
    torch.testing.assert_close(made.per_feature.float(), expected, atol=1e-6, rtol=1e-4)
    assert made.nodes == 1


@pytest.mark.parametrize("reference", ["zero", "removed", "mean", "picture"])
def test_books_check_whatever_they_are_measured_from(
    model: VitModel, found: SiteDictionary, image: Tensor, reference: str
) -> None:
    dictionary = found.dictionary
    random = torch.Generator().manual_seed(1)
    other = vectors_of(model, model.preprocess(noise_image(33, 33, seed=5)))
    start = {
        "zero": books.zero_code(dictionary),
        "removed": books.block_removed(dictionary),
        "mean": books.mean_code(
            0.1 * torch.randn(DIM, generator=random), torch.rand(WIDTH, generator=random) / 20
        ),
        "picture": books.of_picture(dictionary, other),
    }[reference]
    made = attribute(model, found, image, LOGIT, nodes=12, reference=start)
    span = made.target_value - made.baseline_value
    assert abs(made.completeness_gap) < 1e-4 * abs(span)
    everything = made.features_total + float(made.error.sum() + made.bias.sum())
    assert made.total == pytest.approx(everything)
    assert float(made.per_patch.sum()) == pytest.approx(made.total, abs=1e-6)
    assert bool(made.bias.any()) is (reference == "removed")
    update = vectors_of(model, image)
    with torch.no_grad():
        at_start = float(target_with(model, image, start.update.expand_as(update)))
    assert made.baseline_value == pytest.approx(at_start, abs=1e-6)


def test_a_mean_code_counts_against_each_feature_at_each_patch(
    model: VitModel, found: SiteDictionary, image: Tensor
) -> None:
    mean = torch.rand(WIDTH, generator=torch.Generator().manual_seed(1)) / 20
    made = attribute(model, found, image, LOGIT, reference=books.mean_code(torch.zeros(DIM), mean))
    assert made.mean is not None
    update = vectors_of(model, image).requires_grad_()
    (gradient,) = torch.autograd.grad(target_with(model, image, update), update)
    codes = to_dense(found.dictionary.encode(update.detach()), WIDTH)
    expected = ((codes - mean) * (gradient @ found.dictionary.decoder.T)).T  # (F, P)
    entries = made.contributions
    of_codes = to_dense(Codes(entries.indices, entries.values.float()), WIDTH).T
    at_patches = of_codes + made.mean.at(torch.arange(WIDTH))
    torch.testing.assert_close(at_patches.float(), expected, atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(made.per_feature.float(), expected.sum(1), atol=1e-6, rtol=1e-4)


ARCHITECTURES: dict[str, tuple[dict[str, Any], int]] = {
    "class token": ({}, 1),
    "registers": ({"reg_tokens": 4}, 5),
    "no class token": ({"class_token": False, "global_pool": "avg"}, 0),
    "not square": ({"img_size": (32, 64)}, 1),
    "attention pooling": ({"global_pool": "map"}, 1),
}
"""{name: (options of the model, number of its special tokens)}."""


@pytest.mark.parametrize("special_tokens", [False, True])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_books_of_every_vit_check(
    found: SiteDictionary, architecture: str, special_tokens: bool
) -> None:
    options, special = ARCHITECTURES[architecture]
    vit = tiny_model(**options)
    image = vit.preprocess(noise_image(70, 40))
    made = attribute(vit, found, image, LOGIT, nodes=12, special_tokens=special_tokens)
    assert made.special == (special if special_tokens else 0)
    assert made.per_patch.shape == (vit.grid.patches,)
    span = made.target_value - made.baseline_value
    assert span
    assert abs(made.completeness_gap) < 1e-3 * abs(span)
    assert float(made.per_patch.sum()) + made.at_special_tokens == pytest.approx(made.total)
    assert bool(made.at_special_tokens) is bool(made.special)


def test_behind_the_last_attention_a_class_token_is_all_there_is(
    model: VitModel, found: SiteDictionary, image: Tensor
) -> None:
    last = SiteDictionary(found.dictionary, "blocks.2.update")
    held = attribute(model, last, image, LOGIT, nodes=8)
    assert held.total == 0
    made = attribute(model, last, image, LOGIT, nodes=8, special_tokens=True)
    assert made.total == made.at_special_tokens
    span = made.target_value - made.baseline_value
    assert abs(made.completeness_gap) < 1e-3 * abs(span)
    assert not made.per_patch.any()


def test_a_special_token_is_ablated_like_a_patch(
    model: VitModel, found: SiteDictionary, image: Tensor
) -> None:
    observation = Observation(model, image, LOGIT, ["blocks.2.update"], special_tokens=True)
    last = SiteDictionary(found.dictionary, "blocks.2.update")
    update = observation.updates["blocks.2.update"]
    codes = found.dictionary.encode(update[:1])
    feature = int(codes.indices[0, codes.values[0].argmax()])
    without = update.clone()
    without[0] -= codes.values.max() * found.dictionary.decoder[feature]
    made = exact_ablation(observation, last, [feature])
    effect = observation.value - observation.value_at("blocks.2.update", without)
    assert float(made.per_feature[feature]) == pytest.approx(effect, abs=1e-5)


def test_a_picture_measured_from_itself_has_empty_books(
    model: VitModel, found: SiteDictionary, image: Tensor
) -> None:
    start = books.of_picture(found.dictionary, vectors_of(model, image))
    made = attribute(model, found, image, LOGIT, nodes=4, reference=start)
    assert made.per_feature.abs().max() < 1e-6
    assert made.error.abs().max() < 1e-6
    assert made.completeness_gap == pytest.approx(0, abs=1e-6)


def test_exact_ablation_takes_one_feature_away_at_a_time(
    model: VitModel, found: SiteDictionary, image: Tensor
) -> None:
    update = vectors_of(model, image)
    codes = found.dictionary.encode(update)
    feature = int(codes.indices[0, codes.values[0].argmax()])
    activation = to_dense(codes, WIDTH)[:, feature]
    without = update - activation[:, None] * found.dictionary.decoder[feature]
    with torch.no_grad():
        effect = float(target_with(model, image, update) - target_with(model, image, without))
    made = exact_ablation(Observation(model, image, LOGIT, [SITE]), found, [feature])
    assert float(made.per_feature[feature]) == pytest.approx(effect, abs=1e-6)
    assert int((made.per_feature != 0).sum()) == 1
    shares = made.contributions.values.sum(1) / made.per_feature[feature]
    torch.testing.assert_close(shares.float(), activation / activation.sum())


def test_sites_of_one_picture_are_looked_at_together(
    model: VitModel, found: SiteDictionary, image: Tensor
) -> None:
    observation = Observation(model, image, LOGIT, [SITE, "blocks.2.update"])
    alone = attribute(model, found, image, LOGIT, nodes=3)
    beside = ledger(observation, found, nodes=3)
    torch.testing.assert_close(beside.per_feature, alone.per_feature)


@pytest.mark.parametrize("kind", ["update", "resid", "attn", "mlp"])
def test_variants_in_one_batch_are_measured_as_alone(
    model: VitModel, image: Tensor, kind: str
) -> None:
    site = f"blocks.1.{kind}"
    observation = Observation(model, image, LOGIT, [site])
    updates = torch.stack([observation.updates[site] * scale for scale in (0.0, 0.5, 1.0)])
    together = observation.values_at(site, updates)
    alone = [observation.value_at(site, update) for update in updates]
    assert together.tolist() == pytest.approx(alone, abs=1e-5)
    assert together[2] == pytest.approx(observation.value, abs=1e-5)


class TestTargets:
    def test_feature_of_a_later_site(
        self, model: VitModel, found: SiteDictionary, image: Tensor
    ) -> None:
        later = SiteDictionary(found.dictionary, "blocks.2.update")
        with torch.no_grad(), model.capture([later.site]) as captured:
            model.forward(image[None])
        activations = to_dense(later.dictionary.encode(captured[later.site][0, 1:]), WIDTH)
        feature = int(activations.sum(0).argmax())
        by_pooling = {
            "mean": activations[:, feature].mean(),
            "max": activations[:, feature].max(),
            "sum": activations[:, feature].sum(),
        }
        for pooling, expected in by_pooling.items():
            target = targets.feature(
                later.dictionary,
                later.site,
                feature,
                special=1,
                pooling=pooling,  # type: ignore[arg-type]
            )
            _, values = targets.measure_targets(model, image[None], [target])
            assert float(values) == pytest.approx(float(expected), rel=1e-5)

    def test_feature_to_feature_follows_the_encoder(
        self, model: VitModel, found: SiteDictionary, image: Tensor
    ) -> None:
        # Against a finite difference along one code, small enough for the same features to fire.
        with torch.no_grad(), model.capture(["blocks.2.update"]) as captured:
            model.forward(image[None])
        seen = to_dense(found.dictionary.encode(captured["blocks.2.update"][0, 1:]), WIDTH)
        target = targets.feature(
            found.dictionary, "blocks.2.update", int(seen.sum(0).argmax()), special=1, pooling="sum"
        )
        observation = Observation(model, image, target, [SITE])
        gradient = observation.gradient(SITE)
        direction = gradient / gradient.norm()
        step = 1e-2
        moved = observation.value_at(SITE, observation.updates[SITE] + step * direction)
        back = observation.value_at(SITE, observation.updates[SITE] - step * direction)
        assert (moved - back) / (2 * step) == pytest.approx(float(gradient.norm()), rel=0.02)

    def test_probe_and_similarity(self, model: VitModel, image: Tensor) -> None:
        embedding = model.forward(image[None]).embedding[0]
        weight = torch.linspace(-1, 1, len(embedding))
        chosen: list[Target] = [
            targets.probe(weight, 0.5),
            targets.similarity(embedding * 3),
            targets.contrast(targets.probe(weight), targets.probe(weight, 2.0)),
        ]
        _, values = targets.measure_targets(model, image[None], chosen)
        expected = [float(embedding @ weight) + 0.5, 1.0, -2.0]
        assert values[0].tolist() == pytest.approx(expected, abs=1e-5)

    def test_a_region_of_the_whole_picture_is_the_mean_of_all_patches(self, image: Tensor) -> None:
        pooled = tiny_model(global_pool="avg")
        everywhere = torch.ones(pooled.grid.patches, dtype=torch.bool)
        logits = pooled.forward(image[None]).logits
        assert logits is not None
        region = targets.region_class(pooled, everywhere, 2)
        part = targets.region_class(pooled, torch.arange(pooled.grid.patches) < 4, 2)
        _, values = targets.measure_targets(pooled, image[None], [region, part])
        assert float(values[0, 0]) == pytest.approx(float(logits[0, 2]), abs=1e-5)
        assert float(values[0, 1]) != pytest.approx(float(logits[0, 2]), abs=1e-3)


def test_variants_of_the_demo_clip_which_looks_at_two_depths() -> None:
    clip = load_model("demo:clip", dtype="float32")
    image = clip.preprocess(noise_image(64, 64))
    target = targets.similarity(torch.ones(clip.forward(image[None]).embedding.shape[1]))
    site = "blocks.10.update"
    observation = Observation(clip, image, target, [site])
    updates = torch.stack([0 * observation.updates[site], observation.updates[site]])
    together = observation.values_at(site, updates)
    assert together[1] == pytest.approx(observation.value, abs=1e-5)
    assert together[0] == pytest.approx(observation.value_at(site, updates[0]), abs=1e-5)
