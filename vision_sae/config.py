"""The configuration: one frozen, validated object, from a YAML file, the environment and flags.

Precedence, highest first: command-line flags, environment (``VISION_SAE_TRAIN__STEPS=500``), the
file named by ``--config``, the defaults below. Unknown keys are refused.
"""

from __future__ import annotations

import difflib
import os
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeAlias

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from vision_sae.errors import InvalidInputError


class Section(BaseModel):
    """A part of the configuration. Its numbers are finite."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


Count: TypeAlias = Annotated[int, Field(ge=1, le=2**31 - 1)]
"""Of things, at least one."""
_FLOAT32 = 1e30
"""What float32, in which learners compute, holds with room to spare."""
Weight: TypeAlias = Annotated[float, Field(ge=0, le=_FLOAT32)]
"""Of a part of a loss."""
Seed: TypeAlias = Annotated[int, Field(ge=0, le=2**32 - 1)]
"""Of random numbers: what every library that draws them takes."""


class HarvestConfig(Section):
    """Images -> ActivationStore."""

    model: str = "demo:dinov2-s"
    """Name or path of the model; see `vision_sae.models.registry`."""
    sites: tuple[str, ...] = Field(("blocks.10.update",), min_length=1)
    """Sites captured in one pass."""
    dtype: Literal["float16", "bfloat16", "float32"] = "float16"
    """Precision on disk. Vectors too large or too small for float16 are refused, never stored
    wrong: bfloat16 holds them with fewer digits, float32 in twice the room."""
    batch_size: int = Field(8, ge=1, le=4096)
    """Images per forward pass. Few fit the caches of a core, each of which has a pass of its own;
    an accelerator wants many."""
    shard_images: int = Field(128, ge=1, le=65536)
    """Pictures per shard: the unit of checksums and of resuming."""
    thumbnail: int = Field(160, ge=16, le=1024)
    """Longer side of the pictures kept as evidence, in pixels."""
    limit: Count | None = None
    """Use an evenly spaced choice of this many pictures; all when absent."""
    views: int = Field(1, ge=1, le=1000)
    """Pictures made of each: itself, and random crops of it; more data to train on."""
    seeds: int = Field(1, ge=1, le=100_000)
    """Pictures generated of each prompt, by text-to-image models."""
    text_aligned: bool = False
    """Keep what each patch is in the space of texts too, so that patches are found by text; only
    with a contrastive model."""


TextMetric = Literal[
    "detection_auc",
    "detection_balanced_accuracy",
    "fuzzing_auc",
    "simulation_pearson",
    "intruder_accuracy",
    "cosy_auc",
    "cosy_mean_difference",
]
"""Scores of a label that need no describer; `vision_sae.descriptions.scores` defines them."""

Architecture = Literal[
    "topk",
    "batch_topk",
    "matryoshka",
    "archetypal",
    "relu",
    "jumprelu",
    "gated",
    "neurons",
    "pca",
    "nmf",
    "semi_nmf",
    "kmeans",
]


class EndToEndConfig(Section):
    """Further training by what the model does with the reconstruction."""

    steps: int = Field(0, ge=0, le=2**31 - 1)
    """Steps after the training on the store; none by default."""
    images: Count = 8
    """Pictures per step."""
    error_weight: Weight = 0.1
    """Weight of the reconstruction error beside the distance of the model's outputs."""


