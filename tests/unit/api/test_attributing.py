"""Ledgers add up, and say what the library's own functions say."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import vision_sae as vs
from tests.unit.api.conftest import LATER, World
from tests.worlds import tiny as worlds
from vision_sae.attribution import ledger as ledgers
from vision_sae.attribution.methods.deep_feature_factorisation import (
    component_effects,
    deep_feature_factorisation,
)
from vision_sae.attribution.methods.grad_cam import grad_cam
from vision_sae.attribution.observation import Observation
from vision_sae.attribution.targets import class_logit
from vision_sae.dictionaries.protocol import SiteDictionary
from vision_sae.errors import InvalidInputError, NotServedError

PICTURE = worlds.noise_image(32, 32, seed=5)


def ask(world: World, target: Any = 3, **options: Any) -> vs.Attribution:
    return vs.attribute(PICTURE, world.bundle, target, model=world.model, **options)


def logits(world: World) -> list[float]:
    with torch.no_grad():
        output = world.model.forward(world.model.preprocess(PICTURE)[None])
    assert output.logits is not None
    return [float(value) for value in output.logits[0]]


@pytest.mark.parametrize("method", ["integrated_gradients", "act_x_grad", "exact_ablation"])
@pytest.mark.parametrize("reference", ["zero", "mean", "removed", PICTURE.rotate(90)])
def test_a_ledger_adds_up(world: World, method: Any, reference: Any) -> None:
    if method == "exact_ablation" and reference != "zero":
        with pytest.raises(InvalidInputError, match="set to zero"):
            ask(world, method=method, reference=reference)
        return
    found = ask(world, method=method, reference=reference, top=5)
    assert len(found) == 5
    assert found.value == pytest.approx(logits(world)[3], abs=1e-6)
    assert sum(found.sums().values()) == pytest.approx(found.value - found.baseline, abs=1e-9)
    shown = sum(f.contribution for f in found)
    assert shown + found.remainder == pytest.approx(found.features_total, abs=1e-12)
    if method != "exact_ablation":
        assert found.per_patch.sum() == pytest.approx(
            found.features_total + found.error + found.bias, abs=1e-6
        )
    for feature in found:
        assert feature.map.sum() == pytest.approx(feature.contribution, abs=1e-6)


def test_more_nodes_leave_less_of_a_gap(world: World) -> None:
    assert abs(ask(world, nodes=32).gap) < abs(ask(world, method="act_x_grad").gap) + 1e-9
    assert abs(ask(world, nodes=32).gap) < 1e-3


def test_it_is_the_ledger_of_the_library(world: World) -> None:
    dictionary = SiteDictionary(world.bundle.dictionary, world.bundle.site)
    pixels = world.model.preprocess(PICTURE)
    expected = ledgers.attribute(world.model, dictionary, pixels, class_logit(3), nodes=8)
    found = ask(world)
    assert torch.equal(found.ledger.per_feature, expected.per_feature)
    order = [f.feature for f in found]
    assert order == expected.strongest(20).tolist()


def test_ablation_is_what_the_target_loses(world: World) -> None:
    first = ask(world, method="exact_ablation", top=3).features[0]
    changed = vs.intervene(
        PICTURE, world.bundle, vs.Edit(first.feature), model=world.model, targets=[3]
    )
    # The edit reaches the class token too, so let it reach the patches only, as an ablation does.
    patches = vs.Edit(first.feature, weights=np.ones((4, 4)))
    changed = vs.intervene(PICTURE, world.bundle, patches, model=world.model, targets=[3])
    assert -changed.targets[0].change == pytest.approx(first.contribution, abs=1e-5)


@pytest.mark.parametrize(
    ("target", "name"),
    [
        (vs.ClassTarget(3), "class 3"),
        (vs.PictureTarget(PICTURE.rotate(180)), "similarity to a picture"),
        (vs.MeanTarget(), "similarity to the mean of the data"),
        (vs.ProbeTarget(np.ones(32, np.float32), 0.5), "probe"),
        (vs.ContrastTarget(3, vs.ClassTarget(1)), "class 3 - class 1"),
    ],
)
def test_targets(world: World, target: Any, name: str) -> None:
    found = ask(world, target)
    with torch.no_grad():
        embedding = world.model.forward(world.model.preprocess(PICTURE)[None]).embedding[0]
        other = world.model.forward(world.model.preprocess(PICTURE.rotate(180))[None]).embedding[0]
    mean = torch.from_numpy(world.bundle.embeddings.mean(0))
    class_ = logits(world)
    expected = {
        "class 3": class_[3],
        "similarity to a picture": float(torch.cosine_similarity(embedding, other, dim=0)),
        "similarity to the mean of the data": float(
            torch.cosine_similarity(embedding, mean, dim=0)
        ),
        "probe": float(embedding.sum()) + 0.5,
        "class 3 - class 1": class_[3] - class_[1],
    }
    assert found.target == name
    assert found.value == pytest.approx(expected[name], abs=1e-5)


def test_a_feature_of_a_later_site_is_a_target(world: World, tmp_path: Any) -> None:
    later = vs.train(
        world.store,
        tmp_path / "later",
        site=LATER,
        expansion=1,
        k=2,
        steps=3,
        batch_size=64,
        progress=False,
    )
    there = vs.encode(PICTURE, later, model=world.model)
    target = vs.FeatureTarget(later, there.features[0].feature, "max")
    assert ask(world, target).value == pytest.approx(there.features[0].activation, abs=1e-5)
    with pytest.raises(InvalidInputError, match="choose a feature of a later site"):
        ask(world, vs.FeatureTarget(world.bundle, 0))


def test_what_a_model_lacks_is_refused(world: World) -> None:
    for target, told in (
        ("a dog", "has no texts"),
        (99, "not a class 99"),
        (vs.ClassTarget("dog"), "does not name its classes"),
    ):
        with pytest.raises(InvalidInputError, match=told):
            ask(world, target)
    with pytest.raises(InvalidInputError, match="there is no method of attribution 'guess'"):
        ask(world, method="guess")
    with pytest.raises(InvalidInputError, match="a method without features"):
        ask(world, method="grad_cam", special_tokens=True)


def observed(world: World) -> Observation:
    pixels = world.model.preprocess(PICTURE)
    return Observation(world.model, pixels, class_logit(3), [world.bundle.site])


def test_a_method_without_features_gives_its_map(world: World) -> None:
    found = ask(world, method="grad_cam")
    expected = grad_cam(observed(world), world.bundle.site)
    np.testing.assert_array_equal(found.numpy(), expected.double().numpy().reshape(4, 4))
    assert found.value == pytest.approx(logits(world)[3], abs=1e-6)
    assert (found.features, found.components) == ((), ())
    with pytest.raises(InvalidInputError, match="grad_cam has no features, so there is no ledger"):
        _ = found.gap
    assert str(found).splitlines()[1:] == ["a map of 4 x 4 patches"]
    assert found._repr_html_().count("<table") == 0
    assert found.to_pil().size == (32, 32)


def test_a_factorisation_gives_components(world: World) -> None:
    found = ask(world, method="deep_feature_factorisation", components=3)
    observation = observed(world)
    site = world.bundle.site
    expected = deep_feature_factorisation(observation.updates[site][None], 3)
    effects = component_effects(observation, site, expected)
    assert [c.contribution for c in found.components] == pytest.approx(effects, abs=1e-5)
    for component, own in zip(found.components, expected, strict=True):
        np.testing.assert_allclose(component.map.ravel(), own.maps[0].numpy(), atol=1e-5)
    np.testing.assert_allclose(sum(c.map for c in found.components), found.per_patch, atol=1e-6)
    assert list(found.to_pandas().columns) == ["component", "contribution"]
    others = ask(world, method="deep_feature_factorisation", components=3, context=[world.picture])
    assert not np.allclose(others.per_patch, found.per_patch)


def test_raw_neurons_take_the_place_of_features(world: World) -> None:
    found = ask(world, method="raw_neuron", top=5)
    observation, site = observed(world), world.bundle.site
    expected = (observation.updates[site].relu() * observation.gradient(site)).sum(0)
    strongest = expected.abs().argsort(descending=True)[:5]
    assert [f.feature for f in found] == strongest.tolist()
    contributions = [f.contribution for f in found]
    assert contributions == pytest.approx(expected[strongest].tolist(), abs=1e-5)
    assert found.dictionary == f"neurons of {site}"
    assert {f.label for f in found} == {None}


def test_several_pictures_have_a_ledger_each(world: World) -> None:
    found = vs.attribute([PICTURE, world.picture], world.bundle, 3, model=world.model)
    assert [f.placed.name for f in found] == ["picture 0", "003.png"]
    assert torch.equal(found[0].ledger.per_feature, ask(world).ledger.per_feature)


def test_a_generator_has_no_targets(generated_bundles: Any, tiny_generator: Any) -> None:
    from vision_sae.models.noised import NoisedPictures

    with pytest.raises(NotServedError, match="encode the picture, or steer"):
        vs.attribute(PICTURE, generated_bundles[0], 3, model=NoisedPictures(tiny_generator))


def test_it_shows_itself(world: World) -> None:
    found = ask(world, top=4)
    lines = str(found).splitlines()
    assert lines[0].startswith("picture 0, class 3: ")
    assert lines[-1].count("+") == 4
    assert found._repr_html_().count("<img") == 1
    assert found.numpy().shape == (4, 4)
    assert list(found.to_pandas().columns) == ["feature", "contribution", "activation", "label"]
    assert found.to_pil(found.features[0].feature).size == (32, 32)
