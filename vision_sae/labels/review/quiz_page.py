"""The page of a quiz: one file that works from a folder, without a server or a network.

The page holds the questions without the key. A person's answers stay in the browser's storage until
they are downloaded.
"""

from __future__ import annotations

import json
from typing import Any

from vision_sae.statistics.ratings import RATINGS

ANSWERS_FORMAT = "vision_sae.review.answers"
ANSWERS_VERSION = 1


def page(quiz: dict[str, Any]) -> str:
    """The page that asks the questions of ``quiz.json``."""
    # A caption may hold anything, and "<" inside a script could end the script.
    data = json.dumps(quiz, ensure_ascii=False).replace("<", "\\u003c")
    settings = {
        "format": ANSWERS_FORMAT,
        "version": ANSWERS_VERSION,
        "ratings": list(reversed(RATINGS)),
    }
    return (
        _PAGE.replace("/*STYLE*/", _STYLE)
        .replace("/*SCRIPT*/", _SCRIPT)
        .replace("/*SETTINGS*/", json.dumps(settings))
        .replace("/*QUIZ*/", data)
    )


_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Blind quiz</title>
<style>/*STYLE*/</style>
<header>
  <label>Your name <input id="rater" autocomplete="off" maxlength="64" placeholder="ana"></label>
  <span id="count"></span>
  <button id="save" type="button">Download answers</button>
</header>
<progress id="progress" value="0" max="1"></progress>
<main>
  <h1 id="prompt"></h1>
  <p id="label"></p>
  <div id="pictures"></div>
  <div id="options"></div>
  <p id="hint"></p>
</main>
<footer>
  <button id="back" type="button">&larr; Back</button>
  <button id="next" type="button">Next &rarr;</button>
  <span id="note" role="status"></span>
</footer>
<noscript>This quiz needs JavaScript.</noscript>
<script id="quiz" type="application/json">/*QUIZ*/</script>
<script id="settings" type="application/json">/*SETTINGS*/</script>
<script>/*SCRIPT*/</script>
</html>
"""

_STYLE = """
:root { color-scheme: light dark; --line: #8886; --accent: #2563eb;
        font: 16px/1.45 system-ui, sans-serif }
* { box-sizing: border-box }
body { max-width: 62rem; margin: 0 auto; padding: .75rem }
header, footer { display: flex; flex-wrap: wrap; gap: .6rem 1rem; align-items: center }
#save { margin-left: auto }
input, button { font: inherit; padding: .4rem .7rem; border: 1px solid var(--line);
                border-radius: .5rem; background: transparent; color: inherit }
input { width: 9rem }
button { cursor: pointer }
button:disabled { opacity: .4; cursor: default }
progress { width: 100%; height: .4rem; margin: .75rem 0; accent-color: var(--accent) }
h1 { font-size: 1.25rem; margin: .5rem 0 }
#label { font-size: 1.5rem; font-weight: 600; margin: .25rem 0 .75rem; overflow-wrap: anywhere }
#label:empty { display: none }
#pictures { display: grid; gap: .6rem;
            grid-template-columns: repeat(auto-fill, minmax(min(10rem, 45%), 1fr)) }
#pictures.one { grid-template-columns: minmax(0, 26rem) }
#pictures button, #pictures div { padding: .3rem; border-radius: .6rem; position: relative }
#pictures button { border: 2px solid var(--line) }
img { width: 100%; aspect-ratio: 1; object-fit: contain; border-radius: .4rem; display: block }
kbd { font: .85rem system-ui, sans-serif; border: 1px solid var(--line); border-radius: .3rem;
      padding: 0 .35rem; margin-right: .5rem }
#pictures kbd { display: inline-block; margin: .3rem 0 0 }
#options { display: flex; flex-wrap: wrap; gap: .6rem; margin-top: 1rem }
#options button { flex: 1 1 8rem; padding: .8rem; font-size: 1.1rem; border-width: 2px;
                  overflow-wrap: anywhere }
button.chosen { border-color: var(--accent) !important;
                background: color-mix(in srgb, var(--accent) 18%, transparent) }
