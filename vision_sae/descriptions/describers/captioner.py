"""p(d | E): how likely a text describes some exemplars, by an image-to-text model.

E is several masked regions; image-to-text models are made for one whole picture. Two ways out:

- A `VisionEncoderDecoderModel` attends to the states of its encoder's tokens. The states of the
  tokens inside the masks of *all* exemplars become one memory, as the regions of all exemplars do
  in MILAN. The pictures themselves are not cut or blanked: cutting takes a part out of the whole
  it is a part of, and blanking draws edges that no picture has, which the captioner would describe.
  The states of a picture then do not depend on the unit, so they are computed once. The class
  token is left out, as it stands for the whole picture.
- Of any other model (BLIP, GIT, ...) only the next token's probabilities are to be had. Each
  exemplar is cut to its region, the rest blanked, and captioned side by side with all others by
  the same tokens: log p(d | E) is the mean of log p(d | e) over the exemplars e, a product of
  experts.

The likeliest texts come from a beam search in which no text is favoured for being short or long:
log p(d | E) is the sum over all tokens of d and the one that ends it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
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

from vision_sae.descriptions.describers.regions import blanked, region, thumbnail
from vision_sae.descriptions.describers.text_models import load_pretrained, load_weights
from vision_sae.descriptions.evidence.protocol import Evidence, Firing
from vision_sae.errors import InvalidInputError

_FIELD = "describe.milan.captioner"
_CACHE_BYTES = 256 * 2**20
"""Encoder states that a captioner keeps."""
_MOST_SPECIAL = 8
"""The most leading tokens of an encoder that are not patches."""


class Hypothesis(NamedTuple):
    """A text and how likely it describes the exemplars."""

    text: str
    log_probability: float
    """log p(d | E) in nats."""


class Captioner(Protocol):
    """p(d | E)."""

    def hypotheses(
        self, evidence: Evidence, exemplars: Sequence[Firing], *, beam: int, max_tokens: int
    ) -> list[Hypothesis]:
        """At most ``beam`` different texts of at most ``max_tokens`` tokens, likeliest first."""
        ...


class _Beam(LogitsProcessor):
    """Lets every exemplar have its say in each beam, and ends texts in time."""

    def __init__(self, experts: int, longest: int, end: int) -> None:
        self._experts, self._longest, self._end = experts, longest, end
        self._prompt: int | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Log-probabilities (exemplars * beams, V) -> their mean over the exemplars, repeated.

        Every exemplar then continues the same texts. The last token can only be the one that
        ends a text, at its own probability: what the search finds are whole texts.
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
        for part in model.modules():  # what a checkpoint asks for, such as penalties, is not p(d|E)
            if getattr(part, "generation_config", None) is not None:
                part.generation_config = _plain(part.generation_config)
        if isinstance(model, BlipForConditionalGeneration):  # names the token by another name
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
        """The likeliest texts; ``inputs`` hold ``experts`` pictures."""
        found = self.model.generate(
            **inputs,
            num_beams=beam,
            num_return_sequences=beam,
            do_sample=False,
            length_penalty=0.0,  # with the next, beam search as it is defined: sums of log p
            early_stopping="never",
            max_new_tokens=max_tokens,
            logits_processor=[_Beam(experts, max_tokens, self._end)],
            output_scores=True,
            return_dict_in_generate=True,
        )
        best: dict[str, float] = {}
        texts = self._tokenizer.batch_decode(found.sequences[:beam], skip_special_tokens=True)
        for text, value in zip(texts, found.sequences_scores[:beam].tolist(), strict=True):
            text = " ".join(text.split())
            if text and value > -1e8:  # below are places of the beam that nothing filled
                best[text] = max(value, best.get(text, -np.inf))
        ranked = sorted(best.items(), key=lambda item: (-item[1], item[0]))
        return [Hypothesis(text, value) for text, value in ranked]


def _plain(given: GenerationConfig) -> GenerationConfig:
    """The special tokens of a generation configuration, and nothing else of it."""
    end = given.eos_token_id
    end = end[0] if isinstance(end, list) and len(end) == 1 else end
    return GenerationConfig(  # type: ignore[no-untyped-call]
        bos_token_id=given.bos_token_id,
        decoder_start_token_id=given.decoder_start_token_id,
        eos_token_id=end,
        pad_token_id=end if given.pad_token_id is None else given.pad_token_id,
    )


class EncoderDecoderCaptioner:
    """A captioner that attends to the tokens of all exemplars' regions at once."""

    def __init__(self, model: VisionEncoderDecoderModel, processor: Any, tokenizer: Any) -> None:
        self._searcher, self._processor = _Searcher(model, tokenizer), processor
        self._cache: OrderedDict[tuple[str, int], Tensor] = OrderedDict()

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

        The half that float16 cuts off is cut off whether or not the cache still has them, so that
        a label does not depend on what was described before.
        """
        key = evidence.data_sha256, image
        if key not in self._cache:
            pixels = self._processor(images=picture, return_tensors="pt").pixel_values
            encoded: Tensor = self._searcher.model.encoder(pixels).last_hidden_state[0].half()
            self._cache[key] = encoded
            while len(self._cache) * encoded.nbytes > _CACHE_BYTES and len(self._cache) > 1:
                self._cache.popitem(last=False)
        self._cache.move_to_end(key)
        return self._cache[key]

    def _as_seen(self, mask: NDArray[np.bool_]) -> NDArray[np.float32]:
        """How much of each pixel of the model's input (H, W) a mask of the picture covers."""
        painted = Image.fromarray(mask).convert("RGB")
        seen = self._processor(images=painted, do_normalize=False, return_tensors="pt").pixel_values
        return np.asarray(seen[0, 0], dtype=np.float32)


