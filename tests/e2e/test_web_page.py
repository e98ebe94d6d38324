"""The web page as a person meets it: headless Chromium, a real server, real pictures."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait
from vision_sae_client import Client

from tests.conftest import ServedBundle
from vision_sae.bundles.read import read_bundle
from vision_sae.demo import CORPUS
from vision_sae.v1.attribution_service_pb2 import ENCODE_ORDER_INFORMATIVE

pytestmark = pytest.mark.browser

PHOTOGRAPHS = CORPUS / "heldout" / "photographs"
PICTURE = sorted(PHOTOGRAPHS.glob("*.webp"))[0]
LOOPBACK = {"127.0.0.1", "localhost", "::1"}
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1280,1600",
)


@pytest.fixture(scope="module")
def looked_up() -> Iterator[set[str]]:
    """Every host that this process, Gradio in it, looks up."""
    hosts: set[str] = set()
    real = socket.getaddrinfo

    def recording(host, *args, **kwargs):
        hosts.add(host.decode() if isinstance(host, bytes) else str(host))
        return real(host, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket, "getaddrinfo", recording)
        yield hosts


@pytest.fixture(scope="module")
def page(served: ServedBundle, looked_up: set[str]) -> Iterator[str]:
    """The URL of the page in front of the served bundle."""
    from vision_sae_client.web import launch

    yield launch(served.address, examples_dir=PHOTOGRAPHS, port=0, prevent_thread_lock=True)
    import gradio

    gradio.close_all(verbose=False)


@pytest.fixture
def browser(page: str, tmp_path: Path) -> Iterator[webdriver.Chrome]:
    """A fresh Chromium on the page, which logs every request it makes."""
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        missing = "chromium and chromium-driver are not installed; run `make chromium` as root"
        pytest.fail(missing) if os.environ.get("CI") else pytest.skip(missing)
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (*FLAGS, f"--user-data-dir={tmp_path / 'profile'}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    with webdriver.Chrome(options=options, service=webdriver.ChromeService(driver)) as chrome:
        chrome.get(page)
        yield chrome


def seen(browser: webdriver.Chrome, selector: str) -> WebElement:
    """The first visible element, waited for."""

    def visible(chrome: webdriver.Chrome) -> WebElement | None:
        found = chrome.find_elements(By.CSS_SELECTOR, selector)
        return next((element for element in found if element.is_displayed()), None)

    return WebDriverWait(browser, 60, ignored_exceptions=()).until(visible, f"no {selector}")


def upload(browser: webdriver.Chrome, picture: Path) -> None:
    WebDriverWait(browser, 60).until(
        lambda chrome: chrome.find_elements(By.CSS_SELECTOR, "#vs-upload input[type=file]")
    )[0].send_keys(str(picture))


def loaded_width(browser: webdriver.Chrome, image: WebElement) -> int:
    """Pixels of a picture's width as the browser decoded it; 0 when it could not."""
    return browser.execute_script("return arguments[0].naturalWidth", image)


def test_an_uploaded_picture_is_explained_by_features(
    browser: webdriver.Chrome, served: ServedBundle
) -> None:
    with Client(served.address) as client:
        expected = client.encode(PICTURE, top_k=12, order=ENCODE_ORDER_INFORMATIVE)
    upload(browser, PICTURE)
    seen(browser, "#vs-features [data-rank]")
    cards = browser.find_elements(By.CSS_SELECTOR, "#vs-features [data-rank]")
    assert len(cards) == 12
    for card, item in zip(cards, expected.features, strict=True):
        assert f"feature {item.feature.index} ·" in card.text
        assert f"activation {item.max_activation:.2f}" in card.text
        description = item.feature.description
        said = description.text if description.HasField("text") else "abstained: "
        assert said in card.text
        assert card.find_elements(By.TAG_NAME, "img")
    overview = seen(browser, ".vs-overview img")
    assert loaded_width(browser, overview) == min(1024, expected.grid.image_width)
    share = re.search(r"(-?\d+)%", seen(browser, ".vs-explained").text)
    assert share is not None
    assert int(share[1]) == pytest.approx(100 * expected.explained_variance, abs=1)


def test_a_click_on_a_feature_shows_where_it_fires_and_what_else_fires_it(
    browser: webdriver.Chrome, tiny_bundle: Path
) -> None:
    upload(browser, PICTURE)
    card = seen(browser, "#vs-features [data-rank='3']")
    index = card.get_attribute("data-feature")
    first = seen(browser, ".vs-heatmap img").get_attribute("src")
    card.click()
    detail = seen(browser, f"#vs-detail [data-shown='{index}']")
    assert detail.find_element(By.TAG_NAME, "h2").text == f"Where feature {index} fires"
    heatmap = seen(browser, ".vs-heatmap img")
    assert heatmap.get_attribute("src") != first
    assert loaded_width(browser, heatmap) > 0
    exemplars = detail.find_elements(By.CSS_SELECTOR, ".vs-exemplar")
    fires_in = int(read_bundle(tiny_bundle).image_counts[int(index or "")])
    assert len(exemplars) >= min(3, fires_in) >= 1
    for exemplar in exemplars:
        assert loaded_width(browser, exemplar.find_element(By.TAG_NAME, "img")) > 16
        assert re.search(r"\d\.\d\d$", exemplar.text)
    pressed = browser.find_elements(By.CSS_SELECTOR, "#vs-features [aria-pressed='true']")
    assert [other.get_attribute("data-feature") for other in pressed] == [index]


def test_an_example_can_be_picked(browser: webdriver.Chrome) -> None:
    seen(browser, ".gallery-item, .gallery button").click()
    assert "activation" in seen(browser, "#vs-features [data-rank='0']").text


def test_a_broken_picture_is_refused_in_words(browser: webdriver.Chrome, tmp_path: Path) -> None:
    broken = tmp_path / "broken.webp"
    broken.write_bytes(PICTURE.read_bytes()[:2000])
    upload(browser, broken)
    assert "send the whole file" in seen(browser, "#vs-summary [role='alert']").text
    assert not browser.find_elements(By.CSS_SELECTOR, "#vs-features [data-rank]")


def test_no_request_leaves_the_machine(browser: webdriver.Chrome, looked_up: set[str]) -> None:
    upload(browser, PICTURE)
    seen(browser, "#vs-features [data-rank='1']").click()
    seen(browser, "#vs-detail .vs-exemplar img")
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    requested = [
        message["params"]["request"]["url"]
        for message in messages
        if message["method"] == "Network.requestWillBeSent"
    ] + [
        message["params"]["url"]
        for message in messages
        if message["method"] == "Network.webSocketCreated"
    ]
    web = [url for url in requested if urlsplit(url).scheme in ("http", "https", "ws", "wss")]
    assert len(web) > 10
    assert {urlsplit(url).hostname for url in web} <= LOOPBACK
    assert looked_up <= LOOPBACK