#hint, #count, #note { font-size: .9rem; opacity: .75 }
footer { margin-top: .5rem }
"""

_SCRIPT = r"""
"use strict";
const read = (id) => JSON.parse(document.getElementById(id).textContent);
const at = (id) => document.getElementById(id);
const quiz = read("quiz"), settings = read("settings"), questions = quiz.questions;
const place = "vision_sae.review." + quiz.quiz;
const prompts = {
  intruder: ["Which picture does not belong with the others?",
             "Compare their bright parts, with a yellow outline. One of them is a stranger."],
  label: ["Which label fits these pictures better?",
          "Look at their bright parts, with a yellow outline."],
  rating: ["Does this label hold for the bright part of the picture?",
           "Partly: it holds for some of it, or nearly. The dark rest is there to tell what it is "
           + "part of, and does not count."],
};
let state = { rater: "", at: 0, answers: {} };
try { state = Object.assign(state, JSON.parse(localStorage.getItem(place) || "{}")); } catch {}
let saved = true;

function keep() {
  try { localStorage.setItem(place, JSON.stringify(state)); }
  catch { at("note").textContent = "This browser keeps nothing: download before you leave."; }
}

function element(name, text) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  return made;
}

function choice(number, answer, content) {
  const button = element("button");
  button.type = "button";
  button.append(...content, element("kbd", String(number)));
  button.classList.toggle("chosen", state.answers[questions[state.at].id] === answer);
  button.addEventListener("click", () => answered(answer));
  return button;
}

function picture(address, number) {
  const image = element("img");
  image.src = address;
  image.alt = "picture " + number;
  return image;
}

function choices(question) {
  if (question.kind === "rating") return settings.ratings;
  return (question.kind === "label" ? question.labels : question.pictures).map((_, i) => i);
}

function show() {
  const question = questions[state.at], byPicture = question.kind === "intruder";
  [at("prompt").textContent, at("hint").textContent] = prompts[question.kind];
  at("label").textContent = question.kind === "rating" ? question.labels[0] : "";
  const pictures = question.pictures.map((address, i) => {
    if (byPicture) return choice(i + 1, i, [picture(address, i + 1)]);
    const box = element("div");
    box.append(picture(address, i + 1));
    return box;
  });
  at("pictures").replaceChildren(...pictures);
  at("pictures").classList.toggle("one", pictures.length === 1);
  const texts = question.kind === "rating" ? settings.ratings : question.labels;
  at("options").replaceChildren(...(byPicture ? [] : choices(question).map(
    (answer, i) => choice(i + 1, answer, [element("span", texts[i] + " ")]))));
  const done = Object.keys(state.answers).length;
  at("count").textContent =
    `Question ${state.at + 1} of ${questions.length}, ${done} answered`;
  at("progress").max = questions.length;
  at("progress").value = done;
  at("back").disabled = state.at === 0;
  at("next").disabled = state.at === questions.length - 1;
  at("note").textContent = done === questions.length
    ? "All questions are answered: download your answers." : "";
}

function go(step) {
  state.at = Math.min(Math.max(state.at + step, 0), questions.length - 1);
  keep();
  show();
}

function answered(answer) {
  state.answers[questions[state.at].id] = answer;
  saved = false;
  go(1);
}

function save() {
  const rater = at("rater").value.trim();
  if (!/^[A-Za-z0-9][A-Za-z0-9._-]*$/.test(rater)) {
    at("note").textContent = "Give a name of letters, digits, dots and dashes first.";
    at("rater").focus();
    return;
  }
  const file = { format: settings.format, version: settings.version, quiz: quiz.quiz,
                 rater, answers: state.answers };
  const link = element("a");
  link.href = URL.createObjectURL(
    new Blob([JSON.stringify(file, null, 1) + "\n"], { type: "application/json" }));
  link.download = `answers-${rater}.json`;
  link.click();
  URL.revokeObjectURL(link.href);
  saved = true;
}

at("rater").value = state.rater;
at("rater").addEventListener("input", (event) => { state.rater = event.target.value; keep(); });
at("save").addEventListener("click", save);
at("back").addEventListener("click", () => go(-1));
at("next").addEventListener("click", () => go(1));
addEventListener("keydown", (event) => {
  if (event.target.tagName === "INPUT" || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "ArrowLeft") go(-1);
  else if (event.key === "ArrowRight") go(1);
  else {
    const options = choices(questions[state.at]), number = Number(event.key) - 1;
    if (event.key >= "1" && number < options.length) answered(options[number]);
  }
});
addEventListener("beforeunload", (event) => { if (!saved) event.preventDefault(); });
state.at = Math.min(state.at, questions.length - 1);
if (questions.length) show();
else at("prompt").textContent = "There is nothing to ask: no label, and too few pictures.";
"""
