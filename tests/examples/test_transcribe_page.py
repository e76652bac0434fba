"""The page that transcribes, in a real headless Chromium with onnxruntime-web as npm has it: what Python gives."""

import shutil
import subprocess
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import chromium
import numpy as np
import pytest
import soundfile


pytest.importorskip("onnx", reason="the export needs onnx")
pytest.importorskip("onnxscript", reason="the export needs onnxscript")
pytest.importorskip("onnxruntime", reason="the page is held against onnxruntime in Python")
pytest.importorskip("selenium", reason="the browser is driven by selenium")

from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait


EXAMPLES = Path(__file__).parents[2] / "examples"
RUNTIME = "onnxruntime-web@1.30.0"
pytestmark = [chromium.needed, pytest.mark.skipif(not shutil.which("npm"), reason=f"npm is needed for {RUNTIME}")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """The page with onnxruntime-web beside it, and no model yet."""
    folder = tmp_path_factory.mktemp("web")
    command = ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", RUNTIME]
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=90)
    except subprocess.TimeoutExpired:
        pytest.skip(f"npm did not get {RUNTIME} within 90 s")
    if done.returncode:
        pytest.skip(f"npm cannot get {RUNTIME} here: {(done.stderr.splitlines() or ['no reason given'])[0]}")
    shutil.copy(EXAMPLES / "transcribe_onnx.html", folder)
    return folder


@pytest.fixture
def page(folder, tmp_path):
    """A browser that has opened the page, and the folder that is served."""

    class Silent(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Silent, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    browser = chromium.start(tmp_path / "profile")
    try:
        yield browser, f"http://127.0.0.1:{server.server_port}/transcribe_onnx.html"
    finally:
        browser.quit()
        server.shutdown()
        server.server_close()


@pytest.fixture(scope="module")
def model(folder, exports) -> Path:
    """A recogniser with random weights, large enough for its letters to change, beside the page."""
    return Path(shutil.copy(exports("stem", "ctc").path, folder / "asr.onnx"))


def said(browser, unlike: tuple[str, ...]) -> str:
    """What the page says once it is none of these."""

    def text(_):
        found = browser.find_element(By.ID, "text").get_property("textContent")
        return None if found in unlike else [found]

    return WebDriverWait(browser, chromium.PATIENCE).until(text)[0]


def test_the_page_says_what_the_python_example_says(page, model, tmp_path):
    browser, address = page
    browser.get(address)
    assert said(browser, ("The model is being opened.",)) == "Choose a clip."
    noise = np.random.default_rng(0)
    clips = {"mono": 0.1 * noise.standard_normal(30000), "stereo": 0.1 * noise.standard_normal((20000, 2))}
    clips["shorter than a frame"] = 0.1 * noise.standard_normal(300)
    before = "Choose a clip."
    for name, samples in clips.items():
        path = tmp_path / f"{name}.wav"
        soundfile.write(path, samples, 16000, subtype="FLOAT")
        command = [sys.executable, str(EXAMPLES / "run_onnx.py"), str(model), str(path)]
        wanted = subprocess.run(command, capture_output=True, text=True, check=True).stdout.removesuffix("\n")
        assert wanted != before and (len(samples) < 400 or len(wanted) > 5)
        browser.find_element(By.ID, "clip").send_keys(str(path))
        assert said(browser, (before, "...")) == wanted, name
        before = wanted
    (tmp_path / "text.wav").write_text("no sound")
    browser.find_element(By.ID, "clip").send_keys(str(tmp_path / "text.wav"))
    assert said(browser, (before, "...")).startswith("This clip cannot be transcribed: ")


def test_without_a_model_the_page_says_so(page, model):
    browser, address = page
    away = model.rename(model.with_name("away.onnx"))
    try:
        browser.get(address)
        found = said(browser, ("The model is being opened.",))
    finally:
        away.rename(model)
    assert found == "The model cannot be opened: asr.onnx does not lie beside this page."


def test_what_is_no_ctc_model_is_said(page, model):
    browser, address = page
    kept = model.read_bytes()
    try:
        for content in (kept.replace(b'"ctc"', b'"any"'), b"no model"):
            model.write_bytes(content)
            browser.get(address)
            found = said(browser, ("The model is being opened.",))
            assert found.startswith("The model cannot be opened: asr.onnx is not an exported CTC model: python -m")
    finally:
        model.write_bytes(kept)
