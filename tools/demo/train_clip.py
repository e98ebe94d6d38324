"""Train the demo CLIP's additions to its two pretrained towers, from cached tokens.

    python -m tools.demo.train_clip --stage heads --data DATA --work WORK
    python -m tools.demo.train_clip --stage updates --data DATA --work WORK
    python -m tools.demo.train_clip --stage texts --data DATA --work WORK

First the heads alone are trained, the attention pooling and the text head, on the tokens of the
vision tower as it is (``DATA/depths.npy``, see `make_clip_data.py`); they begin with a ridge
regression from patches to the meaning of captions. Then low-rank updates and norms of its last
blocks join them, and the residual stream in front of these blocks is read from
``DATA/tokens.npy``. Last, the vision tower is frozen, and the text head learns to use single words
beside the meaning of the whole text (`vision_sae.models.word_pooling`). The text tower stays
frozen.

While the vision tower learns, each step shows a random part of each picture's patches (Li et al.
2023, arXiv:2212.00794). A step ranks the captions of a batch against each other and against names
of the whole vocabulary. Texts with almost the same embedding in the text tower are never
contrasted.

A checkpoint is written every few minutes, and a restarted stage resumes from it. A stage begins
with the weights of the stage before it. The last stage centres the embeddings of pictures at its
start and those of texts at its end, and writes all trained weights to ``--out``.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import normalize
from tqdm import tqdm

from tools.demo.make_clip_data import LAST_FROZEN
from vision_sae.files import replacing, sha256_file, sha256_json
from vision_sae.models import word_pooling
from vision_sae.models.embedded import clip as clip_weights
from vision_sae.models.embedded import low_rank

SAME_MEANING = 0.92
"""Cosine of two captions in the untrained text tower above which they count as one meaning. Scenes
that share only half of their attributes reach 0.8."""
CHECKPOINT_SECONDS = 120
_EMBEDDED = 64
"""Pictures at a time."""

Stage = Literal["heads", "updates", "texts"]


@dataclass(frozen=True)
class Settings:
    """The settings of a stage; all other settings are the constants above."""

    steps: int
    batch: int
    head_rate: float
    keep: float = 1.0
    """Share of a picture's patches in a step while the vision tower is trained."""
    update_rate: float = 0.0
    names: int = 4096
    """Names of the vocabulary added to each step's captions as wrong answers."""
    vision_rank: int = 32
    weight_decay: float = 0.05
    seed: int = 0


STAGES: dict[Stage, Settings] = {
    "heads": Settings(steps=400, batch=256, keep=0.5, head_rate=5e-4),
    "updates": Settings(steps=1500, batch=128, keep=0.3, head_rate=3e-4, update_rate=5e-4),
    "texts": Settings(steps=400, batch=1024, head_rate=1e-3),
}
BEFORE: dict[Stage, Stage] = {"updates": "heads", "texts": "updates"}
"""The stage whose weights this stage starts from."""


class Captions:
    """The captions of every picture."""

    def __init__(self, path: Path) -> None:
        entries = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
        self.subjects = [entry["subject"] for entry in entries]
        texts = sorted({text for entry in entries for text in entry["captions"]})
        index = {text: row for row, text in enumerate(texts)}
        self.texts = texts
        self.rows = [[index[text] for text in entry["captions"]] for entry in entries]
        first = {entry["captions"][0] for entry in entries}
        self.names = np.array(sorted(index[text] for text in first))

    def choose(self, picture: int, rng: random.Random) -> int:
        """One caption of a picture: half the time its plainest."""
        rows = self.rows[picture]
        return rows[0] if rng.random() < 0.5 else rng.choice(rows)


def trimmed(tokens: Tensor) -> Tensor:
    """Token rows without the columns in which all are padding."""
    return tokens[:, : int((tokens != 0).any(dim=0).sum())]


@dataclass(frozen=True)
class Readings:
    """The frozen text tower's readings of every caption: unit vectors (T, D) of the mean of its
    words and of the whole text."""

    words: Tensor
    meanings: Tensor


def _keep(path: Path, result: Tensor) -> None:
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.save(file, result.numpy(), allow_pickle=False)


def readings(module: Any, captions: Captions, folder: Path) -> Readings:
    """The readings of all texts, computed once and kept in ``folder``."""
    path = folder / f"readings-{sha256_json(captions.texts)[:12]}.npy"
    if not path.is_file():
        tokens, width = clip_weights.tokenizer()(captions.texts), module.text.proj.in_features
        result = torch.empty(2, len(tokens), width)
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
            for rows in (tokens != 0).sum(1).argsort().split(256):
                shown = trimmed(tokens[rows])
                mask = (shown != 0).long()
                output = module.text.transformer(input_ids=shown, attention_mask=mask)
                result[:, rows] = torch.stack(word_pooling.read(output, mask)).float()
        _keep(path, result)
    words, meant = torch.from_numpy(np.load(path))
    return Readings(words, meant)


