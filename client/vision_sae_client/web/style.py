"""The style of the page: system fonts and few colours."""

from __future__ import annotations

import gradio as gr


def theme() -> gr.themes.Base:
    """A theme with the fonts of the system, so that no font is fetched."""
    return gr.themes.Base(
        primary_hue="teal",
        neutral_hue="slate",
        font=("system-ui", "sans-serif"),
        font_mono=("ui-monospace", "monospace"),
    )


CSS = """
.gradio-container { --vs-quiet: color-mix(in srgb, var(--body-text-color) 68%, transparent); }
.gradio-container .html-container { padding: 0 !important; }
.gradio-container { max-width: 1180px !important; margin: 0 auto !important; }
.vs-heading h1 { font-size: 1.7rem; font-weight: 650; margin: .4rem 0 .2rem; }
.vs-heading p { max-width: 48rem; margin: 0; color: var(--vs-quiet); }
.vs-footer { color: var(--vs-quiet); font-size: .85rem; padding: 1rem 0; }
.vs-empty { border: 1px dashed var(--border-color-primary); border-radius: 10px; padding: 5rem 1rem;
  text-align: center; color: var(--vs-quiet); }
.vs-failure { border-left: 4px solid #c0392b; background: #c0392b18; border-radius: 6px;
  padding: 1rem; }
.vs-warning { border-left: 4px solid #d68910; background: #d6891018; padding: .5rem .8rem;
  border-radius: 6px; }
.vs-note, .vs-small, figcaption { color: var(--vs-quiet); font-size: .85rem; }
.vs-summary { display: grid; grid-template-columns: minmax(0, 3fr) minmax(0, 2fr); gap: 1.2rem;
  align-items: center; }
.vs-overview, .vs-heatmap, .vs-exemplar { margin: 0; }
.vs-overview img { width: 100%; max-height: 420px; object-fit: contain; border-radius: 8px; }
.vs-heatmap img { display: block; max-width: 100%; min-width: min(100%, 380px); max-height: 460px;
  border-radius: 8px; }
.vs-explained strong { font-size: 2rem; font-weight: 650; margin-right: .2rem; }
.vs-bar { display: block; height: 6px; border-radius: 3px; overflow: hidden; margin: .35rem 0;
  background: var(--border-color-primary); }
.vs-bar > span { display: block; height: 100%; background: var(--color-accent); }
.vs-small { line-height: 1.35; }
#vs-features h2, #vs-detail h2 { font-size: 1.15rem; font-weight: 650; margin: .4rem 0 .2rem; }
#vs-detail h3 { font-size: 1rem; font-weight: 600; margin: 1rem 0 .4rem; }
.vs-card { display: flex; gap: .7rem; align-items: center; width: 100%; text-align: left;
  padding: .5rem .6rem; margin: .3rem 0; border: 1px solid var(--border-color-primary);
  border-radius: 8px; background: var(--background-fill-primary); cursor: pointer;
  font-weight: 400; }
.vs-card:hover { border-color: var(--color-accent); }
.vs-card[aria-pressed=true] { border-color: var(--color-accent);
  box-shadow: inset 3px 0 0 var(--color-accent); }
.vs-chip { flex: none; width: .9rem; height: .9rem; border-radius: 50%; }
.vs-words { flex: 1; min-width: 0; }
.vs-words > span { display: block; }
.vs-label { font-weight: 600; }
.vs-guess { font-weight: 400; font-style: italic; color: var(--vs-quiet); cursor: help; }
.vs-abstained { font-style: italic; font-weight: 400; color: var(--vs-quiet); }
.vs-card .vs-abstained { font-size: .9rem; line-height: 1.3; }
.vs-thumbs { display: flex; gap: 3px; flex: none; }
.vs-thumbs img { width: 44px; height: 44px; object-fit: cover; border-radius: 5px; }
.vs-meaning { font-size: 1.05rem; margin: 0 0 .5rem; }
.vs-exemplars { display: grid; grid-template-columns: repeat(auto-fill, minmax(120px, 1fr));
  gap: .7rem; }
.vs-exemplar img { width: 100%; aspect-ratio: 1; object-fit: contain; border-radius: 6px;
  background: var(--background-fill-secondary); }
.vs-exemplar figcaption { line-height: 1.25; overflow-wrap: anywhere; }
@media (max-width: 700px) { .vs-summary { grid-template-columns: 1fr; } }
"""
