"""Commands of released dictionaries: dictionaries, fetch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vision_sae.cli.command import Overwrite, command
from vision_sae.tables import table


@command()
def dictionaries(
    index: Annotated[
        str | None,
        typer.Option(help="URL or path of an index; dictionaries on this machine by default."),
    ] = None,
) -> None:
    """List released dictionaries: shipped and fetched ones, or those of an index."""
    from vision_sae.dictionaries.released.fetching import read_index
    from vision_sae.dictionaries.released.lookup import fetched, shipped

    if index is None:
        listed = [(entry, "ships") for entry in shipped().values()]
        listed += [(entry, "fetched") for entry, _ in fetched()]
    else:
        listed = [(entry, f"{entry.bytes / 1e6:.1f} MB") for entry in read_index(index)]
    if not listed:
        typer.echo("no dictionaries; `vision-sae fetch NAME --index URL` fetches one")
        return
    header, rows = ("name", "width", "k", "EV", "labels", ""), list[tuple[str, ...]]()
    for entry, where in listed:
        variance = entry.explained_variance
        rows.append(
            (
                entry.name,
                str(entry.width),
                "-" if entry.k is None else str(entry.k),
                "-" if variance is None else f"{variance:.3f}",
                str(entry.labelled),
                where,
            )
        )
    typer.echo(table(header, rows, right={1, 2, 3, 4}, rule=False))


@command()
def fetch(
    name: Annotated[
        str, typer.Argument(help="demo:dinov2-s/blocks.10.update, hf-hub:ORG/NAME, ...")
    ],
    index: Annotated[
        str | None,
        typer.Option(help="https:// or file:// URL, or path, of the dictionary's index."),
    ] = None,
    to: Annotated[
        Path | None, typer.Option(help="Directory of the copy; in the cache by default.")
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Copy or download a released dictionary, so that it can be loaded by its name."""
    from vision_sae.dictionaries.released.fetching import fetch as run
    from vision_sae.dictionaries.released.lookup import shipped

    place = run(name, index=index, to=to, overwrite=overwrite)
    ships = " ships with the package" if to is None and name in shipped() else ""
    typer.echo(f"{name}{ships}: {place}")