class TrainConfig(Section):
    """ActivationStore -> Dictionary."""

    site: str | None = None
    """Site of the store to train on; may be absent when the store has only one."""
    architecture: Architecture = "topk"
    """How features come to fire, and what they are made for; see `vision_sae.dictionaries`."""
    expansion: int = Field(16, ge=1, le=1024)
    """Features per input dimension: F = expansion * D. Neurons, pca, nmf, semi_nmf and kmeans
    have a number of their own, and use nothing of this section but site, k and seed."""
    k: Count = 32
    """Active features per patch; on average in batch_topk, and what the penalty of relu, jumprelu
    and gated is steered to."""
    steps: Count = 500
    batch_size: Count = 4096
    """Patches per step."""
    learning_rate: float = Field(2e-3, gt=0, le=_FLOAT32)
    warmup: float = Field(0.05, ge=0, le=1)
    """Share of the steps over which the learning rate rises linearly from 0."""
    decay: float = Field(0.4, ge=0, le=1)
    """Share of the steps, at the end, over which it falls linearly to 0."""
    dead_after: int = Field(200_000, ge=1, le=2**62)
    """A feature is dead when it has not fired for this many patches."""
    aux_coefficient: Weight = 1 / 32
    """Weight of AuxK's loss."""
    sparsity: Weight | None = None
    """Weight of the sparsity penalty of relu, jumprelu and gated; steered to L0 = k when absent."""
    prefixes: tuple[float, ...] = (1 / 32, 1 / 8, 1 / 2, 1)
    """Matryoshka's nested widths, as rising shares of F that end in 1."""
    archetypes: int = Field(4096, ge=2, le=2**31 - 1)
    """Data points of which archetypal decoder rows are convex combinations."""
    orthogonality: Weight = 0.0
    """Weight of OrtSAE's penalty on decoder rows that resemble each other."""
    ensemble: Literal["none", "bagging", "boosting"] = "none"
    """Several dictionaries as one: trained apart, or each on what those before left over."""
    members: int = Field(1, ge=1, le=64)
    """Dictionaries trained from seeds ``seed``, ``seed + 1``, ..."""
    agreement: Weight = 0.0
    """Weight of mutual feature regularisation between the members of a bagging."""
    end_to_end: EndToEndConfig = EndToEndConfig()
    shuffle_mb: Count = 512
    """Memory that the shuffling buffer may take."""
    shuffle_seed: Seed = 0
    """Seed of the order of the patches."""
    checkpoint_steps: Count = 100
    seed: Seed = 0
    """Seed of the initial directions."""

    @model_validator(mode="after")
    def _members_need_an_ensemble(self) -> Self:
        if (self.members > 1) != (self.ensemble != "none"):
            raise ValueError(
                f"ensemble {self.ensemble} with {self.members} members; several members need "
                "ensemble bagging or boosting, and these need several members"
            )
        return self


class BuildConfig(Section):
    """ActivationStore + Dictionary -> Bundle."""

    exemplars: int = Field(24, ge=1, le=1000)
    """Images kept per feature by their strongest patch."""
    quantile_exemplars: int = Field(8, ge=0, le=1000)
    """Further exemplars per feature, spread over its activation quantiles."""
    mask_quantile: float = Field(0.5, ge=0, le=1)
    """Exemplar masks: patches above this quantile of the feature's non-zero values."""
    recall_floor: float = Field(0.95, ge=0, le=1)
    """A patch index with a lower recall@10 against exact search is not published."""
    index_shard_rows: Count = 4_000_000
    """Patches in one file of the patch index, which is in memory while it is made."""


class NeuronConfig(Section):
    """Model + images -> evidence of raw neurons."""

    sites: tuple[str, ...] = Field(("blocks.*.mlp",), min_length=1)
    """Sites, or patterns of their names."""
    mask_quantile: float = Field(0.99, ge=0, le=1)
    """Masks: firing patches above this quantile of all the unit's activations."""
    batch_size: int = Field(16, ge=1, le=4096)
    """Images per forward pass."""
    thumbnail: int = Field(160, ge=16, le=1024)
    """Longer side of the pictures kept as evidence, in pixels."""
    checkpoint_batches: Count = 64
    """Batches between checkpoints."""


class CaptionPmiConfig(Section):
    """Labels from the captions of the data set."""

    words: int = Field(3, ge=1, le=10)
    """The most words in a label."""
    significance: float = Field(0.01, gt=0, lt=1)
    """Largest corrected p-value a word may have."""


class ContrastiveConfig(Section):
    """Labels by search with a contrastive model."""

    vocabulary: Path | None = None
    """Text file of words and phrases, one a line; what the captions say when absent."""
    beam: int = Field(3, ge=0, le=50)
    """Words tried as the head of phrases; with 0 labels are words of the vocabulary."""


