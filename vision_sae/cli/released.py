"""Commands of released dictionaries: which there are, and fetching one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vision_sae.cli.command import Overwrite, command


@command()
def dictionaries(
    index: Annotated[
        str | None, typer.Option(help="URL or path of an index; what is here when absent.")
    ] = None,
) -> None:
    """List released dictionaries: those that ship and those that were fetched, or an index's."""
    from vision_sae.dictionaries.released.fetching import read_index
    from vision_sae.dictionaries.released.registry import fetched, shipped

    if index is None:
        listed = [(entry, "ships") for entry in shipped().values()]
        listed += [(entry, "fetched") for entry, _ in fetched()]
    else:
        listed = [(entry, f"{entry.bytes / 1e6:.1f} MB") for entry in read_index(index)]
    if not listed:
        typer.echo("no dictionaries; `vision-sae fetch NAME --index URL` fetches one")
        return
    rows = [("name", "width", "k", "EV", "labels", "")]
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
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for first, *others in rows:
        cells = [cell.rjust(w) for cell, w in zip(others[:-1], widths[1:], strict=False)]
        typer.echo("  ".join([first.ljust(widths[0]), *cells, others[-1]]).rstrip())


@command()
def fetch(
    name: Annotated[
        str, typer.Argument(help="demo:dinov2-s/blocks.10.update, hf-hub:ORG/NAME, ...")
    ],
    index: Annotated[
        str | None, typer.Option(help="https:// or file:// URL, or path, of the index it is in.")
    ] = None,
    to: Annotated[
        Path | None, typer.Option(help="Directory of the copy to make; in the cache when absent.")
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Copy or download a released dictionary, so that it can be loaded by its name."""
    from vision_sae.dictionaries.released.fetching import fetch as run
    from vision_sae.dictionaries.released.registry import shipped

    place = run(name, index=index, to=to, overwrite=overwrite)
    ships = " ships with the package" if to is None and name in shipped() else ""
    typer.echo(f"{name}{ships}: {place}")
