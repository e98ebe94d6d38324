"""Pictures of coloured cells, and a contrastive model that knows what each colour stands for.

A *thing* is a phrase such as "red apple"; thing k is painted as the k-th colour of a palette. Texts
and patches are sums of the vectors of their words, pictures the means of their patches, and a gap
lies between pictures and texts, as in real contrastive models.
"""

from __future__ import annotations

import hashlib
import io
import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property
from itertools import product
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from vision_sae.activations.store import ImageRecord
from vision_sae.evidence.arrays import ArrayEvidence
from vision_sae.evidence.protocol import FIRINGS
from vision_sae.models.grid import PatchGrid, Preprocessing
from vision_sae.models.hooks import Edit
from vision_sae.models.protocol import ModelOutput, PatchEmbeddings, Site

CELL = 8
"""Side of a cell in pixels: JPEG's blocks, so that colours survive it."""
PALETTE = np.array(list(product((32, 128, 224), repeat=3)), dtype=np.float32) / 255
"""27 colours far from each other (27, 3)."""
_FUNCTION_WORDS = ("a", "an", "of", "the", "with")


def word_vector(word: str, dim: int) -> Tensor:
    """What a word means (dim): the same for the same word, nearly orthogonal for others."""
    seed = int.from_bytes(hashlib.sha256(word.encode()).digest()[:4])
    return F.normalize(torch.randn(dim, generator=torch.Generator().manual_seed(seed)), dim=0)


def phrase_vector(phrase: str, dim: int) -> Tensor:
    """What a phrase means: the normalised sum of its words (dim)."""
    words = [w for w in phrase.lower().split() if w not in _FUNCTION_WORDS]
    vectors = [word_vector(word, dim) for word in words]
    return F.normalize(torch.stack(vectors).sum(0), dim=0) if vectors else torch.zeros(dim)


class PlantedClip:
    """A ContrastiveModel without weights. It sees square pictures of ``cells`` x ``cells``."""

    name = "planted-clip"
    kind = "clip"
    logit_scale = 100.0
    device = torch.device("cpu")
    dtype = torch.float32
    class_names = ()
    parameters = 0

    def __init__(
        self, things: Sequence[str], *, cells: int = 4, dim: int = 256, gap: float = 1.0
    ) -> None:
        self.things = tuple(things)
        self.embedding_dim = dim
        self.grid = PatchGrid(cells, cells, 1, CELL, CELL)
        self.preprocessing = Preprocessing(
            cells * CELL, cells * CELL, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)
        )
        self.special_tokens = ("cls",)
        self._vectors = torch.stack([phrase_vector(thing, dim) for thing in things])
        self._of_pictures = gap * word_vector("the side of pictures", dim)
        self._of_texts = gap * word_vector("the side of texts", dim)
        self.texts_embedded = 0
        """Texts that `embed_texts` has been given so far."""

    def embedding_width(self) -> int:
        return self.embedding_dim

    @property
    def sites(self) -> dict[str, Site]:
        return {}

    def preprocess(self, image: Image.Image) -> Tensor:
        return self.preprocessing(image)

    def embed_patches(self, images: Tensor) -> PatchEmbeddings:
        rows, cols = self.grid.rows, self.grid.cols
        colours = F.adaptive_avg_pool2d(images, (rows, cols)).flatten(2).transpose(1, 2)
        thing = torch.cdist(colours, torch.from_numpy(PALETTE[: len(self.things)])).argmin(2)
        vectors = self._vectors[thing] + self._of_pictures
        return PatchEmbeddings(vectors, torch.full(thing.shape, 1 / (rows * cols)))

    def forward(self, images: Tensor) -> ModelOutput:
        return ModelOutput(self.embed_patches(images).vectors.mean(1), None)

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        self.texts_embedded += len(texts)
        if not texts:
            return torch.zeros(0, self.embedding_dim)
        vectors = torch.stack([phrase_vector(text, self.embedding_dim) for text in texts])
        return F.normalize(vectors + self._of_texts, dim=1)

    def unread_text(self, text: str) -> str:
        return ""

    def capture(
        self, sites: Sequence[str], *, stop: bool = False
    ) -> AbstractContextManager[dict[str, Tensor]]:
        raise NotImplementedError("a planted model has no sites")

    def replace(self, site: str, edit: Edit) -> AbstractContextManager[None]:
        raise NotImplementedError("a planted model has no sites")

    def identity(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "kind": self.kind,
            "weights_sha256": hashlib.sha256("|".join(self.things).encode()).hexdigest(),
            "preprocessing": self.preprocessing.to_json(),
            "grid": self.grid.to_json(),
        }


