"""Train the demo's captioner and language model.

    python -m tools.demo.train_captioner tokens --work WORK
    python -m tools.demo.train_captioner train --work WORK
    python -m tools.demo.train_captioner export --work WORK
    python -m tools.demo.train_captioner evaluate --work WORK

``tokens`` runs the frozen encoder once over every picture, ``train`` trains both models, ``export``
writes the released weights into ``captioner_weights``, ``evaluate`` measures them on held-out
pictures. The first two steps resume after a stop, with bit-identical results; ``train`` appends its
losses to ``WORK/{captioner,language_model}.log.jsonl``.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from tools.demo.caption_regions import (
    GRID,
    Example,
    Examples,
    Region,
    Split,
    pictures,
    regions,
)
from vision_sae.arrays import complete, open_growing
from vision_sae.files import replacing
from vision_sae.models.embedded import captioner as shipped

SEED = 1
DIM = 384
VOCABULARY = 2048
LONGEST = 48
"""Tokens of the longest caption, including begin and end tokens."""
WIDTH, LAYERS = {"captioner": 192, "language_model": 128}, 2
STEPS = {"captioner": 3000, "language_model": 600}
BATCH = 64
CHECKPOINT = 100
LEARNING_RATE, WARMUP, WEIGHT_DECAY, DROPOUT = 1.5e-3, 100, 0.05, 0.1
MOST_TOKENS = {1: 48, 2: 16}
"""Patch tokens per region: for a single region, and in a set."""
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}


def main() -> None:
    """Read the command line and do one of the steps."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("step", choices=("tokens", "train", "export", "evaluate"))
    parser.add_argument("--work", type=Path, required=True, help="folder of tokens and checkpoints")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    steps: dict[str, Callable[[Path], None]] = {
        "tokens": make_tokens,
        "train": train,
        "export": export,
        "evaluate": evaluate,
    }
    steps[arguments.step](arguments.work)


def make_tokens(work: Path) -> None:
    """Write ``{split}.npy`` (N, 256, 384) float16: the patch tokens of every picture."""
    encoder, processor = shipped.encoder(), shipped.image_processor()
    for split in get_args(Split):
        images = list(pictures(split))
        path = work / f"{split}.npy"
        array, done = open_growing(path, (len(images), GRID * GRID, DIM), np.float16)
        for start in tqdm(range(done, len(images), 16), desc=split, mininterval=5):
            batch = images[start : start + 16]
            pixels = processor(images=batch, return_tensors="pt").pixel_values
            with torch.autocast("cpu", torch.bfloat16):
                tokens = shipped.patch_tokens(encoder, pixels)
            array[start : start + len(batch)] = tokens.float().numpy()
            complete(array, path, start + len(batch))


def make_tokenizer(captions: Sequence[str]) -> Any:
    """A byte-level BPE tokenizer of these captions; it can spell any other text too."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL.values()),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator(captions, trainer)
    bpe.post_processor = processors.ByteLevel(trim_offsets=False)
    wrap: Any = PreTrainedTokenizerFast
    return wrap(tokenizer_object=bpe, **SPECIAL)


def _decoder_config(tokenizer: Any, kind: str) -> Any:
    from transformers import GPT2Config

    width = WIDTH[kind]
    return GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=LONGEST,
        n_embd=width,
        n_layer=LAYERS,
        n_head=width // 64,
        n_inner=2 * width,
        resid_pdrop=DROPOUT,
        embd_pdrop=DROPOUT,
        attn_pdrop=DROPOUT,
        add_cross_attention=kind == "captioner",
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def _spelled(tokenizer: Any, captions: Sequence[str]) -> Tensor:
    """Token ids (B, T) of captions between their begin and end, filled up with the pad token."""
    begin, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    rows = [
        torch.tensor([begin, *ids[: LONGEST - 2], end])
        for ids in tokenizer(list(captions), add_special_tokens=False).input_ids
    ]
    return pad_sequence(rows, batch_first=True, padding_value=tokenizer.pad_token_id)


def _loss(logits: Tensor, ids: Tensor, pad: int) -> Tensor:
    """Mean cross-entropy of the tokens after the first, in nats."""
    targets = ids[:, 1:].masked_fill(ids[:, 1:] == pad, -100)
    return nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), targets.flatten())


def _shown(region: Region, alone: bool, random: np.random.Generator) -> NDArray[np.int64]:
    """A sample of a region's tokens; half of the time from a random box, because masks are
    partial."""
    inside = np.flatnonzero(region.tokens)
    if random.random() < 0.5 and region.kind != "whole":
        rows, cols = np.divmod(inside, GRID)
        row, col = np.divmod(random.choice(inside), GRID)
        reach = random.integers(1, 5)
        inside = inside[np.maximum(abs(rows - row), abs(cols - col)) <= reach]
    most = MOST_TOKENS[1 if alone else 2]
    return np.asarray(random.permutation(inside)[:most], dtype=np.int64)


@dataclass
class Captioned:
    """Examples with the tokens of their pictures."""

    tokens: NDArray[np.float16]
    examples: Examples
    tokenizer: Any

    def batch(self, indices: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        """(patch tokens (B, L, 384), whether each is present (B, L), token ids (B, T))"""
        examples = [self.examples[i] for i in indices]
        memories = [self._memory(e, i) for i, e in zip(indices, examples, strict=True)]
        there = pad_sequence([torch.ones(len(m)) for m in memories], batch_first=True)
        ids = _spelled(self.tokenizer, [example.caption for example in examples])
        return pad_sequence(memories, batch_first=True), there, ids

    def _memory(self, example: Example, index: int) -> Tensor:
        random = np.random.default_rng([SEED, index])
        alone = len(example.regions) == 1
        parts = [self.tokens[r.picture][_shown(r, alone, random)] for r in example.regions]
        return torch.from_numpy(np.concatenate(parts)).float()


def caption_loss(model: Any, tokens: Tensor, there: Tensor, ids: Tensor) -> Tensor:
    """Mean cross-entropy of the captions' tokens, given the patch tokens."""
    logits = model.decoder(
        input_ids=ids,
        encoder_hidden_states=model.enc_to_dec_proj(tokens),
        encoder_attention_mask=there,
    ).logits
    return _loss(logits, ids, model.config.decoder.pad_token_id)


