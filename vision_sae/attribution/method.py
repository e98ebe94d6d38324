"""The door for methods of attribution: one file a method, which registers itself in `METHODS`.

Our methods are the modules of `vision_sae.attribution.methods`; another distribution adds one by an
entry point of the group ``vision_sae.attribution_methods``. What a method gives is its family: a
ledger of features, one map of patches, or components with a map each. This module imports no torch;
the modules of the methods do.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

from vision_sae.errors import InvalidInputError
from vision_sae.registry import Registry

if TYPE_CHECKING:
    from torch import Tensor

    from vision_sae.attribution.ledger import Ledger, Reference
    from vision_sae.attribution.maps import Factorisation, PatchMap
    from vision_sae.attribution.observation import Observation
    from vision_sae.dictionaries.protocol import SiteDictionary

    Attributed: TypeAlias = Ledger | PatchMap | Factorisation

NODES = 8
"""The usual number of integration nodes."""
COMPONENTS = 6
"""The usual number of components."""
ABLATED = 20
"""The usual number of features that are ablated."""


class AttributionTask(NamedTuple):
    """The input of a method; each method reads the fields that it needs."""

    observation: Observation
    """The picture, its site vectors and the target."""
    features: SiteDictionary
    """The features that the target is attributed to, and their site."""
    reference: Reference | None = None
    """What the attribution is measured from; the zero code when absent."""
    nodes: int = NODES
    """Integration nodes."""
    ablated: int = ABLATED
    """How many features are ablated one by one."""
    context: Tensor | None = None
    """Site vectors (N, P, D) of further pictures, which are factorised together with this one."""
    components: int = COMPONENTS


@dataclass(frozen=True)
class Method:
    """One way to attribute a target."""

    name: str
    summary: str
    """What the method does, in a phrase."""
    paper: str
    """Where the method comes from."""
    gives: Literal["ledger", "map", "components"]
    """The family: a `Ledger`, a `PatchMap` or a `Factorisation`."""
    answer: Callable[[AttributionTask], Attributed]
    version: int = 1
    """Rises when the same task has another answer."""
    ablates: bool = False
    """Whether features are set to zero, so that no other reference makes sense."""
    takes_context: bool = False
    """Whether it looks at further pictures."""
    of_neurons: bool = False
    """Whether it takes the raw neurons of the site in the place of a dictionary's features."""

    def check(self, *, from_zero: bool, special_tokens: bool, field: str) -> None:
        """Raise `InvalidInputError` for options that the method has no use for.

        ``from_zero`` says whether the reference, which ``field`` names, is the zero code.
        """
        if self.ablates and not from_zero:
            raise InvalidInputError(
                f"an ablated feature is set to zero, whatever the {field}; leave the {field} out, "
                "or choose integrated gradients",
                field=field,
            )
        if special_tokens and self.gives != "ledger":
            raise InvalidInputError(
                "a method without features attributes to patches only; leave special_tokens out, "
                "or choose a method with features",
                field="special_tokens",
            )


METHODS: Registry[Method] = Registry(
    "method of attribution",
    package="vision_sae.attribution.methods",
    group="vision_sae.attribution_methods",
    field="method",
)
"""Every method, by name."""


def described() -> list[dict[str, Any]]:
    """{name, version, summary, paper, gives} of every method, for tables of documents. Imports
    every method."""
    return [
        {key: getattr(method, key) for key in ("name", "version", "summary", "paper", "gives")}
        for method in METHODS
    ]
