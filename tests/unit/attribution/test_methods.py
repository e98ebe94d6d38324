"""The table of methods, and that each gives what its family says."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from tests.worlds.tiny import noise_image, random_sae, tiny_model
from vision_sae.attribution import targets
from vision_sae.attribution.ledger import Ledger, block_removed, ledger
from vision_sae.attribution.maps import Factorisation, PatchMap
from vision_sae.attribution.method import METHODS, AttributionTask, described
from vision_sae.attribution.methods.exact_ablation import exact_ablation
from vision_sae.attribution.observation import Observation
from vision_sae.dictionaries.protocol import SiteDictionary

SITE = "blocks.1.update"


@pytest.fixture(scope="module")
def question() -> AttributionTask:
    model = tiny_model()
    image = model.preprocess(noise_image(40, 36))
    found = SiteDictionary(random_sae(32, 48, 6, bias=0.1), SITE)
    observation = Observation(model, image, targets.class_logit(3), [SITE])
    return AttributionTask(observation, found, reference=block_removed(found.dictionary))


def test_methods_are_named_without_torch_and_described_for_documents() -> None:
    script = (
        "import sys; from vision_sae.attribution.method import METHODS; "
        "print(len(METHODS.names), 'torch' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["9", "False"]
    rows = described()
    assert [row["name"] for row in rows] == list(METHODS.names)
    assert all(row["version"] >= 1 and row["summary"] and row["paper"] for row in rows)


@pytest.mark.parametrize("name", METHODS.names)
def test_a_method_gives_what_its_family_says(name: str, question: AttributionTask) -> None:
    kinds = {"ledger": Ledger, "map": PatchMap, "components": Factorisation}
    assert isinstance(METHODS[name].answer(question), kinds[METHODS[name].gives])


@pytest.mark.parametrize(
    ("name", "asked", "nodes"),
    [
        *(("act_x_grad", 5, 1), ("raw_neuron", 5, 1), ("contrast_image", 5, 5)),
        *(("integrated_gradients", 5, 5), ("integrated_gradients", 1, 2)),
    ],
)
def test_ledgers_are_made_with_these_nodes_from_the_reference(
    name: str, asked: int, nodes: int, question: AttributionTask
) -> None:
    made = METHODS[name].answer(question._replace(nodes=asked))
    expected = ledger(
        question.observation, question.features, nodes=nodes, reference=question.reference
    )
    assert isinstance(made, Ledger)
    assert made.nodes == nodes
    assert torch.equal(made.per_feature, expected.per_feature)
    assert float(made.bias.abs().sum()) > 0  # the reference has no bias


def test_an_ablation_takes_the_strongest_by_act_x_grad(question: AttributionTask) -> None:
    made = METHODS["exact_ablation"].answer(question._replace(ablated=3))
    fast = ledger(question.observation, question.features).per_feature
    strongest = torch.argsort(-fast.abs(), stable=True)[:3].tolist()
    expected = exact_ablation(question.observation, question.features, strongest)
    assert isinstance(made, Ledger)
    assert torch.equal(made.per_feature, expected.per_feature)
    assert sorted(made.strongest(9).tolist()[:3]) == sorted(strongest)


def test_a_factorisation_takes_further_pictures_and_a_number_of_parts(
    question: AttributionTask,
) -> None:
    further = torch.ones(2, 16, 32)
    method = METHODS["deep_feature_factorisation"]
    made = method.answer(question._replace(context=further, components=2))
    assert isinstance(made, Factorisation)
    assert [tuple(part.maps.shape) for part in made.components] == [(3, 16)] * 2
    assert len(made.effects) == 2
