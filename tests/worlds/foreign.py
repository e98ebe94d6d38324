"""What tests of foreign checkpoints share: random weights, inputs, dense reconstructions, and the
files that each library makes of the weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor

from vision_sae.dictionaries.interop.conversion import import_sae
from vision_sae.dictionaries.protocol import Dictionary

DIM, WIDTH, K = 5, 12, 3


class Random(NamedTuple):
    """Weights of no special structure: nothing is zero, unit, tied or symmetric."""

    W_enc: Tensor
    """(D, F)"""
    b_enc: Tensor
    W_dec: Tensor
    """(F, D)"""
    b_dec: Tensor
    x: Tensor
    """Inputs (N, D), far from zero mean."""


def random_weights(seed: int = 0) -> Random:
    """Weights and inputs from a seed."""
    g = torch.Generator().manual_seed(seed)
    shapes = ((DIM, WIDTH), (WIDTH,), (WIDTH, DIM), (DIM,), (40, DIM))
    w = Random(*(torch.randn(shape, generator=g) for shape in shapes))
    return w._replace(x=w.x * 2 + 3)


def vector(seed: int = 1) -> Tensor:
    """A further tensor (F)."""
    return torch.randn(WIDTH, generator=torch.Generator().manual_seed(seed))


def top_k(pre: Tensor, k: int = K) -> Tensor:
    """Dense TopK: the k largest entries of each row, as far as they are positive."""
    return pre.relu() * (pre >= pre.topk(k, dim=1).values[:, -1:])


def reconstruct(dictionary: Dictionary, x: Tensor) -> Tensor:
    """Encode and decode."""
    return dictionary.decode(dictionary.encode(x))


def check(path: Path, x: Tensor, expected: Tensor, **options: Any) -> Dictionary:
    """Import a checkpoint and compare its reconstructions with ``expected`` (N, D)."""
    dictionary, _ = import_sae(path, **options)
    torch.testing.assert_close(reconstruct(dictionary, x), expected, atol=1e-5, rtol=1e-5)
    assert expected.std() > 0.1, "a reconstruction that hardly varies would hide mistakes"
    return dictionary


W = random_weights()
MATRICES = {"W_enc": W.W_enc, "b_enc": W.b_enc, "W_dec": W.W_dec, "b_dec": W.b_dec}
LINEAR = {"encoder.weight": W.W_enc.T.contiguous(), "decoder.weight": W.W_dec.T.contiguous()}
SITE, NORM = "blocks.3.hook_resid_post", 7.0
"""Where llamascopium's checkpoint is from, and the average norm there."""
CENTER, MSAE_SCALE = torch.arange(DIM) - 1.5, 0.25
"""What MSAE's checkpoint takes from its inputs, and then multiplies them by."""


def write_sparsify(path: Path, settings: dict[str, Any], **others: Tensor) -> Path:
    """A checkpoint of sparsify, TopK."""
    said = {"activation": "topk", "expansion_factor": 32, "num_latents": WIDTH, "k": K, "d_in": DIM}
    (path / "cfg.json").write_text(json.dumps(said | settings))
    tensors = {"encoder.weight": LINEAR["encoder.weight"], "encoder.bias": W.b_enc}
    save_file(tensors | {"W_dec": W.W_dec, "b_dec": W.b_dec} | others, path / "sae.safetensors")
    return path


def write_dictionary_learning(
    path: Path, name: str, tensors: dict[str, Tensor], **settings: Any
) -> Path:
    """A checkpoint of dictionary_learning, of the class ``name``."""
    trainer = {"dict_class": name, "activation_dim": DIM, "dict_size": WIDTH, "k": K} | settings
    (path / "config.json").write_text(json.dumps({"trainer": trainer, "buffer": {}}))
    torch.save(tensors, path / "ae.pt")
    return path