class MilanConfig(Section):
    """Labels by a captioner and a language model."""

    captioner: str = "demo:captioner"
    """The image-to-text model p(d | E): demo:captioner, a directory or a hub name."""
    language_model: str = "demo:captions-lm"
    """The causal language model p(d): demo:captions-lm, a directory or a hub name."""
    exemplars: int = Field(15, ge=1, le=48)
    """The most exemplars that a unit is described by."""
    beam: int = Field(50, ge=1, le=1000)
    """Width of the beam search on log p(d | E), and texts that are ranked by pmi."""
    weight: float = Field(0.2, ge=0)
    """What log p(d) weighs against log p(d | E): labels are general at 0."""
    max_tokens: int = Field(24, ge=2, le=512)
    """The most tokens of a label, with the one that ends it."""


class VlmConfig(Section):
    """Labels by a vision-language model behind an OpenAI-compatible server; off without a URL."""

    url: str | None = None
    """Base of the API, for example http://127.0.0.1:8000/v1; https unless it is this machine."""
    model: str | None = None
    """The server's name of the model."""
    exemplars: int = Field(8, ge=1, le=48)
    """The most exemplars that are sent of a unit."""
    timeout_seconds: float = Field(60.0, gt=0)
    """How long one try may take."""
    retries: int = Field(3, ge=0, le=20)
    """Further tries when the server fails, is busy or cannot be reached."""


class EffectsConfig(Section):
    """Labels by what raising a feature does to a generator's pictures."""

    prompts: int = Field(16, ge=4, le=2**31 - 1)
    """The most prompts of the bundle's pictures that are generated anew: half of them to choose a
    label by, half to judge it."""
    amount: float = Field(16.0, gt=0, le=_FLOAT32)
    """What is added of a feature, in mean activations of the usual feature."""


class DescribeConfig(Section):
    """Bundle, or neurons -> labels."""

    describer: Literal[
        "grounded", "caption-pmi", "contrastive", "milan", "vlm", "effects", "scenes"
    ] = "grounded"
    """How labels are made. ``grounded`` labels are looked up in captions and pixels, and need no
    other model."""
    clip: str = "demo:clip"
    """The contrastive model: of the describer of that name, and of all scores."""
    metrics: tuple[TextMetric, ...] = ("detection_auc", "fuzzing_auc")
    """What the contrastive model measures of every label, on pictures that its describer has not
    seen. It is shown, and decides where captions and pixels cannot look a label up. With none,
    nothing judges: labels stand however bad they are, as guesses. Not of labels that are grounded,
    by effects or of scenes: these have judges of their own."""
    caption_pmi: CaptionPmiConfig = CaptionPmiConfig()
    contrastive: ContrastiveConfig = ContrastiveConfig()
    milan: MilanConfig = MilanConfig()
    vlm: VlmConfig = VlmConfig()
    effects: EffectsConfig = EffectsConfig()


LogLevel = Literal["debug", "info", "warning", "error"]


