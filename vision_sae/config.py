"""The configuration: one frozen, validated object, from a YAML file, the environment and flags.

Precedence, highest first: command-line flags, environment (``VISION_SAE_TRAIN__STEPS=500``), the
file named by ``--config``, the defaults below. Unknown keys are refused.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from vision_sae.errors import InvalidInputError


class Section(BaseModel):
    """A part of the configuration."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class HarvestConfig(Section):
    """Images -> ActivationStore."""

    model: str = "demo:dinov2-s"
    """Name or path of the model; see `vision_sae.models.registry`."""
    sites: tuple[str, ...] = Field(("blocks.10.update",), min_length=1)
    """Sites captured in one pass."""
    dtype: Literal["float16", "bfloat16"] = "float16"
    """Precision on disk."""
    batch_size: int = Field(16, ge=1, le=4096)
    """Images per forward pass."""
    shard_images: int = Field(128, ge=1, le=65536)
    """Pictures per shard: the unit of checksums and of resuming."""
    thumbnail: int = Field(160, ge=16, le=1024)
    """Longer side of the pictures kept as evidence, in pixels."""
    limit: int | None = Field(None, ge=1)
    """Use an evenly spaced choice of this many pictures; all when absent."""


class TrainConfig(Section):
    """ActivationStore -> Dictionary."""

    site: str | None = None
    """Site of the store to train on; may be absent when the store has only one."""
    expansion: int = Field(16, ge=1, le=1024)
    """Features per input dimension: F = expansion * D."""
    k: int = Field(32, ge=1)
    """Active features per patch."""
    steps: int = Field(500, ge=1)
    batch_size: int = Field(4096, ge=1)
    """Patches per step."""
    learning_rate: float = Field(1e-3, gt=0)
    warmup: float = Field(0.05, ge=0, le=1)
    """Share of the steps over which the learning rate rises linearly from 0."""
    decay: float = Field(0.4, ge=0, le=1)
    """Share of the steps, at the end, over which it falls linearly to 0."""
    dead_after: int = Field(200_000, ge=1)
    """A feature is dead when it has not fired for this many patches."""
    aux_coefficient: float = Field(1 / 32, ge=0)
    """Weight of AuxK's loss."""
    shuffle_mb: int = Field(512, ge=1)
    """Memory that the shuffling buffer may take."""
    checkpoint_steps: int = Field(100, ge=1)
    seed: int = 0


class BuildConfig(Section):
    """ActivationStore + Dictionary -> Bundle."""

    exemplars: int = Field(24, ge=1, le=1000)
    """Images kept per feature by their strongest patch."""
    quantile_exemplars: int = Field(8, ge=0, le=1000)
    """Further exemplars per feature, spread over its activation quantiles."""
    mask_quantile: float = Field(0.5, ge=0, le=1)
    """Exemplar masks: patches above this quantile of the feature's non-zero values."""
    recall_floor: float = Field(0.9, ge=0, le=1)
    """A patch index with a lower recall@10 against exact search is not published."""


class DescribeConfig(Section):
    """Bundle -> descriptions."""

    describer: Literal["caption-pmi"] = "caption-pmi"
    words: int = Field(3, ge=1, le=10)
    """The most words in a label."""
    significance: float = Field(0.01, gt=0, lt=1)
    """Largest corrected p-value a word may have."""


class ServeConfig(Section):
    """Bundles -> gRPC."""

    host: str = "127.0.0.1"
    port: int = Field(50051, ge=0, le=65535)
    """0 chooses a free port."""
    metrics_port: int | None = Field(None, ge=0, le=65535)
    """Port of the Prometheus endpoint, on the same host; none when absent."""
    max_image_bytes: int = Field(16 * 2**20, ge=1)
    max_image_pixels: int = Field(50_000_000, ge=1)
    max_message_bytes: int = Field(20 * 2**20, ge=1024)
    max_queue: int = Field(64, ge=1)
    """Requests waiting or running before new ones are refused with RESOURCE_EXHAUSTED."""
    max_queue_bytes: int = Field(256 * 2**20, ge=1)
    """Their bytes together."""
    drain_seconds: float = Field(10.0, ge=0)
    """How long a stopping server lets accepted calls finish."""


class Config(BaseSettings):
    """Everything that can be set."""

    model_config = SettingsConfigDict(
        frozen=True, extra="forbid", env_prefix="VISION_SAE_", env_nested_delimiter="__"
    )

    harvest: HarvestConfig = HarvestConfig()
    train: TrainConfig = TrainConfig()
    build: BuildConfig = BuildConfig()
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


def load_config(path: Path | None = None, **flags: dict[str, Any]) -> Config:
    """Read the configuration; ``flags`` are {section: {key: value}}, None meaning "not given"."""
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
