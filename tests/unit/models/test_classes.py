"""What classes are called, and which one a name means."""

from __future__ import annotations

from typing import Any

import pytest
from torchvision import models

from tests.worlds import tiny as worlds
from vision_sae.errors import InvalidInputError
from vision_sae.models.classes import class_index, timm_class_names

NAMES = ("heron", "crane", "tench, Tinca tinca", "crane", "Heron gull")


def named(count: int, **config: Any) -> Any:
    module = worlds.tiny_vit(num_classes=count)
    module.pretrained_cfg = config
    return module


@pytest.mark.parametrize(
    ("config", "names"),
    [
        ({"label_names": ["ant", "bee"]}, ("ant", "bee")),
        ({"label_names": {"1": "bee", "0": "ant"}}, ("ant", "bee")),  # as JSON has them
        ({"label_names": ["n1", "n2"], "label_descriptions": {"n1": "ant"}}, ("ant", "n2")),
        ({"label_names": ["ant", "bee", "cat"]}, ()),  # of another classifier
        ({}, ()),
    ],
)
def test_a_configuration_names_the_classes(config: dict[str, Any], names: tuple[str, ...]) -> None:
    assert timm_class_names(named(2, **config), released=False) == names


def test_weights_that_timm_released_are_of_the_imagenet_of_that_size() -> None:
    names = timm_class_names(named(1000), released=True)
    assert (len(names), names[0]) == (1000, "tench, Tinca tinca")
    assert timm_class_names(named(1000), released=False) == ()
    assert timm_class_names(named(7), released=True) == ()
    assert timm_class_names(named(0), released=True) == ()


def test_torchvision_tells_them() -> None:
    assert models.ViT_B_16_Weights.DEFAULT.meta["categories"][0] == "tench"


def test_a_name_is_taken_exactly() -> None:
    assert class_index(NAMES, "heron", model="models/m", field="f") == 0


@pytest.mark.parametrize(
    ("names", "wanted", "said"),
    [
        ((), "heron", "models/m does not name its classes; give the index of one"),
        (NAMES, "crane", "2 classes of models/m are named 'crane'; give the index, one of 1, 3"),
        (NAMES, "HERON", "no class named 'HERON'; the nearest are 'heron', 'Heron gull'"),
        (NAMES, "tench", "no class named 'tench'; the nearest are 'tench, Tinca tinca'"),
        (NAMES, "heorn", "no class named 'heorn'; the nearest are 'heron'"),
        (NAMES, "zebra", "no class named 'zebra'; GetModel lists them"),
    ],
)
def test_what_is_not_clear_is_refused_with_what_is_near(
    names: tuple[str, ...], wanted: str, said: str
) -> None:
    with pytest.raises(InvalidInputError, match=said) as caught:
        class_index(names, wanted, model="models/m", field="target.label")
    assert caught.value.field == "target.label"
