"""The configuration: one frozen, validated object, from a YAML file, the environment and flags.

Precedence, highest first: command-line flags, environment (``VISION_SAE_TRAIN__STEPS=500``), the
file named by ``--config``, the defaults below. Unknown keys are refused.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeAlias, TypeVar

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from vision_sae.devices import Dtype, check_device
from vision_sae.errors import InvalidInputError
from vision_sae.registries import ARCHITECTURES, DESCRIBERS, SCORES
from vision_sae.registry import Registry
from vision_sae.sections import Section, SectionsByKind, refusal

Count: TypeAlias = Annotated[int, Field(ge=1, le=2**31 - 1)]
"""A number of things, at least one."""
_FLOAT32 = 1e30
"""A bound well within the range of float32, in which learners compute."""
Weight: TypeAlias = Annotated[float, Field(ge=0, le=_FLOAT32)]
"""The weight of a term of a loss."""
Seed: TypeAlias = Annotated[int, Field(ge=0, le=2**32 - 1)]
"""A seed of random numbers, in the range that every library accepts."""


class HarvestConfig(Section):
    """Pictures -> ActivationStore."""

    model: str = "demo:dinov2-s"
    """Name or path of the model; see `vision_sae.models.names`."""
    sites: tuple[str, ...] = Field(("blocks.10.update",), min_length=1)
    """Sites captured in one pass."""
    dtype: Literal["float16", "bfloat16", "float32"] = "float16"
    """Precision on disk. Vectors too large or too small for float16 are refused, never stored
    wrong: bfloat16 stores such vectors with fewer digits, float32 in twice the space."""
    batch_size: int = Field(8, ge=1, le=4096)
    """Pictures per forward pass. A small batch suits a CPU, where each core runs its own pass in
    its cache; a large batch suits an accelerator."""
    shard_images: int = Field(128, ge=1, le=65536)
    """Pictures per shard: the unit of checksums and of resuming."""
    thumbnail: int = Field(160, ge=16, le=1024)
    """Longer side of the pictures kept as evidence, in pixels."""
    limit: Count | None = None
    """Use this many evenly spaced pictures; all pictures when absent."""
    views: int = Field(1, ge=1, le=1000)
    """Views of each picture: the picture and random crops of it, as more data to train on."""
    seeds: int = Field(1, ge=1, le=100_000)
    """Pictures that a text-to-image model generates for each prompt."""
    text_aligned: bool = False
    """Store a vector of each patch in the text embedding space too, so that text can search for
    patches; only with a contrastive model."""


class EndToEndConfig(Section):
    """Further training, by the effect of reconstructions on the model's output."""

    steps: int = Field(0, ge=0, le=2**31 - 1)
    """Steps after the training on the store; 0 by default."""
    images: Count = 8
    """Pictures per step."""
    error_weight: Weight = 0.1
    """Weight of the reconstruction error; the distance of the model's outputs has weight 1."""


