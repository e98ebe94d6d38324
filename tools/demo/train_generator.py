"""Train the demo generator on composed scenes.

    python -m tools.demo.train_generator scenes --work WORK
    python -m tools.demo.train_generator vae --work WORK
    python -m tools.demo.train_generator latents --work WORK
    python -m tools.demo.train_generator text --work WORK
    python -m tools.demo.train_generator unet --work WORK
    python -m tools.demo.train_generator further --work WORK
    python -m tools.demo.train_generator export --work WORK
    python -m tools.demo.train_generator sheet --work WORK

``scenes`` paints the training pictures, ``vae`` trains the autoencoder's decoder, ``latents`` runs
its encoder over them once, ``text`` trains both text encoders to tell what a caption says, and
``unet`` trains the U-Net with these as they are. ``further`` raises the learning rate and anneals
it once more (Loshchilov and Hutter 2017, arXiv:1608.03983); with ``--start FOLDER`` it continues
from an exported pipeline. The released pipeline had 9,000 such steps, and 2,500 more with ``--seed
103``. ``export`` writes the pipeline in half precision, ``sheet`` writes pictures of held-out
prompts, side by side, to ``WORK/generated.webp``. Each step resumes after a stop:
``scenes`` and ``latents`` from their last complete block, the trainings from a checkpoint written
every few minutes, with a line of ``log.jsonl`` every hundred steps.

The U-Net predicts v (Salimans and Ho 2022, arXiv:2202.00512) under a schedule whose last step has
no signal left (Lin et al. 2024, arXiv:2305.08891), so that four steps from pure noise are exact to
begin with, mostly at the noise levels of those four steps. One prompt in twenty is empty, which
makes guidance possible, and known the empty prompt of feature icons. The exported weights are
the moving average.

    WORK/scenes.npy     (N, 64, 64, 3) uint8
    WORK/captions.json  N captions
    WORK/said.npy       (N, 6) the number of each attribute's value
    WORK/latents.npy    (N, 6, 32, 32) float16
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from vision_sae.arrays import complete, open_growing
from vision_sae.demo.generations import heldout_pictures
from vision_sae.evidence.protocol import spaced
from vision_sae.files import replacing
from vision_sae.models.embedded import generator
from vision_sae.models.from_diffusers import load_pipeline
from vision_sae.models.precision import fastest_dtype
from vision_sae.pictures.scenes import VALUES, draw, random_attributes

SCENES = 60_000
TRAIN_SEED = 101
"""Seed of the training scenes."""
_BLOCK = 1000
_CHECKPOINT_SECONDS = 180
_LARGEST = 2.2
"""Magnitude that values of a latent channel rarely exceed."""
_LATENT_NOISE = 0.08
"""Noise on the decoder's training latents, because a generator's latents are not exact."""
_TEXT_ENCODERS = ("text_encoder", "text_encoder_2")
_EMPTY_SHARE = 0.05
"""Share of prompts that training replaces by the empty prompt."""
_USED_SHARE = 0.75
"""Share of noise levels taken from the few steps of inference (as in Sauer et al. 2023,
arXiv:2311.17042); the others are random."""
_OBJECT_WEIGHT = 8.0
"""Weight of an error on the object relative to the background, which is ten times as large."""
_AVERAGE = 0.999


def make_scenes(work: Path, count: int) -> None:
    """Paint the scenes: every attribute at random, without painted words."""
    work.mkdir(parents=True, exist_ok=True)
    pictures, done = open_growing(
        work / "scenes.npy", (count, generator.SIDE, generator.SIDE, 3), np.uint8
    )
    captions, said = [], []
    for i in tqdm(range(count), desc="scenes"):
        random = np.random.default_rng([TRAIN_SEED, i])
        attributes = replace(random_attributes(random), word=None)
        captions.append(attributes.caption)
        said.append(attributes.numbers)
        if i >= done:
            seed = int(random.integers(2**32))
            pictures[i] = np.asarray(draw(attributes, side=generator.SIDE, seed=seed).image)
            if i % _BLOCK == _BLOCK - 1 or i == count - 1:
                complete(pictures, work / "scenes.npy", i + 1)
    (work / "captions.json").write_text(json.dumps(captions), "utf-8")
    np.save(work / "said.npy", np.array(said))


class Training:
    """A resumable training: modules, their moving average, and the current step."""

    def __init__(
        self,
        modules: nn.ModuleDict,
        steps: int,
        rate: float,
        work: Path,
        name: str,
        *,
        seed: int = TRAIN_SEED,
    ) -> None:
        self.checkpoint_seconds: float = _CHECKPOINT_SECONDS
        self.modules, self.steps, self._rate, self._seed = modules, steps, rate, seed
        self._path, self._log = work / f"{name}.pt", work / f"{name}.log.jsonl"
        self._parameters = list(modules.parameters())
        self._average = [p.detach().clone() for p in self._parameters]
        self._optimizer = torch.optim.AdamW(
            self._parameters, lr=rate, betas=(0.9, 0.99), weight_decay=1e-2, fused=True
        )
        self.step = 0
        if self._path.is_file():
            saved = torch.load(self._path, weights_only=True)
            modules.load_state_dict(saved["modules"])
            self._optimizer.load_state_dict(saved["optimizer"])
            self._average = saved["average"]
            self.step = saved["step"]

    def _save(self) -> None:
        state = {
            "modules": self.modules.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "average": self._average,
            "step": self.step,
        }
        with replacing(self._path) as temporary:
            torch.save(state, temporary)

    def run(self, loss: Callable[[np.random.Generator], Tensor]) -> None:
        """Minimise ``loss``, which draws its batch from the step's own random numbers."""
        begun = saved = time.monotonic()
        first, recent = self.step, list[float]()
        while self.step < self.steps:
            warm = min(1.0, (self.step + 1) / 200)
            for group in self._optimizer.param_groups:
                falling = (1 + math.cos(math.pi * self.step / self.steps)) / 2
                group["lr"] = self._rate * warm * falling
            value = loss(np.random.default_rng([self._seed, self.step]))
            self._optimizer.zero_grad(set_to_none=True)
            value.backward()
            nn.utils.clip_grad_norm_(self._parameters, 1.0)
            self._optimizer.step()
            keep = min(_AVERAGE, (1 + self.step) / (10 + self.step))
            with torch.no_grad():
                torch._foreach_lerp_(self._average, [*self._parameters], 1 - keep)
            self.step += 1
            recent.append(float(value.detach()))
            if self.step % 100 == 0 or self.step == self.steps:
                row = {
                    "step": self.step,
                    "loss": round(float(np.mean(recent)), 5),
                    "steps_per_s": round((self.step - first) / (time.monotonic() - begun), 3),
                }
                recent.clear()
                with self._log.open("a") as file:
                    file.write(json.dumps(row) + "\n")
                print(row, flush=True)
            if time.monotonic() - saved > self.checkpoint_seconds:
                self._save()
                saved = time.monotonic()
        self._save()

    def averaged(self) -> nn.ModuleDict:
        """The modules with the moving average of their weights."""
        with torch.no_grad():
            for parameter, average in zip(self._parameters, self._average, strict=True):
                parameter.copy_(average)
        return self.modules.eval()


