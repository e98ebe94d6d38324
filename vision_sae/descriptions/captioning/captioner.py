"""p(d | E): the probability of a text for some exemplars, by an image-to-text model.

E is several masked regions, but image-to-text models take one whole picture. There are two methods:

- A `VisionEncoderDecoderModel` attends to the states of its encoder's tokens. The states of the
  tokens inside the masks of *all* exemplars become one memory, as the regions of all exemplars do
  in MILAN. The pictures are not cropped or blanked: a crop loses the context of a part, and the
  captioner would describe the edges of a blank area. The states of a picture therefore do not
  depend on the unit and are computed once. The class token is left out, because it represents the
  whole picture.
- Any other model (BLIP, GIT, ...) gives only the probabilities of the next token. Each exemplar is
  cropped to its region, with the rest blanked. All exemplars are captioned in parallel with the
  same tokens: log p(d | E) is the mean of log p(d | e) over the exemplars e, a product of experts.

A beam search without length normalisation gives the most probable texts: log p(d | E) is the sum
over all tokens of d and the end token.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from cachetools import LRUCache
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageTextToText,
    AutoTokenizer,
    BlipForConditionalGeneration,
    GenerationConfig,
    LogitsProcessor,
    VisionEncoderDecoderModel,
)
from transformers.modeling_outputs import BaseModelOutput

from vision_sae import devices
from vision_sae.descriptions.captioning.text_models import load_pretrained, load_weights
from vision_sae.descriptions.regions import blanked, region, thumbnail
from vision_sae.errors import InvalidInputError
from vision_sae.evidence.protocol import Evidence, Firing

_FIELD = "describe.milan.captioner"
_CACHE_BYTES = 256 * 2**20
"""Size of the cache of encoder states."""
_MOST_SPECIAL = 8
"""The most leading tokens of an encoder that are not patches."""


class Hypothesis(NamedTuple):
    """A text and its probability for the exemplars."""

    text: str
    log_probability: float
    """log p(d | E) in nats."""


class Captioner(Protocol):
    """p(d | E)."""

    def hypotheses(
        self, evidence: Evidence, exemplars: Sequence[Firing], *, beam: int, max_tokens: int
    ) -> list[Hypothesis]:
        """At most ``beam`` different texts of at most ``max_tokens`` tokens, best first."""
        ...


class _Beam(LogitsProcessor):
    """Averages the log-probabilities of all exemplars, and ends texts at the limit."""

    def __init__(self, experts: int, longest: int, end: int) -> None:
        self._experts, self._longest, self._end = experts, longest, end
        self._prompt: int | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Log-probabilities (exemplars * beams, V) -> their mean over the exemplars, repeated.

        Every exemplar then continues the same texts. The last token is always the end token, with
        the probability that the model gives: the search returns complete texts.
        """
        if self._prompt is None:
            self._prompt = input_ids.shape[1]
        together = scores.view(self._experts, -1, scores.shape[-1]).mean(0)
        if input_ids.shape[1] - self._prompt + 1 >= self._longest:
            end = together[:, self._end].clone()
            together = torch.full_like(together, -torch.inf)
            together[:, self._end] = end
        return together.repeat(self._experts, 1)


class _Searcher:
    """Beam search with an image-to-text model of transformers."""

    _end: int

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model, self._tokenizer = model, tokenizer
        for part in model.modules():  # a checkpoint's settings, such as penalties, change p(d | E)
            if getattr(part, "generation_config", None) is not None:
                part.generation_config = _plain(part.generation_config)
        if isinstance(model, BlipForConditionalGeneration):  # BLIP ends texts with its separator
            text_config: Any = model.config.text_config
            self._end = text_config.sep_token_id
        else:
            self._end = model.generation_config.eos_token_id
        if not isinstance(self._end, int):
            raise InvalidInputError(
                f"{_FIELD}: generation_config.json must name one eos_token_id, not {self._end}",
                field=_FIELD,
            )

    def search(self, experts: int, beam: int, max_tokens: int, **inputs: Any) -> list[Hypothesis]:
        """The most probable texts for ``experts`` pictures in ``inputs``."""
        outputs = self.model.generate(
            **inputs,
            num_beams=beam,
            num_return_sequences=beam,
            do_sample=False,
            length_penalty=0.0,  # with early_stopping: plain beam search over sums of log p
            early_stopping="never",
            max_new_tokens=max_tokens,
            logits_processor=[_Beam(experts, max_tokens, self._end)],
            output_scores=True,
            return_dict_in_generate=True,
        )
        best: dict[str, float] = {}
        texts = self._tokenizer.batch_decode(outputs.sequences[:beam], skip_special_tokens=True)
        for text, value in zip(texts, outputs.sequences_scores[:beam].tolist(), strict=True):
            text = " ".join(text.split())
            if text and value > -1e8:  # empty places of the beam have lower values
                best[text] = max(value, best.get(text, -np.inf))
        ranked = sorted(best.items(), key=lambda item: (-item[1], item[0]))
        return [Hypothesis(text, value) for text, value in ranked]


def _plain(config: GenerationConfig) -> GenerationConfig:
    """A generation configuration reduced to its special tokens."""
    end = config.eos_token_id
    end = end[0] if isinstance(end, list) and len(end) == 1 else end
    return GenerationConfig(  # type: ignore[no-untyped-call]
        bos_token_id=config.bos_token_id,
        decoder_start_token_id=config.decoder_start_token_id,
        eos_token_id=end,
        pad_token_id=end if config.pad_token_id is None else config.pad_token_id,
    )