def _token_mask(shown: NDArray[np.float32], tokens: int) -> NDArray[np.bool_]:
    """The tokens of which a mask covers at least half; of a smaller mask, the one it covers most.

    Raises `InvalidInputError` when the tokens do not lie on a square grid.
    """
    side = int(np.sqrt(tokens))
    special = tokens - side * side
    if special > _MOST_SPECIAL:
        raise InvalidInputError(
            f"{_FIELD}: the {tokens} states of its encoder do not lie on a square grid, so none "
            "can be told to be inside a mask",
            field=_FIELD,
        )
    image = Image.fromarray(shown).resize((side, side), Image.Resampling.BOX)
    share = np.asarray(image).reshape(-1)
    inside = share >= min(0.5, float(share.max()))
    return np.concatenate([np.zeros(special, dtype=np.bool_), inside])


class ExpertsCaptioner:
    """A captioner of single pictures, asked about every exemplar at once."""

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
        try:
            return self._searcher.search(len(regions), beam, max_tokens, pixel_values=pixels)
        except (TypeError, ValueError) as error:
            name = type(self._searcher.model).__name__
            raise InvalidInputError(
                f"{_FIELD}: {name} does not caption a picture without a prompt ({error}); models "
                "that need one can be asked through a server, by the describer vlm",
                field=_FIELD,
            ) from error


def load_captioner(name: str) -> Captioner:
    """Load by directory, hub name or ``demo:captioner``."""
    if name == "demo:captioner":
        from vision_sae.demo import captioner as demo

        tokenizer = AutoTokenizer.from_pretrained(demo.CAPTIONER)
        return EncoderDecoderCaptioner(demo.captioner(), demo.image_processor(), tokenizer)
    config = load_pretrained(AutoConfig.from_pretrained, name, field=_FIELD)
    encoder_decoder = config.model_type == "vision-encoder-decoder"
    auto_class = VisionEncoderDecoderModel if encoder_decoder else AutoModelForImageTextToText
    model = load_weights(auto_class, name, field=_FIELD)
    processor = load_pretrained(AutoImageProcessor.from_pretrained, name, field=_FIELD)
    tokenizer = load_pretrained(AutoTokenizer.from_pretrained, name, field=_FIELD)
    if encoder_decoder:
        return EncoderDecoderCaptioner(model, processor, tokenizer)
    return ExpertsCaptioner(model, processor, tokenizer)
