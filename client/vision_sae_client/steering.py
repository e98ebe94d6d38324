"""Writes a steered generation to disk: the pictures, their difference, and the recipe."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from google.protobuf.json_format import MessageToJson, Parse, ParseError
from PIL import Image

from vision_sae.errors import InvalidInputError, NotFoundError
from vision_sae.files import replacing
from vision_sae.pictures.sheet import contact_sheet
from vision_sae.places import check_output_folder
from vision_sae.tensors import from_proto
from vision_sae.v1.generation_service_pb2 import GenerationResult, Recipe
from vision_sae.v1.image_pb2 import EncodedImage

FILES = ("picture.*", "twin.*", "beside.png", "recipe.json")
"""The files that `write` writes."""
_SHOWN = 256
"""The longer side, in pixels, to which `beside` enlarges smaller pictures."""


def picture(encoded: EncodedImage) -> Image.Image:
    """The PIL image of an encoded picture."""
    return Image.open(io.BytesIO(encoded.data)).convert("RGB")


def beside(result: GenerationResult) -> Image.Image:
    """The twin, the steered picture and their difference, from left to right."""
    moved = from_proto(result.difference_map)
    grey = Image.fromarray(np.round(255 * moved / max(float(moved.max()), 1e-6)).astype(np.uint8))
    shown = [picture(result.twin), picture(result.picture), grey.convert("RGB")]
    scale = max(1, _SHOWN // max(shown[0].size))
    size = (scale * shown[0].width, scale * shown[0].height)
    large = [image.resize(size, Image.Resampling.NEAREST) for image in shown]
    return contact_sheet([large])


def write(result: GenerationResult, directory: Path, *, overwrite: bool = False) -> list[Path]:
    """Write the picture, its twin, both side by side, and ``recipe.json``; returns their paths.

    Files of an earlier generation are replaced only with ``overwrite``.
    """
    check_output_folder(directory, FILES, overwrite=overwrite)
    suffix = {1: "png", 2: "jpg", 3: "webp"}[result.picture.format]
    files = {f"picture.{suffix}": result.picture.data}
    if result.HasField("twin"):
        files[f"twin.{suffix}"] = result.twin.data
        buffer = io.BytesIO()
        beside(result).save(buffer, "PNG")
        files["beside.png"] = buffer.getvalue()
    recipe = MessageToJson(result.recipe, preserving_proto_field_name=True)
    files["recipe.json"] = f"{recipe}\n".encode()
    for name, data in files.items():
        with replacing(directory / name) as temporary:
            temporary.write_bytes(data)
    return [directory / name for name in files]


def read_recipe(path: Path) -> Recipe:
    """The recipe in a file that `write` wrote.

    Raises `NotFoundError` for a missing file and `InvalidInputError` for a file without a recipe.
    """
    if not path.is_file():
        raise NotFoundError(f"there is no recipe {path}", field="recipe")
    try:
        recipe: Recipe = Parse(path.read_text("utf-8"), Recipe())
    except (ParseError, UnicodeDecodeError) as error:
        raise InvalidInputError(f"{path} is no recipe: {error}", field="recipe") from error
    return recipe
