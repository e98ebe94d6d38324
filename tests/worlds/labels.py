"""Label stores of tests: on each database, with a clock that only the test moves."""

from __future__ import annotations

from dataclasses import dataclass

from vision_sae.descriptions.protocol import Description

PARENT = "dictionaries/a"
IDENTITY = "e" * 64


@dataclass
class Clock:
    """Seconds since 1970, as the test says."""

    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


def made(index: int, text: str | None, **rest: object) -> Description:
    """What a describer makes of a unit; None abstains."""
    values: dict[str, object] = {"describer": "caption-pmi", "describer_version": 3}
    return Description(index, text, "" if text else "too few", **(values | rest))  # type: ignore[arg-type]