def _learned_in(name: str, tail: tuple[str, ...]) -> set[Stage]:
    """The stages that train the parameter of this name; ``tail`` begins the last blocks' names."""
    within = name.removeprefix("visual.trunk.")
    if name.startswith("text.proj."):
        return {"heads", "updates", "texts"}
    if name.startswith("text.pooler."):
        return {"texts"}
    if within.startswith("patch_pooling.") or name == "logit_scale":
        return {"heads", "updates"}
    norm = within.startswith(("norm.", "shallow_norm.")) or (
        within.startswith(tail) and ("norm" in within or "ls" in within)
    )
    return {"updates"} if norm or name.endswith((low_rank.UP, low_rank.DOWN)) else set()


def prepare(module: Any, stage: Stage, settings: Settings) -> list[dict[str, Any]]:
    """Unfreeze the parameters of this stage and of earlier stages, freeze all others, and return
    the optimiser's groups of this stage's parameters."""
    tail = tuple(f"blocks.{index}." for index in range(LAST_FROZEN + 1, 12))
    trunk = module.visual.trunk
    if stage != "texts":
        trunk.patch_pooling.train()  # nothing else has dropout to speak of
    if stage != "heads":
        low_rank.add_updates(trunk, settings.vision_rank, lambda name: name.startswith(tail))
    updates: list[nn.Parameter] = []
    heads: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    order = list(STAGES)
    so_far = order[: order.index(stage) + 1]
    for name, parameter in module.named_parameters():
        stages = _learned_in(name, tail)
        parameter.requires_grad_(not stages.isdisjoint(so_far))
        if stage in stages:
            update, vector = name.endswith((low_rank.UP, low_rank.DOWN)), parameter.ndim < 2
            group = updates if update else plain if vector else heads
            group.append(parameter)
    return [
        {"params": updates, "lr": settings.update_rate, "weight_decay": settings.weight_decay},
        {"params": heads, "lr": settings.head_rate, "weight_decay": settings.weight_decay},
        {"params": plain, "lr": settings.head_rate, "weight_decay": 0.0},
    ]


def at_both_depths(module: Any, depths: Tensor) -> Tensor:
    """Cached tokens of both depths (B, T, 2 D), normalised as the pooling reads them."""
    trunk = module.visual.trunk
    shallow, deep = depths.chunk(2, dim=-1)
    return torch.cat([trunk.shallow_norm(shallow), trunk.norm(deep)], dim=-1)


def encode_depths(module: Any, depths: Tensor) -> Tensor:
    """Cached tokens of both depths (B, T, 2 D) -> embeddings (B, E)."""
    embedding: Tensor = module.visual.trunk.forward_head(at_both_depths(module, depths))
    return embedding.float()


def encode_tokens(module: Any, tokens: Tensor) -> Tensor:
    """Cached tokens (B, T, D) in front of the trained blocks -> embeddings (B, E)."""
    trunk = module.visual.trunk
    embedding: Tensor = trunk.forward_head(trunk.from_shallow(tokens))
    return embedding.float()


def encode_texts(module: Any, words: Tensor, meanings: Tensor) -> Tensor:
    """Readings of texts (T, D) -> embeddings (T, E)."""
    embedding: Tensor = module.text.proj(module.text.pooler.join(words, meanings))
    return embedding.float()


def centre_pictures(module: Any, pictures: Tensor) -> None:
    """Take the mean of embeddings of pictures (N, E) out of the bias behind the pooling.

    A shared component brings some names near to every picture (Mu and Viswanath 2018,
    arXiv:1702.01417).
    """
    with torch.no_grad():
        module.visual.trunk.patch_pooling.proj.bias -= pictures.mean(0)


def centre_texts(module: Any, names: Tensor) -> None:
    """Take the direction of the mean of names, by their embeddings (T, E), out of the text head."""
    middle = normalize(normalize(names, dim=-1).mean(0), dim=0)
    with torch.no_grad():
        weight = module.text.proj.weight
        weight -= torch.outer(middle, middle @ weight)


def loss(
    images: Tensor, texts: Tensor, extra: Tensor, same: Tensor, same_extra: Tensor, scale: Tensor
) -> Tensor:
    """Contrastive loss both ways (Radford et al. 2021, arXiv:2103.00020) with further wrong texts.

    ``images`` and ``texts`` (B, E) belong together row by row; ``extra`` (M, E) are wrong for all.
    ``same`` (B, B) and ``same_extra`` (B, M) mark texts with the same meaning as the row's own:
    they count neither as right nor as wrong.
    """
    own = torch.arange(len(images))
    ignored = same.clone().fill_diagonal_(False)
    across = (scale * images @ texts.T).masked_fill(ignored, -torch.inf)
    further = (scale * images @ extra.T).masked_fill(same_extra, -torch.inf)
    by_image = nn.functional.cross_entropy(torch.cat([across, further], dim=1), own)
    return (by_image + nn.functional.cross_entropy(across.T, own)) / 2


