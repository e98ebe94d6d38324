"""The command doctor, which prints the facts that a bug report needs."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from vision_sae.cli.command import command
from vision_sae.exits import FAULT


@command()
def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Print what a bug report needs: versions, devices, memory, and whether files are whole.

    The output has nothing personal: no paths, no names of users or machines, no environment. The
    exit status is 1 if an installed part is broken.
    """
    from vision_sae.cli.diagnosis import diagnose, faults

    report = diagnose()
    typer.echo(json.dumps(report, indent=1) if as_json else "\n".join(_lines(report)))
    broken = faults(report)
    if broken:
        typer.secho(f"broken: {', '.join(broken)}", fg="red", err=True)
        raise typer.Exit(FAULT)


def _lines(report: dict[str, Any]) -> list[str]:
    """A line for each plain value, and an indented one for each entry of a table."""
    lines: list[str] = []
    for name, value in report.items():
        if isinstance(value, dict):
            lines.append(f"{name}:")
            lines += [f"  {key}: {entry}" for key, entry in value.items()]
        else:
            shown = ", ".join(map(str, value)) if isinstance(value, list) else value
            lines.append(f"{name}: {shown}")
    return lines
