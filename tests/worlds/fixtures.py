"""Fixtures that tests of the library and of the server share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from tests.worlds import generations
from vision_sae.bundles.read import Bundle
from vision_sae.models.sdxl import SdxlModel


@contextmanager
def computing_with(count: int) -> Iterator[int]:
    """So many of torch's threads in the body."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    yield count
    torch.set_num_threads(before)


@pytest.fixture
def one_thread() -> Iterator[int]:
    """Tiny products gain nothing from threads, and other work runs beside the tests."""
    with computing_with(1) as count:
        yield count


@pytest.fixture
def cores(one_thread: int) -> Iterator[int]:
    """As if the machine had three, whatever it has."""
    with computing_with(3) as count:
        yield count


@pytest.fixture(scope="session")
def tiny_pipeline(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A pipeline of SDXL's classes as small as the demo's, with random weights."""
    from vision_sae.models.embedded.generator import new_pipeline, write_tokenizer

    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder)
    torch.manual_seed(0)
    made = new_pipeline(folder)
    made.set_progress_bar_config(disable=True)
    return made


@pytest.fixture(scope="session")
def tiny_generator(tiny_pipeline: Any) -> SdxlModel:
    """The same, behind the `Generator` protocol, in float32."""
    return SdxlModel("tiny", tiny_pipeline, dtype="float32")


@pytest.fixture(scope="session")
def two_level_generator(tiny_pipeline: Any) -> SdxlModel:
    """One that attends at 16 x 16 positions too, as SDXL's U-Net does at its second level."""
    unet = tiny_pipeline.unet
    attending = type(unet).from_config(
        unet.config,
        down_block_types=("DownBlock2D", *["CrossAttnDownBlock2D"] * 2),
        up_block_types=(*["CrossAttnUpBlock2D"] * 2, "UpBlock2D"),
        transformer_layers_per_block=1,
        reverse_transformer_layers_per_block=None,
    )
    pipeline = type(tiny_pipeline)(**tiny_pipeline.components | {"unet": attending})
    pipeline.set_progress_bar_config(disable=True)
    return SdxlModel("two-level", pipeline, dtype="float32")


@pytest.fixture(scope="session")
def generated_bundles(
    tiny_generator: SdxlModel, tmp_path_factory: pytest.TempPathFactory
) -> list[Bundle]:
    """Bundles of two of its sites; see `tests.worlds.generations`."""
    return generations.bundles(tiny_generator, tmp_path_factory.mktemp("generations"))