def train(work: Path) -> None:
    """Train the language model and the captioner on the same captions."""
    found = regions("train")
    texts = [name for region in found for name in (*region.names, *region.themes)]
    tokenizer = make_tokenizer(texts)
    tokenizer.save_pretrained(work / "tokenizer")
    examples = Examples(found, SEED)
    _train_language_model(work, examples, tokenizer)
    _train_captioner(work, examples, tokenizer)


def _train_language_model(work: Path, examples: Examples, tokenizer: Any) -> None:
    from transformers import GPT2LMHeadModel

    def surprise(model: Any, step: int) -> Tensor:
        ids = _spelled(tokenizer, [examples[i].caption for i in _indices(step)])
        return _loss(model(input_ids=ids).logits, ids, tokenizer.pad_token_id)

    torch.manual_seed(SEED)
    model = GPT2LMHeadModel(_decoder_config(tokenizer, "language_model"))
    _fit(model, "language_model", work, surprise)


def _train_captioner(work: Path, examples: Examples, tokenizer: Any) -> None:
    captioned = Captioned(np.load(work / "train.npy", mmap_mode="r"), examples, tokenizer)
    torch.manual_seed(SEED)
    model = shipped.untrained(_decoder_config(tokenizer, "captioner"))
    _fit(model, "captioner", work, lambda m, s: caption_loss(m, *captioned.batch(_indices(s))))


def _indices(step: int) -> range:
    return range(step * BATCH, (step + 1) * BATCH)


def _rate(step: int, steps: int) -> float:
    """The learning rate as a share of its peak: a linear rise, then half a cosine."""
    return min((step + 1) / WARMUP, 0.5 + 0.5 * math.cos(math.pi * step / steps))


def _fit(model: Any, name: str, work: Path, loss_at: Callable[[Any, int], Tensor]) -> None:
    """Train a model's unfrozen parameters, from its checkpoint if there is one."""
    model.train()
    parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(
        parameters.values(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, betas=(0.9, 0.98)
    )
    first, steps = _resume(parameters, optimizer, work / f"{name}.safetensors"), STEPS[name]
    losses: list[float] = []
    for step in tqdm(range(first, steps), initial=first, total=steps, desc=name, mininterval=5):
        torch.manual_seed(SEED + step)  # dropout: the same wherever training was interrupted
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * _rate(step, steps)
        with torch.autocast("cpu", torch.bfloat16):
            loss = loss_at(model, step)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters.values(), 1.0)
        optimizer.step()
        losses.append(loss.item())
        if (step + 1) % CHECKPOINT == 0 or step + 1 == steps:
            with (work / f"{name}.log.jsonl").open("a") as log:
                log.write(json.dumps({"step": step + 1, "loss": float(np.mean(losses))}) + "\n")
            losses.clear()
            _checkpoint(parameters, optimizer, step + 1, work / f"{name}.safetensors")


def _checkpoint(
    parameters: dict[str, nn.Parameter], optimizer: torch.optim.AdamW, step: int, path: Path
) -> None:
    tensors = {"step": torch.tensor(step)}
    for name, parameter in parameters.items():
        moments = optimizer.state[parameter]
        tensors[f"parameter.{name}"] = parameter.data
        tensors[f"mean.{name}"] = moments["exp_avg"]
        tensors[f"square.{name}"] = moments["exp_avg_sq"]
    with replacing(path) as temporary:
        save_file(tensors, temporary)