def _pictures(work: Path, rows: NDArray[np.int64]) -> Tensor:
    """Scenes as the autoencoder sees them: (n, 3, 64, 64) from -1 to 1."""
    pixels = np.load(work / "scenes.npy", mmap_mode="r")[np.sort(rows)]
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1


def vae_training(work: Path, steps: int, rate: float, batch: int) -> tuple[Training, Any]:
    """(the decoder's training so far, its autoencoder); the encoder is set by statistics of the
    pictures."""
    torch.manual_seed(0)
    vae = generator.new_pipeline(_tokenizer(work)).vae
    with torch.inference_mode():
        count = int((work / "scenes.done").read_text())
        latents = vae.encode(_pictures(work, spaced(count, 1024))).latents
        shift = latents.mean((0, 2, 3))
        spread = (latents - shift[None, :, None, None]).abs().movedim(1, 0).flatten(1)
        scale = _LARGEST / np.quantile(spread.numpy(), 0.998, axis=1)
    generator.set_encoder(vae, shift.tolist(), scale.tolist())
    vae.encoder.requires_grad_(False)
    return Training(nn.ModuleDict({"decoder": vae.decoder}), steps, rate, work, "vae"), vae


def train_vae(work: Path, steps: int, rate: float, batch: int) -> None:
    """Absolute error of the decoder on latents with a little noise."""
    training, vae = vae_training(work, steps, rate, batch)
    count = int((work / "scenes.done").read_text())
    low = fastest_dtype("cpu")

    def loss(random: np.random.Generator) -> Tensor:
        pictures = _pictures(work, random.choice(count, batch, replace=False))
        latents = vae.encoder(pictures)
        noise = torch.from_numpy(random.standard_normal(latents.shape, np.float32))
        with torch.autocast("cpu", low, enabled=low != torch.float32):
            decoded = vae.decoder(latents + _LATENT_NOISE * noise)
        error: Tensor = F.l1_loss(decoded.float(), pictures)
        return error

    training.run(loss)