def write_llamascopium(path: Path, settings: dict[str, Any], **others: Tensor) -> Path:
    """A checkpoint of llamascopium; ``__`` stands for a dot in a tensor's name."""
    said = {
        "sae_type": "sae",
        "d_model": DIM,
        "expansion_factor": WIDTH / DIM,
        "hook_point_in": SITE,
        "hook_point_out": SITE,
        "act_fn": "relu",
        "norm_activation": "dataset-wise",
        "sparsity_include_decoder_norm": False,
        "top_k": K,
    }
    (path / "config.json").write_text(json.dumps(said | settings))
    tensors = {"W_E": W.W_enc, "b_E": W.b_enc, "W_D": W.W_dec, "b_D": W.b_dec}
    norms = {f"dataset_average_activation_norm.{SITE}": torch.tensor(NORM)}
    renamed = {name.replace("__", "."): tensor for name, tensor in others.items()}
    save_file(tensors | norms | renamed, path / "sae_weights.safetensors")
    return path


def write_sdxl_unbox(path: Path, **settings: Any) -> Path:
    """A checkpoint of sdxl-unbox."""
    path.mkdir()
    said = {"n_dirs_local": WIDTH, "d_model": DIM, "k": K, "auxk": 4, "dead_steps_threshold": 9}
    (path / "config.json").write_text(json.dumps(said | settings))
    tensors = {
        "encoder.weight": W.W_enc.T,
        "decoder.weight": W.W_dec.T,
        "pre_bias": W.b_dec,
        "latent_bias": W.b_enc,
        "stats_last_nonzero": torch.zeros(WIDTH, dtype=torch.long),
    }
    torch.save({"state_dict": tensors}, path / "state_dict.pth")
    torch.save(vector(), path / "mean.pt")
    torch.save(vector(), path / "std.pt")
    return path


def write_saev(path: Path, header: dict[str, Any], **tensors: Tensor) -> Path:
    """A checkpoint of saev."""
    with path.open("wb") as file:
        file.write(json.dumps(header).encode() + b"\n")
        torch.save(MATRICES | tensors, file)
    return path


def saev_header(schema: int, cls: str, **parameters: Any) -> dict[str, Any]:
    """The header that saev writes since schema 2."""
    activation = {"cls": cls, "params": parameters}
    return {
        "schema": schema,
        "cfg": {"d_model": DIM, "d_sae": WIDTH, "activation": activation},
        "commit": "c0ffee",
        "lib": "0.3",
    }


def write_msae(path: Path, **changes: Any) -> Path:
    """A checkpoint of MSAE; the name of ``path`` says what it is."""
    model = {
        "encoder": W.W_enc,
        "decoder": W.W_dec,
        "pre_bias": W.b_dec,
        "latent_bias": W.b_enc,
        "latents_activation_frequency": torch.zeros(WIDTH, dtype=torch.int64),
    }
    if "_True_False_" in path.name:  # tied: the decoder is the encoder
        del model["decoder"]
    stored = {
        "model": model,
        "mean_center": CENTER,
        "scaling_factor": MSAE_SCALE,
        "target_norm": None,
    }
    torch.save(stored | changes, path)
    return path


def write_prisma(path: Path, settings: dict[str, Any], **tensors: Tensor) -> Path:
    """A checkpoint of ViT-Prisma."""
    said = {"d_in": DIM, "d_sae": None, "normalize_activations": "none"}
    (path / "config.json").write_text(json.dumps(said | settings))
    torch.save(MATRICES | tensors, path / "weights.pt")
    return path


def write_saelens(path: Path, settings: dict[str, Any], **tensors: Tensor) -> Path:
    """A checkpoint of SAELens."""
    path.mkdir()
    stored = {"W_enc": W.W_enc, "b_enc": W.b_enc, "W_dec": W.W_dec, "b_dec": W.b_dec} | tensors
    save_file(stored, path / "sae_weights.safetensors")
    (path / "cfg.json").write_text(json.dumps({"d_in": DIM, "d_sae": WIDTH} | settings))
    return path
