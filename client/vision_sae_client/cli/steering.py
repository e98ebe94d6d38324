"""The command ``steer``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vision_sae.errors import InvalidInputError
from vision_sae.places import check_output_folder
from vision_sae.v1.generation_service_pb2 import GenerationSettings, Recipe
from vision_sae_client import report, steering
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
from vision_sae_client.cli.edit_options import (
    Ablate,
    Add,
    Clamp,
    EditBox,
    EditMask,
    OwnMapFlag,
    Scale,
    edits,
)
from vision_sae_client.client import Client
from vision_sae_client.edits import Scope, transport
from vision_sae_client.images import parse_box, parse_numbers


@command
def steer(
    prompt: Annotated[str, typer.Argument(help="What to show; empty shows a feature alone.")] = "",
    add: Add = None,
    scale: Scale = None,
    clamp: Clamp = None,
    ablate: Ablate = None,
    replace: Annotated[
        list[str] | None, typer.Option(help="FEATURE=VALUE: nothing but this feature.")
    ] = None,
    carry: Annotated[
        str | None,
        typer.Option(help="Carry over what the picture of this prompt has, of --dictionary."),
    ] = None,
    carry_strength: Annotated[
        float | None, typer.Option(help="How much of it; default: 1.", min=0)
    ] = None,
    box: EditBox = None,
    mask: EditMask = None,
    own_map: OwnMapFlag = False,
    first_step: Annotated[
        int, typer.Option(help="First denoising step to edit.", min=0, max=1000)
    ] = 0,
    last_step: Annotated[
        int | None, typer.Option(help="Last one; default: the end.", min=0, max=1000)
    ] = None,
    strengths: Annotated[
        str | None, typer.Option(help="0,0.5,1: how strong at each step.", metavar="NUMBERS")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="models/NAME; default: the first that generates.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Of the noise; default: drawn.", min=0, max=2**64 - 1)
    ] = None,
    steps: Annotated[int, typer.Option(help="Denoising steps; 0: as usual.", min=0, max=1000)] = 0,
    guidance: Annotated[float | None, typer.Option(help="Guidance scale; default: usual.")] = None,
    recipe: Annotated[
        Path | None, typer.Option(help="Make the picture of this recipe.json again.")
    ] = None,
    allow_drift: Annotated[
        bool,
        typer.Option("--allow-drift", help="Repeat the recipe even if the server has changed."),
    ] = False,
    out: Annotated[Path, typer.Option(help="Directory for pictures and recipe.")] = Path("steered"),
    overwrite: Overwrite = False,
    address: Address = DEFAULT_ADDRESS,
    dictionary: DictionaryName = None,
    as_json: AsJson = False,
    token: Token = None,
    timeout: Timeout = 600.0,
) -> None:
    """Make a picture with features turned up or down, and its twin without."""
    inputs = [path for path in (recipe, mask) if path is not None]
    check_output_folder(out, steering.FILES, inputs=inputs, overwrite=overwrite)
    operations = {"add": add, "scale": scale, "clamp": clamp, "ablate": ablate, "replace": replace}
    if recipe is not None and (
        prompt
        or carry
        or any(operations.values())
        or (model, seed, guidance) != (None,) * 3
        or steps
    ):
        raise InvalidInputError(
            "a recipe holds the prompt, the edits and all settings already; leave them out",
            field="recipe",
        )
    with Client(address, token=token, timeout=timeout) as client:
        content: GenerationSettings | Recipe
        if recipe is not None:
            content = steering.read_recipe(recipe)
        else:
            scope = Scope(
                box=None if box is None else parse_box(box),
                mask=mask,
                first_step=first_step,
                last_step=last_step,
                strengths=parse_numbers(strengths, "strengths") if strengths else (),
            )
            transports = []
            if carry is not None:
                source = dictionary or client.dictionary().name
                carried = transport(source, carry, strength=carry_strength, **scope)
                transports.append(carried)
            content = GenerationSettings(
                model=model or _generator(client),
                prompt=prompt,
                seed=seed,
                steps=steps,
                guidance_scale=guidance,
                edits=edits(
                    client,
                    dictionary,
                    operations,
                    scope,
                    own_map=own_map,
                    carried=bool(transports),
                ),
                transports=transports,
            )
        for message in client.generate(content, allow_drift=allow_drift):
            if message.HasField("progress"):
                typer.echo(report.generation_progress(message.progress), err=True)
        written = steering.write(message.result, out, overwrite=overwrite)
    typer.echo(in_json(message.result) if as_json else report.generation(message.result))
    warn_unread(message.result.unread_texts)
    typer.echo(f"written: {', '.join(map(str, written))}", err=True)


def _generator(client: Client) -> str:
    """The server's first text-to-image model; raises `InvalidInputError` without one."""
    model = client.generator()
    if model is None:
        raise InvalidInputError("this server has no text-to-image model", field="model")
    return model
