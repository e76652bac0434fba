"""The page in a real headless Chromium: pictures for a clip, a sentence for what is none, nothing from elsewhere."""

import json
import runpy
import socket
import sys
import time
from pathlib import Path

import chromium
import numpy as np
import pytest
import soundfile
from chromium import PATIENCE
from tones import speechlike, write_two_hours


pytest.importorskip("gradio", reason="the page needs gradio")
pytest.importorskip("selenium", reason="the browser is driven by selenium")

import gradio
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait


# Buttons and choices of the tab that reach beyond the box that they lie in.
CUT = """
    return [...document.querySelectorAll('button, select, label')].filter((node) => {
        if (!node.offsetParent || node.closest('.listen')) return false;
        const box = (node.closest('.block') || document.body).getBoundingClientRect();
        return node.getBoundingClientRect().right > Math.min(box.right, innerWidth) + 1;
    }).map((node) => node.textContent.trim());
"""
pytestmark = chromium.needed


@pytest.fixture
def address(pretrained, unit_folder, space, tmp_path, monkeypatch, capfd):
    """
    The page of a small checkpoint with a corpus of its units, served on a free port by its command; that in this
    process, which has imported it all, and does not wait where the command would.
    """
    pages, launch = [], gradio.Blocks.launch

    def launch_beside(page, **settings):
        pages.append(page)
        launch(page, prevent_thread_lock=True, **settings)

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setattr(gradio.Blocks, "launch", launch_beside)
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "uploads"))
    monkeypatch.setenv("SJEPA_CHECKPOINT", pretrained[0])
    options = ["--units", str(unit_folder.parent / "units"), "--host", "127.0.0.1", "--port", str(port)]
    monkeypatch.setattr(sys, "argv", ["app.py", *options])
    try:
        runpy.run_path(str(space / "app.py"), run_name="__main__")
        yield pages[0].local_url
    finally:
        for page in pages:
            page.close()
    assert "Traceback" not in "".join(capfd.readouterr())


@pytest.fixture
def browser(tmp_path):
    soundfile.write(tmp_path / "microphone.wav", speechlike(5.0, 48000), 48000)
    driver = chromium.start(
        tmp_path / "profile",
        "--window-size=1280,1400",
        "--autoplay-policy=no-user-gesture-required",
        "--use-fake-device-for-media-stream",
        "--use-fake-ui-for-media-stream",
        f"--use-file-for-fake-audio-capture={tmp_path / 'microphone.wav'}",
    )
    yield driver
    driver.quit()


def patiently(browser) -> WebDriverWait:
    return WebDriverWait(browser, PATIENCE, ignored_exceptions=[StaleElementReferenceException])


def wait_for(browser, selector: str, text: str = ""):
    """The first element of a selector that shows `text`."""

    def found(_):
        shown = browser.find_elements(By.CSS_SELECTOR, selector)
        return next((element for element in shown if text in element.text), None)

    return patiently(browser).until(found, f"{selector} with '{text}'")


def press(browser, selector: str, text: str) -> None:
    """Click what shows `text`; once more if the page drew it anew in between."""
    patiently(browser).until(lambda _: wait_for(browser, selector, text).click() or True)


def upload(browser, place: str, path: Path) -> None:
    """Give a file to the input of that name."""

    def input_of_files(_):
        return next(iter(browser.find_elements(By.CSS_SELECTOR, f"#{place} input[type=file]")), None)

    patiently(browser).until(input_of_files, place).send_keys(str(path))


def colours(browser, selector: str) -> int:
    """How many different colours the picture has, on a coarse grid of its pixels."""
    script = """
        const image = document.querySelector(arguments[0]);
        await image.decode();
        const canvas = document.createElement('canvas');
        canvas.width = 200; canvas.height = 150;
        const context = canvas.getContext('2d');
        context.drawImage(image, 0, 0, 200, 150);
        const data = context.getImageData(0, 0, 200, 150).data, seen = new Set();
        for (let i = 0; i < data.length; i += 4) seen.add(data[i] * 65536 + data[i + 1] * 256 + data[i + 2]);
        return seen.size;
    """
    return browser.execute_script(script, selector)


def severe(browser) -> list[str]:
    return [entry["message"] for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]