class SitedClip(PlantedClip):
    """A planted model with one site, `SITE`: the vectors of its patches behind a class token."""

    SITE = "blocks.0.update"

    @property
    def sites(self) -> dict[str, Site]:
        return {self.SITE: Site(self.SITE, "update", self.embedding_dim)}

    def embed_patches(self, images: Tensor) -> PatchEmbeddings:
        found = super().embed_patches(images)
        for captured in self._of_thread():
            first = torch.zeros(len(images), 1, self.embedding_dim)
            captured[self.SITE] = torch.cat([first, found.vectors], dim=1)
        return found

    @contextmanager
    def capture(self, sites: Sequence[str], *, stop: bool = False) -> Iterator[dict[str, Tensor]]:
        captures = self._of_thread()
        captures.append({})
        try:
            yield captures[-1]
        finally:
            captures.pop()

    def _of_thread(self) -> list[dict[str, Tensor]]:
        captures: list[dict[str, Tensor]] = self._captures.__dict__.setdefault("open", [])
        return captures

    @cached_property
    def _captures(self) -> threading.local:
        return threading.local()


def picture(cells: NDArray[np.integer]) -> Image.Image:
    """A picture of things by number (rows, cols), `CELL` pixels each."""
    pixels = (PALETTE[cells] * 255).round().astype(np.uint8)
    return Image.fromarray(pixels.repeat(CELL, axis=0).repeat(CELL, axis=1))


def jpeg(image: Image.Image) -> bytes:
    data = io.BytesIO()
    image.save(data, "JPEG", quality=95, subsampling=0)
    return data.getvalue()


def evidence_of(
    cells: NDArray[np.integer],
    units: Sequence[Sequence[int]],
    *,
    things: Sequence[str] = (),
    seed: int = 0,
    name: str = "models/planted/sites/blocks.0.mlp",
    sources: Sequence[str] = (),
) -> ArrayEvidence:
    """Evidence over pictures of cells (N, rows, cols): unit u fires where its things are.

    The grid of the units' model is that of the cells. Captions name the things of a picture when
    ``things`` are given. Activations differ a little from cell to cell.
    """
    count, rows, cols = cells.shape
    random = np.random.default_rng(seed)
    fires = np.stack([np.isin(cells, list(of_unit)) for of_unit in units])
    maps = np.where(fires, random.uniform(1, 2, fires.shape), 0).reshape(len(units), count, -1)
    peaks = maps.max(2).astype(np.float32)
    strongest = np.argsort(-peaks, axis=1, kind="stable")[:, :FIRINGS]
    kept = np.take_along_axis(maps, strongest[..., None], axis=1).astype(np.float32)
    silent = np.take_along_axis(peaks, strongest, axis=1) == 0
    images = [
        ImageRecord(
            str(i),
            cols * CELL,
            rows * CELL,
            " and ".join(things[k] for k in np.unique(cells[i])) if things else "",
            (),
            sources[i] if sources else "",
        )
        for i in range(count)
    ]
    digest = hashlib.sha256(cells.tobytes() + maps.tobytes() + "|".join(sources).encode())
    return ArrayEvidence(
        name=name,
        identity=digest.hexdigest(),
        data_sha256=hashlib.sha256(cells.tobytes()).hexdigest(),
        site="blocks.0.mlp",
        images=images,
        grid=PatchGrid(rows, cols, 1, CELL, CELL),
        preprocessing=Preprocessing(rows * CELL, cols * CELL),
        thumbnails=[jpeg(picture(of_image)) for of_image in cells],
        embeddings=random.normal(size=(count, 8)).astype(np.float32),
        all_peaks=peaks,
        firing_images=np.where(silent, -1, strongest),
        maps=kept,
        thresholds=np.full(len(units), 1.0),
    )


def random_cells(pictures: int, things: int, *, cells: int = 4, seed: int = 0) -> NDArray[np.int64]:
    """Pictures whose every cell is a thing drawn at random (N, cells, cells)."""
    return np.random.default_rng(seed).integers(0, things, (pictures, cells, cells))
