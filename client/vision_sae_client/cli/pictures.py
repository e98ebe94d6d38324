"""The commands ``encode``, ``attribute`` and ``intervene``."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from vision_sae import tensors
from vision_sae.files import replacing
from vision_sae.places import check_output_folder
from vision_sae.v1.attribution_service_pb2 import (
    ENCODE_ORDER_INFORMATIVE,
    ENCODE_ORDER_MAX_ACTIVATION,
    ENCODE_ORDER_RELATIVE_ACTIVATION,
    ENCODE_ORDER_TOTAL_ACTIVATION,
    FeatureActivation,
)
from vision_sae.v1.image_pb2 import PatchGrid
from vision_sae.v1.ledger_pb2 import (
    ATTRIBUTION_METHOD_ACT_X_GRAD,
    ATTRIBUTION_METHOD_EXACT_ABLATION,
    ATTRIBUTION_METHOD_INTEGRATED_GRADIENTS,
    ATTRIBUTION_METHOD_RAW_NEURON,
    FeatureContribution,
)
from vision_sae_client import overlay, report, targets
from vision_sae_client.cli.command import (
    DEFAULT_ADDRESS,
    Address,
    AsJson,
    DictionaryName,
    Overwrite,
    Timeout,
    Token,
    command,
    in_json,
    warn_unread,
)
from vision_sae_client.cli.edit_options import Ablate, Add, Clamp, EditBox, OwnMapFlag, Scale, edits
from vision_sae_client.client import Client
from vision_sae_client.edits import Scope
from vision_sae_client.images import parse_box


class AttributionBy(StrEnum):
    """Attribution methods that give a ledger."""

    INTEGRATED = "integrated-gradients"
    ACT_X_GRAD = "act-x-grad"
    EXACT_ABLATION = "exact-ablation"
    RAW_NEURON = "raw-neuron"


_METHODS = {
    AttributionBy.INTEGRATED: ATTRIBUTION_METHOD_INTEGRATED_GRADIENTS,
    AttributionBy.ACT_X_GRAD: ATTRIBUTION_METHOD_ACT_X_GRAD,
    AttributionBy.EXACT_ABLATION: ATTRIBUTION_METHOD_EXACT_ABLATION,
    AttributionBy.RAW_NEURON: ATTRIBUTION_METHOD_RAW_NEURON,
}


class Order(StrEnum):
    """The orders of a picture's features."""

    INFORMATIVE = "informative"
    MAX = "max-activation"
    TOTAL = "total-activation"
    RELATIVE = "relative-activation"


_ORDERS = {
    Order.INFORMATIVE: ENCODE_ORDER_INFORMATIVE,
    Order.MAX: ENCODE_ORDER_MAX_ACTIVATION,
    Order.TOTAL: ENCODE_ORDER_TOTAL_ACTIVATION,
    Order.RELATIVE: ENCODE_ORDER_RELATIVE_ACTIVATION,
}
OVERLAYS = ("*-feature-*.png",)
"""The files that `write_overlays` writes."""
OverlayFolder = Annotated[
    Path | None, typer.Option("--out", help="Directory for a heat-map PNG per feature.")
]


@command
def encode(
    image: Annotated[Path, typer.Argument(help="Picture: JPEG, PNG or WebP.")],
    address: Address = DEFAULT_ADDRESS,
    dictionary: DictionaryName = None,
    order: Annotated[
        Order,
        typer.Option(
            help="Order; by default, the features that say most about this picture first."
        ),
    ] = Order.INFORMATIVE,
    box: Annotated[
        str | None,
        typer.Option(help="Only within x0,y0,x1,y1 in pixels of the picture.", metavar="BOX"),
    ] = None,
    top_k: Annotated[int, typer.Option(help="Features to show.", min=1, max=1000)] = 10,
    out: OverlayFolder = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    token: Token = None,
    timeout: Timeout = 60.0,
) -> None:
    """Show which features fire in a picture, what they mean, and who confirmed that."""
    if out is not None:
        check_output_folder(out, OVERLAYS, inputs=[image], overwrite=overwrite)
    with Client(address, token=token, timeout=timeout) as client:
        answer = client.encode(
            image,
            dictionary,
            top_k=top_k,
            box=None if box is None else parse_box(box),
            order=_ORDERS[order],
        )
    typer.echo(in_json(answer) if as_json else report.encoding(answer))
    warn_unread(answer.unread_texts)
    if out is not None:
        written = write_overlays(image, answer.grid, answer.features, out, overwrite=overwrite)
        typer.echo(f"{written} overlays in {out}", err=True)


