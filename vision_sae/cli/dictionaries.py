"""Commands from pictures to dictionaries: harvest, train, sweep, import, export."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vision_sae.cli.command import Configuration, Overwrite, command
from vision_sae.cli.pictures import Strict, tell
from vision_sae.dictionaries.interop.format import FORMATS
from vision_sae.errors import InvalidInputError, NotFoundError, quoted
from vision_sae.places import check_output
from vision_sae.registries import ARCHITECTURES

_ARCHITECTURES = ", ".join(ARCHITECTURES.names)

_FOREIGN = ", ".join(FORMATS.names)


@command(computes=True, on_several=True)
def harvest(
    source: Annotated[
        Path,
        typer.Argument(
            help="Folder of pictures; or, for a text-to-image model, a text file of prompts."
        ),
    ],
    store: Annotated[Path, typer.Argument(help="Directory of the ActivationStore to make.")],
    model: Annotated[str | None, typer.Option(help="Model name or path.")] = None,
    site: Annotated[
        list[str] | None, typer.Option(help="Site to capture; may be repeated.")
    ] = None,
    store_dtype: Annotated[
        str | None, typer.Option(help="float16, bfloat16 or float32 on disk.")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images per forward pass.")] = None,
    limit: Annotated[
        int | None, typer.Option(help="Use only this many pictures, or prompts.")
    ] = None,
    views: Annotated[
        int | None, typer.Option(help="Views per picture: the picture and random crops.")
    ] = None,
    seeds: Annotated[int | None, typer.Option(help="Pictures generated per prompt.")] = None,
    text_aligned: Annotated[
        bool | None,
        typer.Option(
            "--text-aligned",
            help="Store patches in the text space, for search by text; contrastive models only.",
        ),
    ] = None,
    strict: Strict = False,
    overwrite: Overwrite = False,
    config: Configuration = None,
) -> None:
    """Run a model over pictures, or generate pictures, and store the vectors of its sites. Resumes
    after a stop."""
    from vision_sae.artifacts import STORE
    from vision_sae.cli import checks
    from vision_sae.config import load_config
    from vision_sae.models.names import check_sites
    from vision_sae.pictures.folder import image_folder
    from vision_sae.pictures.reading import Reading

    if store_dtype not in (None, "float16", "bfloat16", "float32"):
        raise InvalidInputError(
            f"--store-dtype (harvest.dtype) is float16, bfloat16 or float32, not "
            f"{quoted(store_dtype)}",
            field="store_dtype",
        )
    settings = load_config(
        config,
        harvest={
            "model": model,
            "sites": tuple(site) if site else None,
            "dtype": store_dtype,
            "batch_size": batch_size,
            "limit": limit,
            "views": views,
            "seeds": seeds,
            "text_aligned": text_aligned,
        },
    ).harvest
    check_sites(settings.sites)
    checks.check_exists(source, "folder of pictures, or file of prompts,", field="source")
    check_output(store, STORE.format, inputs=[source], field="store")
    reading = Reading(strict)
    pictures = image_folder(source, reading) if source.is_dir() else None
    if pictures is None:
        _check_drawn(source, settings.model)
    checks.check_models(settings.model)

    from vision_sae import devices
    from vision_sae.activations.generations import harvest_generations, read_prompts
    from vision_sae.activations.harvest import harvest as run
    from vision_sae.models.loading import load_generator, load_model

    if pictures is not None:
        loaded, *replicas = (load_model(settings.model, device=one) for one in devices.several())
        result = run(
            loaded,
            pictures,
            store,
            settings,
            replicas=replicas,
            reading=reading,
            overwrite=overwrite,
        )
    else:
        prompts, several = read_prompts(source), devices.several()
        generator, *further = (load_generator(settings.model, device=one) for one in several)
        result = harvest_generations(
            generator, prompts, store, settings, replicas=further, overwrite=overwrite
        )
    typer.echo(
        f"{store}: {result.manifest['images']} images, {result.rows} patches, "
        f"sites {', '.join(result.sites)}"
    )
    if source.is_dir():
        tell(reading)


@command(computes=True)
def train(
    store: Annotated[Path, typer.Argument(help="ActivationStore to train on.")],
    dictionary: Annotated[Path, typer.Argument(help="Directory of the dictionary to make.")],
    heldout: Annotated[
        Path | None, typer.Option(help="ActivationStore to measure the result on.")
    ] = None,
    site: Annotated[str | None, typer.Option(help="Site; needed when there are several.")] = None,
    architecture: Annotated[
        str | None, typer.Option(help=f"Architecture of the dictionary: {_ARCHITECTURES}.")
    ] = None,
    expansion: Annotated[int | None, typer.Option(help="Features per dimension.")] = None,
    k: Annotated[int | None, typer.Option("--k", help="Active features per patch.")] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="A setting of the architecture; a list as JSON. May be repeated.",
        ),
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Optimiser steps.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Patches per step.")] = None,
    ensemble: Annotated[str | None, typer.Option(help="bagging or boosting.")] = None,
    members: Annotated[int | None, typer.Option(help="Dictionaries of the ensemble.")] = None,
    end_to_end: Annotated[
        int | None, typer.Option(help="Further steps that train on the model's output.")
    ] = None,
    images: Annotated[
        Path | None, typer.Option(help="Folder of pictures for end-to-end training.")
    ] = None,
    strict: Strict = False,
    seed: Annotated[int | None, typer.Option(help="Random seed.")] = None,
    overwrite: Overwrite = False,
    config: Configuration = None,
) -> None:
    """Train a sparse autoencoder, or fit another dictionary. Resumes after a stop."""
    from vision_sae.artifacts import DICTIONARY, STORE
    from vision_sae.cli import checks
    from vision_sae.config import load_config
    from vision_sae.dictionaries.architectures import checked
    from vision_sae.pictures.reading import Reading
    from vision_sae.sections import parse_settings

    settings = load_config(
        config,
        train={
            "site": site,
            "architecture": architecture,
            "expansion": expansion,
            "k": k,
            "steps": steps,
            "batch_size": batch_size,
            "ensemble": ensemble,
            "members": members,
            "end_to_end": None if end_to_end is None else {"steps": end_to_end},
            "seed": seed,
        },
    ).train
    if set_:
        settings = settings.with_settings(settings.architecture, parse_settings(set_), "train")
    checks.check_training(store, dictionary, [settings])
    if heldout:
        STORE.manifest(heldout)
    inputs = [path for path in (store, heldout, images) if path]
    check_output(dictionary, DICTIONARY.format, inputs=inputs, field="dictionary")
    if images:
        checks.check_folder(images, "a folder of pictures", field="images")
        checks.check_models(STORE.manifest(store)["model"]["name"])
    settings = checked(settings)

    from vision_sae.activations.store import ActivationStore
    from vision_sae.dictionaries.pipeline import splice, train_dictionary

    opened = ActivationStore(store)
    evaluation = {"heldout": ActivationStore(heldout)} if heldout else {}
    reading = Reading(strict)
    spliced = splice(opened, images, reading) if images else None
    if images:
        typer.echo(reading.summary())  # before the hours that training takes
    metrics = train_dictionary(
        opened, dictionary, settings, evaluation, spliced=spliced, overwrite=overwrite
    )
    _show_metrics(metrics)
    if images:
        tell(reading)


def _check_drawn(source: Path, model: str) -> None:
    """Refuse a file of prompts for a model that does not generate pictures."""
    from vision_sae.models.names import check_generator

    try:
        check_generator(model)
    except NotFoundError as error:
        raise NotFoundError(
            f"{source} is not a folder, so it is read as a file of prompts; {error}", field="source"
        ) from error


def _show_metrics(metrics: dict[str, dict[str, float]]) -> None:
    for name, values in metrics.items():
        shown = " ".join(f"{key} {value:.4g}" for key, value in values.items())
        typer.echo(f"{name}: {shown}")


@command(computes=True)
def sweep(
    store: Annotated[Path, typer.Argument(help="ActivationStore to train on.")],
    out: Annotated[Path, typer.Argument(help="Directory of the trained dictionaries.")],
    heldout: Annotated[
        Path | None, typer.Option(help="ActivationStore to measure the results on.")
    ] = None,
    site: Annotated[str | None, typer.Option(help="Site; needed when there are several.")] = None,
    architecture: Annotated[
        list[str] | None,
        typer.Option(help=f"{_ARCHITECTURES}; may be repeated, like all below."),
    ] = None,
    expansion: Annotated[list[int] | None, typer.Option(help="Features per dimension.")] = None,
    k: Annotated[list[int] | None, typer.Option("--k", help="Active features per patch.")] = None,
    seed: Annotated[list[int] | None, typer.Option(help="Random seed.")] = None,
    steps: Annotated[int | None, typer.Option(help="Optimiser steps of each.")] = None,
    overwrite: Overwrite = False,
    config: Configuration = None,
) -> None:
    """Train every combination of the given settings on one pass over the data."""
    from itertools import product

    from vision_sae.artifacts import STORE
    from vision_sae.cli import checks
    from vision_sae.config import load_config
    from vision_sae.dictionaries.architectures import checked

    base = load_config(config).train
    settings = {}
    for choice in product(
        architecture or [base.architecture],
        expansion or [base.expansion],
        k or [base.k],
        seed or [base.seed],
    ):
        flags = dict(zip(("architecture", "expansion", "k", "seed"), choice, strict=True))
        name = "{architecture}-x{expansion}-k{k}-seed{seed}".format(**flags)
        settings[name] = load_config(config, train={"site": site, "steps": steps, **flags}).train
    checks.check_training(store, out, settings.values())
    if heldout:
        STORE.manifest(heldout)
    settings = {n: checked(each, beside=architecture or ()) for n, each in settings.items()}

    from vision_sae.activations.store import ActivationStore
    from vision_sae.dictionaries.pipeline import sweep as run

    evaluation = {"heldout": ActivationStore(heldout)} if heldout else {}
    results = run(ActivationStore(store), out, settings, evaluation, overwrite=overwrite)
    for name, metrics in results.items():
        typer.echo(out / name)
        _show_metrics(metrics)


@command("import", computes=True)  # a keyword, so the function has another name
def import_dictionary(
    source: Annotated[Path, typer.Argument(help="Checkpoint of another library: its directory.")],
    dictionary: Annotated[Path, typer.Argument(help="Directory of the dictionary to make.")],
    store: Annotated[
        Path, typer.Option(help="ActivationStore of the dictionary's model and site.")
    ],
    site: Annotated[str | None, typer.Option(help="Site; needed when there are several.")] = None,
    format: Annotated[
        str | None,
        typer.Option(help=f"Format of SOURCE, recognised from its files by default: {_FOREIGN}."),
    ] = None,
    ignore_setting: Annotated[
        list[str] | None,
        typer.Option(
            help="Unknown setting of SOURCE that does not change its arithmetic; may be repeated."
        ),
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Publish a dictionary that another library trained, and measure it on a store."""
    from vision_sae.artifacts import STORE, site_of
    from vision_sae.cli.checks import check_exists

    check_exists(source, "checkpoint", field="source")
    site_of(STORE.manifest(store)["sites"], site)

    from vision_sae.activations.store import ActivationStore
    from vision_sae.dictionaries.interop.exchange import import_dictionary as run

    manifest = run(
        source,
        dictionary,
        ActivationStore(store),
        site=site,
        format=format,
        ignored=ignore_setting or (),
        overwrite=overwrite,
    )
    shown = " ".join(f"{key} {value:.4g}" for key, value in manifest["metrics"]["store"].items())
    typer.echo(
        f"{dictionary}: {manifest['dictionary']['width']} features from "
        f"{manifest['training']['imported_from']}, {manifest['dictionary']['architecture']}, "
        f"{shown}"
    )
    if short := manifest["training"].get("vectors_short_of_k"):
        typer.echo(
            f"{short} vectors have fewer positive features than k: in saev, negative features fire "
            "there, and here they do not"
        )


@command()
def export(
    dictionary: Annotated[Path, typer.Argument(help="Trained dictionary.")],
    out: Annotated[Path, typer.Argument(help="New directory to write.")],
    format: Annotated[
        str, typer.Option(help=f"Format to write, one of {_FOREIGN} that can be written.")
    ] = "saelens",
    overwrite: Overwrite = False,
) -> None:
    """Write a dictionary in the format of another library."""
    from vision_sae.cli.checks import check_dictionary

    check_dictionary(dictionary)

    from vision_sae.dictionaries.interop.exchange import export_dictionary

    export_dictionary(dictionary, out, format, overwrite=overwrite)
    typer.echo(f"{out}: {format}")