class Trainer:
    """One run: its modules, data and place in the schedule."""

    def __init__(self, data: Path, stage: Stage, settings: Settings) -> None:
        torch.manual_seed(settings.seed)
        self.settings, self.stage = settings, stage
        cached = "depths" if stage == "heads" else "tokens"
        self.encode = encode_depths if stage == "heads" else encode_tokens
        self.tokens = np.load(data / f"{cached}.npy", mmap_mode="r")
        self.count = int((data / f"{cached}.done").read_text())
        self.captions = Captions(data / "captions.jsonl")
        self.module: Any = clip_weights.untrained_clip().eval()
        self.readings = readings(self.module, self.captions, data)
        self.groups = prepare(self.module, stage, settings)
        self.optimizer = torch.optim.AdamW(self.groups, betas=(0.9, 0.98))
        self.rates = [group["lr"] for group in self.groups]
        self.pictures: Tensor | None = None
        """(N, E) embeddings of all pictures, if the vision tower is frozen."""
        self.step = 0

    def regress(self, ridge: float = 100.0) -> None:
        """Begin the pooling as an even mean of patches, mapped to the meaning of captions by a
        ridge regression from the means of both depths and their class token."""
        pooling, width = self.module.visual.trunk.patch_pooling, self.tokens.shape[2]
        with torch.no_grad():
            rows = range(0, self.count, 256)
            seen = torch.cat([self._means(start, min(start + 256, self.count)) for start in rows])
            plainest = [rows[0] for rows in self.captions.rows[: self.count]]
            wanted = self.readings.meanings[plainest]
            middle, average = seen.mean(0), wanted.mean(0)
            seen = seen - middle
            moments = seen.T @ seen + ridge * torch.eye(seen.shape[1])
            weights = torch.linalg.solve(moments, seen.T @ (wanted - average)).T
            nn.init.zeros_(pooling.key.weight)
            nn.init.zeros_(pooling.refined.weight)
            nn.init.zeros_(pooling.refined.bias)
            nn.init.eye_(pooling.proj.weight)
            nn.init.zeros_(pooling.proj.bias)
            for part, columns in (
                (pooling.whole, slice(None, width)),
                (pooling.value, slice(width, None)),
            ):
                part.weight.copy_(weights[:, columns])
                part.bias.copy_(-weights[:, columns] @ middle[columns])
            self.module.logit_scale.fill_(float(np.log(20)))

    def _means(self, start: int, stop: int) -> Tensor:
        """(rows, 2 width): class token and mean patch of both depths, normalised."""
        both = torch.from_numpy(np.array(self.tokens[start:stop])).float()
        tokens = at_both_depths(self.module, both)
        return torch.cat([tokens[:, 0], tokens[:, 1:].mean(dim=1)], dim=1)

    def begin_with(self, path: Path) -> None:
        """Take the weights that an earlier stage ended with."""
        saved = torch.load(path, weights_only=True)
        self.module.load_state_dict(saved["trained"], strict=False)

    def rest(self, path: Path) -> None:
        """Freeze the vision tower: embed every picture once, and subtract the mean. The embeddings
        before centring are stored at ``path``."""
        if not path.is_file():
            rows = np.array_split(np.arange(self.count), max(1, self.count // _EMBEDDED))
            with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
                parts = [
                    self.encode(self.module, torch.from_numpy(self.tokens[some]).float())
                    for some in tqdm(rows)
                ]
            _keep(path, torch.cat(parts))
        pictures = torch.from_numpy(np.load(path))
        centre_pictures(self.module, pictures)
        self.pictures = normalize(pictures - pictures.mean(0), dim=-1)

    def restore(self, path: Path) -> None:
        """Resume from a checkpoint, if there is one."""
        if path.is_file():
            saved = torch.load(path, weights_only=True)
            self.module.load_state_dict(saved["trained"], strict=False)
            self.optimizer.load_state_dict(saved["optimizer"])
            self.step = saved["step"]

    def save(self, path: Path) -> None:
        """Write a checkpoint."""
        named = self.module.named_parameters()
        trained = {name: p.detach() for name, p in named if p.requires_grad}
        state = {"trained": trained, "optimizer": self.optimizer.state_dict(), "step": self.step}
        with replacing(path) as temporary:
            torch.save(state, temporary)

    def batch(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """(pictures, their captions, further names) of this step: a pass over all pictures goes
        through a permutation of its own."""
        size = self.settings.batch
        per_pass = self.count // size
        epoch, place = divmod(self.step, per_pass)
        order = np.random.default_rng((self.settings.seed, epoch)).permutation(self.count)
        pictures = np.sort(order[place * size : (place + 1) * size])
        rng = random.Random(f"{self.settings.seed}-{self.step}")
        texts = np.array([self.captions.choose(int(picture), rng) for picture in pictures])
        names = np.array(rng.sample(self.captions.names.tolist(), self.settings.names))
        return pictures, texts, names

    def images(self, pictures: NDArray[np.int64]) -> Tensor:
        """Unit embeddings of a batch. While the vision tower learns they are made of cached tokens:
        the class token and the same random patches of each picture."""
        if self.pictures is not None:
            return self.pictures[pictures]
        rng = np.random.default_rng((self.settings.seed, self.step))
        patches = self.tokens.shape[1] - 1
        kept = np.sort(rng.permutation(patches)[: round(self.settings.keep * patches)]) + 1
        rows = np.stack([self.tokens[i][np.r_[0, kept]] for i in pictures])
        return normalize(self.encode(self.module, torch.from_numpy(rows).float()), dim=-1)

    def texts(self, rows: NDArray[np.int64]) -> Tensor:
        """Embeddings of some of the texts."""
        return encode_texts(self.module, self.readings.words[rows], self.readings.meanings[rows])

    def rate(self) -> float:
        """Share of the full learning rate at this step: a warm-up, then half a cosine."""
        warm = max(1, self.settings.steps // 12)
        done = max(0.0, (self.step - warm) / max(1, self.settings.steps - warm))
        return min(1.0, (self.step + 1) / warm) * 0.5 * (1 + float(np.cos(np.pi * done)))

    def advance(self) -> float:
        """One step; returns the loss."""
        pictures, texts, names = self.batch()
        for group, full in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = full * self.rate()
        with torch.autocast("cpu", torch.bfloat16):
            images = self.images(pictures)
            both = normalize(self.texts(np.r_[texts, names]), dim=-1)
        mine, others = self.readings.meanings[texts], self.readings.meanings[names]
        scale = self.module.logit_scale.exp().clamp(max=100)
        value = loss(
            images,
            both[: len(texts)],
            both[len(texts) :],
            mine @ mine.T > SAME_MEANING,
            mine @ others.T > SAME_MEANING,
            scale,
        )
        self.optimizer.zero_grad(set_to_none=True)
        value.backward()
        nn.utils.clip_grad_norm_([p for g in self.groups for p in g["params"]], 1.0)
        self.optimizer.step()
        self.step += 1
        return float(value.detach())

    def finish(self, path: Path) -> None:
        """Centre the texts, and write all trained weights in half precision."""
        with torch.inference_mode():
            names = self.texts(self.captions.names)
        centre_texts(self.module, names)
        save_file(low_rank.trained_tensors(self.module), str(path))


def train(data: Path, work: Path, out: Path, stage: Stage, settings: Settings) -> None:
    """Run a stage to its last step; the last stage exports to ``out``."""
    work.mkdir(parents=True, exist_ok=True)
    checkpoint = work / f"{stage}.pt"
    trainer = Trainer(data, stage, settings)
    if stage in BEFORE:
        before = work / f"{BEFORE[stage]}.pt"
        trainer.begin_with(before)
        if stage == "texts":
            trainer.rest(work / f"pictures-{sha256_file(before)[:12]}.npy")
    elif not checkpoint.is_file():
        trainer.regress()
    trainer.restore(checkpoint)
    begun = saved = time.monotonic()
    smooth = float("nan")
    while trainer.step < settings.steps:
        value = trainer.advance()
        smooth = value if np.isnan(smooth) else 0.97 * smooth + 0.03 * value
        if trainer.step % 20 == 0:
            speed = time.monotonic() - begun
            print(f"step {trainer.step} loss {smooth:.3f} after {speed:.0f} s", flush=True)
        if time.monotonic() - saved > CHECKPOINT_SECONDS:
            trainer.save(checkpoint)
            saved = time.monotonic()
    trainer.save(checkpoint)
    if stage == "texts":
        trainer.finish(out)


def main() -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--stage", choices=list(STAGES), required=True)
    parser.add_argument("--data", type=Path, required=True, help="folder of make_clip_data")
    parser.add_argument("--work", type=Path, required=True, help="folder for checkpoints")
    parser.add_argument("--out", type=Path, default=clip_weights.TRAINED)
    for field in fields(Settings):
        kind = {"int": int, "float": float}[str(field.type)]
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=kind)
    arguments = vars(parser.parse_args())
    given = {f.name: arguments[f.name] for f in fields(Settings) if arguments[f.name] is not None}
    stage: Stage = arguments["stage"]
    settings = replace(STAGES[stage], **given)
    print(" ".join(sys.argv), settings, flush=True)
    train(arguments["data"], arguments["work"], arguments["out"], stage, settings)


if __name__ == "__main__":
    main()
