"""The page in headless Chromium."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from emfast.segmentation.segmenter import Segmenter
from tests.emfast.server.serving import Server, encoded, sample, serving

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
# Where to keep pictures of the page, to look at them.
SHOTS = os.environ.get("EMFAST_SHOTS")


@pytest.fixture(scope="module")
def browser() -> Iterator[playwright.Browser]:
    if CHROMIUM is None:
        pytest.skip("needs chromium")
    with playwright.sync_playwright() as driver:
        # Inside containers root has no sandbox.
        options = ["--no-sandbox"] if os.geteuid() == 0 else []
        running = driver.chromium.launch(executable_path=CHROMIUM, args=options)
        yield running
        running.close()


@pytest.fixture
def page(browser: playwright.Browser, server: Server) -> Iterator[playwright.Page]:
    """The page, opened; whatever it complains of fails the test."""
    yield from opened(browser, server, width=1100)


def opened(
    browser: playwright.Browser, server: Server, **options: object
) -> Iterator[playwright.Page]:
    size = {"width": options.pop("width"), "height": 800}
    context = browser.new_context(viewport=size, **options)
    context.set_default_timeout(20_000)
    page = context.new_page()
    told: list[str] = []
    page.on("console", lambda message: check_message(message, told))
    page.on("pageerror", lambda error: told.append(str(error)))
    page.on("request", lambda request: check_address(request.url, server, told))
    page.goto(f"{server.url}/")
    playwright.expect(page.locator("#model")).to_contain_text("mitochondria")
    yield page
    context.close()
    assert told == []


def check_message(message: playwright.ConsoleMessage, told: list[str]) -> None:
    # The browser itself tells of every answer that is an error, and of canvases that tests read.
    usual = ("Failed to load resource", "willReadFrequently")
    if message.type in ("error", "warning") and not any(part in message.text for part in usual):
        told.append(message.text)


def check_address(url: str, server: Server, told: list[str]) -> None:
    if not url.startswith((server.url, "blob:", "data:")):
        told.append(f"asked {url}")


def done(page: playwright.Page) -> None:
    status = page.locator("#status")
    playwright.expect(status).to_contain_text("segmented in", timeout=60_000)
    playwright.expect(page.locator("#download")).to_have_attribute("href", re.compile("^blob:"))


def downloaded(page: playwright.Page) -> Image.Image:
    with page.expect_download() as download:
        page.locator("#download").click()
    return Image.open(download.value.path()).convert("L")


def coloured(page: playwright.Page) -> int:
    """Pixels of the picture that are no grey: those of the outline."""
    count = page.evaluate(
        """() => {
          const canvas = document.getElementById("picture");
          const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
          let count = 0;
          for (let i = 0; i < data.length; i += 4) count += data[i] !== data[i + 2];
          return count;
        }"""
    )
    assert isinstance(count, int)
    return count


def shot(page: playwright.Page, name: str) -> None:
    if SHOTS:
        page.screenshot(path=Path(SHOTS) / f"{name}.png", full_page=True)


def test_choose_slide_and_download(
    page: playwright.Page, segmenter: Segmenter, tmp_path: Path
) -> None:
    image = sample(300, 400)
    (tmp_path / "slice.png").write_bytes(encoded(image))
    page.locator("#file").set_input_files(tmp_path / "slice.png")
    done(page)
    probability = segmenter.probability(image[None])[0, 0]
    np.testing.assert_array_equal(np.asarray(downloaded(page)) > 0, probability >= 0.5)
    before = coloured(page)
    assert before > 100
    shot(page, "chosen")
    page.locator("#threshold").fill("230")
    playwright.expect(page.locator("#value")).to_have_text("0.898")
    page.wait_for_function("document.getElementById('share').textContent !== ''")
    page.wait_for_timeout(300)
    assert coloured(page) != before
    np.testing.assert_array_equal(np.asarray(downloaded(page)) > 0, probability >= 230 / 256)
    page.locator("#outlined").uncheck()
    page.wait_for_timeout(300)
    assert coloured(page) == 0


def test_drop_a_tiff(page: playwright.Page, tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "dropped.tif", sample(200, 300))
    content = list((tmp_path / "dropped.tif").read_bytes())
    transfer = page.evaluate_handle(
        """(bytes) => {
          const transfer = new DataTransfer();
          transfer.items.add(new File([new Uint8Array(bytes)], "dropped.tif"));
          return transfer;
        }""",
        content,
    )
    page.dispatch_event("#drop", "dragover", {"dataTransfer": transfer})
    assert page.locator("#drop.over").count() == 1
    page.dispatch_event("#drop", "drop", {"dataTransfer": transfer})
    done(page)
    playwright.expect(page.locator("#status")).to_contain_text(
        "dropped.tif, 300 \N{MULTIPLICATION SIGN} 200 pixels"
    )
    assert page.locator("#download").get_attribute("download") == "dropped-mask.png"


def test_keyboard_alone(page: playwright.Page) -> None:
    def focus() -> str:
        return str(page.evaluate("document.activeElement.id"))

    choosers: list[object] = []

    def keep(chooser: object) -> None:
        choosers.append(chooser)

    page.on("filechooser", keep)
    page.keyboard.press("Tab")
    assert focus() == "file"
    for _ in range(20):  # the browser may begin to tell of choosers after the first was opened
        page.keyboard.press("Enter")
        page.wait_for_timeout(200)
        if choosers:
            break
    assert choosers
    page.keyboard.press("Tab")
    assert focus() == "sample"
    page.keyboard.press("Enter")
    done(page)
    page.keyboard.press("Tab")
    assert focus() == "inverted"
    page.keyboard.press("Tab")
    assert focus() == "pixels"
    page.keyboard.press("Tab")
    assert focus() == "threshold"
    value = int(page.locator("#threshold").input_value())
    page.keyboard.press("ArrowRight")
    assert int(page.locator("#threshold").input_value()) == value + 1
    shot(page, "keyboard")
    page.keyboard.press("Tab")
    assert focus() == "outlined"
    page.keyboard.press("Space")
    assert not page.locator("#outlined").is_checked()
    page.keyboard.press("Tab")
    assert focus() == "download"
    with page.expect_download():
        page.keyboard.press("Enter")


def test_phone(browser: playwright.Browser, server: Server) -> None:
    for page in opened(
        browser, server, width=390, color_scheme="dark", device_scale_factor=2, has_touch=True
    ):
        shot(page, "phone-empty")
        page.locator("#sample").tap()
        done(page)
        for path in ("", "docs"):
            if path:
                shot(page, "phone")
                page.goto(f"{server.url}/{path}")
                playwright.expect(page.locator("h2").first).to_be_visible()
            widths = page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
            assert widths == [390, 390]
        shot(page, "phone-docs")


def test_mistakes_are_told(page: playwright.Page, tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no picture")
    with page.expect_response("**/v1/segment*"):
        page.locator("#file").set_input_files(tmp_path / "text.png")
    playwright.expect(page.locator("#status.wrong")).to_contain_text("Accepted: PNG, JPEG")
    assert page.locator("#result").is_hidden()
    page.locator("#sample").click()
    done(page)
    assert page.locator("#status.wrong").count() == 0


def test_docs(page: playwright.Page, server: Server) -> None:
    page.goto(f"{server.url}/docs")
    playwright.expect(page.locator("h2").first).to_have_text("POST /v1/segment")
    assert "threshold" in page.locator("table").first.inner_text()
    assert page.locator("pre").count() == 1
    shot(page, "docs")


def test_token_is_asked_for(browser: playwright.Browser, tmp_path: Path) -> None:
    with serving(tmp_path, EMFAST_TOKEN="sesame") as server:
        page = browser.new_page()
        page.goto(f"{server.url}/")
        page.locator("#token").fill("sesame")
        shot(page, "token")
        page.keyboard.press("Enter")
        playwright.expect(page.locator("#model")).to_contain_text("mitochondria")
        page.locator("#sample").click()
        done(page)
        assert page.locator("#access").is_hidden()
        page.close()
