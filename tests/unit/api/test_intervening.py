"""Interventions without a server."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import vision_sae as vs
from tests.unit.api.conftest import World
from tests.worlds import tiny as worlds
from vision_sae.errors import FeatureNotFoundError, InvalidInputError

PICTURE = worlds.noise_image(32, 32, seed=5)


def ask(world: World, edits: Any, **options: Any) -> vs.Intervention:
    return vs.intervene(PICTURE, world.bundle, edits, model=world.model, **options)


@pytest.fixture(scope="module")
def fires(world: World) -> int:
    return vs.encode(PICTURE, world.bundle, model=world.model).features[0].feature


def test_without_an_edit_outputs_are_the_plain_ones_bit_for_bit(world: World, fires: int) -> None:
    with torch.inference_mode():
        plain = world.model.forward(world.model.preprocess(PICTURE)[None])
    nothing = (
        vs.Edit(fires, "scale", 1),
        vs.Edit(fires, "add", 0),
        vs.Edit(fires, when=vs.When(9)),
    )
    for edits in ([], *nothing):
        found = ask(world, edits, targets=[3])
        for output in (found.before, found.after):
            assert torch.equal(output.embedding, plain.embedding)
            assert output.logits is not None
            assert plain.logits is not None
            assert torch.equal(output.logits, plain.logits)
        assert (found.relative_change, found.flipped) == (0, False)
        assert found.targets[0].change == 0


def test_a_value_is_in_mean_activations_of_the_feature(world: World, fires: int) -> None:
    mean = float(world.bundle.statistics.mean[fires])
    relative = ask(world, vs.Edit(fires, "add", 2.0))
    raw = ask(world, vs.Edit(fires, "add", 2 * mean, unit="raw"))
    assert relative.relative_change > 0
    np.testing.assert_array_equal(relative.numpy(), raw.numpy())


def test_an_edit_moves_the_site_along_the_features_direction(world: World, fires: int) -> None:
    """Raised by 1 at all patches: the change is one direction of unit norm for each of them."""
    found = ask(world, vs.Edit(fires, "add", 1.0, unit="raw", weights=np.ones((4, 4))))
    vectors = world.bundle.dictionary.decoder[fires].norm()
    with torch.inference_mode(), world.model.capture([world.bundle.site]) as captured:
        world.model.forward(world.model.preprocess(PICTURE)[None])
    patches = captured[world.bundle.site][0, 1:]
    expected = 4 * float(vectors) / float(patches.norm())  # sqrt of 16 patches
    assert found.relative_change == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    "place", [{"box": (0, 0, 8, 8)}, {"weights": np.eye(4)}, {"where_it_fires": True}]
)
def test_an_edit_with_a_place_changes_less(world: World, fires: int, place: dict[str, Any]) -> None:
    everywhere = ask(world, vs.Edit(fires, "add", 3))
    somewhere = ask(world, vs.Edit(fires, "add", 3, **place))
    assert 0 < somewhere.relative_change < everywhere.relative_change


def test_targets_have_names(world: World, fires: int) -> None:
    found = ask(world, vs.Edit(fires), targets={"three": 3, "probe": vs.ProbeTarget(np.ones(32))})
    assert [t.name for t in found.targets] == ["three", "probe"]
    assert found.after.logits is not None
    assert found.targets[0].after == pytest.approx(float(found.after.logits[0, 3]))


def test_classes_that_lead_are_told(world: World, fires: int) -> None:
    found = ask(world, vs.Edit(fires), top_classes=2)
    assert found.before.logits is not None
    first = int(found.before.logits.argmax())
    assert found.classes[0].name == f"class {first}"
    assert found.classes[0].before == pytest.approx(float(found.before.logits[0, first]))
    assert 2 <= len(found.classes) <= 4
    assert ask(world, vs.Edit(fires), top_classes=0).classes == ()


def test_controls_move_other_features_by_as_much(world: World, fires: int) -> None:
    one, other = (ask(world, vs.Edit(fires), targets=[3], controls=4, seed=s) for s in (1, 2))
    again = ask(world, vs.Edit(fires), targets=[3], controls=4, seed=1)
    assert one.targets[0].control == again.targets[0].control != other.targets[0].control
    assert ask(world, vs.Edit(fires), targets=[3]).targets[0].control is None
    with pytest.raises(InvalidInputError, match="controls"):
        ask(world, [], controls=1)


def test_what_there_is_not_is_refused(world: World, fires: int) -> None:
    for edit, told in (
        (vs.Edit(fires, "explode"), "not 'explode'"),  # type: ignore[arg-type]
        (vs.Edit(fires, "add", 1, unit="metre"), "edits.unit is one of mean, raw"),  # type: ignore[arg-type]
        (vs.Edit(fires, weights=np.ones((2, 2))), r"shape \(4, 4\)"),
        (vs.Edit(fires, weights=np.full((4, 4), 2)), "from 0 to 1"),
        (vs.Edit(fires, box=(90, 90, 99, 99)), "selects no patch"),
        (vs.Edit(fires, box=(0, 0, 8, 8), where_it_fires=True), "one place"),
    ):
        with pytest.raises(InvalidInputError, match=told):
            ask(world, edit)
    with pytest.raises(FeatureNotFoundError, match="0 to 63, not 64"):
        ask(world, vs.Edit(64))
    with pytest.raises(InvalidInputError, match="unit='mean'"):
        vs.intervene(PICTURE, world.dictionary, vs.Edit(fires, "add", 1), model=world.model)
    never = world.bundle.statistics._replace(mean=np.zeros(64, np.float32))
    silent = replace(world.bundle, statistics=never)
    with pytest.raises(InvalidInputError, match="never fired in the data"):
        vs.intervene(PICTURE, silent, vs.Edit(fires, "add", 1), model=world.model)
    with pytest.raises(InvalidInputError, match="as a list"):
        ask(world, vs.Edit(fires), targets="a dog")


def test_a_dictionary_alone_takes_raw_values(world: World, fires: int) -> None:
    edit = vs.Edit(fires, "add", 1, unit="raw")
    alone = vs.intervene(PICTURE, world.dictionary, edit, model=world.model)
    np.testing.assert_array_equal(alone.numpy(), ask(world, edit).numpy())


def test_it_shows_itself(world: World, fires: int) -> None:
    found = ask(world, vs.Edit(fires), targets=[3], controls=2)
    assert str(found).splitlines()[0].startswith(f"picture 0, ablate {fires} of bundle: ")
    assert found.to_pandas()["target"][0] == "class 3"
    assert "<img" in found._repr_html_()
    assert found.numpy().shape == (2, 32)
    assert found.to_pil().size == (32, 32)