class ServeConfig(Section):
    """Bundles -> gRPC."""

    host: str = "127.0.0.1"
    """Address to bind, of IPv4 or IPv6; only this machine reaches 127.0.0.1 and ::1."""
    port: int = Field(50051, ge=0, le=65535)
    """0 chooses a free port."""
    metrics_port: int | None = Field(None, ge=0, le=65535)
    """Port of the Prometheus endpoint, on the same host; none when absent."""
    max_image_bytes: Count = 16 * 2**20
    max_image_pixels: Count = 50_000_000
    max_generated_pixels: int = Field(1024, ge=8, le=2**31 - 1)
    """Longer side of a generated picture."""
    max_message_bytes: int = Field(20 * 2**20, ge=1024, le=2**31 - 1)
    max_queue: Count = 64
    """Requests waiting or running before new ones are refused with RESOURCE_EXHAUSTED."""
    max_queue_bytes: int = Field(256 * 2**20, ge=1, le=2**62)
    """Their bytes together."""
    max_batch: Count = 8
    """Pictures that wait for a model and are encoded together, where that leaves each the same."""
    max_stream_items: Count = 8
    """Items of one stream that are worked on at a time."""
    labels: str | None = None
    """Where labels and label jobs are kept: a file, or a URL (postgresql://...). Without, they last
    as long as the server."""
    clip: str | None = None
    """Contrastive model for scores, search by meaning, and every describer but caption-pmi; none
    when absent. The section ``describe`` says how labels are made, but for its ``clip``."""
    neurons: tuple[Path, ...] = ()
    """Evidence of raw neurons of the models served, which jobs may label."""
    caller_key: str | None = Field(None, pattern=r"^[a-z0-9_.-]+$")
    """Metadata key in which a proxy that knows its callers names them, such as x-forwarded-user:
    the authors of edits and the creators of jobs. Only behind such a proxy: anybody can send it."""
    drain_seconds: float = Field(10.0, ge=0)
    """How long a stopping server lets accepted calls finish."""
    log_level: LogLevel = "info"
    """What is logged, from the least to the most severe; callers' words never are."""


class Config(BaseSettings):
    """Everything that can be set."""

    model_config = SettingsConfigDict(
        frozen=True, extra="forbid", env_prefix="VISION_SAE_", env_nested_delimiter="__"
    )

    harvest: HarvestConfig = HarvestConfig()
    train: TrainConfig = TrainConfig()
    build: BuildConfig = BuildConfig()
    neurons: NeuronConfig = NeuronConfig()
    describe: DescribeConfig = DescribeConfig()
    serve: ServeConfig = ServeConfig()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The file arrives as constructor arguments, so the environment goes first."""
        return env_settings, init_settings


def _refusal(error: ValidationError, *section: str) -> InvalidInputError:
    """The first fault of ``error``, with the dotted name of its field."""
    first = error.errors()[0]
    field = ".".join(str(part) for part in (*section, *first["loc"]))
    return InvalidInputError(f"configuration: {field}: {first['msg']}", field=field)


def _with_flags(config: Config, name: str, given: dict[str, Any]) -> Section:
    """One section with the values of its flags."""
    section: Section = getattr(config, name)
    values = {key: value for key, value in given.items() if value is not None}
    try:
        return type(section)(**(section.model_dump() | values))
    except ValidationError as error:
        raise _refusal(error, name) from error


def _refuse_unknown_sections() -> None:
    """Refuse variables of the environment that mean a section but name none.

    Pydantic passes over them in silence. The client has variables of its own
    (``VISION_SAE_ADDRESS``): they hold no ``__`` and begin with no section.
    """
    sections = list(Config.model_fields)
    prefix = str(Config.model_config["env_prefix"])
    for variable in sorted(os.environ):
        if not variable.upper().startswith(prefix):
            continue
        name, delimiter, _ = variable[len(prefix) :].lower().partition("__")
        begins = name.startswith(tuple(f"{section}_" for section in sections))
        if name not in sections and (delimiter or begins):
            nearest = difflib.get_close_matches(name, sections, n=1, cutoff=0)[0]
            raise InvalidInputError(
                f"configuration: environment variable {variable} names no section; the nearest "
                f"is {nearest} ({prefix}{nearest.upper()}__KEY)",
                field=name,
            )


def load_config(path: Path | None = None, **flags: dict[str, Any]) -> Config:
    """Read the configuration; ``flags`` are {section: {key: value}}, None meaning "not given"."""
    _refuse_unknown_sections()
    try:
        data = yaml.safe_load(path.read_text()) or {} if path else {}
        config = Config(**data)
    except ValidationError as error:
        raise _refusal(error) from error
    except (OSError, yaml.YAMLError, TypeError, ValueError) as error:
        source = path or "from the environment"
        raise InvalidInputError(f"configuration {source}: {error}", field="config") from error
    sections = {name: _with_flags(config, name, flags.get(name, {})) for name in dict(config)}
    return config.model_copy(update=sections)