@command
def attribute(
    image: Annotated[Path, typer.Argument(help="Picture: JPEG, PNG or WebP.")],
    address: Address = DEFAULT_ADDRESS,
    dictionary: DictionaryName = None,
    target: Annotated[
        str,
        typer.Option(
            help="mean, image:FILE, class:INDEX, class:NAME, text:WORDS, feature:NAME, or 'A vs B'."
        ),
    ] = "mean",
    method: Annotated[AttributionBy, typer.Option(help="Method.")] = AttributionBy.INTEGRATED,
    baseline: Annotated[
        Path | None, typer.Option(help="Measure from this picture; default: no feature fires.")
    ] = None,
    faithfulness: Annotated[
        bool, typer.Option("--faithfulness", help="Measure how faithful the answer is.")
    ] = False,
    special_tokens: Annotated[
        bool,
        typer.Option("--special-tokens", help="Attribute to CLS and registers, too."),
    ] = False,
    top_k: Annotated[int, typer.Option(help="Features to show.", min=1, max=1000)] = 10,
    out: OverlayFolder = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    token: Token = None,
    timeout: Timeout = 60.0,
) -> None:
    """Show what the features of a picture contribute to a target, with the check of the sum."""
    if out is not None:
        inputs = [path for path in (image, baseline) if path is not None]
        check_output_folder(out, OVERLAYS, inputs=inputs, overwrite=overwrite)
    with Client(address, token=token, timeout=timeout) as client:
        answer = client.attribute(
            image,
            targets.parse(target),
            dictionaries=[dictionary] if dictionary else None,
            method=_METHODS[method],
            baseline=baseline,
            top_k=top_k,
            faithfulness=faithfulness,
            special_tokens=special_tokens,
        )
    (site,) = answer.sites
    warn_unread(answer.unread_texts)
    typer.echo(in_json(site) if as_json else report.attribution(site))
    if faithfulness and not as_json:
        typer.echo("\n" + report.faithfulness(site))
    if out is not None:
        written = write_overlays(image, site.grid, site.features, out, overwrite=overwrite)
        typer.echo(f"{written} overlays in {out}", err=True)


def write_overlays(
    image: Path,
    grid: PatchGrid,
    features: Sequence[FeatureActivation | FeatureContribution],
    directory: Path,
    *,
    overwrite: bool = False,
) -> int:
    """Write ``01-feature-INDEX.png``, ... into a directory; returns their number.

    Files of an earlier answer are replaced only with ``overwrite``.
    """
    check_output_folder(directory, OVERLAYS, overwrite=overwrite)
    directory.mkdir(parents=True, exist_ok=True)
    picture = overlay.open_picture(image)
    for rank, item in enumerate(features, start=1):
        drawn = overlay.overlay(picture, tensors.from_proto(item.heatmap), grid, item.patches)
        path = directory / f"{rank:02d}-feature-{item.feature.index}.png"
        with replacing(path) as temporary:
            temporary.write_bytes(overlay.png(drawn))
    return len(features)


@command
def intervene(
    images: Annotated[list[Path], typer.Argument(help="Pictures.")],
    without: Annotated[
        list[Path] | None,
        typer.Option(
            help="Picture without the concept that the others show, to compare effects; repeatable."
        ),
    ] = None,
    add: Add = None,
    scale: Scale = None,
    clamp: Clamp = None,
    ablate: Ablate = None,
    target: Annotated[
        list[str] | None, typer.Option(help="What to measure, as in attribute; may be repeated.")
    ] = None,
    box: EditBox = None,
    own_map: OwnMapFlag = False,
    control: Annotated[
        int, typer.Option(help="Random features of equal norm to compare with.", min=0, max=100)
    ] = 20,
    address: Address = DEFAULT_ADDRESS,
    dictionary: DictionaryName = None,
    as_json: AsJson = False,
    token: Token = None,
    timeout: Timeout = 600.0,
) -> None:
    """Show how a model's output for pictures changes with features turned up, down or off."""
    groups = ["with"] * len(images) + ["without"] * len(without) if without else []
    images = [*images, *(without or [])]
    operations = {"add": add, "scale": scale, "clamp": clamp, "ablate": ablate}
    with Client(address, token=token, timeout=timeout) as client:
        scope = Scope(box=None if box is None else parse_box(box))
        answer = client.intervene(
            images,
            edits(client, dictionary, operations, scope, own_map=own_map),
            {words: targets.parse(words) for words in target or ["mean"]},
            groups=groups,
            control_count=control,
        )
    typer.echo(
        in_json(answer) if as_json else report.intervention(answer, [i.name for i in images])
    )
    warn_unread(answer.summary.unread_texts)