def make_latents(work: Path, options: dict[str, Any]) -> None:
    """Encode every scene."""
    encoder = vae_training(work, **options)[1].encoder
    count = int((work / "scenes.done").read_text())
    with torch.inference_mode():
        channels = encoder(_pictures(work, np.arange(1))).shape[1]
        shape = (count, channels, generator.LATENT, generator.LATENT)
        latents, done = open_growing(work / "latents.npy", shape, np.float16)
        for start in tqdm(range(done, count, _BLOCK), desc="latents"):
            rows = np.arange(start, min(start + _BLOCK, count))
            latents[rows] = encoder(_pictures(work, rows)).half().numpy()
            complete(latents, work / "latents.npy", int(rows[-1]) + 1)


def text_training(work: Path, steps: int, rate: float, batch: int) -> tuple[Training, Any]:
    """(the text encoders' training so far, their pipeline)"""
    torch.manual_seed(1)
    pipeline = generator.new_pipeline(_tokenizer(work))
    modules = nn.ModuleDict({name: getattr(pipeline, name) for name in _TEXT_ENCODERS})
    hidden = 2 * pipeline.text_encoder.config.hidden_size
    modules["head"] = nn.Linear(hidden, sum(map(len, VALUES.values())))
    return Training(modules, steps, rate, work, "text"), pipeline


def train_text(work: Path, steps: int, rate: float, batch: int) -> None:
    """Loss of classifying every attribute from the last token's hidden states."""
    training, pipeline = text_training(work, steps, rate, batch)
    said = torch.from_numpy(np.load(work / "said.npy"))
    tokens = _tokens(pipeline, json.loads((work / "captions.json").read_text("utf-8")))
    widths = [len(values) for values in VALUES.values()]

    def loss(random: np.random.Generator) -> Tensor:
        rows = random.integers(len(tokens), size=batch)
        told = training.modules["head"](encode_prompts(pipeline, tokens[rows])[0][:, -1])
        errors = [
            F.cross_entropy(logits, said[rows, attribute])
            for attribute, logits in enumerate(told.split(widths, dim=1))
        ]
        return torch.stack(errors).mean()

    training.run(loss)


def unet_training(work: Path, steps: int, rate: float, batch: int) -> tuple[Training, Any]:
    """(the U-Net's training so far, its pipeline with the trained text encoders)"""
    text, pipeline = text_training(work, **TEXT)
    text.averaged()
    return Training(nn.ModuleDict({"unet": pipeline.unet}), steps, rate, work, "unet"), pipeline


def further_training(
    work: Path, start: Path | None, seed: int, steps: int, rate: float, batch: int
) -> tuple[Training, Any]:
    """(the training that continues from ``start``, its pipeline); without ``start``, it continues
    from the result of `train_unet`."""
    if start is None:
        trained, pipeline = unet_training(work, **UNET)
        trained.averaged()
        decoding, autoencoder = vae_training(work, **VAE)
        decoding.averaged()
        pipeline.register_modules(vae=autoencoder)
    else:
        pipeline = generator.new_pipeline(_tokenizer(work))  # which knows of no path
        untyped: Any = diffusers.StableDiffusionXLPipeline
        made = untyped.from_pretrained(str(start), torch_dtype=torch.float32)
        for name in ("unet", "vae", *_TEXT_ENCODERS):
            getattr(pipeline, name).load_state_dict(getattr(made, name).state_dict())
            getattr(pipeline, name).eval()
    modules = nn.ModuleDict({"unet": pipeline.unet.train()})
    return Training(modules, steps, rate, work, "further", seed=seed), pipeline


def encode_prompts(pipeline: Any, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """The result of `StableDiffusionXLPipeline.encode_prompt` for tokens (B, T): hidden states of
    both encoders (B, T, 2 D) and the pooled text (B, D)."""
    first = pipeline.text_encoder(tokens, output_hidden_states=True)
    second = pipeline.text_encoder_2(tokens, output_hidden_states=True)
    hidden = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], dim=-1)
    return hidden, second.text_embeds


