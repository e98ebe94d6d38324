"""Requests for the changes that edits of features cause in a model's output."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from vision_sae.errors import InvalidInputError
from vision_sae.v1 import intervention_service_pb2 as pb
from vision_sae.v1.edit_pb2 import Edit
from vision_sae.v1.target_pb2 import Target
from vision_sae_client.images import ImageSource, image
from vision_sae_client.values import sendable


@sendable
def intervene(
    sources: Sequence[ImageSource],
    edits: Sequence[Edit],
    measured: Mapping[str, Target],
    *,
    groups: Sequence[str] = (),
    top_classes: int | None = None,
    control_count: int = 0,
    seed: int = 0,
    include_embeddings: bool = False,
) -> list[pb.StreamInterveneRequest]:
    """The plan, and then the pictures; ``measured`` maps names of the caller's choice to
    targets."""
    if groups and len(groups) != len(sources):
        raise InvalidInputError("give a group for each picture, or none", field="groups")
    plan = pb.InterventionPlan(
        edits=edits,
        targets=[pb.NamedTarget(id=name, target=target) for name, target in measured.items()],
        top_classes=top_classes,
        control_count=control_count,
        seed=seed,
        include_embeddings=include_embeddings,
    )
    pictures = (
        pb.InterventionImage(
            id=str(number), image=image(source), group=groups[number] if groups else ""
        )
        for number, source in enumerate(sources)
    )
    return [
        pb.StreamInterveneRequest(plan=plan),
        *(pb.StreamInterveneRequest(image=picture) for picture in pictures),
    ]
