"""The contact sheet: label, judge, scores and exemplars of each feature."""

from __future__ import annotations

import html
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from vision_sae.bundles.read import Bundle
from vision_sae.descriptions.protocol import Description, Score
from vision_sae.evidence.bundle import BundleEvidence
from vision_sae.evidence.sources import Sources
from vision_sae.files import replacing
from vision_sae.labels.review.pictures import Album, marked, plain
from vision_sae.labels.review.quiz import FILES, PAGE
from vision_sae.labels.review.sample import Activity, Sample, across, described, present
from vision_sae.places import check_output_folder

SHEET = "index.html"

_STRONGEST = 5
_ACROSS = 5
_LOOK_ALIKES = 5
_STYLE = """
:root { color-scheme: light dark; --line: #8885; --yes: #15803d; --guess: #b45309; --none: #6b7280;
        font: 16px/1.45 system-ui, sans-serif }
@media (prefers-color-scheme: dark) { :root { --yes: #4ade80; --guess: #fbbf24; --none: #9ca3af } }
* { box-sizing: border-box }
body { max-width: 86rem; margin: 0 auto; padding: 1rem }
h1 { font-size: 1.6rem; margin: .2rem 0 }
h2 { font-size: 1.3rem; margin: 0; overflow-wrap: anywhere }
h3 { font-size: .85rem; font-weight: 600; margin: .8rem 0 .3rem }
article { border-top: 1px solid var(--line); padding: 1.1rem 0; display: grid; gap: 0 2rem;
          grid-template: auto 1fr / minmax(15rem, 23rem) minmax(0, 1fr) }
.pictures { grid-area: 1 / 2 / span 2 }
.quiet, figcaption, table { font-size: .85rem }
.quiet { opacity: .8; margin: .3rem 0 }
.mark { display: inline-block; font-size: .85rem; font-weight: 600; margin: .3rem 0;
        padding: 0 .6rem; border: 1px solid; border-radius: 1rem }
.confirmed { color: var(--yes) } .guess { color: var(--guess) } .none { color: var(--none) }
.none h2 { font-weight: 400; color: inherit }
table { border-collapse: collapse; margin-top: .4rem; width: 100%;
        font-variant-numeric: tabular-nums }
td, th { text-align: left; padding: .15rem .5rem .15rem 0; vertical-align: top; font-weight: 400;
         border-top: 1px solid var(--line) }
thead th { border: 0; opacity: .7 }
.row { display: grid; grid-template-columns: repeat(5, minmax(0, 1fr)); gap: .5rem }
h3:first-child { margin-top: 0 }
figure { margin: 0; min-width: 0 }
img { width: 100%; aspect-ratio: 1; object-fit: contain; border-radius: .35rem; display: block;
      background: #8882 }
figcaption { line-height: 1.25; margin-top: .2rem; overflow-wrap: anywhere }
figcaption span { display: -webkit-box; -webkit-line-clamp: 2; -webkit-box-orient: vertical;
                  overflow: hidden; opacity: .75 }
@media (max-width: 60rem) { article { grid-template: none / minmax(0, 1fr) }
                            .pictures { grid-area: auto }
                            h3:first-child { margin-top: .8rem } }
@media (max-width: 34rem) { .row { grid-template-columns: repeat(3, minmax(0, 1fr)) } }
"""


def write_sheet(bundle: Bundle, directory: Path, sample: Sample) -> Path:
    """Write ``index.html`` and its pictures into the folder of a review; return its path."""
    check_output_folder(directory, FILES, overwrite=True)
    maker = SheetMaker(bundle, Album(directory))
    path = directory / SHEET
    with replacing(path) as temporary:
        temporary.write_text(maker.page(sample), encoding="utf-8")
    return path