class EncoderDecoderCaptioner:
    """A captioner that attends to the tokens of all exemplars' regions at once."""

    def __init__(self, model: VisionEncoderDecoderModel, processor: Any, tokenizer: Any) -> None:
        self._searcher, self._processor = _Searcher(model, tokenizer), processor
        self._cache: LRUCache[tuple[str, int], Tensor] = LRUCache(
            _CACHE_BYTES, getsizeof=lambda states: states.nbytes
        )

    @torch.inference_mode()
    def hypotheses(
        self, evidence: Evidence, exemplars: Sequence[Firing], *, beam: int, max_tokens: int
    ) -> list[Hypothesis]:
        """See `Captioner`."""
        memory = torch.cat([self._inside(evidence, firing) for firing in exemplars])
        outputs = BaseModelOutput(last_hidden_state=memory[None])
        return self._searcher.search(1, beam, max_tokens, encoder_outputs=outputs)

    def _inside(self, evidence: Evidence, firing: Firing) -> Tensor:
        """States (L, D) of the tokens of one picture that lie in an exemplar's region."""
        picture = thumbnail(evidence, firing.image)
        states = self._states(evidence, firing.image, picture)
        shown = self._as_seen(region(evidence, firing, picture.size))
        return states[torch.from_numpy(_token_mask(shown, len(states)))].float()

    def _states(self, evidence: Evidence, image: int, picture: Image.Image) -> Tensor:
        """States (special + rows * cols, D) of a whole picture, alone in its batch, float16.

        The states are always rounded to float16, with or without a hit in the cache, so that a
        label does not depend on the units described before.
        """
        key = evidence.data_sha256, image
        encoded: Tensor | None = self._cache.get(key)
        if encoded is None:
            pixels = self._processor(images=picture, return_tensors="pt").pixel_values
            pixels = pixels.to(self._searcher.model.device)
            encoded = self._searcher.model.encoder(pixels).last_hidden_state[0].half()
            if encoded.nbytes <= _CACHE_BYTES:
                self._cache[key] = encoded
        return encoded

    def _as_seen(self, mask: NDArray[np.bool_]) -> NDArray[np.float32]:
        """The share of each pixel of the model's input (H, W) that a mask of the picture covers."""
        painted = Image.fromarray(mask).convert("RGB")
        seen = self._processor(images=painted, do_normalize=False, return_tensors="pt").pixel_values
        return np.asarray(seen[0, 0], dtype=np.float32)


def _token_mask(shown: NDArray[np.float32], tokens: int) -> NDArray[np.bool_]:
    """The tokens that a mask covers at least by half; for a small mask, the most covered token.

    Raises `InvalidInputError` when the tokens do not lie on a square grid.
    """
    side = int(np.sqrt(tokens))
    special = tokens - side * side
    if special > _MOST_SPECIAL:
        raise InvalidInputError(
            f"{_FIELD}: the {tokens} states of its encoder do not lie on a square grid, so the "
            "states inside a mask are unknown; name a model with a square grid of patches",
            field=_FIELD,
        )
    image = Image.fromarray(shown).resize((side, side), Image.Resampling.BOX)
    share = np.asarray(image).reshape(-1)
    inside = share >= min(0.5, float(share.max()))
    return np.concatenate([np.zeros(special, dtype=np.bool_), inside])


class ExpertsCaptioner:
    """A captioner of single pictures, applied to all exemplars in parallel."""

    def __init__(self, model: Any, processor: Any, tokenizer: Any) -> None:
        self._searcher, self._processor = _Searcher(model, tokenizer), processor
        mean = getattr(processor, "image_mean", None) or (0.5, 0.5, 0.5)
        red, green, blue = (round(255 * channel) for channel in mean)
        self._blank = red, green, blue

    @torch.inference_mode()
    def hypotheses(
        self, evidence: Evidence, exemplars: Sequence[Firing], *, beam: int, max_tokens: int
    ) -> list[Hypothesis]:
        """See `Captioner`."""
        regions = []
        for firing in exemplars:
            picture = thumbnail(evidence, firing.image)
            mask = region(evidence, firing, picture.size)
            regions.append(blanked(picture, mask, self._blank))
        pixels = self._processor(images=regions, return_tensors="pt").pixel_values
        pixels = pixels.to(self._searcher.model.device)
        try:
            return self._searcher.search(len(regions), beam, max_tokens, pixel_values=pixels)
        except (TypeError, ValueError) as error:
            name = type(self._searcher.model).__name__
            raise InvalidInputError(
                f"{_FIELD}: {name} does not caption a picture without a prompt ({error}); models "
                "that need a prompt can run behind a server, with the describer vlm",
                field=_FIELD,
            ) from error


def load_captioner(name: str) -> Captioner:
    """Load a captioner by directory, hub name or ``demo:captioner``.

    Raises `NotFoundError` when there is no such model.
    """
    if name == "demo:captioner":
        from vision_sae.models.embedded import captioner as demo

        tokenizer = AutoTokenizer.from_pretrained(demo.CAPTIONER)
        model = demo.captioner().to(devices.chosen())
        return EncoderDecoderCaptioner(model, demo.image_processor(), tokenizer)
    config = load_pretrained(AutoConfig.from_pretrained, name, field=_FIELD)
    encoder_decoder = config.model_type == "vision-encoder-decoder"
    auto_class = VisionEncoderDecoderModel if encoder_decoder else AutoModelForImageTextToText
    model = load_weights(auto_class, name, field=_FIELD)
    processor = load_pretrained(AutoImageProcessor.from_pretrained, name, field=_FIELD)
    tokenizer = load_pretrained(AutoTokenizer.from_pretrained, name, field=_FIELD)
    if encoder_decoder:
        return EncoderDecoderCaptioner(model, processor, tokenizer)
    return ExpertsCaptioner(model, processor, tokenizer)
