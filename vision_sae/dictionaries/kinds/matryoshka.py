"""Matryoshka sparse autoencoder: nested dictionaries in one (Bussmann et al. 2025)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from vision_sae.config import TrainConfig
from vision_sae.dictionaries.architectures import ARCHITECTURES, Architecture, settings_of
from vision_sae.dictionaries.kinds.topk import TopKSae
from vision_sae.dictionaries.protocol import Codes
from vision_sae.dictionaries.training.distributed import Group
from vision_sae.dictionaries.training.scaling import InputScaling
from vision_sae.dictionaries.training.sparse import SparseLearner
from vision_sae.errors import InvalidInputError
from vision_sae.sections import Section


class MatryoshkaConfig(Section):
    """Nested dictionaries in one."""

    prefixes: tuple[float, ...] = (1 / 32, 1 / 8, 1 / 2, 1)
    """The nested widths, as rising shares of F that end in 1."""


def prefix_widths(shares: Sequence[float], width: int) -> tuple[int, ...]:
    """Shares of the ``width`` features -> the widths of the nested prefixes, in rising order.

    Raises `InvalidInputError` for widths that do not rise up to ``width``.
    """
    ends = tuple(round(share * width) for share in shares)
    rising = all(a < b for a, b in zip((0, *ends), ends, strict=False))
    if not ends or not rising or ends[-1] != width:
        raise InvalidInputError(
            f"prefixes {tuple(shares)} of {width} features give the widths {ends}; give rising "
            "shares that end in 1, each at least one feature wider than the share before",
            field="train.matryoshka.prefixes",
        )
    return ends


class MatryoshkaSae(TopKSae):
    """A TopK autoencoder in which the features of each prefix alone are trained to reconstruct.

    Training puts general features into the short prefixes, and specific features behind them.
    """

    architecture = "matryoshka"

    def __init__(self, *, k: int, prefixes: Sequence[int], **weights: Tensor) -> None:
        """Take the weights of `TopKSae`, and the widths of the nested prefixes, the last one F."""
        super().__init__(k=k, **weights)
        self.prefixes = tuple(prefixes)

    def settings(self) -> dict[str, Any]:
        """``k`` and the prefixes."""
        return super().settings() | {"prefixes": list(self.prefixes)}

    def within(self, codes: Codes, prefix: int) -> Codes:
        """The codes restricted to the features of prefix number ``prefix``.

        `decode` of the result is the prefix's reconstruction.
        """
        inside = codes.indices < self.prefixes[prefix]
        return Codes(codes.indices, codes.values * inside)


class MatryoshkaLearner(SparseLearner):
    """A Matryoshka autoencoder in training; see `step.Learner`."""

    def __init__(
        self, dim: int, config: TrainConfig, *, group: Group | None = None, device: str = "cpu"
    ) -> None:
        """See `SparseLearner`."""
        super().__init__(dim, config, group=group, device=device)
        shares = settings_of(config, MatryoshkaConfig).prefixes
        self.ends = prefix_widths(shares, len(self.weights.w_dec))

    def dictionary(self, scaling: InputScaling) -> MatryoshkaSae:
        """The current SAE for raw site vectors, with mean and scale folded into the weights."""
        return MatryoshkaSae(k=self.config.k, prefixes=self.ends, **self.folded(scaling))


ARCHITECTURES.register(
    Architecture(MatryoshkaSae, learner=MatryoshkaLearner, settings=MatryoshkaConfig)
)