class SheetMaker:
    """Makes the sheet of one bundle."""

    def __init__(self, bundle: Bundle, album: Album) -> None:
        self.bundle, self.album = bundle, album
        self.evidence = BundleEvidence(bundle)
        self.sources = Sources(self.evidence)
        self.present = present(bundle)

    def page(self, sample: Sample) -> str:
        """The whole page."""
        articles = "".join(self._article(unit) for unit in sample.units)
        states = Counter(_state(described(self.bundle, unit)) for unit in sample.units)
        counts = (
            f"{_counted(states['confirmed'], 'label')} confirmed by an independent judge, "
            f"{_counted(states['guess'], 'guess', 'es')}, "
            f"{_counted(states['none'], 'feature')} without a label."
        )
        title = html.escape(f"Review of {self.bundle.name}")
        site = f"{self.bundle.manifest['model']['name']}, {self.bundle.site}"
        return (
            '<!doctype html><html lang="en"><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<title>{title}</title><style>{_STYLE}</style>"
            f'<h1>{title}</h1><p class="quiet">{html.escape(site)}; '
            f"{len(self.bundle.images):,} pictures.</p>"
            f"<p>{html.escape(sample.rule)} {counts}</p>"
            '<p class="quiet">Bright and outlined in yellow: where the feature fires. Under a '
            "picture are the activation, and the share of firing pictures with a weaker "
            "activation. Of several pictures from one source, one is shown.</p>"
            f'<p><b><a href="{PAGE}">Take the blind quiz</a></b> before you read on: this page '
            f"shows the answers.</p>{articles}</html>\n"
        )

    def _article(self, unit: int) -> str:
        description, activity = described(self.bundle, unit), Activity.of(self.evidence, unit)
        state = _state(description)
        share = float((activity.peaks[self.present] > 0).mean())
        return (
            f'<article id="feature-{unit}"><div class="{state}"><h2>{_title(description)}</h2>'
            f'<span class="mark {state}">{_mark(description)}</span></div>'
            f'<div><p class="quiet">Feature {unit}, fires in {_percent(share)} of '
            f"pictures{_author(description)}.</p>"
            f"{_scores(description.scores if description else ())}</div>"
            f'<div class="pictures">{self._pictures(activity)}</div></article>'
        )

    def _pictures(self, activity: Activity) -> str:
        ordered = activity.by_strength(self.sources, self.present)
        strongest = [int(image) for image in ordered[:_STRONGEST]]
        others = across(ordered[_STRONGEST:], _ACROSS)
        silent = self.evidence.look_alikes(activity.unit, _LOOK_ALIKES).tolist()
        return (
            _row("Strongest", (self._firing(activity, image) for image in strongest))
            + _row("Across the range", (self._firing(activity, image) for image in others))
            + _row("Silent, though they look alike", (self._plain(image) for image in silent))
        )

    def _firing(self, activity: Activity, image: int) -> str:
        firing = activity.firing(image)
        figures = f"{firing.activation:.3g} · {_percent(activity.stronger_than(image))}"
        return self._figure(self.album.add(marked(self.evidence, firing)), figures, image)

    def _plain(self, image: int) -> str:
        return self._figure(self.album.add(plain(self.evidence, image)), "silent", image)

    def _figure(self, address: str, figures: str, image: int) -> str:
        caption = html.escape(self.bundle.images[image].caption)
        return (
            f'<figure><img src="{address}" alt="{caption}" loading="lazy">'
            f'<figcaption>{figures}<span title="{caption}">{caption}</span></figcaption></figure>'
        )


def _state(description: Description | None) -> str:
    if description is None or description.text is None:
        return "none"
    return "guess" if description.is_guess else "confirmed"


def _title(description: Description | None) -> str:
    if description is None:
        return "not described yet"
    return html.escape(
        description.text
        if description.text is not None
        else description.abstained or "no reason given"
    )


def _mark(description: Description | None) -> str:
    if description is None or description.text is None:
        return "no label"
    return "guess" if description.is_guess else f"confirmed by {html.escape(description.judged_by)}"


def _author(description: Description | None) -> str:
    return f"; describer {html.escape(description.describer)}" if description else ""


def _row(title: str, figures: Iterable[str]) -> str:
    shown = "".join(figures)
    return f'<h3>{title}</h3><div class="row">{shown}</div>' if shown else ""


def _scores(scores: Iterable[Score]) -> str:
    rows = "".join(_score(score) for score in scores)
    if not rows:
        return '<p class="quiet">No scores.</p>'
    head = "".join(f"<th>{name}</th>" for name in ("score", "value, 95 %", "control", "judge", "n"))
    return f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"


def _score(score: Score) -> str:
    name = score.metric.replace("_", " ") + (f", {score.negatives}" if score.negatives else "")
    bounded = score.lower is not None and score.upper is not None
    between = f" ({score.lower:.2f} to {score.upper:.2f})" if bounded else ""
    control = "" if score.control is None else f"{score.control:.2f}"
    judge = score.judge or "not named"
    cells = (name, f"{score.value:.2f}{between}", control, judge, f"{score.n}")
    return "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells) + "</tr>"


def _counted(number: int, noun: str, plural: str = "s") -> str:
    return f"{number:,} {noun}{'' if number == 1 else plural}"


def _percent(share: float) -> str:
    return f"{share:.1%}" if 0 < share < 0.1 else f"{share:.0%}"