def addresses(browser) -> list[str]:
    """Where the page has sent requests to."""
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    sent = [m["params"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    return [p["request"]["url"] for p in sent if not p.get("documentURL", "").startswith("chrome:")]


def test_the_page_in_a_browser(address, browser, tmp_path):
    rng = np.random.default_rng(0)
    soundfile.write(tmp_path / "clip.wav", np.stack(2 * [speechlike(2.0, 44100)], 1), 44100)
    soundfile.write(tmp_path / "other.flac", 0.1 * rng.standard_normal(12000), 8000)
    (tmp_path / "notes.txt").write_text("no sound\n")
    (tmp_path / "empty.wav").touch()
    write_two_hours(tmp_path / "two_hours.wav")

    browser.get(address)
    wait_for(browser, "#one .hint", "Record or upload some speech")
    upload(browser, "file", tmp_path / "clip.wav")
    wait_for(browser, "#one h3", "clip.wav")
    assert colours(browser, "#one .sheet img") > 500 and colours(browser, "#one .below img") > 10
    assert "99 frames of 25 ms" in browser.find_element(By.ID, "one").text

    # The clip plays, and a line follows it; a click plays from there.
    picture, line = (browser.find_element(By.CSS_SELECTOR, f"#one {place}") for place in (".sheet img", ".line-x"))
    assert not line.is_displayed()
    above = -picture.size["height"] // 4  # in the middle of the spectrogram
    ActionChains(browser).move_to_element_with_offset(picture, 0, above).click().perform()
    patiently(browser).until(lambda _: line.is_displayed())
    now = "return document.querySelector('#one audio').currentTime"
    patiently(browser).until(lambda _: browser.execute_script(now) > 1.1)
    middle = picture.location["x"] + picture.size["width"] / 2
    assert line.location["x"] > middle

    # A click on a unit plays where it stands in the corpus, a button one segment of it; the clip falls silent.
    unit = browser.find_element(By.CSS_SELECTOR, "#one .unit:nth-child(5)")
    assert unit.get_attribute("title").startswith(f"unit {unit.get_attribute('data-unit')}: ")
    unit.click()
    wait_for(browser, "#unit h3", f"Unit {unit.get_attribute('data-unit')}")
    assert "of the 4 clips of" in browser.find_element(By.ID, "unit").text
    sound = "const sound = document.querySelector('#unit audio'); return "
    patiently(browser).until(lambda _: browser.execute_script(sound + "sound.currentTime > 0.1"))
    assert browser.execute_script("return document.querySelector('#one audio').paused")
    patiently(browser).until(lambda _: browser.execute_script(sound + "sound.paused"))
    end = browser.execute_script(sound + "sound.currentTime")
    browser.find_element(By.CSS_SELECTOR, "#unit .segment").click()
    patiently(browser).until(
        lambda _: browser.execute_script(sound + "sound.paused && sound.currentTime < arguments[0]", end)
    )

    for name, sentence in (
        ("notes.txt", "This file cannot be read as audio"),
        ("empty.wav", "This file is empty"),
    ):
        upload(browser, "file", tmp_path / name)
        wait_for(browser, "#one .notice", sentence)
        assert not browser.find_elements(By.CSS_SELECTOR, "#one img, #one audio")
    upload(browser, "file", tmp_path / "two_hours.wav")
    wait_for(browser, "#one .notice", "its first 60 s are shown")
    assert colours(browser, "#one .sheet img") > 500
    assert "Traceback" not in browser.page_source

    press(browser, "button", "Record")
    wait_for(browser, "button", "Stop")
    time.sleep(1.5)  # of speech into the microphone
    press(browser, "button", "Stop")
    wait_for(browser, "#one h3", "audio.wav")
    assert colours(browser, "#one .sheet img") > 500

    press(browser, "button", "Try clip.opus")
    wait_for(browser, "#one h3", "clip.opus")
    width = "return document.querySelector('#one .sheet').clientWidth"
    before = browser.execute_script(width)
    press(browser, "#zoom label", "4 x")
    patiently(browser).until(lambda _: (browser.execute_script(width) or 0) > 2 * before)

    press(browser, "button[role=tab]", "Two clips")
    upload(browser, "file-a", tmp_path / "clip.wav")
    upload(browser, "file-b", tmp_path / "other.flac")
    wait_for(browser, "#two h3", "other.flac")
    assert colours(browser, "#two .sheet img") > 500
    source = "return document.querySelector('#two .sheet img')?.src"
    before = browser.execute_script(source)
    press(browser, "#layer label", "Transformer input")
    patiently(browser).until(lambda _: browser.execute_script(source) not in (None, before))

    for narrow in (420, 360):
        size = {"width": narrow, "height": 1400, "deviceScaleFactor": 1, "mobile": True}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        patiently(browser).until(lambda _, narrow=narrow: browser.execute_script("return innerWidth") == narrow)
        patiently(browser).until(lambda _: browser.execute_script(CUT) == [], browser.execute_script(CUT))

    assert severe(browser) == []
    elsewhere = [url for url in addresses(browser) if not url.startswith((address, "data:", "blob:", "chrome:"))]
    assert elsewhere == []
