"""From pictures to a bundle: harvest, train, build.

The commands with these names call the same functions, so each can resume the other's work.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from vision_sae.activations.generations import harvest_generations, read_prompts
from vision_sae.activations.harvest import harvest as harvest_pictures
from vision_sae.activations.store import ActivationStore
from vision_sae.api.pictures import InMemory, PictureLike, Pictures, to_harvest
from vision_sae.api.subjects import loaded_on_all
from vision_sae.bundles.build import build as build_bundle
from vision_sae.bundles.read import Bundle
from vision_sae.config import (
    BuildConfig,
    HarvestConfig,
    TrainConfig,
    load_config,
    with_values,
)
from vision_sae.dictionaries.pipeline import splice, train_dictionary
from vision_sae.dictionaries.released.lookup import LoadedDictionary, load_dictionary
from vision_sae.errors import InvalidInputError
from vision_sae.models.names import check_sites
from vision_sae.models.noised import NoisedPictures
from vision_sae.models.protocol import Model
from vision_sae.pictures.folder import Picture, image_folder
from vision_sae.pictures.reading import Reading
from vision_sae.sections import Section

S = TypeVar("S", bound=Section)


def settings(kind: type[S], name: str, config: S | None, values: dict[str, Any]) -> S:
    """A section of the configuration, overridden by the arguments of a call; None overrides
    nothing.

    Without ``config`` the section comes from the environment and the defaults, as for commands.
    Raises `InvalidInputError` for a section of another kind.
    """
    start = getattr(load_config(), name) if config is None else config
    if not isinstance(start, kind):
        raise InvalidInputError(
            f"config is a {kind.__name__} here, not a {type(start).__name__}", field="config"
        )
    return with_values(start, name, values)


def harvest(
    pictures: PictureLike | Pictures,
    store: str | Path,
    *,
    model: Model | str | None = None,
    site: str | Sequence[str] | None = None,
    limit: int | None = None,
    captions: Sequence[str] = (),
    config: HarvestConfig | None = None,
    strict: bool = False,
    progress: bool = True,
    overwrite: bool = False,
    **further: Any,
) -> ActivationStore:
    """Run a model over pictures and publish the vectors of its sites (pictures, patches, D) as an
    ActivationStore at ``store``. The pass resumes after a stop; a finished store of the same work
    is returned unchanged.

    ``pictures`` is a folder, with the captions of its sidecar, or a list of files, pictures, arrays
    (H, W, 3) or tensors (3, H, W), with ``captions``. For a text-to-image model a text file holds
    prompts, one a line. ``model`` is a name (``demo:dinov2-s`` by default) or a loaded model,
    ``site`` is one site or several, ``limit`` the largest number of pictures, and ``further`` holds
    other fields of `HarvestConfig`. An unreadable file is skipped with a warning, or refused with
    ``strict``. A model that is named is loaded on every device of the setting, which take batches
    in turns (``using("cuda:0,cuda:1")``).

    Raises `NotFoundError`, `InvalidInputError`, and `AlreadyExistsError` for another store at that
    place, unless ``overwrite``.
    """
    name = model if model is None or isinstance(model, str) else model.name
    sites = (site,) if isinstance(site, str) else tuple(site) if site else None
    values = {"model": name, "sites": sites, "limit": limit} | further
    wanted = settings(HarvestConfig, "harvest", config, values)
    check_sites(wanted.sites)
    ready, *replicas = (
        loaded_on_all(wanted.model) if model is None or isinstance(model, str) else [model]
    )
    place = Path(store)
    if _is_prompts(pictures, ready):
        generator, *others = (
            each.generator for each in (ready, *replicas) if isinstance(each, NoisedPictures)
        )
        return harvest_generations(
            generator,
            read_prompts(Path(str(pictures))),
            place,
            wanted,
            replicas=others,
            progress=progress,
            overwrite=overwrite,
        )
    reading = Reading(strict)
    chosen = _pictures(pictures, captions, reading)
    if wanted.views > 1 and any(isinstance(picture, InMemory) for picture in chosen):
        raise InvalidInputError(
            "views are crops of files; save the pictures to a folder and give that", field="views"
        )
    result = harvest_pictures(
        ready,
        chosen,
        place,
        wanted,
        replicas=replicas,
        reading=reading,
        progress=progress,
        overwrite=overwrite,
    )
    for line in reading.details():
        warnings.warn(line, stacklevel=2)
    return result


def _is_prompts(pictures: PictureLike | Pictures, model: Model) -> bool:
    one_file = isinstance(pictures, str | Path) and not Path(pictures).is_dir()
    return one_file and isinstance(model, NoisedPictures)


def _pictures(
    pictures: PictureLike | Pictures, captions: Sequence[str], reading: Reading
) -> list[Picture]:
    if not isinstance(pictures, str | Path):
        return to_harvest(pictures, captions)
    if captions:
        raise InvalidInputError(
            "captions of a folder lie in its captions.jsonl or captions.csv; leave captions out",
            field="captions",
        )
    return image_folder(Path(pictures), reading)


def opened_store(store: ActivationStore | str | Path) -> ActivationStore:
    """Open the store at a path; an opened store is returned unchanged."""
    return store if isinstance(store, ActivationStore) else ActivationStore(Path(store))


def train(
    store: ActivationStore | str | Path,
    dictionary: str | Path,
    *,
    heldout: ActivationStore | str | Path | None = None,
    site: str | None = None,
    architecture: str | None = None,
    expansion: int | None = None,
    k: int | None = None,
    steps: int | None = None,
    batch_size: int | None = None,
    seed: int | None = None,
    images: str | Path | None = None,
    config: TrainConfig | None = None,
    progress: bool = True,
    overwrite: bool = False,
    **further: Any,
) -> LoadedDictionary:
    """Train a sparse autoencoder on a store, or fit another dictionary, and publish it at
    ``dictionary``. Training resumes after a stop; a finished dictionary of the same training is
    returned unchanged.

    The dictionary has ``expansion`` times D features (F, D), of which ``k`` fire on a patch. The
    metrics on the store ``heldout`` are in the result's ``manifest["metrics"]["heldout"]``.
    ``images`` is the folder of pictures for end-to-end training. ``further`` holds other fields of
    `TrainConfig`, which defines the defaults.

    Raises `NotFoundError`, `InvalidInputError`, and `AlreadyExistsError` for another dictionary at
    that place, unless ``overwrite``.
    """
    values = {
        "site": site,
        "architecture": architecture,
        "expansion": expansion,
        "k": k,
        "steps": steps,
        "batch_size": batch_size,
        "seed": seed,
    }
    wanted = settings(TrainConfig, "train", config, values | further)
    trained_on = opened_store(store)
    evaluation = {} if heldout is None else {"heldout": opened_store(heldout)}
    spliced = None if images is None else splice(trained_on, Path(images))
    train_dictionary(
        trained_on,
        Path(dictionary),
        wanted,
        evaluation,
        spliced=spliced,
        progress=progress,
        overwrite=overwrite,
    )
    return load_dictionary(Path(dictionary))


def build(
    store: ActivationStore | str | Path,
    dictionary: str | Path,
    bundle: str | Path,
    *,
    config: BuildConfig | None = None,
    progress: bool = True,
    overwrite: bool = False,
    **further: Any,
) -> Bundle:
    """Encode every patch of a store and publish a bundle: codes, statistics of the F features,
    exemplars, and an index of patches. A finished bundle of the same data is returned unchanged.

    ``dictionary`` is the path of a trained dictionary, or the name of a released one, whose labels
    the bundle then carries. ``further`` holds fields of `BuildConfig`.

    Raises `MismatchError` if store and dictionary do not belong together, `RecallTooLowError` if
    the recall of the index is too low, and `AlreadyExistsError` for another bundle at that place,
    unless ``overwrite``.
    """
    wanted = settings(BuildConfig, "build", config, further)
    return build_bundle(
        opened_store(store),
        dictionary,
        Path(bundle),
        wanted,
        progress=progress,
        overwrite=overwrite,
    )
