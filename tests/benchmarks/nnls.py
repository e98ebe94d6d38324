"""Non-negative codes by our active-set solver, by SciPy's and by scikit-learn's: JSON on stdout.

``python -m tests.benchmarks.nnls`` prints one object a size: milliseconds a vector of each solver,
the ratios of ours to each (below 1: ours is faster), and how much larger our error is at most.
SciPy solves one vector a call and has no limit k, which `vision-sae train` always sets; with k,
each vector takes a matching pursuit of k calls of SciPy. scikit-learn's
`LinearRegression(positive=True)` calls SciPy's solver for each target.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import nnls
from sklearn.linear_model import LinearRegression
from torch import Tensor

from vision_sae.dictionaries.nnls import non_negative_codes

SIZES = ((384, 384), (384, 768), (768, 768))
"""(D, F): neurons of a ViT-S, twice as many features, and a ViT-B."""
K = 32
"""The usual number of active features."""


def problem(rows: int, dim: int, width: int) -> tuple[Tensor, Tensor]:
    """(vectors (N, D) that 16 atoms make, with noise, atoms (F, D) of unit norm), float64."""
    generator = torch.Generator().manual_seed(0)
    atoms = torch.randn(width, dim, generator=generator, dtype=torch.float64)
    atoms = torch.nn.functional.normalize(atoms + 0.3, dim=1)
    codes = torch.rand(rows, width, generator=generator, dtype=torch.float64)
    codes *= torch.rand(rows, width, generator=generator) < 16 / width
    noise = torch.randn(rows, dim, generator=generator, dtype=torch.float64) / dim**0.5
    return codes @ atoms + 0.3 * noise, atoms


def seconds(solve: Callable[[], Any]) -> tuple[float, Any]:
    """(Seconds that a call took, its result)"""
    begin = time.perf_counter()
    made = solve()
    return time.perf_counter() - begin, made


def pursuit(atoms: NDArray[np.float64], row: NDArray[np.float64], k: int) -> NDArray[np.float64]:
    """Codes (F) of a vector (D) by non-negative orthogonal matching pursuit over SciPy."""
    codes, gradient = np.zeros(len(atoms)), atoms @ row
    while (codes > 0).sum() < k and gradient.max() > 1e-9:
        used = [*np.flatnonzero(codes), gradient.argmax()]
        codes = np.zeros(len(atoms))
        codes[used] = nnls(atoms[used].T, row)[0]
        gradient = atoms @ (row - codes @ atoms)
    return codes


def measure(rows: int, dim: int, width: int) -> dict[str, Any]:
    """The figures of one size."""
    x, atoms = problem(rows, dim, width)
    targets, gram, columns = x @ atoms.T, atoms @ atoms.T, atoms.numpy().T
    non_negative_codes(targets[:1], gram, None)  # compiles
    ours, codes = seconds(lambda: non_negative_codes(x @ atoms.T, gram, None))
    limited, _ = seconds(lambda: non_negative_codes(x @ atoms.T, gram, K))
    pursued, _ = seconds(lambda: [pursuit(atoms.numpy(), row, K) for row in x.numpy()])
    scipys, expected = seconds(lambda: np.stack([nnls(columns, row)[0] for row in x.numpy()]))
    model = LinearRegression(positive=True, fit_intercept=False)
    sklearns, _ = seconds(lambda: model.fit(columns, x.numpy().T))
    errors = [(x - torch.as_tensor(c).double() @ atoms).norm(dim=1) for c in (codes, expected)]
    return {
        "dim": dim,
        "features": width,
        "vectors": rows,
        "ms_a_vector": {
            name: round(1e3 * spent / rows, 3)
            for name, spent in (
                *(("ours", ours), ("scipy", scipys), ("sklearn", sklearns)),
                *((f"ours, k = {K}", limited), (f"scipy, k = {K}", pursued)),
            )
        },
        "ours_over_scipy": round(ours / scipys, 4),
        "ours_over_sklearn": round(ours / sklearns, 4),
        "ours_over_scipy_with_k": round(limited / pursued, 4),
        "worse_than_scipy": float((errors[0] / errors[1] - 1).max()),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=64, help="vectors to solve for")
    print(json.dumps([measure(parser.parse_args().rows, *size) for size in SIZES], indent=2))