def _resume(parameters: dict[str, nn.Parameter], optimizer: torch.optim.AdamW, path: Path) -> int:
    """Restore a checkpoint; return the next step."""
    if not path.exists():
        return 0
    tensors = load_file(path)
    step = int(tensors["step"])
    for name, parameter in parameters.items():
        parameter.data.copy_(tensors[f"parameter.{name}"])
        optimizer.state[parameter] = {
            "step": torch.tensor(float(step)),
            "exp_avg": tensors[f"mean.{name}"],
            "exp_avg_sq": tensors[f"square.{name}"],
        }
    return step


def export(work: Path) -> None:
    """Write the released files: tensors in half precision, configurations and tokenizer."""
    from transformers import AutoTokenizer, GPT2LMHeadModel

    tokenizer = AutoTokenizer.from_pretrained(work / "tokenizer")
    captioner = shipped.untrained(_decoder_config(tokenizer, "captioner"))
    language_model: Any = GPT2LMHeadModel(_decoder_config(tokenizer, "language_model"))
    for name, model in (("captioner", captioner), ("language_model", language_model)):
        tensors = load_file(work / f"{name}.safetensors")
        for parameter_name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.data.copy_(tensors[f"parameter.{parameter_name}"])
    language_model.half().save_pretrained(shipped.LANGUAGE_MODEL)
    tokenizer.save_pretrained(shipped.LANGUAGE_MODEL)
    shipped.CAPTIONER.mkdir(parents=True, exist_ok=True)
    captioner.config.decoder.save_pretrained(shipped.CAPTIONER)
    save_file(shipped.trained_part(captioner), shipped.CAPTIONER / "model.safetensors")
    tokenizer.save_pretrained(shipped.CAPTIONER)


def evaluate(work: Path) -> None:
    """Print held-out losses of the released models, and how often they name a region's content."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(shipped.CAPTIONER)
    model = shipped.captioner()
    language_model: Any = AutoModelForCausalLM.from_pretrained(
        shipped.LANGUAGE_MODEL, dtype=torch.float32
    )
    language_model.eval()
    figures: dict[str, Any] = {}
    for split in get_args(Split):
        found = regions(split)
        tokens = np.load(work / f"{split}.npy", mmap_mode="r")
        captioned = Captioned(tokens, Examples(found, SEED + 1), tokenizer)
        figures[split] = _losses(model, language_model, captioned) | {
            "greedy_exact": dict(_exact(model, tokenizer, tokens, found))
        }
    print(json.dumps(figures, indent=2))


@torch.inference_mode()
def _losses(model: Any, language_model: Any, captioned: Captioned) -> dict[str, float]:
    """Nats a token over 1,024 examples, with the picture and without."""
    seen, unseen = [], []
    for step in range(16):
        tokens, there, ids = captioned.batch(_indices(step))
        seen.append(caption_loss(model, tokens, there, ids).item())
        logits = language_model(input_ids=ids).logits
        unseen.append(_loss(logits, ids, captioned.tokenizer.pad_token_id).item())
    return {"captioner_loss": float(np.mean(seen)), "language_model_loss": float(np.mean(unseen))}


_COUNTED = 300


def _exact(
    model: Any, tokenizer: Any, tokens: NDArray[np.float16], regions: Sequence[Region]
) -> Iterator[tuple[str, Any]]:
    """Share of single regions whose greedy caption is one of their names, by kind; for scenes, also
    per attribute."""
    for kind in ("thing", "ground", "word"):
        some = [r for r in regions if r.kind == kind]
        chosen = list(islice(some, 0, None, max(1, len(some) // _COUNTED)))
        captions = [greedy(model, tokenizer, tokens[r.picture][r.tokens]) for r in chosen]
        pairs = list(zip(captions, chosen, strict=True))
        yield kind, _share(text in region.names for text, region in pairs)
        if kind == "thing":
            composed = [(s, r) for s, r in pairs if len(r.names) == 2]  # scenes have two names
            yield "composed_thing", _share(text in region.names for text, region in composed)
            yield (
                "composed_colour",
                _share(_word(s, 1) == _word(r.names[1], 1) for s, r in composed),
            )
            yield (
                "composed_shape",
                _share(_word(s, -1) == _word(r.names[1], -1) for s, r in composed),
            )


def _word(text: str, position: int) -> str:
    """A word of a text: the second of "a red star" is the colour, the last one the shape."""
    words = text.split()
    return words[position] if len(words) > 1 else ""


def _share(right: Iterator[bool]) -> float:
    values = list(right)
    return round(sum(values) / max(len(values), 1), 3)


@torch.inference_mode()
def greedy(model: Any, tokenizer: Any, tokens: NDArray[np.float16]) -> str:
    """The caption by greedy decoding, given patch tokens (L, 384)."""
    from transformers.modeling_outputs import BaseModelOutput

    memory = BaseModelOutput(torch.from_numpy(np.asarray(tokens)).float()[None])
    ids = model.generate(encoder_outputs=memory, max_new_tokens=LONGEST - 1, do_sample=False)
    text: str = tokenizer.decode(ids[0], skip_special_tokens=True)
    return text.strip()


if __name__ == "__main__":
    main()
