"""Every Triton kernel beside torch's operations, on odd shapes.

``TRITON_INTERPRET=1 python -m tests.worlds.triton_cases`` prints the errors as JSON, from Triton's
interpreter on the CPU; with ``--device cuda`` the kernels run compiled on a GPU. The variable must
be set before Triton is imported, so tests call `interpreted`, which starts a process.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import Tensor

Errors = dict[str, dict[str, float]]
"""{kernel: {case: largest error, relative to the largest magnitude of the expected numbers}}"""


class Case(NamedTuple):
    """A shape, and what is odd about it."""

    name: str
    rows: int = 7
    dim: int = 24
    width: int = 40
    k: int = 5
    ends: tuple[float, ...] = (1.0,)
    """The nested prefixes, as shares of the width."""
    bias: float = 0.0
    """Added to b_enc: a large negative number silences every feature."""
    ties: bool = False
    """Whether many pre-activations are equal."""
    dtype: torch.dtype = torch.float32
    """The precision of the choosing product, and of the inputs of `dots` and `bag`."""
    across_rows: bool = False
    """Whether the rows compete for active features, as in BatchTopK."""
    dead: int = 0
    """Features with gradients of AuxK."""
    penalty: bool = False
    """Whether the decoder has a further gradient."""
    block: int = 2048
    """Pre-activations that `choose_largest` reads at a time."""
    programs: int = 4096
    """The most programs of `update_rows`."""


CASES = (
    Case("plain"),
    Case("no feature fires", bias=-1e3),
    Case("k equals F", width=9, k=9),
    Case("one row", rows=1),
    Case("one slot", k=1),
    Case("one dimension", dim=1),
    Case("one feature", width=1, k=1),
    Case("width longer than a block and no multiple of it", rows=2, width=150, k=40, block=64),
    Case("dim longer than a tile and no multiple of it", rows=3, dim=517),
    Case("more slots than a tile", rows=3, dim=130, width=80, k=70),
    Case("ties", ties=True),
    Case("bfloat16", dtype=torch.bfloat16),
    Case("float16", dtype=torch.float16),
    Case("ties in bfloat16", ties=True, dtype=torch.bfloat16),
    Case("nested prefixes", ends=(0.25, 0.5, 1.0)),
    Case("across rows", across_rows=True),
    Case("dead features and a penalty", dead=6, penalty=True),
    Case("more features than programs", programs=7),
)


class Problem(NamedTuple):
    """The inputs of all kernels for a case."""

    weights: Any
    z: Tensor
    case: Case
    ends: tuple[int, ...]


def problem(case: Case, device: str) -> Problem:
    """Weights in the middle of a training and a batch, from a fixed seed."""
    from vision_sae.dictionaries.training.sparse import Weights

    generator = torch.Generator().manual_seed(1)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    f, d = case.width, case.dim
    w_enc, z = random(f, d) / d**0.5, random(case.rows, d)
    if case.ties:  # small integers: products are exact, and many are equal
        w_enc, z = random(f, d).sign() * (torch.arange(d) < 3), random(case.rows, d).sign()
    w_dec = torch.nn.functional.normalize(random(f, d), dim=1)
    b_enc, b_dec = torch.zeros(f) if case.ties else 0.1 * random(f), torch.zeros(d)
    parameters = (w_enc, b_enc + case.bias, w_dec, b_dec)
    moments = [
        0.01 * (random(*p.shape) if first else random(*p.shape).square())
        for p in parameters
        for first in (True, False)
    ]
    weights = Weights(*(t.to(device) for t in (*parameters, *moments)))
    ends = tuple(round(share * f) for share in case.ends)
    return Problem(weights, z.to(device), case, ends)


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """The largest difference, relative to the largest magnitude that is expected."""
    if actual.shape != expected.shape:
        return float("inf")
    if not expected.numel():
        return 0.0
    scale = float(expected.double().abs().max()) or 1.0
    return float((actual.double() - expected.double()).abs().max()) / scale


def _largest_by_sorting(pre: Tensor, k: int) -> list[list[int]]:
    """The features of the k largest positive numbers of each row, ascending; of equal ones the
    first."""
    chosen = []
    for row in pre.tolist():
        positive = [feature for feature, value in enumerate(row) if value > 0]
        chosen.append(sorted(sorted(positive, key=lambda f: (-row[f], f))[:k]))
    return chosen


def choose_error(inputs: Problem) -> float:
    """`choose_largest`: 0 where features, counts and values are those of sorting, else infinity."""
    from vision_sae.dictionaries import kernels_triton

    case = inputs.case
    pre = (inputs.z @ inputs.weights.w_enc.T + inputs.weights.b_enc).to(case.dtype)
    with mock.patch.object(kernels_triton, "_BLOCK", case.block):
        features, kept, counts = kernels_triton.choose_largest(pre, case.k)
    expected = _largest_by_sorting(pre, case.k)
    for n, row in enumerate(expected):
        values = [*pre[n, row].tolist(), *[0.0] * (case.k - len(row))]
        same = features[n, : len(row)].tolist() == row and kept[n].tolist() == values
        if not same or int(counts[n]) != len(row):
            return float("inf")
    return 0.0


def _random_codes(inputs: Problem) -> tuple[Tensor, Tensor, Tensor]:
    """(features int32 (N, K), counts int32 (N), values (N, K)): rows of different counts."""
    case, device = inputs.case, inputs.z.device
    generator = torch.Generator().manual_seed(2)
    order = torch.rand(case.rows, case.width, generator=generator).argsort(1)[:, : case.k]
    counts = torch.arange(case.rows) % (case.k + 1)
    if case.bias < 0:
        counts.zero_()
    used = torch.arange(case.k) < counts[:, None]
    features = torch.where(used, order, case.width).sort(dim=1).values.where(used, 0)
    values = torch.rand(case.rows, case.k, generator=generator) * used
    return features.int().to(device), counts.int().to(device), values.to(device)


def dots_error(inputs: Problem) -> float:
    """`dots` against a gather and a product in float64."""
    from vision_sae.dictionaries.kernels_triton import dots

    case, w = inputs.case, inputs.weights
    features, counts, values = _random_codes(inputs)
    used = torch.arange(case.k, device=values.device) < counts[:, None]
    a, rows = inputs.z.to(case.dtype), w.w_enc.to(case.dtype)
    products = (a.double() @ rows.double().T).gather(1, features.long())
    out = torch.zeros_like(values)
    dots(features, counts, a, rows, out, between=(0, case.width))
    errors = [relative_error(out, products * used)]
    first = case.width // 3
    out = torch.zeros_like(values)
    dots(features, counts, a, rows, out, between=(first, case.width), active=values)
    errors.append(relative_error(out, products * (used & (features >= first) & (values > 0))))
    out = torch.zeros_like(values)
    dots(features, counts, a, rows, out, between=(0, case.width), bias=w.b_enc)
    activations = (products + w.b_enc.double()[features.long()]).relu() * used
    return max(*errors, relative_error(out, activations))


def bag_error(inputs: Problem) -> float:
    """`bag` against a dense product in float64."""
    from vision_sae.dictionaries.kernels_triton import bag

    case = inputs.case
    features, counts, values = _random_codes(inputs)
    rows = inputs.weights.w_dec.to(case.dtype)
    errors = []
    for first, last in ((0, case.width), (case.width // 3, case.width - 1)):
        inside = values * ((features >= first) & (features < last))
        dense = torch.zeros(case.rows, case.width, dtype=torch.float64, device=values.device)
        dense.scatter_add_(1, features.long(), inside.double())
        out = bag(features, counts, values, rows, between=(first, last))
        errors.append(relative_error(out, dense @ rows.double()))
    return max(errors)


def step_error(inputs: Problem) -> float:
    """`update_rows` and the kernels before it: a step of `TritonKernels` against `TorchKernels`.

    Both take the features that torch chooses. The error is that of activations, errors, gradients,
    updated parameters and moments.
    """
    from vision_sae.dictionaries import kernels_triton_update
    from vision_sae.dictionaries.training.aux_k import AuxGradients
    from vision_sae.dictionaries.training.distributed import Group
    from vision_sae.dictionaries.training.sparse import Adam, Shared, Weights
    from vision_sae.dictionaries.training.sparse_torch import TorchKernels
    from vision_sae.dictionaries.training.sparse_triton import TritonKernels

    case, z = inputs.case, inputs.z
    shared = Shared(Group(), case.rows) if case.across_rows else None
    copies = [Weights(*(t.clone() for t in inputs.weights)) for _ in range(2)]
    reference = TorchKernels(copies[0], dtype=case.dtype)
    ours = TritonKernels(copies[1], dtype=case.dtype)
    chosen = reference.choose(z, case.k, shared)
    if not case.ties and ours.choose(z, case.k, shared).counts.tolist() != chosen.counts.tolist():
        return float("inf")
    errors = [relative_error(ours._activations(*chosen[:3]), chosen.values)]
    weight = 2 / (case.rows * len(inputs.ends))
    forwards = [kernels.finish(chosen, inputs.ends, weight) for kernels in (reference, ours)]
    errors += [relative_error(b, a) for a, b in zip(*forwards, strict=True)]
    other = [
        kernels.gradients_at(forward, torch.ones_like(z)[None]).g_values
        for kernels, forward in zip((reference, ours), forwards, strict=True)
    ]
    errors.append(relative_error(other[1], other[0]))
    generator = torch.Generator().manual_seed(3)
    gradients = [
        torch.randn(shape, generator=generator).to(z.device) / case.rows
        for shape in ((case.dead, case.dim), (case.dead,), (case.dead, case.dim))
    ]
    numbers = torch.randperm(case.width, generator=generator)[: case.dead].to(z.device)
    aux = AuxGradients(numbers, *gradients) if case.dead else None
    penalty = inputs.weights.w_enc * 0.1 if case.penalty else None
    with mock.patch.object(kernels_triton_update, "_PROGRAMS", case.programs):
        results = [
            kernels.update(forwards[0], inputs.ends, Adam(1e-2, 1.5), aux, penalty)
            for kernels in (reference, ours)
        ]
    errors += [relative_error(b.float(), a.float()) for a, b in zip(*results, strict=True)]
    errors += [relative_error(b, a) for a, b in zip(*copies, strict=True)]
    if ours._low is not None:  # Triton's interpreter cuts digits off where a GPU rounds
        encoder = copies[1].w_enc
        if ((ours._low.float() - encoder).abs() > encoder.abs() * 2**-7 + 1e-6).any():
            return float("inf")
    return max(errors)


KERNELS: dict[str, Callable[[Problem], float]] = {
    "choose_largest": choose_error,
    "dots": dots_error,
    "bag": bag_error,
    "update_rows": step_error,
}


def errors(device: str) -> Errors:
    """The errors of every kernel in every case, on a device."""
    problems = [problem(case, device) for case in CASES]
    return {
        name: {inputs.case.name: error(inputs) for inputs in problems}
        for name, error in KERNELS.items()
    }


def interpreted() -> Errors:
    """The errors in Triton's interpreter, in a process of its own."""
    run = subprocess.run(
        [sys.executable, "-m", "tests.worlds.triton_cases"],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )
    if run.returncode:
        raise RuntimeError(run.stderr[-4000:])
    result: Errors = json.loads(run.stdout.splitlines()[-1])
    return result


def summary(measured: Errors) -> dict[str, float]:
    """{kernels, cases, max_rel_error} for a benchmark."""
    each: Iterator[float] = (error for cases in measured.values() for error in cases.values())
    return {
        "kernels": len(measured),
        "cases": sum(map(len, measured.values())),
        "max_rel_error": max(each),
    }


def main() -> None:
    """Print the errors as JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cpu")
    print(json.dumps(errors(parser.parse_args().device)))


if __name__ == "__main__":
    main()