def _objects(pictures: NDArray[np.uint8]) -> Tensor:
    """Foreground masks (n, 1, h, w) of scenes (n, side, side, 3) at the latents' positions, 0 or 1.
    The background is the colour of most of a picture."""
    values = pictures.astype(np.int16)
    background = np.median(values[:, ::4, ::4], axis=(1, 2), keepdims=True)
    differs = np.abs(values - background.astype(np.int16)).max(3) > 16
    at_pixels = torch.from_numpy(differs).float()[:, None]
    at_latents: Tensor = F.max_pool2d(at_pixels, generator.SIDE // generator.LATENT)
    return at_latents


def train_unet(work: Path, batch: int, training: Training, pipeline: Any) -> None:
    """Predict v at a random time of random scenes."""
    latents = np.load(work / "latents.npy", mmap_mode="r")
    pictures = np.load(work / "scenes.npy", mmap_mode="r")
    count = int((work / "latents.done").read_text())
    captions = json.loads((work / "captions.json").read_text("utf-8"))
    tokens = _tokens(pipeline, [*captions[:count], ""])
    signal = pipeline.scheduler.alphas_cumprod.sqrt()
    noise_level = (1 - pipeline.scheduler.alphas_cumprod).sqrt()
    pipeline.scheduler.set_timesteps(generator.STEPS)
    used = pipeline.scheduler.timesteps
    size = generator.SIDE
    time_ids = torch.tensor([[size, size, 0, 0, size, size]]).repeat(batch, 1)
    low = fastest_dtype("cpu")

    def loss(random: np.random.Generator) -> Tensor:
        rows = np.sort(random.choice(count, batch, replace=False))
        clean = torch.from_numpy(latents[rows]).float()
        noise = torch.from_numpy(random.standard_normal(clean.shape, np.float32))
        anywhere = torch.from_numpy(random.integers(len(signal), size=batch))
        of_use = used[torch.from_numpy(random.integers(len(used), size=batch))]
        times = torch.where(torch.from_numpy(random.random(batch) < _USED_SHARE), of_use, anywhere)
        a, s = signal[times][:, None, None, None], noise_level[times][:, None, None, None]
        told = np.where(random.random(batch) < _EMPTY_SHARE, len(tokens) - 1, rows)
        with torch.no_grad():
            hidden, pooled = encode_prompts(pipeline, tokens[told])
        with torch.autocast("cpu", low, enabled=low != torch.float32):
            predicted = pipeline.unet(
                a * clean + s * noise,
                times,
                encoder_hidden_states=hidden,
                added_cond_kwargs={"text_embeds": pooled, "time_ids": time_ids},
            ).sample
        error = (predicted.float() - (a * noise - s * clean)).square()
        weights = 1 + (_OBJECT_WEIGHT - 1) * _objects(pictures[rows])
        weighted: Tensor = (weights * error).mean() / weights.mean()
        return weighted

    training.run(loss)


def _tokenizer(work: Path) -> Path:
    folder = work / "tokenizer"
    if not (folder / "merges.txt").is_file():
        generator.write_tokenizer(folder)
    return folder


def _tokens(pipeline: Any, texts: list[str]) -> Tensor:
    made = pipeline.tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt")
    tokens: Tensor = made.input_ids
    return tokens


def export(out: Path, training: Training, pipeline: Any) -> None:
    """Write the pipeline with averaged weights, in half precision."""
    training.averaged()
    pipeline.to(torch.float16).save_pretrained(str(out))


def show(folder: Path, out: Path) -> None:
    """Write pictures of held-out prompts by the pipeline of ``folder``."""
    heldout_pictures(load_pipeline(str(folder), "exported")).save(out, quality=90)


VAE: dict[str, Any] = {"steps": 1200, "rate": 2e-3, "batch": 16}
TEXT: dict[str, Any] = {"steps": 600, "rate": 2e-3, "batch": 128}
UNET: dict[str, Any] = {"steps": 6000, "rate": 2e-3, "batch": 32}
FURTHER: dict[str, Any] = {"steps": 9000, "rate": 2e-3, "batch": 32}


def _further(arguments: argparse.Namespace) -> tuple[Training, Any]:
    options = FURTHER | ({"steps": arguments.steps} if arguments.steps else {})
    return further_training(arguments.work, arguments.start, arguments.seed, **options)


def _steps() -> dict[str, Callable[[argparse.Namespace], None]]:
    return {
        "scenes": lambda a: make_scenes(a.work, a.scenes),
        "vae": lambda a: train_vae(a.work, **VAE),
        "latents": lambda a: make_latents(a.work, VAE),
        "text": lambda a: train_text(a.work, **TEXT),
        "unet": lambda a: train_unet(a.work, UNET["batch"], *unet_training(a.work, **UNET)),
        "further": lambda a: train_unet(a.work, FURTHER["batch"], *_further(a)),
        "export": lambda a: export(a.out, *_further(a)),
        "sheet": lambda a: show(a.out, a.work / "generated.webp"),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line and do one of the steps."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("step", choices=list(_steps()))
    parser.add_argument("--work", type=Path, required=True, help="folder of the training")
    parser.add_argument("--out", type=Path, default=generator.FOLDER)
    parser.add_argument("--scenes", type=int, default=SCENES)
    parser.add_argument("--start", type=Path, help="pipeline that `further` goes on from")
    parser.add_argument("--steps", type=int, help="steps of `further`")
    parser.add_argument("--seed", type=int, default=TRAIN_SEED + 1, help="batches of `further`")
    given = parser.parse_args(arguments)
    _steps()[given.step](given)


if __name__ == "__main__":
    main()