class TrainConfig(SectionsByKind):
    """ActivationStore -> Dictionary.

    The settings of a single architecture stand in a section under the architecture's name
    (``matryoshka``). A module of `vision_sae.dictionaries.kinds` defines the section, and is
    imported when the configuration holds it.
    """

    site: str | None = None
    """Site of the store to train on; required if the store has several sites."""
    architecture: str = "topk"
    """The kind of dictionary: a name of `vision_sae.registries.ARCHITECTURES`."""
    expansion: int = Field(16, ge=1, le=1024)
    """Features per input dimension: F = expansion * D. Fitted architectures (neurons, pca, nmf,
    semi_nmf, kmeans) determine the number of features themselves; of this section they use only
    site, k and seed."""
    k: Count = 32
    """Active features per patch; an average in batch_topk, and the target to which the penalty's
    weight is steered in relu, jumprelu and gated."""
    steps: Count = 500
    batch_size: Count = 4096
    """Patches per step."""
    learning_rate: float = Field(2e-3, gt=0, le=_FLOAT32)
    warmup: float = Field(0.05, ge=0, le=1)
    """Share of the steps over which the learning rate rises linearly from 0."""
    decay: float = Field(0.4, ge=0, le=1)
    """Share of the steps, at the end, over which the learning rate falls linearly to 0."""
    dead_after: int = Field(200_000, ge=1, le=2**62)
    """A feature is dead if it has not fired for this many patches."""
    aux_coefficient: Weight = 1 / 32
    """Weight of AuxK's loss."""
    sparsity: Weight | None = None
    """Weight of the sparsity penalty of relu, jumprelu and gated; steered to L0 = k when absent."""
    orthogonality: Weight = 0.0
    """Weight of OrtSAE's penalty on similar decoder rows."""
    ensemble: Literal["none", "bagging", "boosting"] = "none"
    """Several dictionaries as one: bagging trains them independently, boosting trains each on the
    residual of the members before."""
    members: int = Field(1, ge=1, le=64)
    """Number of dictionaries in the ensemble, trained from the seeds ``seed``, ``seed + 1``, ..."""
    agreement: Weight = 0.0
    """Weight of mutual feature regularisation between the members of bagging."""
    end_to_end: EndToEndConfig = EndToEndConfig()
    shuffle_mb: Count = 512
    """Memory for the shuffling buffers, in MiB."""
    shuffle_seed: Seed = 0
    """Seed of the order of the patches."""
    checkpoint_steps: Count = 100
    seed: Seed = 0
    """Seed of the initial directions."""

    @classmethod
    def kinds(cls) -> Registry[Any]:
        """The architectures."""
        return ARCHITECTURES

    @field_validator("architecture")
    @classmethod
    def _architecture_is_registered(cls, name: str) -> str:
        ARCHITECTURES.check(name)
        return name

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
    """Pictures kept per feature, by their strongest patch."""
    quantile_exemplars: int = Field(8, ge=0, le=1000)
    """Further exemplars per feature, spread over its activation quantiles."""
    mask_quantile: float = Field(0.5, ge=0, le=1)
    """Exemplar masks: patches above this quantile of the feature's non-zero values."""
    recall_floor: float = Field(0.95, ge=0, le=1)
    """A patch index with a lower recall@10 against exact search is not published."""
    index_type: Literal["auto", "flat", "ivf-sq8", "ivf-rabitq"] = "auto"
    """The patch index: exact, with rows of 8 bits, or with coarse codes that are refined. With auto
    the types are tried on the patches, and the fastest above ``recall_floor`` is taken."""
    index_gib: float = Field(16.0, gt=0)
    """The most GiB of a patch index."""
    index_shard_rows: Count = 4_000_000
    """Patches in one file of the patch index, which is built in memory."""


class NeuronConfig(Section):
    """Model + pictures -> evidence of raw neurons."""

    sites: tuple[str, ...] = Field(("blocks.*.mlp",), min_length=1)
    """Sites, or patterns of their names."""
    mask_quantile: float = Field(0.99, ge=0, le=1)
    """Masks: firing patches above this quantile of all the unit's activations."""
    batch_size: int = Field(16, ge=1, le=4096)
    """Pictures per forward pass."""
    thumbnail: int = Field(160, ge=16, le=1024)
    """Longer side of the pictures kept as evidence, in pixels."""
    checkpoint_batches: Count = 64
    """Batches between checkpoints."""


class DescribeConfig(SectionsByKind):
    """Bundle, or neurons -> labels.

    Each describer has a section here by its name (``milan``, ``caption_pmi``), which its module in
    `vision_sae.descriptions.describers` defines. That module is imported when the section is given.
    """

    describer: str = "grounded"
    """The method that makes labels. ``grounded`` looks labels up in captions and pixels, and needs
    no other model."""
    clip: str = "demo:clip"
    """The contrastive model, which the ``contrastive`` describer and all scores use."""
    metrics: tuple[str, ...] = ("detection_auc", "fuzzing_auc")
    """Scores of every label, measured by the contrastive model on pictures that the describer has
    not seen. The scores are shown with a label, and decide whether to keep it where captions and
    pixels cannot verify it. Without metrics, all labels are kept as guesses, however bad they are.
    Labels that are grounded, by effects or of scenes have other tests."""

    @classmethod
    def kinds(cls) -> Registry[Any]:
        """The describers."""
        return DESCRIBERS

    @field_validator("describer")
    @classmethod
    def _is_a_describer(cls, name: str) -> str:
        DESCRIBERS.check(name)
        return name

    @field_validator("metrics")
    @classmethod
    def _can_be_measured(cls, metrics: tuple[str, ...]) -> tuple[str, ...]:
        known = [m.name for kind in SCORES if kind.measure for m in kind.metrics] if metrics else []
        for metric in metrics:
            if metric not in known:
                raise ValueError(
                    f"{metric!r} cannot be measured of a text; choose from {', '.join(known)}"
                )
        return metrics


LogLevel = Literal["debug", "info", "warning", "error"]


