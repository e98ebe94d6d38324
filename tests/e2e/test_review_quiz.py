"""A blind quiz as a rater meets it: a file opened in headless Chromium, without a server."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

from vision_sae.labels.review.quiz_page import page
from vision_sae.labels.review.ratings import Answers, read_answers

pytestmark = pytest.mark.browser

LABEL = "</script><b>dog</b>"
QUIZ: dict[str, Any] = {
    "format": "vision_sae.review.quiz",
    "version": 1,
    "quiz": "abc",
    "questions": [
        {"id": "q1", "kind": "intruder", "pictures": ["a.jpg", "b.jpg", "c.jpg"]},
        {"id": "q2", "kind": "label", "pictures": ["a.jpg"], "labels": ["cat", LABEL]},
        {"id": "q3", "kind": "rating", "pictures": ["a.jpg"], "labels": [LABEL]},
    ],
}


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[webdriver.Chrome]:
    """Chromium on the page of `QUIZ`; what it downloads lands in ``tmp_path``."""
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        missing = "chromium and chromium-driver are not installed; run `make chromium` as root"
        pytest.fail(missing) if os.environ.get("CI") else pytest.skip(missing)
    (tmp_path / "quiz.json").write_text(json.dumps(QUIZ))
    (tmp_path / "quiz.html").write_text(page(QUIZ))
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run"):
        options.add_argument(flag)
    options.add_argument(f"--user-data-dir={tmp_path / 'profile'}")
    options.set_capability("unhandledPromptBehavior", "accept")  # "leave, answers not saved?"
    options.add_experimental_option("prefs", {"download.default_directory": str(tmp_path)})
    with webdriver.Chrome(options=options, service=webdriver.ChromeService(driver)) as chrome:
        chrome.get((tmp_path / "quiz.html").as_uri())
        yield chrome


def shown(browser: webdriver.Chrome, name: str) -> str:
    return str(browser.find_element(By.ID, name).text)


def press(browser: webdriver.Chrome, key: str) -> None:
    browser.find_element(By.TAG_NAME, "body").send_keys(key)


def test_a_person_answers_leaves_returns_and_downloads(
    browser: webdriver.Chrome, tmp_path: Path
) -> None:
    assert "does not belong" in shown(browser, "prompt")
    browser.find_elements(By.CSS_SELECTOR, "#pictures button")[2].click()
    assert [b.text for b in browser.find_elements(By.CSS_SELECTOR, "#options button")] == [
        "cat 1",
        f"{LABEL} 2",
    ]
    press(browser, "2")
    browser.find_element(By.ID, "rater").send_keys("ana1")  # digits there are no answers
    browser.get((tmp_path / "quiz.html").as_uri())
    assert shown(browser, "label") == LABEL
    assert shown(browser, "count") == "Question 3 of 3, 2 answered"
    press(browser, Keys.ARROW_LEFT)
    press(browser, "1")
    press(browser, "2")
    browser.find_element(By.ID, "save").click()
    file = tmp_path / "answers-ana1.json"
    WebDriverWait(browser, 30).until(lambda _: file.is_file())
    assert read_answers(file, tmp_path) == Answers("ana1", {"q1": 2, "q2": 0, "q3": "partly"})
