"""Conversion of callers' pictures to RGB Pillow pictures and to pictures for `harvest`."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from vision_sae.errors import InvalidImageError, InvalidInputError, quoted
from vision_sae.pictures.decode import decode_image, guarded
from vision_sae.pictures.folder import Picture

PictureLike: TypeAlias = str | Path | Image.Image | NDArray[Any] | Tensor
"""A file, a Pillow picture, an array (H, W, 3) or a tensor (3, H, W). Numbers are 8-bit integers or
floats from 0 to 1."""
Pictures: TypeAlias = (
    Sequence[str]
    | Sequence[Path]
    | Sequence[Image.Image]
    | Sequence[NDArray[Any]]
    | Sequence[Tensor]
    | Sequence[PictureLike]
)
"""Several pictures."""
_ONE = (str, Path, Image.Image, np.ndarray, Tensor)
_OF_PNG = ("1", "L", "LA", "P", "RGBA", "I;16", "I")
"""Pillow modes that a PNG file stores without conversion."""


class Named(NamedTuple):
    """One picture of a call, with its name."""

    name: str
    """The name of the file, or ``picture 0``, ``picture 1`` and so on."""
    image: Image.Image
    """RGB."""


def is_one(pictures: PictureLike | Pictures) -> bool:
    """Whether the argument is one picture rather than several."""
    return isinstance(pictures, _ONE)


def named(pictures: PictureLike | Pictures) -> list[Named]:
    """The caller's pictures with names. Raises the errors of `to_pil`."""
    return [Named(_name(p, number), to_pil(p)) for number, p in enumerate(_listed(pictures))]


def _listed(pictures: PictureLike | Pictures) -> list[PictureLike]:
    if isinstance(pictures, _ONE):
        return [pictures]
    if not isinstance(pictures, Iterable):
        raise InvalidImageError(
            f"pictures are files, pictures of Pillow, arrays or tensors, not {quoted(pictures)}",
            field="pictures",
        )
    return list(pictures)


def _name(picture: PictureLike, number: int) -> str:
    return Path(picture).name if isinstance(picture, str | Path) else f"picture {number}"


def to_pil(picture: PictureLike) -> Image.Image:
    """Convert one picture to RGB, by the rules of `vision_sae.pictures.decode`.

    Raises `InvalidImageError` for another type or shape, and for an unreadable file.
    """
    if isinstance(picture, str | Path):
        return Picture(Path(picture).name, Path(picture)).load()
    if isinstance(picture, Image.Image):
        return _of_pillow(picture)
    if isinstance(picture, Tensor):
        array = picture.detach().cpu()
        array = array.float() if array.is_floating_point() else array
        return _of_array(np.asarray(array.movedim(0, -1).numpy()) if array.ndim == 3 else array)
    return _of_array(picture)


def _of_pillow(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        return ImageOps.exif_transpose(image)
    if image.mode not in _OF_PNG:
        return ImageOps.exif_transpose(image).convert("RGB")
    buffer = io.BytesIO()
    with guarded():
        image.save(buffer, "PNG", exif=image.getexif())
    return decode_image(buffer.getvalue())


def _of_array(values: Any) -> Image.Image:
    array = np.asarray(values)
    if array.ndim != 3 or array.shape[2] != 3 or 0 in array.shape:
        raise InvalidImageError(
            f"a picture has the shape (H, W, 3) as an array or (3, H, W) as a tensor, this one has "
            f"{tuple(np.shape(values))}; give several pictures as a list",
            field="pictures",
        )
    if array.dtype.kind == "f":
        if not (np.isfinite(array).all() and array.min() >= 0 and array.max() <= 1):
            raise InvalidImageError(
                "a picture of floats holds numbers from 0 to 1; divide by 255, or give 8-bit "
                "integers",
                field="pictures",
            )
        array = np.round(array * 255).astype(np.uint8)
    if array.dtype != np.uint8:
        raise InvalidImageError(
            f"a picture holds 8-bit integers or floats from 0 to 1, not {array.dtype}",
            field="pictures",
        )
    return Image.fromarray(np.ascontiguousarray(array))


@dataclass(frozen=True)
class InMemory(Picture):
    """A picture in memory. Its ``path`` is no file and only distinguishes the picture from
    others."""

    image: Image.Image | None = None

    def decode(self) -> Image.Image:
        """A copy of the picture, because the caller may shrink the copy in place."""
        assert self.image is not None
        return self.image.copy()

    def content_sha256(self) -> str:
        """Hex SHA-256 of the size and the pixels."""
        assert self.image is not None
        pixels = repr(self.image.size).encode() + self.image.tobytes()
        return hashlib.sha256(pixels).hexdigest()


def to_harvest(pictures: PictureLike | Pictures, captions: Sequence[str] = ()) -> list[Picture]:
    """Convert a call's pictures to pictures for `harvest`, in their order, with ``captions``.

    Files stay files. Raises `InvalidInputError` if there are captions, but not one per picture.
    """
    listed = _listed(pictures)
    if captions and len(captions) != len(listed):
        raise InvalidInputError(
            f"there are {len(captions)} captions for {len(listed)} pictures; give each picture one",
            field="captions",
        )
    texts = captions or [""] * len(listed)
    return [_to_harvest(*each) for each in zip(range(len(listed)), listed, texts, strict=True)]


def _to_harvest(number: int, picture: PictureLike, caption: str) -> Picture:
    if isinstance(picture, str | Path):
        # Files of several folders may share a name, so the number makes the identifier unique. The
        # identifier is not part of the path: the folder is then no input, and may hold the store.
        return Picture(f"{number:06}-{Path(picture).name}", Path(picture), caption)
    name = _name(picture, number)
    return InMemory(name, Path("in memory", name, "pixels"), caption, image=to_pil(picture))