class ServeConfig(Section):
    """Bundles -> gRPC."""

    host: str = "127.0.0.1"
    """IPv4 or IPv6 address to bind; only this machine reaches 127.0.0.1 and ::1."""
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
    """Waiting and running requests beyond which new ones are refused with RESOURCE_EXHAUSTED."""
    max_queue_bytes: int = Field(256 * 2**20, ge=1, le=2**62)
    """Total bytes of waiting and running requests."""
    max_batch: Count = 8
    """Waiting pictures that a model encodes together, where batching does not change results."""
    max_stream_items: Count = 8
    """Items of one stream that are processed at a time."""
    labels: str | None = None
    """The label database, for labels and label jobs: a file, or a URL (postgresql://...). When
    absent, labels are lost when the server stops."""
    clip: str | None = None
    """Contrastive model for scores, search by meaning, and every describer but caption-pmi; none
    when absent. The section ``describe`` configures the making of labels, except its ``clip``."""
    devices: dict[str, str] = Field(default_factory=dict)
    """{name of a model: the device that it computes on}; the setting ``device`` where absent. With
    several GPUs, as cuda:0,cuda:1, each has a replica of the model, and a call takes a free one."""
    neurons: tuple[Path, ...] = ()
    """Evidence of raw neurons of the served models, which jobs may label."""
    caller_key: str | None = Field(None, pattern=r"^[a-z0-9_.-]+$")
    """Metadata key, such as x-forwarded-user, in which an authenticating proxy names the caller:
    the author of an edit, the creator of a job. Use it only behind such a proxy, because any client
    can send the key."""
    drain_seconds: float = Field(10.0, ge=0)
    """Seconds that a stopping server waits for accepted calls to finish."""
    log_level: LogLevel = "info"
    """The lowest severity that is logged. Texts that callers send are never logged."""

    @field_validator("devices")
    @classmethod
    def _are_devices(cls, devices: dict[str, str]) -> dict[str, str]:
        return {model: check_device(device) for model, device in devices.items()}


class Config(BaseSettings):
    """The whole configuration."""

    model_config = SettingsConfigDict(
        frozen=True,
        extra="forbid",
        env_prefix="VISION_SAE_",
        env_nested_delimiter="__",
        use_attribute_docstrings=True,
    )

    device: str = "auto"
    """Where commands compute: cpu, cuda, cuda:N, mps, or auto for the first GPU with room, else
    Apple's GPU, else the CPU."""
    dtype: Dtype = "auto"
    """The precision of matrix products: float32, bfloat16, float16 (on GPUs only, and not in
    training), or auto for the device's fastest of float32 and bfloat16."""

    harvest: HarvestConfig = HarvestConfig()
    train: TrainConfig = TrainConfig()
    build: BuildConfig = BuildConfig()
    neurons: NeuronConfig = NeuronConfig()
    describe: DescribeConfig = DescribeConfig()
    serve: ServeConfig = ServeConfig()

    @field_validator("device")
    @classmethod
    def _is_a_device(cls, device: str) -> str:
        return check_device(device)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The environment, then the file, which arrives as constructor arguments."""
        return env_settings, init_settings


S = TypeVar("S", bound=Section)


def with_values(section: S, name: str, values: Mapping[str, Any]) -> S:
    """A copy of the section called ``name`` with other ``values``; None means "unchanged".

    Raises `InvalidInputError`, with the dotted name of the field, for an unknown field or a value
    that the field does not accept.
    """
    changed = {key: value for key, value in values.items() if value is not None}
    if not changed:
        return section
    try:
        return type(section)(**(section.model_dump(exclude_unset=True) | changed))
    except ValidationError as error:
        raise refusal(error, name) from error


def _refuse_unknown_sections() -> None:
    """Raise `InvalidInputError` for an environment variable that misspells a section's name.

    Pydantic ignores such variables silently. The client's variables (``VISION_SAE_ADDRESS``) are
    allowed: they contain no ``__`` and do not begin with the name of a section.
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
    """Read the configuration; ``flags`` are {section: {key: value}}, where None means "absent"."""
    _refuse_unknown_sections()
    try:
        data = yaml.safe_load(path.read_text()) or {} if path else {}
        config = Config(**data)
    except ValidationError as error:
        raise refusal(error) from error
    except (OSError, yaml.YAMLError, TypeError, ValueError) as error:
        source = path or "from the environment"
        raise InvalidInputError(f"configuration {source}: {error}", field="config") from error
    sections = {
        name: with_values(section, name, flags.get(name, {}))
        for name, section in config
        if isinstance(section, Section)
    }
    return config.model_copy(update=sections)
